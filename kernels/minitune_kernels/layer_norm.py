# A kernel is Triton's dialect of Python, of which a type checker knows too little.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
"""LayerNorm (Ba et al., arXiv 1607.06450), forward and backward in one pass over memory each.

    x_hat = (x - mean) / sqrt(mean((x - mean)^2) + eps)          y = w * x_hat + b
    dw = sum over rows of dy * x_hat          db = sum over rows of dy
    dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat)),  g = dy * w

As ``rms_norm.py``: a row stays in registers, the backward is a persistent grid with partial sums in float32.
Bytes that must move, for N rows: 2 N C elements forward, 3 N C backward.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minitune_kernels.launch import cdiv, launch, operator
from minitune_kernels.rows import LONGEST, backward_tiles, check_types, programs, rows_of, sum_partials, tiles


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float) -> Tensor:
    """Centre and normalise the last axis of ``x (..., C)``, then scale by ``weight`` and add ``bias`` (both (C,)).

    Computed in float32 and rounded once. Raises ValueError for float64, and for rows of more than 16,384 channels.
    """
    check_types("layer_norm", x=x, weight=weight, bias=bias)
    C = x.shape[-1]
    if weight.shape != (C,) or (bias is not None and bias.shape != (C,)):
        raise ValueError(
            f"layer_norm: weight is {tuple(weight.shape)}; it and the bias must be ({C},), as x's last axis"
        )
    if C > LONGEST:
        raise ValueError(f"layer_norm: {C} channels; the kernel takes up to {LONGEST}, BUILTIN.layer_norm any number")
    return _LayerNorm.apply(x, weight, bias, float(eps))


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        y, mean, rstd = layer_norm_forward(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.has_bias = bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, mean, rstd = ctx.saved_tensors
        train = any(ctx.needs_input_grad[1:3])
        dx, dweight, dbias = layer_norm_backward(dy, x, weight, mean, rstd, train)
        return dx, dweight if train else None, dbias if train and ctx.has_bias else None, None


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    row = x.new_empty(x.shape[:-1], dtype=torch.float32)
    return x.new_empty(x.shape), row, torch.empty_like(row)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, train: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = weight.shape if train else (0,)
    return x.new_empty(x.shape), weight.new_empty(shape), weight.new_empty(shape)


@operator("layer_norm_forward(Tensor x, Tensor weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)", _fake)
def layer_norm_forward(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``y``, and ``mean`` and ``rstd`` of each row."""
    y, mean, rstd = _fake(x, weight, bias, eps)
    rows, C = rows_of(x), x.shape[-1]
    tile = tiles(C, x.dtype)
    if x.numel():
        launch(_forward, (cdiv(len(rows), tile.rows),), rows, weight.contiguous(),
               None if bias is None else bias.contiguous(), y, mean, rstd, len(rows), C, rows.stride(0), eps,
               BIAS=bias is not None, ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.warps)  # fmt: skip
    return y, mean, rstd


@operator(
    "layer_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor rstd, bool train)"
    " -> (Tensor, Tensor, Tensor)",
    _backward_fake,
)
def layer_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, train: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx``, and with ``train`` ``dweight`` and ``dbias`` (else empty)."""
    dx, dweight, dbias = _backward_fake(dy, x, weight, mean, rstd, train)
    dy, rows, C = rows_of(dy), rows_of(x), x.shape[-1]
    tile = backward_tiles(C, x.dtype)
    P = programs(x, len(rows), tile)
    partials = torch.empty(2, P, C, dtype=torch.float32, device=x.device) if train else None
    if x.numel():
        launch(_backward, (P,), dy, rows, weight.contiguous(), mean, rstd, dx, partials, len(rows), C, dy.stride(0),
               rows.stride(0), TRAIN=train, ROWS=tile.rows, BLOCK=tile.block, STAGES=tile.stages,
               num_warps=tile.warps)  # fmt: skip
    if partials is not None:
        dweight, dbias = sum_partials(partials if x.numel() else partials.zero_(), weight.dtype)
    return dx, dweight, dbias.clone() if train else dbias


@triton.jit
def _forward(
    x_ptr, w_ptr, b_ptr, y_ptr, mean_ptr, rstd_ptr, N, C, stride_x, eps,
    BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    mask = (rows < N)[:, None] & (cols < C)[None, :]
    row = rows[:, None].to(tl.int64)
    x = tl.load(x_ptr + row * stride_x + cols[None, :], mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / C
    x = tl.where(mask, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(x * x, 1) / C + eps)
    tl.store(mean_ptr + rows, mean, rows < N)
    tl.store(rstd_ptr + rows, rstd, rows < N)
    y = x * rstd[:, None] * tl.load(w_ptr + cols, cols < C, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        y += tl.load(b_ptr + cols, cols < C, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + row * C + cols[None, :], y.to(y_ptr.dtype.element_ty), mask)


@triton.jit
def _backward(
    dy_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, dx_ptr, partials_ptr, N, C, stride_dy, stride_x,
    TRAIN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, BLOCK)
    w = tl.load(w_ptr + cols, cols < C, other=0.0).to(tl.float32)
    dw = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    db = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0), num_stages=STAGES):
        rows = tile * ROWS + tl.arange(0, ROWS)
        mask = (rows < N)[:, None] & (cols < C)[None, :]
        row = rows[:, None].to(tl.int64)
        mean = tl.load(mean_ptr + rows, rows < N, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + rows, rows < N, other=0.0)[:, None]
        x = tl.load(x_ptr + row * stride_x + cols[None, :], mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * stride_dy + cols[None, :], mask, other=0.0).to(tl.float32)
        x_hat = tl.where(mask, (x - mean) * rstd, 0.0)
        if TRAIN:
            dw += dy * x_hat
            db += dy
        g = dy * w[None, :]
        dx = rstd * (g - (tl.sum(g, 1) / C)[:, None] - x_hat * (tl.sum(g * x_hat, 1) / C)[:, None])
        tl.store(dx_ptr + row * C + cols[None, :], dx.to(dx_ptr.dtype.element_ty), mask)
    if TRAIN:
        at = tl.program_id(0).to(tl.int64) * C + cols
        tl.store(partials_ptr + at, tl.sum(dw, 0), cols < C)
        tl.store(partials_ptr + tl.num_programs(0).to(tl.int64) * C + at, tl.sum(db, 0), cols < C)
