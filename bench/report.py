"""Put measured figures where people read them: tables in the README, curves as pictures. Nothing is typed by hand.

    python -m bench.report

Takes the newest line of each name in ``bench/results/recipes.jsonl``, and of each case of the kernels. A test holds
the README to it.
"""

import json
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
KERNELS = ("attention", "linear_cross_entropy", "cross_entropy", "glu", "rope", "decode_attention")
WIDE = 110
"""Characters of an answer that are shown."""
KERNELS_START, KERNELS_END = "<!-- kernels: python -m bench.report -->", "<!-- end of kernels -->"
RESULTS = CHECKOUT / "bench" / "results" / "recipes.jsonl"
FIGURE = CHECKOUT / "docs" / "figures" / "recipes.png"
START, END = "<!-- figures: python -m bench.report -->", "<!-- end of figures -->"


def newest() -> dict[str, dict[str, Any]]:
    """The newest result of each name."""
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return {line["name"]: line for line in lines}


def section() -> str:
    """The part of the README that holds figures."""
    results = newest()
    rows = [
        "| recipe | steps | seconds | peak memory | validation loss before | after |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, line in results.items():
        r = line["result"]
        rows.append(
            f"| `{name}` | {r['steps']} | {r['seconds']:.0f} | {r['peak_memory_bytes'] / 2**20:.0f} MiB "
            f"| {r['val_loss_before']:.3f} | {r['val_loss_after']:.3f} |"
        )
    line = next(iter(results.values()))
    where = f"{line['threads']} CPU threads ({line['machine']}), torch {line['torch']}, {line['date']}"
    text = [*rows, "", f"Measured on {where} by `python -m bench.recipes`. What they answer to the same question:", ""]
    text += ["```text", f"asked    {line['texts']['prompt']}"]
    for name, line in results.items():
        text += [f"{name}", f"  before {line['texts']['before'][:WIDE]}", f"  after  {line['texts']['after'][:WIDE]}"]
    return "\n".join([*text, "```", ""])


# Operation, case, direction, and whom it is compared with: the first of those that took part.
SHOWN = (
    ("attention", "Llama-3-8B B4 T4096 H32 K8 D128 causal", "forward", ("SDPA cuDNN",)),
    ("attention", "Llama-3-8B B4 T4096 H32 K8 D128 causal", "backward", ("SDPA cuDNN",)),
    ("attention", "Llama-3-8B B1 T16384 H32 K8 D128 causal", "forward", ("SDPA cuDNN",)),
    ("attention", "Llama-3-8B B1 T16384 H32 K8 D128 causal", "backward", ("SDPA cuDNN",)),
    ("attention", "Llama-3-8B B1 T32768 H32 K8 D128 causal", "both", ("SDPA cuDNN",)),
    ("linear_cross_entropy", "Llama-3.2-1B N8192 C2048 V128256 full 100 % trained", "both", ("eager",)),
    ("linear_cross_entropy", "Llama-3.2-1B N8192 C2048 V128256 full 30 % trained", "both", ("eager",)),
    ("linear_cross_entropy", "Llama-3-8B N8192 C4096 V128256 frozen head 100 % trained", "both", ("eager",)),
    ("cross_entropy", "N4096 V128256", "both", ("eager",)),
    ("glu", "8192 x 14336 silu", "both", ("builtin",)),
    ("rope", "Llama-3-8B B4 T4096 H32 K8 D128", "both", ("eager",)),
    ("decode_attention", "Llama-3-8B B32 S4096 H32 K8 D128", "forward", ("SDPA as dispatched",)),
)


def kernels_section() -> str:
    """The part of the README that holds the kernels' figures."""
    lines = [
        "| operation | case | direction | ours | | beside | | memory ours | beside |",
        "|---|---|---|--:|--:|---|--:|--:|--:|",
    ]
    rows: list[dict[str, Any]] = []
    for operation in KERNELS:
        path = CHECKOUT / "bench" / "results" / f"{operation}.jsonl"
        rows += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {(r["operation"], r["case"], r.get("direction"), r["contestant"]): r for r in rows}
    for operation, case, direction, others in SHOWN:
        ours = found[operation, case, direction, "ours"]
        name = next(name for name in others if (operation, case, direction, name) in found)
        other = found[operation, case, direction, name]
        lines.append(
            f"| {operation} | {case} | {direction} | {_rate(ours)} | {100 * ours['of_ceiling']:.0f} % | {name} "
            f"| {_rate(other)} | {ours['peak_bytes'] / 2**20:.0f} MiB | {other['peak_bytes'] / 2**20:.0f} MiB |"
        )
    r = found[SHOWN[0][0], SHOWN[0][1], SHOWN[0][2], "ours"]
    where = f"{r['device']}, bfloat16, torch {r['torch']}, Triton {r['triton']}, {r['date']}"
    note = "The percentages are of what the machine reached in a large product, or a large copy, in the same run. "
    note += "Each row of the results names its commit"
    return "\n".join([*lines, "", f"Measured on an {where} by `python -m bench.ops`. {note}.", ""])


def _rate(row: dict[str, Any]) -> str:
    scale, unit = (1e12, "TFLOP/s") if row["unit"] == "flops" else (1e9, "GB/s")
    return f"{row['rate'] / scale:.0f} {unit}"


def with_section(readme: str) -> str:
    """The README with its figures replaced by the newest."""
    for start, end, text in ((START, END, section()), (KERNELS_START, KERNELS_END, kernels_section())):
        before, _, rest = readme.partition(start)
        _, _, after = rest.partition(end)
        readme = f"{before}{start}\n{text}{end}{after}"
    return readme


def draw() -> None:
    """The loss curves as one picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, line in newest().items():
        r = line["result"]
        (curve,) = axes.plot(*zip(*line["curve"], strict=True), label=f"{name}, training")
        ends = [(0, r["val_loss_before"]), (r["steps"], r["val_loss_after"])]
        axes.plot(*zip(*ends, strict=True), "o--", color=curve.get_color(), alpha=0.6, label="validation")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per trained token)")
    axes.grid(alpha=0.3)
    axes.legend()
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110, metadata={"Software": None})


def main() -> None:
    """Write the README's figures and the picture."""
    readme = CHECKOUT / "README.md"
    readme.write_text(with_section(readme.read_text(encoding="utf-8")), encoding="utf-8")
    draw()


if __name__ == "__main__":
    main()
