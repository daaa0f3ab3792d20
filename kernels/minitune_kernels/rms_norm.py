# A kernel is Triton's dialect of Python, of which a type checker knows too little.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
"""RMSNorm (Zhang & Sennrich, arXiv 1910.07467), forward and backward in one pass over memory each.

    rstd = 1 / sqrt(mean(x^2) + eps)         x_hat = x * rstd         y = (offset + w) * x_hat
    dw = sum over rows of dy * x_hat         dx = rstd * (g - x_hat * mean(g * x_hat)),  g = dy * (offset + w)

Forward: one read and one write; a row stays in registers between its sum and its scaling. Kept for the backward: x and
one float32 a row. Backward: a persistent grid. A program walks over its share of the rows, keeps a partial dw of its
own in float32 registers and writes it once; a second, small kernel adds the partials up. No atomics: the same input
gives the same bits. Where the weight is frozen there are no partials at all. A row that just fits into the registers
leaves no room for a weight and masks beside its partial dw: it goes without masks where it fills its tile, and reads
the weight again. Longer rows go through in pieces, a few rows together.

``add_rms_norm`` adds a residual first, in the same pass; its backward adds the gradient that comes down the residual.

Bytes that must move, for N rows: 2 N C elements forward (4 with the residual), 3 N C backward (4).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minitune_kernels.launch import cdiv, launch, operator
from minitune_kernels.rows import (
    LONGEST,
    PIECE,
    Tile,
    backward_tiles,
    check_types,
    in_registers,
    programs,
    rows_of,
    sum_partials,
    tiles,
)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0, scale_in_fp32: bool = False) -> Tensor:
    """Normalise the last axis of ``x (..., C)`` and scale it by ``offset + weight (C,)``.

    Computed in float32. Llama rounds to the type of ``x`` before it scales; ``scale_in_fp32`` scales first, as Gemma
    (with ``offset=1``) and OLMo-2 do. Raises ValueError for float64.
    """
    _check("rms_norm", x, weight)
    return _RMSNorm.apply(x, weight, float(eps), float(offset), scale_in_fp32)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0, scale_in_fp32: bool = False
) -> tuple[Tensor, Tensor]:
    """``(s, rms_norm(s))`` with ``s = x + residual`` rounded to the type of ``x``, both of shape ``(..., C)``.

    What a block does before each of its norms, in one pass in place of two. Raises ValueError for float64.
    """
    _check("add_rms_norm", x, weight)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"add_rms_norm: residual is {tuple(residual.shape)} of {residual.dtype}; "
            f"it must be as x, {tuple(x.shape)} of {x.dtype}"
        )
    return _AddRMSNorm.apply(x, residual, weight, float(eps), float(offset), scale_in_fp32)


def _check(operation: str, x: Tensor, weight: Tensor) -> None:
    check_types(operation, x=x, weight=weight)
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"{operation}: weight is {tuple(weight.shape)}; it must be ({x.shape[-1]},), as x's last axis")


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float, late: bool) -> Tensor:
        y, rstd = _rms_norm(x, weight, eps, offset, late)
        ctx.save_for_backward(x, weight, rstd)
        ctx.offset, ctx.late = offset, late
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, rstd = ctx.saved_tensors
        train = ctx.needs_input_grad[1]
        dx, dweight = _rms_norm_backward(dy, None, x, weight, rstd, ctx.offset, ctx.late, train)
        return dx, dweight if train else None, None, None, None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float, late: bool
    ) -> tuple[Tensor, Tensor]:
        total, y, rstd = _add_rms_norm(x, residual, weight, eps, offset, late)
        ctx.save_for_backward(total, weight, rstd)
        ctx.offset, ctx.late = offset, late
        return total, y

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        total, weight, rstd = ctx.saved_tensors
        train = ctx.needs_input_grad[2]
        dx, dweight = _rms_norm_backward(dy, dtotal, total, weight, rstd, ctx.offset, ctx.late, train)
        return dx, dx, dweight if train else None, None, None, None


# ---- the operators: tensors in, tensors out


def _fake(x: Tensor, weight: Tensor, eps: float, offset: float, late: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _add_fake(x: Tensor, residual: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _backward_fake(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor, offset: float, late: bool, train: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape if train else (0,))


@operator("rms_norm(Tensor x, Tensor weight, float eps, float offset, bool late) -> (Tensor, Tensor)", _fake)
def _rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, late: bool) -> tuple[Tensor, Tensor]:
    y, rstd = _fake(x, weight, eps, offset, late)
    _start_forward(x, None, weight, None, y, rstd, eps, offset, late)
    return y, rstd


@operator(
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps, float offset, bool late)"
    " -> (Tensor, Tensor, Tensor)",
    _add_fake,
)
def _add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float, late: bool
) -> tuple[Tensor, Tensor, Tensor]:
    total, y, rstd = _add_fake(x, residual)
    _start_forward(x, residual, weight, total, y, rstd, eps, offset, late)
    return total, y, rstd


def _start_forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    total: Tensor | None,
    y: Tensor,
    rstd: Tensor,
    eps: float,
    offset: float,
    late: bool,
) -> None:
    x, C = rows_of(x), x.shape[-1]
    if not x.numel():
        return
    residual = None if residual is None else rows_of(residual)
    args = (x, residual, weight.contiguous(), total, y, rstd, len(x), C, x.stride(0))
    args = (*args, 0 if residual is None else residual.stride(0), eps, offset)
    if in_registers(C, x.dtype):
        tile = tiles(C, x.dtype)
        launch(_forward, (cdiv(len(x), tile.rows),), *args, LATE=late, ADD=residual is not None,
               ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.warps)  # fmt: skip
    else:
        launch(_forward_long, (len(x),), *args, LATE=late, ADD=residual is not None, BLOCK=PIECE, num_warps=8)


@operator(
    "rms_norm_backward(Tensor dy, Tensor? dtotal, Tensor x, Tensor weight, Tensor rstd, float offset, bool late,"
    " bool train) -> (Tensor, Tensor)",
    _backward_fake,
)
def _rms_norm_backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor, offset: float, late: bool, train: bool
) -> tuple[Tensor, Tensor]:
    dx = x.new_empty(x.shape)
    dy, x, C = rows_of(dy), rows_of(x), x.shape[-1]
    dtotal = None if dtotal is None else rows_of(dtotal)
    add, short = dtotal is not None, in_registers(C, x.dtype, backward=True)
    tile = backward_tiles(C, x.dtype, inputs=3 if add else 2) if short else PIECES
    P = programs(x, len(x), tile)
    # A row in pieces has no registers left for its partial sums: they are added up in memory, from zero.
    make = torch.empty if short else torch.zeros
    partials = make(P, C, dtype=torch.float32, device=x.device) if train else None
    args = (dy, dtotal, x, weight.contiguous(), rstd, dx, partials, len(x), C)
    args = (*args, dy.stride(0), dtotal.stride(0) if dtotal is not None else 0, x.stride(0), offset)
    flags = {"LATE": late, "ADD": add, "TRAIN": train}
    if x.numel() and short:
        whole = tile.rows == 1 and tile.block == C
        launch(_backward, (P,), *args, **flags, ROWS=tile.rows, BLOCK=tile.block, STAGES=tile.stages, WHOLE=whole,
               AGAIN=tile.block == LONGEST, num_warps=tile.warps)  # fmt: skip
    elif x.numel():
        launch(_backward_long, (P,), *args, **flags, ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.warps)
    return dx, weight.new_empty(0) if partials is None else sum_partials(partials, weight.dtype)


PIECES = Tile(rows=4, block=2048, warps=8, per_processor=2)
"""What a backward holds of rows too long for the registers."""


# ---- the kernels


@triton.jit
def _scale(w, offset, dtype: tl.constexpr, LATE: tl.constexpr):
    """``offset + w`` in float32, after the roundings that the family has on the way."""
    scale = offset + w.to(tl.float32)
    if not LATE:
        scale = scale.to(w.dtype).to(dtype).to(tl.float32)
    return scale


@triton.jit
def _scaled(x_hat, scale, dtype: tl.constexpr, LATE: tl.constexpr):
    if not LATE:
        x_hat = x_hat.to(dtype).to(tl.float32)
    return (x_hat * scale).to(dtype)


@triton.jit
def _forward(
    x_ptr, r_ptr, w_ptr, s_ptr, y_ptr, rstd_ptr, N, C, stride_x, stride_r, eps, offset,
    LATE: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    mask = (rows < N)[:, None] & (cols < C)[None, :]
    row = rows[:, None].to(tl.int64)
    x = tl.load(x_ptr + row * stride_x + cols[None, :], mask, other=0.0).to(tl.float32)
    if ADD:
        r = tl.load(r_ptr + row * stride_r + cols[None, :], mask, other=0.0).to(tl.float32)
        s = (x + r).to(dtype)
        tl.store(s_ptr + row * C + cols[None, :], s, mask)
        x = s.to(tl.float32)
    w = tl.load(w_ptr + cols, cols < C, other=0.0)
    rstd = tl.rsqrt(tl.sum(x * x, 1) / C + eps)
    tl.store(rstd_ptr + rows, rstd, rows < N)
    y = _scaled(x * rstd[:, None], _scale(w, offset, dtype, LATE)[None, :], dtype, LATE)
    tl.store(y_ptr + row * C + cols[None, :], y, mask)


@triton.jit
def _forward_long(
    x_ptr, r_ptr, w_ptr, s_ptr, y_ptr, rstd_ptr, N, C, stride_x, stride_r, eps, offset,
    LATE: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, C, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * stride_x + cols, cols < C, other=0.0).to(tl.float32)
        if ADD:
            r = tl.load(r_ptr + row * stride_r + cols, cols < C, other=0.0).to(tl.float32)
            x = (x + r).to(dtype).to(tl.float32)
        squares += x * x
    rstd = tl.rsqrt(tl.sum(squares, 0) / C + eps)
    tl.store(rstd_ptr + row, rstd)
    for start in range(0, C, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * stride_x + cols, cols < C, other=0.0).to(tl.float32)
        if ADD:  # once more, since another thread may have stored the sum
            r = tl.load(r_ptr + row * stride_r + cols, cols < C, other=0.0).to(tl.float32)
            s = (x + r).to(dtype)
            tl.store(s_ptr + row * C + cols, s, cols < C)
            x = s.to(tl.float32)
        w = tl.load(w_ptr + cols, cols < C, other=0.0)
        tl.store(y_ptr + row * C + cols, _scaled(x * rstd, _scale(w, offset, dtype, LATE), dtype, LATE), cols < C)


@triton.jit
def _backward(
    dy_ptr, ds_ptr, x_ptr, w_ptr, rstd_ptr, dx_ptr, partials_ptr, N, C, stride_dy, stride_ds, stride_x, offset,
    LATE: tl.constexpr, ADD: tl.constexpr, TRAIN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr, WHOLE: tl.constexpr, AGAIN: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    cols = tl.arange(0, BLOCK)
    if not AGAIN:
        w = tl.load(w_ptr + cols, cols < C, other=0.0)
    dw = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0), num_stages=STAGES):
        rows = tile * ROWS + tl.arange(0, ROWS)
        if WHOLE:  # no mask at all: it would cost registers that wide rows have not
            mask = tl.full((ROWS, BLOCK), 1, tl.int1)
        else:
            mask = (rows < N)[:, None] & (cols < C)[None, :]
        row = rows[:, None].to(tl.int64)
        rstd = tl.load(rstd_ptr + rows, rows < N, other=0.0)[:, None]
        x = tl.load(x_ptr + row * stride_x + cols[None, :], mask, other=0.0)
        dy = tl.load(dy_ptr + row * stride_dy + cols[None, :], mask, other=0.0)
        x_hat, dy = x.to(tl.float32) * rstd, dy.to(tl.float32)
        if TRAIN:
            dw += dy * x_hat
        if AGAIN:
            w = tl.load(w_ptr + cols, cols < C, other=0.0)
        g = dy * _scale(w, offset, dtype, LATE)[None, :]
        dx = rstd * (g - x_hat * (tl.sum(g * x_hat, 1) / C)[:, None])
        if ADD:
            dx += tl.load(ds_ptr + row * stride_ds + cols[None, :], mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + row * C + cols[None, :], dx.to(dtype), mask)
    if TRAIN:
        tl.store(partials_ptr + tl.program_id(0).to(tl.int64) * C + cols, tl.sum(dw, 0), cols < C)


@triton.jit
def _backward_long(
    dy_ptr, ds_ptr, x_ptr, w_ptr, rstd_ptr, dx_ptr, partials_ptr, N, C, stride_dy, stride_ds, stride_x, offset,
    LATE: tl.constexpr, ADD: tl.constexpr, TRAIN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A few rows at a time, twice through their pieces; weights and partial sums are read once for all of them."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    if TRAIN:
        partials_ptr += tl.program_id(0).to(tl.int64) * C
    for tile in range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0)):
        rows = tile * ROWS + tl.arange(0, ROWS)
        row, own = rows[:, None].to(tl.int64), (rows < N)[:, None]
        rstd = tl.load(rstd_ptr + rows, rows < N, other=0.0)[:, None]
        products = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for start in range(0, C, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            mask = own & (cols < C)[None, :]
            x = tl.load(x_ptr + row * stride_x + cols[None, :], mask, other=0.0).to(tl.float32)
            dy = tl.load(dy_ptr + row * stride_dy + cols[None, :], mask, other=0.0).to(tl.float32)
            w = tl.load(w_ptr + cols, cols < C, other=0.0)
            products += dy * _scale(w, offset, dtype, LATE)[None, :] * (x * rstd)
        mean = (tl.sum(products, 1) / C)[:, None]
        tl.debug_barrier()  # the partial sums of the rows before are in memory, whichever thread adds to them now
        for start in range(0, C, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            mask = own & (cols < C)[None, :]
            x_hat = tl.load(x_ptr + row * stride_x + cols[None, :], mask, other=0.0).to(tl.float32) * rstd
            dy = tl.load(dy_ptr + row * stride_dy + cols[None, :], mask, other=0.0).to(tl.float32)
            w = tl.load(w_ptr + cols, cols < C, other=0.0)
            dx = rstd * (dy * _scale(w, offset, dtype, LATE)[None, :] - x_hat * mean)
            if ADD:
                dx += tl.load(ds_ptr + row * stride_ds + cols[None, :], mask, other=0.0).to(tl.float32)
            tl.store(dx_ptr + row * C + cols[None, :], dx.to(dtype), mask)
            if TRAIN:
                before = tl.load(partials_ptr + cols, cols < C, other=0.0)
                tl.store(partials_ptr + cols, before + tl.sum(dy * x_hat, 0), cols < C)
