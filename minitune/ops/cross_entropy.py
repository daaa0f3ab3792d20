"""Cross-entropy of the next token, as a sum and the number it must be divided by.

For a row of logits z with target y, over the vocabulary V:

    lse = log sum exp z            loss = lse - z[y]            dz = softmax(z) - onehot(y)

The loss ignores a shift of z, so the largest logit is taken away first: then exp cannot overflow, and a loss near zero
keeps its digits where lse and z[y] are two large numbers.

A row whose target is ``IGNORE`` counts in neither number and takes no gradient. Sum and denominator stay apart, since
the right divisor is known only to the loop: the trained tokens of the whole optimizer step.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from minitune.ops.precision import wide

IGNORE = -100
"""The target of a position that is not trained."""


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    token_weight: Tensor | None = None,
    smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``(loss_sum, denominator)`` of ``logits (N, V)`` against ``targets (N,)``, both scalars, in float32 or wider.

    ``token_weight (N,)`` multiplies each row's loss and is what the denominator sums; without it every row with a
    target counts 1. Raises ValueError for an option that is not built.
    """
    _check(smoothing, softcap, z_loss)
    kept = targets != IGNORE
    z = logits[kept].to(wide(logits.dtype))  # (M, V)
    z = z - z.detach().amax(-1, keepdim=True)
    loss = z.exp().sum(-1).log() - z.gather(-1, targets[kept, None]).squeeze(-1)  # (M,)
    return _weighted(loss, token_weight, kept)


def cross_entropy_backward(
    dloss: Tensor, logits: Tensor, targets: Tensor, *, token_weight: Tensor | None = None
) -> Tensor:
    """Gradient ``dlogits (N, V)`` of the loss sum, times the upstream ``dloss`` (a scalar), in closed form."""
    kept = targets != IGNORE
    dz = torch.softmax(logits.to(wide(logits.dtype)), dim=-1)
    dz[kept, targets[kept]] -= 1.0
    weight = kept.to(dz.dtype) if token_weight is None else token_weight * kept
    return (dz * (dloss * weight)[:, None]).to(logits.dtype)


def cross_entropy_builtin(
    logits: Tensor,
    targets: Tensor,
    *,
    token_weight: Tensor | None = None,
    smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``cross_entropy`` by ``torch.nn.functional.cross_entropy``."""
    _check(smoothing, softcap, z_loss)
    kept = targets != IGNORE
    loss = F.cross_entropy(logits[kept].to(wide(logits.dtype)), targets[kept], reduction="none")
    return _weighted(loss, token_weight, kept)


def _weighted(loss: Tensor, token_weight: Tensor | None, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the losses of the kept rows, and what they weigh together."""
    if token_weight is None:
        return loss.sum(), kept.sum().to(loss.dtype)
    weight = token_weight[kept].to(loss.dtype)
    return (loss * weight).sum(), weight.sum()


def _check(smoothing: float, softcap: float | None, z_loss: float) -> None:
    for name, value in (("smoothing", smoothing), ("softcap", softcap), ("z_loss", z_loss)):
        if value:
            raise ValueError(f"cross_entropy: {name} is not built yet")
