# A kernel is Triton's dialect of Python, of which a type checker knows too little.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
"""Cross-entropy of logits (N, V) on a GPU: one reading forward, one reading and one writing backward.

    z    = c tanh(logit / c) with a softcap c, else the logit
    m    = max z          l = sum e^(z - m)          lse = m + log l
    loss = (1 - e) (m - z[y] + log l) + e (m + log l - mean z) + z_loss lse^2
    dz   = p (1 + 2 z_loss lse) - e / V - (1 - e) onehot(y),  p = e^(z - m) / l,  times 1 - (z / c)^2 with a softcap

The largest score and the sum behind it are kept apart, not added to one lse: at logits of 10,000 a float32 lse is
right to three digits, z - m to all. The gradient of the target's logit is formed in float32 with the rest, before the
only rounding.

Where there are few rows the columns of each are cut into pieces, so that the whole GPU reads.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minitune_kernels.launch import cdiv, chose, interpreted, launch, operator, power_of_two, processors
from minitune_kernels.special import tanh

IGNORE = -100
"""The target of a row that is not trained."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    token_weight: Tensor | None = None,
    smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``(loss_sum, denominator)`` of ``logits (N, V)`` against ``targets (N,)``, both float32 scalars.

    Arguments and refusals as in ``minitune.ops.cross_entropy``; float64 is refused as well. The caller's logits are
    left as they are.
    """
    check_options(smoothing, softcap, z_loss)
    check_types("cross_entropy", logits)
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    kept = targets != IGNORE
    weight = kept.float() if token_weight is None else token_weight.float() * kept
    losses = _CrossEntropy.apply(logits, targets, smoothing, softcap or 0.0, z_loss)
    return (losses * weight).sum(), weight.sum()


class _CrossEntropy(torch.autograd.Function):
    """Losses (N,) of the rows, so that weights and the upstream gradient meet each row before any sum."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, smoothing: float, softcap: float, z_loss: float) -> Tensor:
        losses, m, l = cross_entropy_forward(logits, targets, smoothing, softcap, z_loss)
        ctx.save_for_backward(logits, targets, m, l)
        ctx.options = smoothing, softcap, z_loss
        return losses

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, targets, m, l = ctx.saved_tensors
        return cross_entropy_backward(dlosses.contiguous(), logits, targets, m, l, *ctx.options), None, None, None, None


def check_options(smoothing: float, softcap: float | None, z_loss: float) -> None:
    if not 0 <= smoothing <= 1:
        raise ValueError(f"cross_entropy: smoothing is {smoothing}; it must lie in [0, 1]")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"cross_entropy: softcap is {softcap}; it must be above 0, or None for no cap")
    if z_loss < 0:
        raise ValueError(f"cross_entropy: z_loss is {z_loss}; it must be 0 or more")


def check_types(name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise ValueError(
            f"{name}: the type is {x.dtype}; the kernels take float16, bfloat16 or float32, BUILTIN.{name} float64"
        )


# ---- kernels


@triton.jit
def _capped(z, cap, SOFTCAP: tl.constexpr):
    return cap * tanh(z / cap) if SOFTCAP else z


@triton.jit
def _statistics(
    row_ptr, begin, stop, m, l, total, cap, BLOCK: tl.constexpr, SOFTCAP: tl.constexpr, SMOOTH: tl.constexpr
):
    """Take the columns from ``begin`` to ``stop`` into the largest score, the sum of exponentials, the sum of scores.

    Every lane keeps its own three, which are put together once at the end: no step waits for a reduction.
    """
    at = tl.arange(0, BLOCK)
    for v in tl.range(begin, stop, BLOCK):
        inside = v + at < stop
        z = _capped(tl.load(row_ptr + v + at, mask=inside, other=0.0).to(tl.float32), cap, SOFTCAP)
        if SMOOTH:
            total += tl.where(inside, z, 0.0)
        z = tl.where(inside, z, float("-inf"))
        m_new = tl.maximum(m, z)
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        l = l * tl.exp2((m - shift) * LOG2_E) + tl.exp2((z - shift) * LOG2_E)
        m = m_new
    return m, l, total


@triton.jit
def _together(m, l):
    """The largest of many scores, and the sum of exponentials behind it."""
    largest = tl.max(m, 0)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    return largest, tl.sum(l * tl.exp2((m - shift) * LOG2_E), 0)


@triton.jit
def _gradient(z, at, y, m, l, V, cap, smoothing, z_loss, SOFTCAP: tl.constexpr):
    """dz of the scores ``z`` at the columns ``at``, before the row's weight."""
    p = tl.exp2((z - m) * LOG2_E) / l
    p = p * (1.0 + 2.0 * z_loss * (m + tl.log2(l) * LN_2))
    dz = p - smoothing / V - tl.where(at == y, 1.0 - smoothing, 0.0)
    if SOFTCAP:
        dz = dz * (1.0 - (z / cap) * (z / cap))
    return dz


@triton.jit
def _row_loss(z_y, m, l, total, V, smoothing, z_loss):
    log_l = tl.log2(l) * LN_2
    loss = (m - z_y) + log_l
    loss = (1.0 - smoothing) * loss + smoothing * ((m - total / V) + log_l)
    lse = m + log_l
    return loss + z_loss * lse * lse


@triton.jit
def cross_entropy_pieces_kernel(
    logits_ptr, targets_ptr, m_ptr, l_ptr, total_ptr, stride, V, pieces, piece, cap,
    BLOCK: tl.constexpr, SOFTCAP: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """Statistics of one piece of one row."""
    row, i = tl.program_id(0), tl.program_id(1)
    if tl.load(targets_ptr + row) == -100:
        return
    m = tl.full((BLOCK,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    begin = i * piece
    m, l, total = _statistics(
        logits_ptr + row.to(tl.int64) * stride, begin, tl.minimum(begin + piece, V), m, l, total, cap, BLOCK, SOFTCAP,
        SMOOTH,
    )  # fmt: skip
    m, l = _together(m, l)
    at = row * pieces + i
    tl.store(m_ptr + at, m)
    tl.store(l_ptr + at, l)
    tl.store(total_ptr + at, tl.sum(total, 0))


@triton.jit
def cross_entropy_rows_kernel(
    logits_ptr, targets_ptr, m_pieces_ptr, l_pieces_ptr, total_ptr, losses_ptr, m_ptr, l_ptr, stride, V, pieces,
    cap, smoothing, z_loss, BLOCK: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Put the pieces of a row together: its loss, and what the backward needs."""
    row = tl.program_id(0)
    y = tl.load(targets_ptr + row)
    if y == -100:
        tl.store(losses_ptr + row, 0.0)
        tl.store(m_ptr + row, 0.0)
        tl.store(l_ptr + row, 1.0)
        return
    at = tl.arange(0, BLOCK)
    inside = at < pieces
    m_i = tl.load(m_pieces_ptr + row * pieces + at, mask=inside, other=float("-inf"))
    l_i = tl.load(l_pieces_ptr + row * pieces + at, mask=inside, other=0.0)
    total = tl.sum(tl.load(total_ptr + row * pieces + at, mask=inside, other=0.0), 0)
    m, l = _together(m_i, l_i)
    z_y = _capped(tl.load(logits_ptr + row.to(tl.int64) * stride + y).to(tl.float32), cap, SOFTCAP)
    tl.store(losses_ptr + row, _row_loss(z_y, m, l, total, V, smoothing, z_loss))
    tl.store(m_ptr + row, m)
    tl.store(l_ptr + row, l)


@triton.jit
def cross_entropy_backward_kernel(
    dlosses_ptr, logits_ptr, targets_ptr, m_ptr, l_ptr, dlogits_ptr, stride, V, cap, smoothing, z_loss,
    BLOCK: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """dlogits of one stretch of one row; zeros in a row without a target."""
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < V
    y = tl.load(targets_ptr + row)
    to = dlogits_ptr + row.to(tl.int64) * V + at
    if y == -100:
        tl.store(to, tl.zeros((BLOCK,), dlogits_ptr.dtype.element_ty), mask=inside)
        return
    m, l, up = tl.load(m_ptr + row), tl.load(l_ptr + row), tl.load(dlosses_ptr + row)
    z = tl.load(logits_ptr + row.to(tl.int64) * stride + at, mask=inside, other=0.0).to(tl.float32)
    z = tl.where(inside, _capped(z, cap, SOFTCAP), m)
    dz = _gradient(z, at, y, m, l, V, cap, smoothing, z_loss, SOFTCAP)
    tl.store(to, (dz * up).to(dlogits_ptr.dtype.element_ty), mask=inside)


@triton.jit
def cross_entropy_in_place_kernel(
    logits_ptr, targets_ptr, weight_ptr, losses_ptr, V, cap, smoothing, z_loss,
    BLOCK: tl.constexpr, SOFTCAP: tl.constexpr, SMOOTH: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Loss of one row, and with ``GRADIENT`` its logits turned into weight * dlogits where they stand.

    The row is read a second time while the second-level cache still has it. Every row has a target.
    """
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * V
    y = tl.load(targets_ptr + row)
    m = tl.full((BLOCK,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    z_y = _capped(tl.load(row_ptr + y).to(tl.float32), cap, SOFTCAP)
    m, l, total = _statistics(row_ptr, 0, V, m, l, total, cap, BLOCK, SOFTCAP, SMOOTH)
    m, l = _together(m, l)
    tl.store(losses_ptr + row, _row_loss(z_y, m, l, tl.sum(total, 0), V, smoothing, z_loss))
    if GRADIENT:
        weight = tl.load(weight_ptr + row)
        tl.debug_barrier()  # every lane has read z[y] and its columns
        for v in tl.range(0, V, BLOCK):
            at = v + tl.arange(0, BLOCK)
            z = _capped(tl.load(row_ptr + at, mask=at < V, other=0.0).to(tl.float32), cap, SOFTCAP)
            z = tl.where(at < V, z, m)
            dz = weight * _gradient(z, at, y, m, l, V, cap, smoothing, z_loss, SOFTCAP)
            tl.store(row_ptr + at, dz.to(logits_ptr.dtype.element_ty), mask=at < V)


# ---- the operators


def _forward_fake(logits: Tensor, targets: Tensor, smoothing: float, softcap: float, z_loss: float) -> Any:
    return tuple(logits.new_empty(len(logits), dtype=torch.float32) for _ in range(3))


@operator(
    "cross_entropy_forward(Tensor logits, Tensor targets, float smoothing, float softcap, float z_loss) "
    "-> (Tensor, Tensor, Tensor)",
    _forward_fake,
)
def cross_entropy_forward(
    logits: Tensor, targets: Tensor, smoothing: float, softcap: float, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``losses, m, l``, each (N,); 0, 0 and 1 in a row without a target."""
    losses, m, l = _forward_fake(logits, targets, smoothing, softcap, z_loss)
    chose("cross_entropy", "pieces of rows")
    N, V = logits.shape
    block, warps = blocks(V)
    piece, pieces = cut(N, V, block, processors(logits.device))
    parts = [logits.new_empty((N, pieces), dtype=torch.float32) for _ in range(3)]
    launch(cross_entropy_pieces_kernel, (N, pieces), logits, targets, *parts, logits.stride(0), V, pieces, piece,
           softcap, BLOCK=block, SOFTCAP=softcap > 0, SMOOTH=smoothing > 0, num_warps=warps)  # fmt: skip
    launch(cross_entropy_rows_kernel, (N,), logits, targets, *parts, losses, m, l, logits.stride(0), V, pieces,
           softcap, smoothing, z_loss, BLOCK=power_of_two(pieces), SOFTCAP=softcap > 0, num_warps=1)  # fmt: skip
    return losses, m, l


def _backward_fake(
    dlosses: Tensor, logits: Tensor, targets: Tensor, m: Tensor, l: Tensor, smoothing: float, softcap: float,
    z_loss: float,
) -> Tensor:  # fmt: skip
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@operator(
    "cross_entropy_backward(Tensor dlosses, Tensor logits, Tensor targets, Tensor m, Tensor l, float smoothing, "
    "float softcap, float z_loss) -> Tensor",
    _backward_fake,
)
def cross_entropy_backward(
    dlosses: Tensor, logits: Tensor, targets: Tensor, m: Tensor, l: Tensor, smoothing: float, softcap: float,
    z_loss: float,
) -> Tensor:  # fmt: skip
    """``dlogits (N, V)``, contiguous."""
    dlogits = _backward_fake(dlosses, logits, targets, m, l, smoothing, softcap, z_loss)
    N, V = logits.shape
    block, warps = blocks(V)
    launch(cross_entropy_backward_kernel, (N, cdiv(V, block)), dlosses, logits, targets, m, l, dlogits,
           logits.stride(0), V, softcap, smoothing, z_loss, BLOCK=block, SOFTCAP=softcap > 0,
           num_warps=warps)  # fmt: skip
    return dlogits


def in_place(
    logits: Tensor, targets: Tensor, weight: Tensor, *, smoothing: float, softcap: float, z_loss: float, gradient: bool
) -> Tensor:
    """Losses (M,) of ``logits (M, V)``, contiguous; with ``gradient`` the logits become weight * dlogits."""
    M, V = logits.shape
    losses = logits.new_empty(M, dtype=torch.float32)
    block, warps = blocks(V)
    warps = 2 * warps if softcap else warps  # a tanh needs registers
    launch(cross_entropy_in_place_kernel, (M,), logits, targets, weight, losses, V, softcap, smoothing, z_loss,
           BLOCK=block, SOFTCAP=softcap > 0, SMOOTH=smoothing > 0, GRADIENT=gradient, num_warps=warps)  # fmt: skip
    return losses


def blocks(V: int) -> tuple[int, int]:
    """Columns that a program takes at a time, and its warps: 16 columns a lane."""
    if interpreted():
        return 64, 4
    block = min(4096, power_of_two(V, 512))
    return block, max(1, block // 512)


def cut(N: int, V: int, block: int, processors: int) -> tuple[int, int]:
    """Columns of a piece, a multiple of ``block``, and how many pieces: enough for four programs a processor."""
    wanted = max(1, min(cdiv(4 * processors, max(N, 1)), cdiv(V, block)))
    piece = cdiv(cdiv(V, wanted), block) * block
    return piece, cdiv(V, piece)
