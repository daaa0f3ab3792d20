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
LOWEST = tl.constexpr(-1.0e38)  # where a largest score starts: finite, so that no difference is inf - inf
IGNORED = tl.constexpr(IGNORE)


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
        losses, m, log2_l = cross_entropy_forward(logits, targets, smoothing, softcap, z_loss)
        ctx.save_for_backward(logits, targets, m, log2_l)
        ctx.options = smoothing, softcap, z_loss
        return losses

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, targets, m, log2_l = ctx.saved_tensors
        dlogits = cross_entropy_backward(dlosses.contiguous(), logits, targets, m, log2_l, *ctx.options)
        return dlogits, None, None, None, None


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
def capped(z, cap, SOFTCAP: tl.constexpr):
    return cap * tanh(z / cap) if SOFTCAP else z


@triton.jit
def _scores(row_ptr, at, stop, cap, SOFTCAP: tl.constexpr, MASKED: tl.constexpr):
    """The scores of a row at the columns ``at``; -inf from ``stop`` on, if it may lie among them."""
    if MASKED:
        z = capped(tl.load(row_ptr + at, mask=at < stop, other=0.0).to(tl.float32), cap, SOFTCAP)
        return tl.where(at < stop, z, float("-inf"))
    return capped(tl.load(row_ptr + at).to(tl.float32), cap, SOFTCAP)


@triton.jit
def _target_score(row_ptr, y, V, cap, SOFTCAP: tl.constexpr):
    """z[y]; NaN where y is no column, so that the mistake shows in the loss and nothing else is read."""
    z = tl.load(row_ptr + y, mask=(y >= 0) & (y < V), other=float("nan")).to(tl.float32)
    return capped(z, cap, SOFTCAP)


@triton.jit
def _take(row_ptr, v, stop, m, l, fall, seen, cap, ROWS: tl.constexpr, LANES: tl.constexpr, SOFTCAP: tl.constexpr,
          SMOOTH: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Take a tile of columns from ``v`` on into each lane's largest score, its sum of e^(z - m) and its sum of z - m.

    A lane looks for its largest score among the ROWS first: ROWS + 1 exponentials for as many scores, and not one step
    waits for another lane.
    """
    lane = tl.arange(0, LANES)
    at = v + tl.arange(0, ROWS)[:, None] * LANES + lane[None, :]
    z = _scores(row_ptr, at, stop, cap, SOFTCAP, MASKED)
    m_new = tl.maximum(m, tl.max(z, 0))
    l = l * tl.exp2((m - m_new) * LOG2_E) + tl.sum(tl.exp2((z - m_new[None, :]) * LOG2_E), 0)
    if SMOOTH:
        below = z - m_new[None, :]
        if MASKED:
            below = tl.where(at < stop, below, 0.0)
        fall += seen * (m - m_new) + tl.sum(below, 0)
        if MASKED:
            seen += tl.minimum(tl.maximum((stop - v - lane + LANES - 1) // LANES, 0), ROWS).to(tl.float32)
        else:
            seen += ROWS
    return m_new, l, fall, seen


@triton.jit
def _statistics(row_ptr, begin, stop, cap, ROWS: tl.constexpr, LANES: tl.constexpr, SOFTCAP: tl.constexpr,
                SMOOTH: tl.constexpr):  # fmt: skip
    """``m = max z``, ``sum e^(z - m)`` and ``sum (z - m)`` of the columns from ``begin`` to ``stop``."""
    m = tl.full((LANES,), LOWEST, tl.float32)
    l = tl.zeros((LANES,), tl.float32)
    fall = tl.zeros((LANES,), tl.float32)
    seen = tl.zeros((LANES,), tl.float32)
    whole = begin + (stop - begin) // (ROWS * LANES) * (ROWS * LANES)
    for v in tl.range(begin, whole, ROWS * LANES):
        m, l, fall, seen = _take(row_ptr, v, stop, m, l, fall, seen, cap, ROWS, LANES, SOFTCAP, SMOOTH, False)
    if whole < stop:
        m, l, fall, seen = _take(row_ptr, whole, stop, m, l, fall, seen, cap, ROWS, LANES, SOFTCAP, SMOOTH, True)
    largest = tl.max(m, 0)
    if SMOOTH:
        fall += seen * (m - largest)
    return largest, tl.sum(l * tl.exp2((m - largest) * LOG2_E), 0), tl.sum(fall, 0)


@triton.jit
def _row_loss(z_y, m, log2_l, fall, V, smoothing, z_loss, SMOOTH: tl.constexpr):
    loss = log2_l * LN_2 + (1.0 - smoothing) * (m - z_y)
    if SMOOTH:
        loss -= smoothing * (fall / V)
    lse = m + log2_l * LN_2
    return loss + z_loss * lse * lse


@triton.jit
def _upstream(up_ptr, y, V):
    """The row's upstream gradient or weight; NaN where y is no column."""
    return tl.where((y >= 0) & (y < V), tl.load(up_ptr), float("nan"))


@triton.jit
def _gradient(row_ptr, to_ptr, v, stop, y, m, log2_l, up, V, cap, smoothing, z_loss, ROWS: tl.constexpr,
              LANES: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Write ``up`` times dz of a tile of columns from ``v`` on: a multiply-add before exp2 and one after it.

    What does not depend on the column the compiler takes out of the loop. Only one tile of a row has its target.
    """
    at = v + tl.arange(0, ROWS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    z = _scores(row_ptr, at, stop, cap, SOFTCAP, MASKED)
    p = tl.exp2((z - m) * LOG2_E - log2_l)
    dz = p * (up * (1.0 + 2.0 * z_loss * (m + log2_l * LN_2))) - up * (smoothing / V)
    if (y >= v) & (y < v + ROWS * LANES):
        dz -= tl.where(at == y, up * (1.0 - smoothing), 0.0)
    if SOFTCAP:
        t = tl.maximum(z / cap, -1.0)  # a column that is not there has -inf
        dz *= 1.0 - t * t
    tl.store(to_ptr + at, dz.to(to_ptr.dtype.element_ty), mask=(at < stop) if MASKED else None)


@triton.jit
def cross_entropy_pieces_kernel(
    logits_ptr, targets_ptr, parts_ptr, N, stride, V, piece, cap,
    ROWS: tl.constexpr, LANES: tl.constexpr, SOFTCAP: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """Statistics of one piece of one row, to ``parts (3, pieces, N)``."""
    row, i = tl.program_id(0), tl.program_id(1)
    if tl.load(targets_ptr + row) != IGNORED:
        begin = i * piece
        m, l, fall = _statistics(
            logits_ptr + row.to(tl.int64) * stride, begin, tl.minimum(begin + piece, V), cap, ROWS, LANES, SOFTCAP,
            SMOOTH,
        )  # fmt: skip
        plane = tl.num_programs(1) * N
        to = parts_ptr + i * N + row
        tl.store(to, m)
        tl.store(to + plane, l)
        tl.store(to + 2 * plane, fall)


@triton.jit
def cross_entropy_rows_kernel(
    logits_ptr, targets_ptr, parts_ptr, losses_ptr, m_ptr, log2_l_ptr, N, stride, V, pieces, piece, cap, smoothing,
    z_loss, BLOCK: tl.constexpr, SOFTCAP: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """Put the pieces of BLOCK rows together: their losses, and what the backward needs."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(targets_ptr + row, mask=row < N, other=IGNORED)
    kept = y != IGNORED
    plane = pieces * N
    m = tl.full((BLOCK,), LOWEST, tl.float32)
    for i in tl.range(0, pieces):
        m = tl.maximum(m, tl.load(parts_ptr + i * N + row, mask=kept, other=0.0))
    l = tl.zeros((BLOCK,), tl.float32)
    fall = tl.zeros((BLOCK,), tl.float32)
    for i in tl.range(0, pieces):
        own = parts_ptr + i * N + row
        lower = tl.load(own, mask=kept, other=0.0) - m
        l += tl.load(own + plane, mask=kept, other=1.0) * tl.exp2(lower * LOG2_E)
        if SMOOTH:
            width = tl.minimum(piece, V - i * piece)
            fall += tl.load(own + 2 * plane, mask=kept, other=0.0) + width * lower
    z_y = _target_score(logits_ptr + row.to(tl.int64) * stride, tl.where(kept, y, 0), V * kept, cap, SOFTCAP)
    log2_l = tl.log2(l)
    loss = _row_loss(z_y, m, log2_l, fall, V, smoothing, z_loss, SMOOTH)
    tl.store(losses_ptr + row, tl.where(kept, loss, 0.0), mask=row < N)
    tl.store(m_ptr + row, tl.where(kept, m, 0.0), mask=row < N)
    tl.store(log2_l_ptr + row, tl.where(kept, log2_l, 0.0), mask=row < N)


@triton.jit
def cross_entropy_backward_kernel(
    dlosses_ptr, logits_ptr, targets_ptr, m_ptr, log2_l_ptr, dlogits_ptr, stride, V, piece, cap, smoothing, z_loss,
    ROWS: tl.constexpr, LANES: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """dlogits of one piece of one row; zeros in a row without a target, whose logits are not read."""
    row = tl.program_id(0)
    begin = tl.program_id(1) * piece
    stop = tl.minimum(begin + piece, V)
    y = tl.load(targets_ptr + row)
    from_ptr = logits_ptr + row.to(tl.int64) * stride
    to_ptr = dlogits_ptr + row.to(tl.int64) * V
    if y == IGNORED:
        tile = tl.arange(0, ROWS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
        for v in tl.range(begin, stop, ROWS * LANES):
            nothing = tl.zeros((ROWS, LANES), dlogits_ptr.dtype.element_ty)
            tl.store(to_ptr + v + tile, nothing, mask=v + tile < stop)
    else:
        m, log2_l, up = tl.load(m_ptr + row), tl.load(log2_l_ptr + row), _upstream(dlosses_ptr + row, y, V)
        whole = begin + (stop - begin) // (ROWS * LANES) * (ROWS * LANES)
        for v in tl.range(begin, whole, ROWS * LANES):
            _gradient(from_ptr, to_ptr, v, stop, y, m, log2_l, up, V, cap, smoothing, z_loss, ROWS, LANES, SOFTCAP,
                      False)  # fmt: skip
        if whole < stop:
            _gradient(from_ptr, to_ptr, whole, stop, y, m, log2_l, up, V, cap, smoothing, z_loss, ROWS, LANES, SOFTCAP,
                      True)  # fmt: skip


@triton.jit
def cross_entropy_in_place_kernel(
    logits_ptr, targets_ptr, weight_ptr, losses_ptr, V, cap, smoothing, z_loss,
    ROWS: tl.constexpr, LANES: tl.constexpr, SOFTCAP: tl.constexpr, SMOOTH: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Loss of one row, and with ``GRADIENT`` its logits turned into weight * dlogits where they stand.

    The second reading goes from the end of the row to its start: what the second-level cache still has is what was
    read last. Every row has a target.
    """
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * V
    y = tl.load(targets_ptr + row)
    z_y = _target_score(row_ptr, y, V, cap, SOFTCAP)
    m, l, fall = _statistics(row_ptr, 0, V, cap, ROWS, LANES, SOFTCAP, SMOOTH)
    log2_l = tl.log2(l)
    tl.store(losses_ptr + row, _row_loss(z_y, m, log2_l, fall, V, smoothing, z_loss, SMOOTH))
    if GRADIENT:
        up = _upstream(weight_ptr + row, y, V)
        whole = V // (ROWS * LANES) * (ROWS * LANES)
        tl.debug_barrier()  # every lane has read z[y] and its columns
        if whole < V:
            _gradient(row_ptr, row_ptr, whole, V, y, m, log2_l, up, V, cap, smoothing, z_loss, ROWS, LANES, SOFTCAP,
                      True)  # fmt: skip
        for back in tl.range(0, whole, ROWS * LANES):
            v = whole - ROWS * LANES - back
            _gradient(row_ptr, row_ptr, v, V, y, m, log2_l, up, V, cap, smoothing, z_loss, ROWS, LANES, SOFTCAP,
                      False)  # fmt: skip


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
    """``losses``, ``m`` and ``log2 l``, each (N,); 0 in a row without a target."""
    losses, m, log2_l = _forward_fake(logits, targets, smoothing, softcap, z_loss)
    N, V = logits.shape
    tile = tiles(V, 8)
    piece, pieces = cut(N, V, tile, processors(logits.device))
    chose("cross_entropy", "a row each" if pieces == 1 else "pieces of rows")
    parts = logits.new_empty((3, pieces, N), dtype=torch.float32)
    launch(cross_entropy_pieces_kernel, (N, pieces), logits, targets, parts, N, logits.stride(0), V, piece, softcap,
           SOFTCAP=softcap > 0, SMOOTH=smoothing > 0, **tile)  # fmt: skip
    launch(cross_entropy_rows_kernel, (cdiv(N, 32),), logits, targets, parts, losses, m, log2_l, N, logits.stride(0), V,
           pieces, piece, softcap, smoothing, z_loss, BLOCK=32, SOFTCAP=softcap > 0, SMOOTH=smoothing > 0,
           num_warps=1)  # fmt: skip
    return losses, m, log2_l


def _backward_fake(
    dlosses: Tensor, logits: Tensor, targets: Tensor, m: Tensor, log2_l: Tensor, smoothing: float, softcap: float,
    z_loss: float,
) -> Tensor:  # fmt: skip
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@operator(
    "cross_entropy_backward(Tensor dlosses, Tensor logits, Tensor targets, Tensor m, Tensor log2_l, float smoothing, "
    "float softcap, float z_loss) -> Tensor",
    _backward_fake,
)
def cross_entropy_backward(
    dlosses: Tensor, logits: Tensor, targets: Tensor, m: Tensor, log2_l: Tensor, smoothing: float, softcap: float,
    z_loss: float,
) -> Tensor:  # fmt: skip
    """``dlogits (N, V)``, contiguous."""
    dlogits = _backward_fake(dlosses, logits, targets, m, log2_l, smoothing, softcap, z_loss)
    N, V = logits.shape
    tile = tiles(V, 8, deep=2)
    piece, pieces = cut(N, V, tile, processors(logits.device))
    launch(cross_entropy_backward_kernel, (N, pieces), dlosses, logits, targets, m, log2_l, dlogits, logits.stride(0),
           V, piece, softcap, smoothing, z_loss, SOFTCAP=softcap > 0, **tile)  # fmt: skip
    return dlogits


def in_place(
    logits: Tensor, targets: Tensor, weight: Tensor, *, smoothing: float, softcap: float, z_loss: float, gradient: bool
) -> Tensor:
    """Losses (M,) of ``logits (M, V)``, contiguous; with ``gradient`` the logits become weight * dlogits."""
    M, V = logits.shape
    losses = logits.new_empty(M, dtype=torch.float32)
    # Long rows by many warps each: fewer rows are under way at once, and more of them is still in the cache.
    tile = tiles(V, 16 if V > 65536 and not softcap else 8, deep=2)
    launch(cross_entropy_in_place_kernel, (M,), logits, targets, weight, losses, V, softcap, smoothing, z_loss,
           SOFTCAP=softcap > 0, SMOOTH=smoothing > 0, GRADIENT=gradient, **tile)  # fmt: skip
    return losses


def tiles(V: int, warps: int, deep: int = 4) -> dict[str, int]:
    """The columns that a program takes at a time: LANES of 8 columns a thread, and ROWS of those; and its warps."""
    if interpreted():
        return {"ROWS": 2, "LANES": 32, "num_warps": 4}
    warps = min(warps, power_of_two(cdiv(V, 256)))
    return {"ROWS": min(deep, power_of_two(cdiv(V, 256 * warps))), "LANES": 256 * warps, "num_warps": warps}


def cut(N: int, V: int, tile: dict[str, int], processors: int) -> tuple[int, int]:
    """Columns of a piece, a multiple of a tile, and how many pieces: for 16 programs a processor, if V allows it."""
    columns = tile["ROWS"] * tile["LANES"]
    wanted = max(1, min(16 * processors // max(N, 1), cdiv(V, columns)))
    piece = cdiv(cdiv(V, wanted), columns) * columns
    return piece, cdiv(V, piece)
