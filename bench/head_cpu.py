"""Head and loss on a CPU, time and peak memory: every row multiplied, or only those that have a target.

    python -m bench.head_cpu [--tokens 1024] [--trained 0.3]

The shape is SmolLM2-135M's (C 576, V 49,152) in float32, forward and backward, in batches like those of instruction
data: of each conversation the first rows are prompt. Each contestant has a process of its own, so that the peak is its.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.measure import RESULTS, append, environment, peak_of, process_peak_bytes, reset_process_peak
from minitune.ops import BUILTIN, IGNORE

C, V, CONVERSATION = 576, 49_152, 128


def eager(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(x @ head.T, targets, reduction="sum")


def rows_dropped(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return BUILTIN.linear_cross_entropy(x, head, targets)[0]


CONTESTANTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "F.cross_entropy(x @ W.T)": eager,
    "BUILTIN.linear_cross_entropy": rows_dropped,
}


def measure(name: str, tokens: int, trained: float, calls: int = 5) -> dict[str, float]:
    """The median time of a call, forward and backward, and what it added to the process at its highest."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, C, generator=generator).requires_grad_()
    head = (torch.randn(V, C, generator=generator) * 2 / C**0.5).requires_grad_()
    targets = torch.randint(0, V, (tokens,), generator=generator)
    targets[torch.arange(tokens) % CONVERSATION < (1 - trained) * CONVERSATION] = IGNORE
    f, times, losses = CONTESTANTS[name], [], []
    before = reset_process_peak()
    for _ in range(calls):
        start = time.perf_counter()
        loss = f(x, head, targets)
        gradients = torch.autograd.grad(loss, (x, head))
        times.append((time.perf_counter() - start) * 1e3)
        losses.append(float(loss.detach()))
        del gradients
    return {
        "p50_ms": sorted(times)[calls // 2],
        "peak_bytes": process_peak_bytes() - before,
        "loss": losses[0],
    }


def main() -> None:
    """Measure each contestant in a process of its own, print and keep the rows."""
    parser = argparse.ArgumentParser(prog="python -m bench.head_cpu", description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--trained", type=float, default=0.3, help="share of the rows that have a target")
    parser.add_argument("--contestant", choices=CONTESTANTS, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant is not None:
        print(json.dumps(measure(args.contestant, args.tokens, args.trained)))
        return
    shape = {"tokens": args.tokens, "trained": args.trained, "C": C, "V": V}
    rows = []
    for name in CONTESTANTS:
        got = peak_of("bench.head_cpu", "--contestant", name, *(f"--{k}={shape[k]}" for k in ("tokens", "trained")))
        print(f"{name:32}{got['p50_ms']:10.1f} ms   peak {got['peak_bytes'] / 2**20:8.1f} MiB   loss {got['loss']:.4f}")
        rows.append({"contestant": name, **shape, **got, **environment(torch.device("cpu"))})
    append(RESULTS / "head_cpu.jsonl", rows)


if __name__ == "__main__":
    main()
