"""Run every step of docs/kernels.md, compare each with its formula in float64, and print what it moves and computes.

    python docs/kernels_steps/run.py           print the tables
    python docs/kernels_steps/run.py --write   put them into docs/kernels.md
    python docs/kernels_steps/run.py --check   exit with 1 where that page has other ones

On the CPU, in Triton's interpreter: nothing is timed here. What the kernels that ship reach on a GPU is read from
bench/results.
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # read by Triton at its import

import difflib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import attention_steps as attention
import minitune_kernels
import rms_norm_steps as rms_norm
import torch
from counting import Counts, counted_kernels, counted_operations
from minitune_kernels.rms_norm import _rms_norm_backward
from torch import Tensor

from minitune.ops.attention import attention as attention_truth
from minitune.ops.norms import rms_norm as rms_norm_truth
from minitune.ops.norms import rms_norm_backward as rms_norm_backward_truth

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs" / "kernels.md"
N, C, EPS = 64, 256, 1e-5
T, D = 256, 32
ERROR = 1e-5


class Step(NamedTuple):
    """One row of a table."""

    name: str
    run: Callable[[], Any]
    formula: bool = False  # in PyTorch, not in Triton


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def counted(step: Step, truth: tuple[Tensor, ...]) -> Counts:
    """Run a step, compare, and return its counts; RuntimeError where it is wrong."""
    with counted_operations() if step.formula else counted_kernels() as counts:
        result = step.run()
    results = result if isinstance(result, tuple) else (result,)
    for got, right in zip(results, truth, strict=True):
        error = float((got.double() - right).abs().max() / right.abs().max())
        if not error < ERROR:
            raise RuntimeError(f"{step.name}: off by {error:.2g} of the largest number")
    return counts


def norm_table(steps: list[Step], truth: tuple[Tensor, ...], least: float) -> list[str]:
    """Elements moved, in units of N C."""
    lines = ["| step | read | written | together | of the least |", "|---|--:|--:|--:|--:|"]
    for step in steps:
        counts = counted(step, truth)
        read, written = (b / (4 * N * C) for b in (counts.read_bytes, counts.written_bytes))
        both = read + written
        lines.append(f"| {step.name} | {read:.2f} | {written:.2f} | {both:.2f} | {both / least:.2f} |")
    return lines


def norm_forward() -> list[str]:
    x, w = normal(N, C, seed=0), 1 + normal(C, seed=1)
    steps = [
        Step("1 the formula", lambda: rms_norm.forward_formula(x, w, EPS), formula=True),
        Step("2 a program a row", lambda: rms_norm.forward_row(x, w, EPS)),
        Step("3 a program 8 rows", lambda: rms_norm.forward_tile(x, w, EPS, rows=8)),
        Step("what ships", lambda: minitune_kernels.rms_norm(x, w, eps=EPS)),
    ]
    return norm_table(steps, (rms_norm_truth(x.double(), w.double(), eps=EPS),), least=2)


def norm_backward() -> list[str]:
    x, w, dy = normal(N, C, seed=0), 1 + normal(C, seed=1), normal(N, C, seed=2)
    rstd = torch.rsqrt((x * x).mean(-1) + EPS)
    steps = [
        Step("1 the formula", lambda: rms_norm.backward_formula(dy, x, w, EPS), formula=True),
        Step("2 a program a row, atomic sums", lambda: rms_norm.backward_atomic(dy, x, w, EPS)),
        Step("3 a few programs, a partial sum each", lambda: rms_norm.backward_partial(dy, x, w, EPS)),
        Step("what ships", lambda: _rms_norm_backward(dy, None, x, w, rstd, 0.0, False, True)),
    ]
    return norm_table(steps, rms_norm_backward_truth(dy.double(), x.double(), w.double(), eps=EPS), least=3)


def attention_forward() -> list[str]:
    q, k, v = (normal(T, D, seed=seed) for seed in range(3))
    row = [x.double()[None, :, None] for x in (q, k, v)]
    ships = partial(minitune_kernels.attention, *(x[None, :, None] for x in (q, k, v)))
    steps = [
        Step("1 the formula", lambda: attention.formula(q, k, v), formula=True),
        Step("2 a program a query", lambda: attention.row(q, k, v)),
        Step("3 a program 32 queries", lambda: attention.tile(q, k, v, stop=False, apart=False)),
        Step("4 stop at the diagonal", lambda: attention.tile(q, k, v, stop=True, apart=False)),
        Step("5 mask the diagonal only", lambda: attention.tile(q, k, v, stop=True, apart=True)),
        Step("6 64 queries", lambda: attention.tile(q, k, v, 64, stop=True, apart=True)),
        Step("what ships", lambda: ships()[0, :, 0]),
    ]
    lines = ["| step | read KiB | written KiB | MFLOP | exponentials | masked |", "|---|--:|--:|--:|--:|--:|"]
    for step in steps:
        c = counted(step, (attention_truth(*row)[0, :, 0],))
        flops = f"{c.product_flops / 1e6:.1f}" if c.product_flops else "no products"
        lines.append(
            f"| {step.name} | {c.read_bytes / 1024:,.0f} | {c.written_bytes / 1024:,.0f} | {flops} | "
            f"{c.exponentials:,} | {c.masked:,} |"
        )
    return lines


def results(name: str) -> list[dict[str, Any]]:
    text = (CHECKOUT / "bench" / "results" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


MEASURED = (
    ("rms_norm", "8192 x 8192", "forward", "eager", "builtin"),
    ("rms_norm", "8192 x 8192", "backward", "eager", "builtin"),
    ("attention", "Llama-3-8B B4 T4096 H32 K8 D128 causal", "forward", "reference", "SDPA cuDNN"),
    ("attention", "Llama-3-8B B4 T4096 H32 K8 D128 causal", "backward", "reference", "SDPA cuDNN"),
)
SHIPPED = ("attention_forward_kernel", "attention_forward_hopper_kernel")


def measured() -> list[str]:
    """What the shipped kernels reach, beside the formula in PyTorch and PyTorch's own kernel, from bench/results."""
    lines = ["| operation | case | direction | the formula | PyTorch's own | ours | of the machine |"]
    lines.append("|---|---|---|--:|--:|--:|--:|")
    for operation, case, direction, formula, own in MEASURED:
        rows = [r for r in results(operation) if (r["case"], r["direction"]) == (case, direction)]
        by = {row["contestant"]: row for row in rows}  # of several runs the newest, which stands last
        ms = " | ".join(f"{by[name]['p50_ms']:.2f} ms" for name in (formula, own, "ours"))
        lines.append(f"| {operation} | {case} | {direction} | {ms} | {100 * by['ours']['of_ceiling']:.0f} % |")
    last = results("attention")[-1]
    flops, copy = last["product_flops"], last["copy_bytes_per_s"]
    said = (
        f"{last['device']}: a large product reaches {flops / 1e12:.0f} TFLOP/s, a large copy {copy / 1e12:.1f} TB/s, "
    )
    said += f"so {flops / copy:.0f} FLOPs take the time of a byte. By `python -m bench.ops`."
    return [*lines, "", said]


def registers() -> list[str]:
    """What the compiler made of the shipped forward of attention, from bench/results."""
    lines = ["| kernel | case | compute capability | registers a thread | spilled | shared memory | products by |"]
    lines.append("|---|---|--:|--:|--:|--:|---|")
    for row in results("compiled"):
        if row["kernel"] in SHIPPED and row["case"] in ("bfloat16 D64", "bfloat16 D128"):
            kernel = f"{row['kernel']} | {row['case']} | {row['arch'] / 10:.1f} | {row['registers']}"
            shared = f"{row['spill_bytes']} bytes | {row['shared_bytes'] / 1024:.0f} KiB | {row['tensor_cores']}"
            lines.append(f"| {kernel} | {shared} |")
    return lines


TABLES: dict[str, Callable[[], list[str]]] = {
    "norm forward": norm_forward,
    "norm backward": norm_backward,
    "attention forward": attention_forward,
    "measured": measured,
    "registers": registers,
}


def with_tables(page: str) -> str:
    """The page with every table between its marks made anew."""
    for name, make in TABLES.items():
        start, end = f"<!-- {name}: python docs/kernels_steps/run.py --write -->\n", "<!-- end -->"
        before, _, rest = page.partition(start)
        after = rest.partition(end)[2]
        if not rest:
            raise SystemExit(f"{PAGE} has no table {name!r}")
        page = before + start + "\n".join(make()) + "\n" + end + after
    return page


def main() -> int:
    """Print the tables, write them into the page, or compare."""
    if not sys.argv[1:]:
        for name, make in TABLES.items():
            print(f"\n{name}\n\n" + "\n".join(make()))
        return 0
    old = PAGE.read_text(encoding="utf-8")
    new = with_tables(old)
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(new, encoding="utf-8")
        return 0
    for line in difflib.unified_diff(old.splitlines(), new.splitlines(), "docs/kernels.md", "what the steps say", n=0):
        print(line.rstrip())
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
