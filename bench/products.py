"""Which of torch's two libraries for a CPU multiplies float32 faster, at the shapes of SmolLM2-135M; and bfloat16.

    python -m bench.products [--rows 1 8 32 1024] [--threads 0]

``minitune/ops/product.py`` takes oneDNN where MKL does not use the processor's widest instructions. Both are raced in
one process, in turns; results must agree with float64 to 1e-5. GFLOP/s, and GB/s of the weight for few rows.
"""

import argparse
from pathlib import Path

import torch

from bench.measure import RESULTS, append, as_row, environment, race
from minitune.ops.product import onednn, processor_vendor

SHAPES = ((576, 576), (192, 576), (1536, 576), (576, 1536), (8, 576), (49152, 576))


def main() -> None:
    """Race, print and keep."""
    parser = argparse.ArgumentParser(prog="python -m bench.products", description=__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 1024])
    parser.add_argument("--threads", type=int, default=0, help="0 leaves the choice to torch")
    parser.add_argument("--budget-ms", type=float, default=100.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "products.jsonl")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"{processor_vendor()}, {torch.backends.cpu.get_cpu_capability()}: minitune takes "
          f"{'oneDNN' if onednn() else 'MKL'} for float32")  # fmt: skip
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        raise SystemExit("this torch has no oneDNN")
    device = torch.device("cpu")
    for N in args.rows:
        for out, into in SHAPES:
            lines = []
            sets = max(1, min(8, (64 << 20) // (4 * out * into)))  # more than a cache holds, so that decoding reads
            xs = [torch.randn(N, into) for _ in range(sets)]
            weights = [torch.randn(out, into) for _ in range(sets)]
            narrow = [(x.bfloat16(), w.bfloat16()) for x, w in zip(xs, weights, strict=True)]
            check(xs[0], weights[0])
            contestants = {
                "MKL": [lambda x=x, w=w: torch.mm(x, w.T) for x, w in zip(xs, weights, strict=True)],
                "oneDNN": [lambda x=x, w=w: one(x, w) for x, w in zip(xs, weights, strict=True)],
                "oneDNN bfloat16": [lambda x=x, w=w: torch.mm(x, w.T) for x, w in narrow],
            }
            for name, timing in race(contestants, device=device, budget_ms=args.budget_ms).items():
                flops = 2 * N * out * into / timing.p50_ms * 1e3
                line = {"rows": N, "out": out, "in": into, "contestant": name, "flops": round(flops)}
                lines.append(line | as_row(timing) | environment(device))
            print(f"  {N:5} x {into:5} x {out:6}  " + "  ".join(
                f"{line['contestant']} {line['flops'] / 1e9:7.1f} GFLOP/s" for line in lines
            ))  # fmt: skip
            append(args.out, lines)


def one(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """oneDNN's product, whatever minitune takes here."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def check(x: torch.Tensor, weight: torch.Tensor) -> None:
    """Raise SystemExit where the product is wrong."""
    truth = x[:8].double() @ weight.double().T
    if float((one(x[:8], weight) - truth).norm() / truth.norm()) > 1e-5:
        raise SystemExit(f"oneDNN's product of {tuple(x.shape)} and {tuple(weight.shape)} is wrong")


if __name__ == "__main__":
    main()
