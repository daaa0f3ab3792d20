"""Products of rows with a weight, by the faster of the two libraries that torch for a CPU brings.

    product(x, W) = x W^T          linear(x, W, b) = x W^T + b
    dx = dy W = product(dy, W^T)   dW = dy^T x = product(dy^T, x^T)          db = sum over rows of dy

torch multiplies float32 by MKL, which keeps its widest instructions for Intel's processors; oneDNN, which it has for
bfloat16, uses what is there (``python -m bench.products`` times both). Which one multiplies is a function of the
processor and the shapes alone, never of a measurement: the same run has the same bits.
"""

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FEW_ROWS, LARGE = 64, 1 << 17
"""Up to so many rows (decoding, which always has the same) oneDNN multiplies where the weight has so many numbers."""
MUCH_WORK = 1 << 22
"""Multiplications of one product from which on oneDNN's preparation of a new shape, 0.3 ms, is small beside it."""


@functools.cache
def onednn() -> bool:
    """Whether float32 products go to oneDNN here: torch has it, and MKL would not use this processor fully."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return "intel" not in processor_vendor().lower()


def processor_vendor() -> str:
    """Who made this processor, as the system says it; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def served(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes the product of rows ``x (N, in)`` with ``weight (out, in)``; a compiler chooses itself."""
    if torch.compiler.is_compiling():
        return False
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or x.device.type != "cpu" or not onednn():
        return False
    N = x.numel() // max(1, x.shape[-1])
    return N > 0 and ((N <= FEW_ROWS and weight.numel() >= LARGE) or N * weight.numel() >= MUCH_WORK)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x (N, in)`` with ``weight (out, in)``, plus ``bias (out,)``: ``(N, out)``; either may be a transposed view.

    Nothing of it is kept for a backward; ``linear`` has one.
    """
    if served(x, weight):
        return _onednn(x, weight, bias)
    return torch.mm(x, weight.T) if bias is None else torch.addmm(bias, x, weight.T)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x (..., in)`` through ``weight (out, in)`` and ``bias (out,)``: ``(..., out)``; as ``F.linear``."""
    if not served(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight, bias)
    return _onednn(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A weight with gaps between its rows would be multiplied element by element, a thousand times slower."""
    if weight.stride() not in ((weight.shape[1], 1), (1, weight.shape[0])):
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        rows = x.reshape(-1, x.shape[-1])  # (N, in)
        return product(rows, weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        rows, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        dx = product(dy, weight.T).view(x.shape) if ctx.needs_input_grad[0] else None
        dweight = product(dy.T, rows.T) if ctx.needs_input_grad[1] else None
        return dx, dweight, dy.sum(0) if ctx.needs_input_grad[2] else None
