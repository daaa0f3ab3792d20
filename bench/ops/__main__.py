"""Time the operations.

    python -m bench.ops attention rms_norm [--quick] [--only WORD] [--budget-ms 300] [--out FILE]

Every row says what was reached in TFLOP/s or GB/s and how much that is of what this machine reaches in a large product
or copy, measured in the same run. A contestant that cannot run a case is named with the reason.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.measure import RESULTS, Ceilings, Timing, append, as_row, ceilings, environment, race, settle
from bench.ops import OPERATIONS, Case


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.ops", description=__doc__)
    parser.add_argument("operations", nargs="+", choices=OPERATIONS)
    parser.add_argument("--quick", action="store_true", help="few and small cases, to see that it works")
    parser.add_argument("--only", default="", help="only cases whose name holds this word")
    parser.add_argument("--skip", default="", help="leave out contestants whose name holds this word")
    parser.add_argument("--budget-ms", type=float, default=300.0, help="time for each contestant and direction")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None, help="JSON lines (default: bench/results/<operation>.jsonl)")
    args = parser.parse_args()
    device = torch.device(args.device)
    allow_two_backwards()
    settle(device)
    top = ceilings(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    print(f"{environment(device)['device']}: product {top.product_flops / 1e12:.1f} TFLOP/s, "
          f"copy {top.copy_bytes / 1e9:.0f} GB/s")  # fmt: skip
    for operation in args.operations:
        module = importlib.import_module(f"bench.ops.{operation}")
        for case in module.cases(device, args.quick):
            if args.skip:
                able = {name: f for name, f in case.contestants.items() if args.skip not in name}
                case = replace(case, contestants=able)
            if args.only in case.name:
                rows = run(case, operation, device, top, args.budget_ms)
                append(args.out or RESULTS / f"{operation}.jsonl", rows)


def allow_two_backwards() -> None:
    """Let what torch.compile made keep its saved tensors: the backward is timed many times on one graph."""
    from torch._functorch import config

    config.donated_buffer = False


def run(case: Case, operation: str, device: torch.device, top: Ceilings, budget_ms: float) -> list[dict[str, Any]]:
    """Check, time and print one case; its rows."""
    print(f"\n{operation}  {case.name}  {case.note}")
    usable, errors = check(case)
    shared = {"operation": operation, "case": case.name, "unit": case.unit, **environment(device)}
    shared |= {"product_flops": round(top.product_flops), "copy_bytes_per_s": round(top.copy_bytes)}
    rows: list[dict[str, Any]] = [{**shared, "contestant": name, "failed": why} for name, why in errors.items()
                                  if isinstance(why, str)]  # fmt: skip
    ceiling = top.product_flops if case.unit == "flops" else top.copy_bytes
    for direction in case.directions:
        try:
            timings = time_direction(case, usable, direction, device, budget_ms)
        except torch.OutOfMemoryError as error:
            print(f"  {direction}: out of memory ({str(error).splitlines()[0]})")
            continue
        for name, timing in timings.items():
            rate = case.work[direction] / timing.p50_ms * 1e3
            unit = f"{rate / 1e12:8.1f} TFLOP/s" if case.unit == "flops" else f"{rate / 1e9:8.0f} GB/s"
            peak = "" if timing.peak_bytes is None else f"  peak {timing.peak_bytes / 2**20:9.1f} MiB"
            peak += "" if timing.host_ms is None else f"  host {timing.host_ms:7.4f} ms"
            error = errors.get(name)
            accuracy = "" if error is None else f"  error {error:.2e}"
            print(
                f"  {direction:9}{name:24}{timing.p50_ms:10.4f} ms  {unit}  {100 * rate / ceiling:5.1f} %"
                f"{peak}{accuracy}"
            )
            rows.append({**shared, "contestant": name, "direction": direction, "rate": round(rate),
                         "of_ceiling": round(rate / ceiling, 4), "error": error, **as_row(timing)})  # fmt: skip
    return rows


def check(case: Case) -> tuple[dict[str, Callable[..., Tensor]], dict[str, Any]]:
    """Who can run the case; and by name the relative RMS error of outputs and gradients, or why it cannot run."""
    inputs = case.inputs(0)
    usable: dict[str, Callable[..., Tensor]] = {}
    errors: dict[str, Any] = {}
    truth = None if case.truth is None else [t.double() for t in case.truth(*inputs)]
    for name, f in case.contestants.items():
        try:
            outputs = forward_backward(f, inputs, case)
            if truth is not None:
                errors[name] = max(_relative(a, t) for a, t in zip(case.part(outputs), truth, strict=True))
            usable[name] = f
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:300]
            print(f"  {name} cannot run this: {errors[name]}", file=sys.stderr)
    return usable, errors


def _relative(got: Tensor, truth: Tensor) -> float:
    difference = (got.detach().double().to(truth.device) - truth).square().mean().sqrt()
    return float(difference / truth.square().mean().sqrt().clamp_min(1e-300))


def forward_backward(f: Callable[..., Tensor], inputs: Sequence[Tensor], case: Case) -> list[Tensor]:
    """The output, and the gradients of those inputs that take one."""
    leaves = [x for x in inputs if x.requires_grad]
    if not leaves or set(case.directions) == {"forward"}:
        with torch.no_grad():
            return [f(*inputs)]
    out = f(*inputs)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream(out))]


def upstream(out: Tensor) -> Tensor:
    """The upstream gradient of a timing: noise like the output; 1 for a loss."""
    if out.ndim == 0:
        return torch.ones_like(out)
    generator = torch.Generator(out.device).manual_seed(7)
    return torch.randn(out.shape, generator=generator, device=out.device, dtype=torch.float32).to(out.dtype)


def time_direction(
    case: Case, usable: dict[str, Callable[..., Tensor]], direction: str, device: torch.device, budget_ms: float
) -> dict[str, Timing]:
    """Race the contestants in one direction."""
    sets = [case.inputs(seed) for seed in range(case.input_sets)]
    if direction == "forward":
        return race({name: [_forward(f, inputs) for inputs in sets] for name, f in usable.items()},
                    device=device, budget_ms=budget_ms)  # fmt: skip
    if direction == "both":
        return race({name: [_both(f, inputs) for inputs in sets] for name, f in usable.items()},
                    device=device, budget_ms=budget_ms)  # fmt: skip
    if not case.retains:
        return _difference(case, usable, device, budget_ms)
    return race({name: [_backward(f, sets[0])] for name, f in usable.items()}, device=device, budget_ms=budget_ms)


def _forward(f: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return f(*inputs)

    return call


def _both(f: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[[], object]:
    leaves = [x for x in inputs if x.requires_grad]
    with torch.no_grad():
        dout = upstream(f(*inputs))
    return lambda: torch.autograd.grad(f(*inputs), leaves, dout)


def _backward(f: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[[], object]:
    leaves = [x for x in inputs if x.requires_grad]
    out = f(*inputs)
    dout = upstream(out)
    return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)


def _difference(
    case: Case, usable: dict[str, Callable[..., Tensor]], device: torch.device, budget_ms: float
) -> dict[str, Timing]:
    """The backward as both less forward, where it cannot run twice."""
    both = time_direction(case, usable, "both", device, budget_ms)
    forward = time_direction(case, usable, "forward", device, budget_ms)
    return {name: _less(both[name], forward[name].p50_ms) for name in usable}


def _less(timing: Timing, ms: float) -> Timing:
    p20, p50, p80 = (max(t - ms, 1e-6) for t in (timing.p20_ms, timing.p50_ms, timing.p80_ms))
    return Timing(p20, p50, p80, timing.rounds, timing.peak_bytes)


if __name__ == "__main__":
    main()
