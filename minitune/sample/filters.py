"""The distribution that the next token is drawn from: what each setting does to it, one function each.

Each function takes logits ``z (..., V)`` and gives logits of the same shape; a token that is out has ``-inf``. They are
applied in this order, which is that of ``transformers``:

    repetition penalty -> temperature -> top-k -> top-p -> min-p -> softmax

so that top-p and min-p measure the tempered probabilities, and each of what the one before has left. At temperature 0
all probability is on the likeliest token. A setting that changes nothing costs nothing.
"""

import torch
from torch import Tensor

from minitune.sample.settings import SamplerSettings


def penalise(z: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that were ``seen (..., V)`` less likely, where ``penalty`` is above 1.

        z_i / r  where z_i > 0,  z_i r  elsewhere,  for each seen token i

    Keskar et al. (CTRL), arXiv 1909.05858, with the usual rule for negative logits, which division would raise.
    """
    return torch.where(seen, torch.where(z > 0, z / penalty, z * penalty), z)  # SAMP-1


def temper(z: Tensor, temperature: float) -> Tensor:
    """``z / T``: sharper below 1, flatter above.

    The largest logit is taken away first, which no softmax notices, so that no temperature, however small, makes an
    infinite logit.
    """
    return (z - z.amax(-1, keepdim=True)) / temperature  # SAMP-2


def top_k(z: Tensor, k: int) -> Tensor:
    """Keep the ``k`` likeliest tokens, exactly: of equal ones the first (Fan et al., arXiv 1805.04833)."""
    if k >= z.shape[-1]:
        return z
    least = z.topk(k, dim=-1).values[..., -1:]  # (..., 1)
    above, equal = z > least, z == least
    kept = above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))  # SAMP-3
    return z.masked_fill(~kept, -torch.inf)


def top_p(z: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches ``p`` (Holtzman et al., arXiv 1904.09751).

    In falling order, a token stays while those before it have less than ``p``; so the one that crosses ``p`` stays,
    and the likeliest always.
    """
    q, order = torch.softmax(z, -1).sort(dim=-1, descending=True, stable=True)
    out = q.cumsum(-1) - q >= p  # SAMP-4
    out[..., 0] = False
    return z.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)


def min_p(z: Tensor, p: float) -> Tensor:
    """Keep tokens with ``q_i >= p max_j q_j`` (Nguyen et al., arXiv 2407.01082)."""
    q = torch.softmax(z, -1)
    return z.masked_fill(q < p * q.amax(-1, keepdim=True), -torch.inf)  # SAMP-5


def distribution(z: Tensor, settings: SamplerSettings, seen: Tensor | None = None) -> Tensor:
    """The probabilities ``(..., V)`` that ``settings`` make of logits ``z``; ``seen`` is only read for the penalty."""
    if settings.repetition_penalty != 1 and seen is not None:
        z = penalise(z, seen, settings.repetition_penalty)
    if settings.greedy:
        return torch.zeros_like(z).scatter(-1, z.argmax(-1, keepdim=True), 1.0)
    z = temper(z, settings.temperature)
    if settings.top_k:
        z = top_k(z, settings.top_k)
    if settings.top_p < 1:
        z = top_p(z, settings.top_p)
    if settings.min_p:
        z = min_p(z, settings.min_p)
    return torch.softmax(z, -1)  # SAMP-6


def draw(p: Tensor, u: Tensor) -> Tensor:
    """Ids ``(B,)`` from probabilities ``p (B, V)`` and numbers ``u (B,)`` in [0, 1), by the inverse of the
    cumulative distribution.

        the first i with  p_0 + ... + p_i > u sum(p)

    A token of probability 0 is never drawn: sums in parallel may differ in the last bit where nothing was added, so
    the sum is carried on from the last token that has any.
    """
    cdf = torch.where(p > 0, p.cumsum(-1), 0.0).cummax(-1).values
    return torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True)[:, 0]  # SAMP-7


def choose(z: Tensor, settings: SamplerSettings, u: Tensor, seen: Tensor | None = None) -> Tensor:
    """The next ids ``(B,)`` from logits ``z (B, V)``, in float64 so that sums over a large V hold."""
    if settings.greedy:
        z = z if seen is None else penalise(z, seen, settings.repetition_penalty)
        return z.argmax(-1)
    if z.device.type == "mps":  # which has no float64
        z, u, seen = z.cpu(), u.cpu(), None if seen is None else seen.cpu()
    return draw(distribution(z.double(), settings, seen), u)
