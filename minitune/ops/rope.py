"""Rotary position embedding (Su et al., arXiv 2104.09864): turn each pair of channels by an angle that grows with
the position, so that a score q.k depends on the distance of the two tokens only.

Channel i is paired with channel i + D/2 (the half-split layout of published safetensors; Meta's and GGUF's files pair
neighbours and store q and k with their rows in another order).

    angle[p, i] = p * inv_freq[i]        inv_freq[i] = theta^(-2 i / D)
    y1 = x1 cos - x2 sin                 y2 = x2 cos + x1 sin

A rotation's transpose is the rotation back, so the backward is the forward with -sin.
"""

import torch
from torch import Tensor

from minitune.ops.precision import wide


def rope_frequencies(channels: int, theta: float, device: torch.device | str | None = None) -> Tensor:
    """``inv_freq (channels / 2,)`` in float64: radians per position of each pair of channels."""
    pair = torch.arange(0, channels, 2, dtype=torch.float64, device=device)
    return theta ** (-pair / channels)


def rope_tables(positions: Tensor, inv_freq: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``cos, sin (B, T, D/2)`` for ``positions (B, T)``, in float32, or in float64 where ``dtype`` is float64."""
    kind = wide(dtype)
    inv_freq = inv_freq.to(kind).to(positions.device)  # in this order: not every device has float64
    angle = positions[..., None].to(kind) * inv_freq
    return angle.cos(), angle.sin()


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the first ``2 * cos.shape[-1]`` channels of ``q (B, T, H, D)`` and ``k (B, T, K, D)``.

    ``cos, sin (B or 1, T, pairs)``; the rotation is computed in their type and rounded once.
    """
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]  # the same for every head
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def rope_backward(dq: Tensor, dk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``rope``: the rotation back."""
    return rope(dq, dk, cos, -sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    x1, x2 = x[..., :half], x[..., half : 2 * half]
    y1 = (x1 * cos - x2 * sin).to(x.dtype)
    y2 = (x2 * cos + x1 * sin).to(x.dtype)
    return torch.cat((y1, y2, x[..., 2 * half :]), dim=-1)
