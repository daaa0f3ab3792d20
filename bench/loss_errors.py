"""How wrong each cross-entropy is: gradients and losses against float64, where the model is nearly sure and far off.

    python -m bench.loss_errors [--device cuda] [--out FILE]

The truth starts from the very logits that the contestant gets. A row's logits are noise, except that its target stands
out so far that it has the probability p; ``far`` are logits of up to 1e4. Shown for the gradient of a sum over 64 rows:

    true class   |d - (p - 1)| / |p - 1|, the largest: where 1 - p is formed in 16 bits nothing of it is left
    all          RMS error over RMS of the gradient
    loss         |loss - truth| / truth
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench.measure import RESULTS, append, environment
from bench.ops.peers import liger
from minitune.ops import BUILTIN, REFERENCE

VOCABULARIES = (32_000, 49_152, 128_256, 151_936, 262_144)
CONFIDENCE = (0.5, 0.99, 0.999)
ROWS = 64
Loss = Callable[[Tensor, Tensor], Tensor]


def contestants(device: torch.device) -> dict[str, Loss]:
    """Who can run here."""
    found: dict[str, Loss] = {
        "reference": lambda z, y: REFERENCE.cross_entropy(z, y)[0],
        "builtin": lambda z, y: BUILTIN.cross_entropy(z, y)[0],
    }
    if device.type == "cuda":
        from minitune_kernels import cross_entropy

        found["ours"] = lambda z, y: cross_entropy(z, y)[0]
        function = liger("cross_entropy", "LigerCrossEntropyFunction")
        if function is not None:
            found["Liger"] = lambda z, y: function.apply(z * 1, y, None, -100, 0.0, 0.0, "sum")[0]
    return found


def logits(V: int, p: float | None, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """64 rows in which the target has the probability ``p``, or, where that is None, logits of up to 1e4."""
    generator = torch.Generator().manual_seed(V)
    z = torch.randn(ROWS, V, generator=generator, dtype=torch.float64)
    y = torch.randint(0, V, (ROWS,), generator=generator)
    rows = torch.arange(ROWS)
    if p is None:
        z *= 1e4 / z.abs().amax()
    else:
        z[rows, y] = -torch.inf
        z[rows, y] = z.logsumexp(1) + torch.tensor(p / (1 - p)).double().log()
    return z.to(dtype).to(device), y.to(device)


def errors(f: Loss, z: Tensor, y: Tensor) -> dict[str, float]:
    """The three errors of one contestant."""
    wide = z.double().requires_grad_()
    true_loss = torch.nn.functional.cross_entropy(wide, y, reduction="sum")
    (truth,) = torch.autograd.grad(true_loss, wide)
    leaf = z.clone().requires_grad_()
    loss = f(leaf, y)
    (d,) = torch.autograd.grad(loss, leaf)
    difference = d.double() - truth
    rows = torch.arange(len(z), device=z.device)
    at = truth[rows, y]
    relative = difference[rows, y].abs() / at.abs().clamp_min(1e-12)
    loss, true_loss = loss.detach(), true_loss.detach()
    return {
        "true_class": float(relative.max()),
        "all": float(difference.square().mean().sqrt() / truth.square().mean().sqrt()),
        "loss": float((loss.double() - true_loss).abs() / true_loss.abs().clamp_min(1e-300)),
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.loss_errors", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "loss_errors.jsonl")
    args = parser.parse_args()
    device = torch.device(args.device)
    where = environment(device)
    print(f"{where['device']}, bfloat16 logits, {ROWS} rows\n{'V':>8}  {'p':6}{'':12}{'true class':>12}{'all':>12}"
          f"{'loss':>12}")  # fmt: skip
    for V in VOCABULARIES:
        for p in (*CONFIDENCE, None):
            z, y = logits(V, p, torch.bfloat16, device)
            for name, f in contestants(device).items():
                found = errors(f, z, y)
                case = "far" if p is None else str(p)
                figures = "".join(f"{value:12.2e}" for value in found.values())
                print(f"{V:8}  {case:6}{name:12}{figures}")
                append(
                    args.out, [{"operation": "loss_errors", "V": V, "p": case, "contestant": name, **found, **where}]
                )


if __name__ == "__main__":
    main()
