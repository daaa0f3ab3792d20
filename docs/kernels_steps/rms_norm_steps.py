"""RMSNorm from its formula to a kernel, step by step. Each step computes the same; docs/kernels.md tells why."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# ---- forward


def forward_formula(x: Tensor, w: Tensor, eps: float) -> Tensor:
    rstd = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return x * rstd * w


@triton.jit
def forward_row_kernel(x_ptr, w_ptr, y_ptr, C, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * C + cols, cols < C, other=0.0)
    w = tl.load(w_ptr + cols, cols < C, other=0.0)
    rstd = tl.rsqrt(tl.sum(x * x) / C + eps)
    tl.store(y_ptr + row * C + cols, x * rstd * w, cols < C)


def forward_row(x: Tensor, w: Tensor, eps: float) -> Tensor:
    y, (N, C) = torch.empty_like(x), x.shape
    forward_row_kernel[(N,)](x, w, y, C, eps, BLOCK=triton.next_power_of_2(C))
    return y


@triton.jit
def forward_tile_kernel(x_ptr, w_ptr, y_ptr, N, C, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    at = rows[:, None] * C + cols[None, :]
    mask = (rows < N)[:, None] & (cols < C)[None, :]
    x = tl.load(x_ptr + at, mask, other=0.0)  # (ROWS, BLOCK)
    w = tl.load(w_ptr + cols, cols < C, other=0.0)
    rstd = tl.rsqrt(tl.sum(x * x, 1) / C + eps)  # (ROWS,)
    tl.store(y_ptr + at, x * rstd[:, None] * w[None, :], mask)


def forward_tile(x: Tensor, w: Tensor, eps: float, rows: int = 8) -> Tensor:
    y, (N, C) = torch.empty_like(x), x.shape
    forward_tile_kernel[(triton.cdiv(N, rows),)](x, w, y, N, C, eps, ROWS=rows, BLOCK=triton.next_power_of_2(C))
    return y


# ---- backward


def backward_formula(dy: Tensor, x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rstd = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    x_hat, g = x * rstd, dy * w
    dx = rstd * (g - x_hat * (g * x_hat).mean(-1, keepdim=True))
    return dx, (dy * x_hat).sum(0)


@triton.jit
def backward_atomic_kernel(dy_ptr, x_ptr, w_ptr, dx_ptr, dw_ptr, C, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * C + cols, cols < C, other=0.0)
    dy = tl.load(dy_ptr + row * C + cols, cols < C, other=0.0)
    w = tl.load(w_ptr + cols, cols < C, other=0.0)
    rstd = tl.rsqrt(tl.sum(x * x) / C + eps)
    x_hat, g = x * rstd, dy * w
    tl.store(dx_ptr + row * C + cols, rstd * (g - x_hat * (tl.sum(g * x_hat) / C)), cols < C)
    tl.atomic_add(dw_ptr + cols, dy * x_hat, cols < C)


def backward_atomic(dy: Tensor, x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dx, dw, (N, C) = torch.empty_like(x), torch.zeros_like(w), x.shape
    backward_atomic_kernel[(N,)](dy, x, w, dx, dw, C, eps, BLOCK=triton.next_power_of_2(C))
    return dx, dw


@triton.jit
def backward_partial_kernel(
    dy_ptr, x_ptr, w_ptr, dx_ptr, partial_ptr, N, C, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    cols = tl.arange(0, BLOCK)
    w = tl.load(w_ptr + cols, cols < C, other=0.0)
    dw = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0)):
        rows = tile * ROWS + tl.arange(0, ROWS)
        at = rows[:, None].to(tl.int64) * C + cols[None, :]
        mask = (rows < N)[:, None] & (cols < C)[None, :]
        x = tl.load(x_ptr + at, mask, other=0.0)
        dy = tl.load(dy_ptr + at, mask, other=0.0)
        rstd = tl.rsqrt(tl.sum(x * x, 1) / C + eps)[:, None]
        x_hat, g = x * rstd, dy * w[None, :]
        dw += dy * x_hat
        tl.store(dx_ptr + at, rstd * (g - x_hat * (tl.sum(g * x_hat, 1) / C)[:, None]), mask)
    tl.store(partial_ptr + tl.program_id(0) * C + cols, tl.sum(dw, 0), cols < C)


def backward_partial(
    dy: Tensor, x: Tensor, w: Tensor, eps: float, rows: int = 8, programs: int = 4
) -> tuple[Tensor, Tensor]:
    dx, (N, C) = torch.empty_like(x), x.shape
    partial = torch.empty(programs, C)
    block = triton.next_power_of_2(C)
    backward_partial_kernel[(programs,)](dy, x, w, dx, partial, N, C, eps, ROWS=rows, BLOCK=block)
    return dx, partial.sum(0)
