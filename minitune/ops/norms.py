"""Norms of a vector of channels.

RMSNorm divides by the root mean square, then scales each channel (Zhang & Sennrich, arXiv 1910.07467):

    rstd = 1 / sqrt(mean(x^2) + eps)         x_hat = x * rstd         y = (offset + w) * x_hat

The backward, with g = dy * (offset + w):

    dw = sum over tokens of dy * x_hat
    dx = rstd * (g - x_hat * mean(g * x_hat))

The second term of dx is the projection: x can only be changed across its own direction, since the norm takes the
length away again.

LayerNorm takes the mean away first and adds a bias last (Ba et al., arXiv 1607.06450); with x_hat = (x - mean) * rstd:

    y = w * x_hat + b        db = sum of dy        dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat)),  g = dy * w
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from minitune.ops.precision import wide


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0, scale_in_fp32: bool = False) -> Tensor:
    """Normalise the last axis of ``x (..., C)`` and scale it by ``offset + weight (C,)``.

    The mean square is taken in float32 (float64 stays float64). Llama rounds to the type of ``x`` before it scales;
    ``scale_in_fp32`` scales first, as Gemma (with ``offset=1``) and OLMo-2 do. In bfloat16 the order matters.
    """
    x_wide = x.to(wide(x.dtype))
    x_hat = x_wide * torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + eps)  # NORM-1, NORM-2
    if scale_in_fp32:
        return (x_hat * (offset + weight.to(x_hat.dtype))).to(x.dtype)  # NORM-3
    return x_hat.to(x.dtype) * (offset + weight).to(x.dtype)  # NORM-3


def rms_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Gradients ``(dx (..., C), dweight (C,))`` of ``rms_norm``, in closed form."""
    dy, x_wide = dy.to(wide(x.dtype)), x.to(wide(x.dtype))
    rstd = torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + eps)
    x_hat = x_wide * rstd
    g = dy * (offset + weight.to(dy.dtype))
    dx = rstd * (g - x_hat * (g * x_hat).mean(-1, keepdim=True))  # NORM-7
    dweight = (dy * x_hat).flatten(0, -2).sum(0)  # NORM-6
    return dx.to(x.dtype), dweight.to(weight.dtype)


def rms_norm_builtin(
    x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0, scale_in_fp32: bool = False
) -> Tensor:
    """``rms_norm`` by ``torch.nn.functional.rms_norm``; where the order of rounding matters, the formula.

    On a CPU its backward is ours: torch's walks over memory three times as often.
    """
    if x.dtype != weight.dtype or x.dtype != wide(x.dtype):
        return rms_norm(x, weight, eps=eps, offset=offset, scale_in_fp32=scale_in_fp32)
    scale = offset + weight if offset else weight
    learns = torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad)
    if learns and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _RMSNorm.apply(x, scale, eps)
    return F.rms_norm(x, x.shape[-1:], scale, eps)


class _RMSNorm(torch.autograd.Function):
    """``rms_norm_backward`` in few passes: rstd is kept, and what is made is changed where it stands."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        rstd = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # NORM-1
        ctx.save_for_backward(x, scale, rstd)
        return torch.mul(x, rstd).mul_(scale)  # NORM-2, NORM-3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, scale, rstd = ctx.saved_tensors
        dscale = (dy * x).mul_(rstd).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None  # NORM-6
        if not ctx.needs_input_grad[0]:
            return None, dscale, None
        g = dy * scale
        along = torch.linalg.vecdot(g, x)[..., None].mul_(rstd.pow(3)).div_(-x.shape[-1])
        return g.mul_(rstd).addcmul_(x, along), dscale, None  # NORM-7


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float) -> Tensor:
    """Centre and normalise the last axis of ``x (..., C)``, then scale by ``weight`` and add ``bias`` (both (C,))."""
    x_hat, _ = _centred(x, eps)
    y = x_hat * weight  # NORM-5
    return (y if bias is None else y + bias).to(x.dtype)


def layer_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients ``(dx (..., C), dweight (C,), dbias (C,))`` of ``layer_norm``, in closed form."""
    x_hat, rstd = _centred(x, eps)
    dy = dy.to(x_hat.dtype)
    g = dy * weight
    dx = rstd * (g - g.mean(-1, keepdim=True) - x_hat * (g * x_hat).mean(-1, keepdim=True))  # NORM-9
    dweight, dbias = (dy * x_hat).flatten(0, -2).sum(0), dy.flatten(0, -2).sum(0)  # NORM-8
    return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)


def layer_norm_builtin(x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float) -> Tensor:
    """``layer_norm`` by ``torch.nn.functional.layer_norm``."""
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _centred(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x_hat`` and ``rstd``, in float32 or wider."""
    centred = x.to(wide(x.dtype))
    centred = centred - centred.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)  # NORM-4
    return centred * rstd, rstd
