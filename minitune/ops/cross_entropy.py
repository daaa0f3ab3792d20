"""Cross-entropy of the next token, as a sum and the number it must be divided by.

For a row of logits z with target y, over the vocabulary V, and p = softmax(z):

    z    = c tanh(z / c)  with a softcap c              no logit passes c (Gemma 2, arXiv 2408.00118)
    lse  = log sum exp z
    nll  = lse - z[y]                                   = -log p[y]
    loss = (1 - e) nll + e mean over V of -log p        e: label smoothing (Szegedy et al., arXiv 1512.00567)
         + z_loss lse^2                                 keeps lse near 0 (PaLM, arXiv 2204.02311)

    dz   = p - (1 - e) onehot(y) - e / V + 2 z_loss lse p,     times 1 - (z / c)^2 with a softcap

The first line of the loss ignores a shift of z, so the largest logit is taken away first: then exp cannot overflow, and
a loss near zero keeps its digits where lse and z[y] are two large numbers. Only z_loss sees lse itself.

A row whose target is ``IGNORE`` counts in neither number and takes no gradient, neither for its target nor for the
smoothing. V is every column that is given: a head whose rows are padded smooths over the padding too, as the reference
libraries do; give it without those rows to leave them out.

Sum and denominator stay apart, since the right divisor is known only to the loop: the trained tokens of the whole
optimizer step.
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
    target counts 1. Raises ValueError for a smoothing outside [0, 1], a softcap of 0 or less, or a negative z_loss.
    """
    check_options(smoothing, softcap, z_loss)
    kept = targets != IGNORE
    z = capped(logits[kept].to(wide(logits.dtype)), softcap)  # (M, V)
    largest = z.detach().amax(-1, keepdim=True)
    z = z - largest
    lse = z.exp().sum(-1).log()  # (M,), CE-2 without the shift
    loss = lse - (1 - smoothing) * z.gather(-1, targets[kept, None]).squeeze(-1)  # CE-3
    if smoothing:
        loss = loss - smoothing * z.mean(-1)  # CE-4
    if z_loss:
        loss = loss + z_loss * (lse + largest.squeeze(-1)).square()  # CE-5
    return _weighted(loss, token_weight, kept)


def cross_entropy_backward(
    dloss: Tensor,
    logits: Tensor,
    targets: Tensor,
    *,
    token_weight: Tensor | None = None,
    smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> Tensor:
    """Gradient ``dlogits (N, V)`` of the loss sum, times the upstream ``dloss`` (a scalar), in closed form."""
    check_options(smoothing, softcap, z_loss)
    kept = targets != IGNORE
    z = capped(logits[kept].to(wide(logits.dtype)), softcap)  # (M, V)
    p = torch.softmax(z, dim=-1)
    dz = p - smoothing / z.shape[-1]  # CE-7
    dz[torch.arange(len(z), device=z.device), targets[kept]] -= 1 - smoothing
    if z_loss:
        dz += 2 * z_loss * torch.logsumexp(z, -1, keepdim=True) * p  # CE-8
    if softcap is not None:
        dz *= 1 - (z / softcap).square()  # CE-9
    dz *= dloss if token_weight is None else dloss * token_weight[kept, None]  # CE-10
    dlogits = torch.zeros_like(logits)
    dlogits[kept] = dz.to(logits.dtype)
    return dlogits


def cross_entropy_builtin(
    logits: Tensor,
    targets: Tensor,
    *,
    token_weight: Tensor | None = None,
    smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``cross_entropy`` by ``torch.nn.functional.cross_entropy``; softcap and z_loss, which it has not, around it."""
    check_options(smoothing, softcap, z_loss)
    kept = targets != IGNORE
    z = capped(logits[kept].to(wide(logits.dtype)), softcap)
    loss = F.cross_entropy(z, targets[kept], reduction="none", label_smoothing=smoothing)
    if z_loss:
        # Its gradient is exp(z - lse): near 0 both have digits to spare, at 1e4 the third one would be wrong.
        largest = z.detach().amax(-1, keepdim=True)
        lse = torch.logsumexp(z - largest, -1) + largest.squeeze(-1)
        loss = loss + z_loss * lse.square()
    return _weighted(loss, token_weight, kept)


def capped(z: Tensor, softcap: float | None) -> Tensor:
    """``c tanh(z / c)``, or ``z`` without a cap."""
    return z if softcap is None else softcap * torch.tanh(z / softcap)  # CE-1


def check_options(smoothing: float, softcap: float | None, z_loss: float) -> None:
    if not 0 <= smoothing <= 1:
        raise ValueError(f"cross_entropy: smoothing is {smoothing}; it must lie in [0, 1]")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"cross_entropy: softcap is {softcap}; it must be above 0, or None for no cap")
    if z_loss < 0:
        raise ValueError(f"cross_entropy: z_loss is {z_loss}; it must be 0 or more")


def _weighted(loss: Tensor, token_weight: Tensor | None, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the losses of the kept rows, and what they weigh together."""
    if token_weight is None:
        return loss.sum(), kept.sum().to(loss.dtype)
    weight = token_weight[kept].to(loss.dtype)
    return (loss * weight).sum(), weight.sum()  # CE-6
