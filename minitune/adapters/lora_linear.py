"""The linear layer with LoRA, its backward by hand.

    y = x W^T + b + s (x A^T) B^T             h = x A^T, (N, R)
    dh = s dy B          dx = dy W + dh A          dA = dh^T x          dB = s dy^T h

W is frozen: its gradient, as large a product as the forward, is never taken. Everything that is added is added where
it stands (``addmm``): autograd would make the update, its scaled copy and the sum three times the size of y, and as
many gradients on the way back. Kept for the backward are x, which the layers that read the same x share, and h.
"""

from typing import Any

import torch
from torch import Tensor

from minitune.ops.product import onednn, product, served


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """``x (..., in)`` through ``weight (out, in)``, frozen like ``bias (out,)``, and ``A (R, in)``, ``B (out, R)``.

    Computed in the type of ``x``; the gradients of A and B come in their own types.
    """
    return _LoRALinear.apply(x, weight, bias, A, B, scale)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (N, in)
        W = weight.to(x.dtype)
        y = product(rows, W, None if bias is None else bias.to(x.dtype))  # (N, out)
        h = product(rows, A.to(x.dtype))  # (N, R)
        _add_product(y, h, B.to(x.dtype), scale)  # LORA-1
        ctx.save_for_backward(x, weight, A, B, h)
        ctx.scale = scale
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, A, B, h = ctx.saved_tensors
        rows, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        dh = _thin(dy, B.to(dy.dtype)).mul_(ctx.scale)  # (N, R), LORA-8
        dx = None
        if ctx.needs_input_grad[0]:
            dx = product(dy, weight.to(dy.dtype).T)
            _add_product(dx, dh, A.to(dy.dtype).T, 1.0)  # LORA-9
            dx = dx.view(x.shape)
        dA = product(dh.T, rows.T).to(A.dtype) if ctx.needs_input_grad[3] else None  # LORA-10
        # The thin factor first: transposed behind it, the rows of dy are walked as they lie.
        dB = product(h.T, dy.T).T.mul(ctx.scale).to(B.dtype) if ctx.needs_input_grad[4] else None  # LORA-11
        return dx, None, None, dA, dB, None


def _thin(dy: Tensor, B: Tensor) -> Tensor:
    """``dy B (N, R)``; by MKL as the transpose of ``B^T dy^T``, which takes a third of the time."""
    if dy.device.type == "cpu" and not onednn():
        return product(B.T, dy).T
    return product(dy, B.T)


def _add_product(y: Tensor, x: Tensor, weight: Tensor, scale: float) -> None:
    """``y += scale x W^T`` where y stands; through a product of its own where that is faster than addmm."""
    if served(x, weight):
        y.add_(product(x, weight), alpha=scale)
    else:
        y.addmm_(x, weight.T, alpha=scale)
