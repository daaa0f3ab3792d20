"""Rotary position embedding (Su et al., arXiv 2104.09864): turn each pair of channels by an angle that grows with
the position, so that a score q.k depends on the distance of the two tokens only.

Channel i is paired with channel i + D/2 (the half-split layout of published safetensors; Meta's and GGUF's files pair
neighbours and store q and k with their rows in another order).

    angle[p, i] = p * inv_freq[i]        inv_freq[i] = theta^(-2 i / D)
    y1 = x1 cos - x2 sin                 y2 = x2 cos + x1 sin

A rotation's transpose is the rotation back, so the backward is the forward with -sin; that stays so where cos and sin
carry a factor.

A model that was taught longer texts than it was pretrained on has its frequencies changed. With P the positions of the
pretraining and f the factor of the length, pair i makes P * inv_freq[i] / (2 pi) turns within P:

    linear      inv_freq / f                                                           (Chen et al., arXiv 2306.15595)
    llama3      inv_freq above high turns, inv_freq / f below low turns; between,
                s = (turns - low) / (high - low):  (1 - s) inv_freq / f + s inv_freq           (Llama 3.1's own files)
    yarn        (1 - r) inv_freq + r inv_freq / f;  r goes from 0 to 1 by the index of the pair, between the pairs
                that make beta_fast and beta_slow turns; cos and sin times m(1), or m(mscale) / m(mscale_all_dim),
                m(a) = 0.1 a ln f + 1                                                  (Peng et al., arXiv 2309.00071)
    longrope    inv_freq / short[i], or / long[i] in a batch with a text longer than P;
                cos and sin times sqrt(1 + ln f / ln P)                                (Ding et al., arXiv 2402.13753)
"""

import math
from typing import Any

import torch
from torch import Tensor

from minitune.config import RopeScaling
from minitune.ops.precision import wide


def rope_frequencies(
    channels: int,
    theta: float,
    *,
    scaling: RopeScaling | None = None,
    length: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """``inv_freq (channels / 2,)`` in float64: radians per position of each pair of channels.

    ``length`` is the number of positions of the longest text in the batch, cached ones included; only longrope asks
    for it. Raises ValueError where longrope's factors are not one a pair.
    """
    pair = torch.arange(0, channels, 2, dtype=torch.float64, device=device)
    inv_freq = theta ** (-pair / channels)  # ROPE-1
    if scaling is None:
        return inv_freq
    if scaling.kind == "linear":
        return inv_freq / scaling.factor  # ROPE-4
    assert scaling.original_max_positions is not None
    if scaling.kind == "llama3":
        assert scaling.low_freq_factor is not None
        assert scaling.high_freq_factor is not None
        turns = scaling.original_max_positions * inv_freq / (2 * math.pi)  # ROPE-5
        s = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        s = s.clamp(0, 1)
        return (1 - s) * inv_freq / scaling.factor + s * inv_freq  # ROPE-6
    if scaling.kind == "yarn":
        first, last = _yarn_ramp(channels, theta, scaling)
        r = ((torch.arange(len(inv_freq), dtype=torch.float64, device=device) - first) / (last - first)).clamp(0, 1)
        return (1 - r) * inv_freq + r * inv_freq / scaling.factor  # ROPE-8
    by = scaling.long_factor if length > scaling.original_max_positions else scaling.short_factor
    assert by is not None
    if len(by) != len(inv_freq):
        raise ValueError(f"rope scaling 'longrope' has {len(by)} factors for the {len(inv_freq)} pairs of {channels}")
    return inv_freq / torch.tensor(by, dtype=torch.float64, device=device)  # ROPE-10


def _yarn_ramp(channels: int, theta: float, scaling: RopeScaling) -> tuple[float, float]:
    """The pairs, as real numbers, at which yarn's ramp begins and ends.

    A pair i makes P theta^(-2 i / channels) / (2 pi) turns; solved for i at beta_fast and beta_slow turns.
    """
    positions = scaling.original_max_positions
    assert positions is not None

    def pair_of(turns: float) -> float:
        return channels * math.log(positions / (turns * 2 * math.pi)) / (2 * math.log(theta))  # ROPE-7

    first, last = pair_of(scaling.beta_fast or 32.0), pair_of(scaling.beta_slow or 1.0)
    if scaling.truncate is not False:
        first, last = float(math.floor(first)), float(math.ceil(last))
    first, last = max(first, 0.0), min(last, channels - 1.0)  # channels, not pairs: the published definition
    return first, last if last != first else last + 0.001


def pick_frequencies(positions: Tensor, short: Tensor, long: Tensor, dtype: torch.dtype, *, above: int) -> Tensor:
    """``long`` where a position of the batch ``(B, T)`` lies beyond the first ``above``, else ``short``.

    For longrope, with both from ``rope_frequencies``. Decided on the device, so that nothing waits for it, and once
    for all rows, as published: a text that grows beyond ``above`` gets other angles from there on, so keys cached
    before that no longer fit.
    """
    kind, device = wide(dtype), positions.device
    return torch.where(positions.max() >= above, long.to(kind).to(device), short.to(kind).to(device))


def rope_tables(positions: Tensor, inv_freq: Tensor, dtype: torch.dtype, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """``cos, sin (B, T, D/2)`` for ``positions (B, T)``, in float32, or in float64 where ``dtype`` is float64.

    ``factor`` multiplies both: a scaling's ``table_factor``.
    """
    kind = wide(dtype)
    inv_freq = inv_freq.to(kind).to(positions.device)  # in this order: not every device has float64
    angle = positions[..., None].to(kind) * inv_freq  # ROPE-2
    cos, sin = angle.cos(), angle.sin()
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the first ``2 * cos.shape[-1]`` channels of ``q (B, T, H, D)`` and ``k (B, T, K, D)``.

    ``cos, sin (B or 1, T, pairs)``; the rotation is computed in their type and rounded once.
    """
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]  # the same for every head
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def rope_backward(dq: Tensor, dk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``rope``: the rotation back."""
    return rope(dq, dk, cos, -sin)  # ROPE-12


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    x1, x2 = x[..., :half], x[..., half : 2 * half]
    y1 = (x1 * cos - x2 * sin).to(x.dtype)  # ROPE-3
    y2 = (x2 * cos + x1 * sin).to(x.dtype)  # ROPE-3
    return torch.cat((y1, y2, x[..., 2 * half :]), dim=-1)


def rope_builtin(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """``rope`` with fewer calls and passes over memory: scaled as a whole, and what crosses added where it stands.

    Nothing but the tables is kept for the backward. Types that must be rounded once, and heads that are turned in a
    part only, take the formula.
    """
    if q.dtype != cos.dtype or q.shape[-1] != 2 * cos.shape[-1] or torch.compiler.is_compiling():
        return rope(q, k, cos, sin)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        return _Rope.apply(q, k, cos, sin)
    return _turn(q, cos, sin), _turn(k, cos, sin)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _turn(q, cos, sin), _turn(k, cos, sin)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors  # once: checkpointing makes them anew and gives them out no second time
        return *rope_builtin(dq, dk, cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    halves = x.unflatten(-1, (2, -1))  # (B, T, heads, 2, pairs)
    y = halves * cos[:, :, None, None]
    sin = sin[:, :, None]
    y[..., 0, :].addcmul_(halves[..., 1, :], sin, value=-1)  # ROPE-3
    y[..., 1, :].addcmul_(halves[..., 0, :], sin)  # ROPE-3
    return y.flatten(-2)
