"""Put measured figures where people read them: tables in the README, curves as pictures. Nothing is typed by hand.

    python -m bench.report

Takes the newest line of each name in ``bench/results/sft_real.jsonl``. A test holds the README to it.
"""

import json
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / "bench" / "results" / "sft_real.jsonl"
FIGURE = CHECKOUT / "docs" / "figures" / "sft_real.png"
START, END = "<!-- figures: python -m bench.report -->", "<!-- end of figures -->"


def newest() -> dict[str, dict[str, Any]]:
    """The newest result of each name."""
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return {line["name"]: line for line in lines}


def section() -> str:
    """The part of the README that holds figures."""
    results = newest()
    rows = [
        "| model, method | steps | seconds | peak memory | validation loss before | after |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, line in results.items():
        r = line["result"]
        rows.append(
            f"| {name} | {r['steps']} | {r['seconds']:.0f} | {r['peak_memory_bytes'] / 2**20:.0f} MiB "
            f"| {r['val_loss_before']:.3f} | {r['val_loss_after']:.3f} |"
        )
    line = next(iter(results.values()))
    where = f"{line['threads']} CPU threads ({line['machine']}), torch {line['torch']}, {line['date']}"
    return "\n".join([*rows, "", f"Measured on {where} by `python -m bench.sft_real`.", ""])


def with_section(readme: str) -> str:
    """The README with its figures replaced by the newest."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{section()}{END}{after}"


def draw() -> None:
    """The loss curves as one picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, line in newest().items():
        r = line["result"]
        (curve,) = axes.plot(*zip(*r["curve"], strict=True), label=f"{name}, training")
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
