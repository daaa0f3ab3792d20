# A kernel is Triton's dialect of Python, of which a type checker knows too little.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportOperatorIssue=false, reportAssignmentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""The forward of attention for Hopper (compute capability 9.0), in Gluon: who loads and who multiplies are apart.

The same mathematics as ``attention_forward.py``, with the schedule of FlashAttention-3 (arXiv 2407.08608):

* one producer lets the copy engine (TMA) bring tiles of keys and values into rings of two places each; a place is
  full when its bytes have come, and empty when both consumers have done with it;
* two consumers of four warps own 64 queries each and share every tile;
* a consumer starts the product ``q k^T`` of tile j, then ``p v`` of tile j - 1 behind it, and while the second runs
  on the tensor cores takes the softmax of tile j on the others:

      tensor cores    q k_1   p_0 v_0   q k_2   p_1 v_1   q k_3  ...
      the others              softmax 1         softmax 2

The rows of ``p`` are the left factor of a product that is under way, in registers: they are named among what the wait
for it gives back, so that no assembler may use those registers for something else before (ptxas 12.8 and 12.9 did).
"""

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from minitune_kernels.launch import TRITON, cdiv, launch, processors

load_async = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared  # renamed in Triton 3.8
STAGES = gl.constexpr(2)
PERSISTENT_BELOW = 1 << 20
"""T * D of a row below which the programs stay: each takes piece after piece, and what the next one needs is on its
way while the last one ends. Longer rows have pieces enough to hide their starts, and the hardware deals them out."""
SHARE = gl.constexpr(64)
"""Queries, or keys in the backward, that one consumer owns: the rows of one product on the tensor cores."""


def serves(q: Tensor, k: Tensor, v: Tensor, softcap: float) -> bool:
    """Whether this kernel takes these inputs: 16 bits, D of 64, 128 or 256, no softcap, and within reach."""
    return (
        not softcap
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[3] in (64, 128, 256)
        and q.shape[1] >= 64
        and k.shape[1] >= 64
        and all(_reachable(x) for x in (q, k, v))
    )


def _reachable(x: Tensor) -> bool:
    """Whether ``x (B, T, H, D)`` is a matrix with a row a token, in which a head is a stretch of columns."""
    B, _, H, D = x.shape
    rows_even = B == 1 or (x.stride(1) > 0 and x.stride(0) % x.stride(1) == 0)
    heads_side_by_side = H == 1 or x.stride(2) == D
    aligned = x.stride(1) * x.element_size() % 16 == 0 and x.data_ptr() % 16 == 0
    return x.stride(3) == 1 and heads_side_by_side and rows_even and aligned and x.stride(1) >= H * D


def matrix(x: Tensor, block: int) -> tuple[Any, int]:
    """A descriptor of ``x`` as that matrix, read in tiles of ``block`` rows and D columns; and the rows of each b."""
    B, T, H, D = x.shape
    apart = x.stride(0) // x.stride(1) if B > 1 else T
    kind = gl.float16 if x.dtype == torch.float16 else gl.bfloat16
    layout = gl.NVMMASharedLayout.get_default_for([block, D], kind)
    rows = (B - 1) * apart + T
    return TensorDescriptor(x, [rows, H * D], [x.stride(1), 1], [block, D], layout), apart


def attention_forward_hopper(
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, first: Tensor, end: Tensor, scale: float, section: int
) -> None:
    """Fill ``y`` and ``lse``; ``scale`` is in base 2 and not negative."""
    B, T, H, D = q.shape
    K = k.shape[2]
    block_s = 128 if D <= 128 else 64
    consumers = consumers_of(D)
    q_matrix, q_apart = matrix(q, SHARE.value)
    k_matrix, k_apart = matrix(k, block_s)
    v_matrix, v_apart = matrix(v, block_s)
    pieces = cdiv(T, SHARE.value * consumers) * B * H
    launch(
        attention_forward_hopper_kernel, (min(pieces, processors(q.device)) if T * D < PERSISTENT_BELOW else pieces,),
        q_matrix, k_matrix, v_matrix, y, lse, first, end, first.stride(0) if first.shape[0] > 1 else 0,
        q_apart, k_apart, v_apart, T, H, H // K, B * H, section, scale,
        D=D, BLOCK_S=block_s, CONSUMERS=consumers, num_warps=4,
    )  # fmt: skip


def consumers_of(D: int) -> int:
    """A third consumer where the registers of a processor hold its sums too, so that the exponentials hide better.

    On an H100 with Triton 3.6, D = 64: 407 TFLOP/s instead of 366. Triton 3.9 would spill its registers.
    """
    return 3 if D == 64 and TRITON < (3, 7) else 2


@gluon.jit
def place(index, tiles, heads, section, REVERSED: gl.constexpr):
    """Tile and head of piece ``index`` of the work, as ``place`` in attention_forward.py."""
    which = index // (tiles * section)
    rest = index % (tiles * section)
    size = gl.minimum(section, heads - which * section)
    tile = rest // size
    if REVERSED:
        tile = tiles - 1 - tile
    return tile, which * section + rest % size


@gluon.jit
def _piece(index, work, bounds, BLOCK_T: gl.constexpr, BLOCK_S: gl.constexpr):
    """Of piece ``index``: its b and h, its first query, its first key, and how many tiles of keys it sees."""
    T, H, heads, section = work
    first_ptr, end_ptr, stride_first_b = bounds
    tile, bh = place(index, gl.cdiv(T, BLOCK_T), heads, section, True)
    t = tile * BLOCK_T
    b = (bh // H).to(gl.int64)
    begin = gl.load(first_ptr + b * stride_first_b + t) // BLOCK_S * BLOCK_S
    stop = gl.load(end_ptr + b * stride_first_b + gl.minimum(t + BLOCK_T, T) - 1)
    tiles = gl.maximum(gl.cdiv(stop - begin, BLOCK_S), 1)  # one at least, all of it masked where nobody sees a key
    return bh // H, bh % H, t, begin, tiles


@gluon.jit
def _load(what, work, bounds, rings, BLOCK_S: gl.constexpr, CONSUMERS: gl.constexpr):
    """The producer: of each piece of work the queries of every consumer, and keys and values, tile by tile."""
    q_matrix, k_matrix, v_matrix, q_tiles, q_apart, k_apart, v_apart, group, pieces = what
    k_tiles, v_tiles, q_full, q_empty, k_full, k_empty, v_full, v_empty = rings
    D: gl.constexpr = k_tiles.type.shape[2]
    BYTES: gl.constexpr = CONSUMERS * q_matrix.block_type.nbytes
    so_far, parity = 0, 0
    for index in range(gl.program_id(0), pieces, gl.num_programs(0)):
        b, h, t, begin, tiles = _piece(index, work, bounds, SHARE * CONSUMERS, BLOCK_S)
        column = h // group * D
        for j in range(tiles):
            stage = (so_far + j) % STAGES
            phase = ((so_far + j) // STAGES) & 1
            mbarrier.wait(k_empty.index(stage), phase ^ 1)  # at once in the first round
            mbarrier.expect(k_full.index(stage), k_matrix.block_type.nbytes)
            load_async(k_matrix, [b * k_apart + begin + j * BLOCK_S, column], k_full.index(stage), k_tiles.index(stage))
            if j == 0:
                mbarrier.wait(q_empty, parity ^ 1)
                mbarrier.expect(q_full, BYTES)
                for i in gl.static_range(CONSUMERS):
                    load_async(q_matrix, [b * q_apart + t + i * SHARE, h * D], q_full, q_tiles.index(i))
            mbarrier.wait(v_empty.index(stage), phase ^ 1)
            mbarrier.expect(v_full.index(stage), v_matrix.block_type.nbytes)
            load_async(v_matrix, [b * v_apart + begin + j * BLOCK_S, column], v_full.index(stage), v_tiles.index(stage))
        so_far += tiles
        parity ^= 1


@gluon.jit
def _softmax(s, m, l, n, first, end, scale, BLOCK_S: gl.constexpr, MASKED: gl.constexpr, LAYOUT: gl.constexpr):
    """One step of the online softmax: ``p``, what earlier sums shrink by, and the new ``m`` and ``l``."""
    if MASKED:
        at = (n + gl.arange(0, BLOCK_S, layout=gl.SliceLayout(0, LAYOUT)))[None, :]
        s = gl.where((at >= first[:, None]) & (at < end[:, None]), s * scale, float("-inf"))
        m_new = gl.maximum(m, gl.max(s, 1))
        shift = gl.where(m_new == float("-inf"), 0.0, m_new)  # a row that has seen nothing yet
        p = gl.exp2(s - shift[:, None])
    else:
        m_new = gl.maximum(m, gl.max(s, 1) * scale)
        shift = m_new
        p = gl.exp2(s * scale - m_new[:, None])
    alpha = gl.exp2(m - shift)
    return p, alpha, m_new, l * alpha + gl.sum(p, 1)


@gluon.jit
def _walk(
    acc, m, l, p, q, k_tiles, v_tiles, k_full, k_empty, v_full, v_empty, first, end, scale, n, start, stop,
    BLOCK_S: gl.constexpr, S_LAYOUT: gl.constexpr, Y_LAYOUT: gl.constexpr, P_LAYOUT: gl.constexpr,
    MASKED: gl.constexpr,
):  # fmt: skip
    """Tiles ``start`` to ``stop``: the scores of tile j while the values of tile j - 1 are summed.

    Tiles are counted from the program's start, as the rings turn; tile 0 would begin at key ``n``.
    """
    for j in range(start, stop):
        stage = j % STAGES
        before = (j - 1) % STAGES
        mbarrier.wait(k_full.index(stage), (j // STAGES) & 1)
        nothing = gl.zeros([SHARE, BLOCK_S], gl.float32, S_LAYOUT)
        s = warpgroup_mma(q, k_tiles.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(before), ((j - 1) // STAGES) & 1)
        acc = warpgroup_mma(p, v_tiles.index(before), acc, is_async=True)
        s = warpgroup_mma_wait(num_outstanding=1, deps=[s])
        mbarrier.arrive(k_empty.index(stage))
        p_next, alpha, m, l = _softmax(s, m, l, n + j * BLOCK_S, first, end, scale, BLOCK_S, MASKED, S_LAYOUT)
        acc, p = warpgroup_mma_wait(num_outstanding=0, deps=[acc, p])
        mbarrier.arrive(v_empty.index(before))
        acc = acc * gl.convert_layout(alpha, gl.SliceLayout(1, Y_LAYOUT))[:, None]
        p = gl.convert_layout(p_next.to(p.dtype), P_LAYOUT)
    return acc, m, l, p


@gluon.jit
def _multiply(q, which, work, bounds, rings, results, scale, pieces, D: gl.constexpr, BLOCK_S: gl.constexpr,
              CONSUMERS: gl.constexpr):  # fmt: skip
    """A consumer: of each piece of work 64 queries, those of number ``which``, over all the keys they see."""
    so_far, parity = 0, 0
    for index in range(gl.program_id(0), pieces, gl.num_programs(0)):
        piece = _piece(index, work, bounds, SHARE * CONSUMERS, BLOCK_S)
        _one(q, which, piece, so_far, parity, work, bounds, rings, results, scale, D, BLOCK_S)
        so_far += piece[4]
        parity ^= 1


@gluon.jit
def _one(q, which, piece, so_far, parity, work, bounds, rings, results, scale, D: gl.constexpr, BLOCK_S: gl.constexpr):
    k_tiles, v_tiles, q_full, q_empty, k_full, k_empty, v_full, v_empty = rings
    y_ptr, lse_ptr = results
    first_ptr, end_ptr, stride_first_b = bounds
    b, h, t, begin, tiles = piece
    T, H = work[0], work[1]
    t += which * SHARE
    first_ptr += b.to(gl.int64) * stride_first_b
    end_ptr += b.to(gl.int64) * stride_first_b
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_S, 16])
    Y_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, Y_LAYOUT, 2)
    rows = t + gl.arange(0, SHARE, layout=gl.SliceLayout(1, S_LAYOUT))
    row = gl.minimum(rows, T - 1)
    first, end = gl.load(first_ptr + row), gl.load(end_ptr + row)
    # Of these tiles every row sees all keys: counted from the one that holds ``begin``.
    top, bottom = gl.minimum(t, T - 1), gl.minimum(t + SHARE, T) - 1
    whole_start = gl.cdiv(gl.load(first_ptr + bottom) - begin, BLOCK_S)
    whole_start = gl.minimum(gl.maximum(whole_start, 1), tiles)
    whole_stop = gl.minimum(gl.maximum((gl.load(end_ptr + top) - begin) // BLOCK_S, whole_start), tiles)

    stage = so_far % STAGES
    mbarrier.wait(k_full.index(stage), (so_far // STAGES) & 1)
    mbarrier.wait(q_full, parity)
    m = gl.full([SHARE], float("-inf"), gl.float32, gl.SliceLayout(1, S_LAYOUT))
    l = gl.zeros([SHARE], gl.float32, gl.SliceLayout(1, S_LAYOUT))
    nothing = gl.zeros([SHARE, BLOCK_S], gl.float32, S_LAYOUT)
    s = warpgroup_mma(q, k_tiles.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(num_outstanding=0, deps=[s])
    mbarrier.arrive(k_empty.index(stage))
    p_next, _, m, l = _softmax(s, m, l, begin, first, end, scale, BLOCK_S, True, S_LAYOUT)
    p = gl.convert_layout(p_next.to(q.dtype), P_LAYOUT)
    acc = gl.zeros([SHARE, D], gl.float32, Y_LAYOUT)

    n = begin - so_far * BLOCK_S
    whole_start += so_far
    whole_stop += so_far
    stop = so_far + tiles
    acc, m, l, p = _walk(acc, m, l, p, q, k_tiles, v_tiles, k_full, k_empty, v_full, v_empty, first, end, scale,
                         n, so_far + 1, whole_start, BLOCK_S, S_LAYOUT, Y_LAYOUT, P_LAYOUT, True)  # fmt: skip
    acc, m, l, p = _walk(acc, m, l, p, q, k_tiles, v_tiles, k_full, k_empty, v_full, v_empty, first, end, scale,
                         n, whole_start, whole_stop, BLOCK_S, S_LAYOUT, Y_LAYOUT, P_LAYOUT, False)  # fmt: skip
    acc, m, l, p = _walk(acc, m, l, p, q, k_tiles, v_tiles, k_full, k_empty, v_full, v_empty, first, end, scale,
                         n, whole_stop, stop, BLOCK_S, S_LAYOUT, Y_LAYOUT, P_LAYOUT, True)  # fmt: skip
    mbarrier.arrive(q_empty)  # the next piece's queries may come while this one ends

    last = (stop - 1) % STAGES
    mbarrier.wait(v_full.index(last), ((stop - 1) // STAGES) & 1)
    acc = warpgroup_mma(p, v_tiles.index(last), acc, is_async=True)
    acc, p = warpgroup_mma_wait(num_outstanding=0, deps=[acc, p])
    mbarrier.arrive(v_empty.index(last))

    total = gl.where(l == 0.0, 1.0, l)
    lse = gl.where(l == 0.0, float("inf"), m + gl.log2(total))
    gl.store(lse_ptr + (b * H + h).to(gl.int64) * T + rows, lse, mask=rows < T)
    share = gl.convert_layout(1.0 / total, gl.SliceLayout(1, Y_LAYOUT))
    y = (acc * share[:, None]).to(y_ptr.dtype.element_ty)
    at_t = t + gl.arange(0, SHARE, layout=gl.SliceLayout(1, Y_LAYOUT))
    at_d = gl.arange(0, D, layout=gl.SliceLayout(0, Y_LAYOUT))
    tile = y_ptr + (b.to(gl.int64) * T * H + h) * D + at_t.to(gl.int64)[:, None] * (H * D) + at_d[None, :]
    gl.store(tile, y, mask=(at_t < T)[:, None])


@gluon.jit
def attention_forward_hopper_kernel(
    q_matrix, k_matrix, v_matrix, y_ptr, lse_ptr, first_ptr, end_ptr, stride_first_b,
    q_apart, k_apart, v_apart, T, H, group, heads, section, scale,
    D: gl.constexpr, BLOCK_S: gl.constexpr, CONSUMERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_matrix.dtype
    q_tiles = gl.allocate_shared_memory(dtype, [CONSUMERS, SHARE, D], q_matrix.layout)
    k_tiles = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_S, D], k_matrix.layout)
    v_tiles = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_S, D], v_matrix.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    mbarrier.init(q_empty, count=CONSUMERS)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=CONSUMERS)
        mbarrier.init(v_empty.index(i), count=CONSUMERS)

    pieces = gl.cdiv(T, SHARE * CONSUMERS) * heads
    what = (q_matrix, k_matrix, v_matrix, q_tiles, q_apart, k_apart, v_apart, group, pieces)
    work = (T, H, heads, section)
    bounds = (first_ptr, end_ptr, stride_first_b)
    rings = (k_tiles, v_tiles, q_full, q_empty, k_full, k_empty, v_full, v_empty)
    results = (y_ptr, lse_ptr)
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_load, (what, work, bounds, rings, BLOCK_S, CONSUMERS)),
                (_multiply, (q_tiles.index(0), 0, work, bounds, rings, results, scale, pieces, D, BLOCK_S, CONSUMERS)),
                (_multiply, (q_tiles.index(1), 1, work, bounds, rings, results, scale, pieces, D, BLOCK_S, CONSUMERS)),
            ],
            [4, 4],
            [240, 240],
        )
    else:
        gl.warp_specialize(
            [
                (_load, (what, work, bounds, rings, BLOCK_S, CONSUMERS)),
                (_multiply, (q_tiles.index(0), 0, work, bounds, rings, results, scale, pieces, D, BLOCK_S, CONSUMERS)),
                (_multiply, (q_tiles.index(1), 1, work, bounds, rings, results, scale, pieces, D, BLOCK_S, CONSUMERS)),
                (_multiply, (q_tiles.index(2), 2, work, bounds, rings, results, scale, pieces, D, BLOCK_S, CONSUMERS)),
            ],
            [4, 4, 4],
            [160, 160, 160],
        )
