# A kernel is Triton's dialect of Python, of which a type checker knows too little.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportOperatorIssue=false, reportAssignmentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""The backward of attention for Hopper, in Gluon: the split form of ``attention_backward.py``, every sum in one order.

As in ``attention_hopper.py`` a producer lets the copy engine fill rings in shared memory and two consumers of four
warps multiply. Tiles of scores stand so that ``p`` and ``ds`` come into being in the registers of the warps that need
them as left factors; nothing is transposed through memory:

    keys kernel      a consumer owns 64 keys          s^T = k q^T    dp^T = v dy^T    dv += p^T dy    dk += ds^T q
    queries kernel   a consumer owns 64 queries       s = q k^T      dp = dy v^T      dq += ds k

Within a step the products overlap the arithmetic between them: dp runs while p is taken from s, and dv while ds is
taken from dp. While one consumer has nothing to multiply the other has.
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from minitune_kernels.attention_forward import LOG2_E
from minitune_kernels.attention_hopper import SHARE, load_async, matrix, place, serves
from minitune_kernels.launch import cdiv, launch

barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # renamed after Triton 3.6

KEY_STAGES = gl.constexpr(3)
QUERY_STAGES = gl.constexpr(2)
"""Places in the rings of the kernel that owns keys, and of the one that owns queries."""


def serves_backward(dy: Tensor, q: Tensor, k: Tensor, v: Tensor, softcap: float) -> bool:
    """Whether these kernels take these inputs: what the forward takes, with D of 64 or 128."""
    return q.shape[3] <= 128 and serves(q, k, v, softcap) and serves(dy, k, v, softcap)


def attention_backward_hopper(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor,
    spans: tuple[Tensor, Tensor, Tensor, Tensor], dq: Tensor, dk: Tensor, dv: Tensor,
    scale: float, sections: tuple[int, int],
) -> None:  # fmt: skip
    """Fill ``dq, dk, dv`` (contiguous); ``spans`` are the four vectors of ``Intervals``; ``scale`` in natural units."""
    B, T, H, D = q.shape
    S, K = k.shape[1], k.shape[2]
    group = H // K
    first, end, seen_first, seen_end = spans
    stride_first, stride_seen = (x.stride(0) if x.shape[0] > 1 else 0 for x in (first, seen_first))
    block_t = 64
    (own_k, k_apart), (own_v, v_apart) = matrix(k, SHARE.value), matrix(v, SHARE.value)
    (walked_q, q_apart), (walked_dy, dy_apart) = matrix(q, block_t), matrix(dy, block_t)
    launch(
        attention_backward_keys_hopper_kernel, (cdiv(S, 2 * SHARE.value) * B * K,),
        walked_q, walked_dy, own_k, own_v, lse, delta, dk, dv, first, end, seen_first, seen_end,
        stride_first, stride_seen,
        q_apart, dy_apart, k_apart, v_apart, T, S, K, group, B * K, sections[0], scale * LOG2_E, scale,
        D=D, BLOCK_T=block_t, num_warps=4,
    )  # fmt: skip
    block_s = 128
    (walked_k, k_apart), (walked_v, v_apart) = matrix(k, block_s), matrix(v, block_s)
    (own_q, q_apart), (own_dy, dy_apart) = matrix(q, SHARE.value), matrix(dy, SHARE.value)
    launch(
        attention_backward_queries_hopper_kernel, (cdiv(T, 2 * SHARE.value) * B * H,),
        own_q, own_dy, walked_k, walked_v, lse, delta, dq, first, end, stride_first,
        q_apart, dy_apart, k_apart, v_apart, T, H, group, B * H, sections[1], scale * LOG2_E, scale,
        D=D, BLOCK_S=block_s, num_warps=4,
    )  # fmt: skip


# ---- shared by both


@gluon.jit
def _load(what, where, rings, BLOCK: gl.constexpr, D: gl.constexpr):
    """The producer: two owned tiles for each of the two consumers, then pairs of walked tiles, head after head."""
    own_a, own_b, walked_a, walked_b, own_a_tiles, own_b_tiles = what
    own_a_row, own_b_row, own_column, a_row, b_row, column, heads, tiles = where
    a_tiles, b_tiles, own_full, a_full, b_full, empty = rings
    BYTES: gl.constexpr = 4 * own_a.block_type.nbytes
    mbarrier.expect(own_full, BYTES)
    for i in gl.static_range(2):
        load_async(own_a, [own_a_row + i * SHARE, own_column], own_full, own_a_tiles.index(i))
        load_async(own_b, [own_b_row + i * SHARE, own_column], own_full, own_b_tiles.index(i))
    for i in range(heads * tiles):
        stage = i % QUERY_STAGES
        at = column + i // tiles * D
        row = i % tiles * BLOCK
        mbarrier.wait(empty.index(stage), ((i // QUERY_STAGES) & 1) ^ 1)  # at once in the first round
        mbarrier.expect(a_full.index(stage), walked_a.block_type.nbytes)
        load_async(walked_a, [a_row + row, at], a_full.index(stage), a_tiles.index(stage))
        mbarrier.expect(b_full.index(stage), walked_b.block_type.nbytes)
        load_async(walked_b, [b_row + row, at], b_full.index(stage), b_tiles.index(stage))


@gluon.jit
def _store(ptr, x, at, rows, stride, D: gl.constexpr, LAYOUT: gl.constexpr):
    """Rows ``at`` on of a matrix with ``rows`` rows."""
    at_row = at + gl.arange(0, SHARE, layout=gl.SliceLayout(1, LAYOUT))
    at_d = gl.arange(0, D, layout=gl.SliceLayout(0, LAYOUT))
    tile = ptr + at_row.to(gl.int64)[:, None] * stride + at_d[None, :]
    gl.store(tile, x.to(ptr.dtype.element_ty), mask=(at_row < rows)[:, None])


@gluon.jit
def _rings(a_matrix, b_matrix, BLOCK: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, ARRIVALS: gl.constexpr):
    """Two rings of tiles and the barriers that say what is full, after ``ARRIVALS`` in the first, and what is empty."""
    a_tiles = gl.allocate_shared_memory(a_matrix.dtype, [STAGES, BLOCK, D], a_matrix.layout)
    b_tiles = gl.allocate_shared_memory(b_matrix.dtype, [STAGES, BLOCK, D], b_matrix.layout)
    own_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    a_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    b_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(own_full, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(a_full.index(i), count=ARRIVALS)
        mbarrier.init(b_full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    return a_tiles, b_tiles, own_full, a_full, b_full, empty


# ---- dk and dv


@gluon.jit
def _load_queries(what, where, rings, rows, T, BLOCK_T: gl.constexpr, D: gl.constexpr):
    """The producer of the keys kernel: as ``_load``, with ``lse`` and ``delta`` of each tile put beside it.

    They lie in shared memory until the moment of use, so that no consumer keeps them in registers meanwhile.
    """
    k_matrix, v_matrix, q_matrix, dy_matrix, k_tiles, v_tiles = what
    k_row, v_row, k_column, q_row, dy_row, column, group, tiles, begin = where
    q_tiles, dy_tiles, own_full, q_full, dy_full, empty, lse_tiles, delta_tiles = rings
    lse_ptr, delta_ptr = rows
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    BYTES: gl.constexpr = 4 * k_matrix.block_type.nbytes
    mbarrier.expect(own_full, BYTES)
    for i in gl.static_range(2):
        load_async(k_matrix, [k_row + i * SHARE, k_column], own_full, k_tiles.index(i))
        load_async(v_matrix, [v_row + i * SHARE, k_column], own_full, v_tiles.index(i))
    for i in range(group * tiles):
        stage = i % KEY_STAGES
        g = i // tiles
        row = i % tiles * BLOCK_T
        at_t = begin + row + gl.arange(0, BLOCK_T, layout=LAYOUT)
        lse = gl.load(lse_ptr + g * T + at_t, mask=at_t < T, other=float("inf"))
        delta = gl.load(delta_ptr + g * T + at_t, mask=at_t < T, other=0.0)
        mbarrier.wait(empty.index(stage), ((i // KEY_STAGES) & 1) ^ 1)  # at once in the first round
        mbarrier.expect(q_full.index(stage), q_matrix.block_type.nbytes)
        load_async(q_matrix, [q_row + row, column + g * D], q_full.index(stage), q_tiles.index(stage))
        mbarrier.expect(dy_full.index(stage), dy_matrix.block_type.nbytes)
        load_async(dy_matrix, [dy_row + row, column + g * D], dy_full.index(stage), dy_tiles.index(stage))
        lse_tiles.index(stage).store(lse)
        delta_tiles.index(stage).store(delta)
        barrier()
        mbarrier.arrive(q_full.index(stage))


@gluon.jit
def _over_queries(
    dk, dv, k, v, rings, spans, n, begin, base, start, stop, T, scale,
    D: gl.constexpr, BLOCK_T: gl.constexpr, S_LAYOUT: gl.constexpr, P_LAYOUT: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Tiles ``start`` to ``stop`` of one head's queries into ``dk`` and ``dv (SHARE, D)``."""
    q_tiles, dy_tiles, _, q_full, dy_full, empty, lse_tiles, delta_tiles = rings
    first_ptr, end_ptr = spans
    for j in range(start, stop):
        stage = (base + j) % KEY_STAGES
        phase = ((base + j) // KEY_STAGES) & 1
        nothing = gl.zeros([SHARE, BLOCK_T], gl.float32, S_LAYOUT)
        mbarrier.wait(q_full.index(stage), phase)
        s = warpgroup_mma(k, q_tiles.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(dy_full.index(stage), phase)
        dp = warpgroup_mma(v, dy_tiles.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(num_outstanding=1, deps=[s])
        s = s * scale - lse_tiles.index(stage).load(gl.SliceLayout(0, S_LAYOUT))[None, :]
        if MASKED:
            row = gl.minimum(begin + j * BLOCK_T + gl.arange(0, BLOCK_T, layout=gl.SliceLayout(0, S_LAYOUT)), T - 1)
            first, end = gl.load(first_ptr + row), gl.load(end_ptr + row)
            at_s = n + gl.arange(0, SHARE, layout=gl.SliceLayout(1, S_LAYOUT))
            s = gl.where((at_s[:, None] >= first[None, :]) & (at_s[:, None] < end[None, :]), s, float("-inf"))
        p = gl.exp2(s)
        p_left = gl.convert_layout(p.to(k.dtype), P_LAYOUT)
        dv = warpgroup_mma(p_left, dy_tiles.index(stage), dv, is_async=True)
        dp = warpgroup_mma_wait(num_outstanding=1, deps=[dp])
        delta = delta_tiles.index(stage).load(gl.SliceLayout(0, S_LAYOUT))
        ds_left = gl.convert_layout((p * (dp - delta[None, :])).to(k.dtype), P_LAYOUT)
        dk = warpgroup_mma(ds_left, q_tiles.index(stage), dk, is_async=True)
        # The left factors are named here so that their registers stay theirs until both products are done.
        dk, dv, p_left, ds_left = warpgroup_mma_wait(num_outstanding=0, deps=[dk, dv, p_left, ds_left])
        mbarrier.arrive(empty.index(stage))
    return dk, dv


@gluon.jit
def _keys(
    k, v, n, rings, spans, seen, results, begin, group, tiles, T, S, scale, dk_scale,
    D: gl.constexpr, BLOCK_T: gl.constexpr,
):  # fmt: skip
    """A consumer: dk and dv of 64 keys from ``n`` on, over ``tiles`` tiles of queries of every head of the group."""
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_T, 16])
    D_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, D_LAYOUT, 2)
    seen_first_ptr, seen_end_ptr = seen
    dk_ptr, dv_ptr, stride_dk_s = results
    # Of these tiles every query sees all of this consumer's keys: counted from the one that holds ``begin``.
    top, bottom = gl.minimum(n, S - 1), gl.minimum(n + SHARE, S) - 1
    whole_start = gl.cdiv(gl.load(seen_first_ptr + bottom) - begin, BLOCK_T)
    whole_start = gl.minimum(gl.maximum(whole_start, 0), tiles)
    whole_stop = gl.minimum(gl.maximum((gl.load(seen_end_ptr + top) - begin) // BLOCK_T, whole_start), tiles)
    dk = gl.zeros([SHARE, D], gl.float32, D_LAYOUT)
    dv = gl.zeros([SHARE, D], gl.float32, D_LAYOUT)
    own_full = rings[2]
    mbarrier.wait(own_full, 0)
    for g in range(group):
        dk, dv = _over_queries(dk, dv, k, v, rings, spans, n, begin, g * tiles, 0, whole_start, T, scale,
                               D, BLOCK_T, S_LAYOUT, P_LAYOUT, True)  # fmt: skip
        dk, dv = _over_queries(dk, dv, k, v, rings, spans, n, begin, g * tiles, whole_start, whole_stop, T, scale,
                               D, BLOCK_T, S_LAYOUT, P_LAYOUT, False)  # fmt: skip
        dk, dv = _over_queries(dk, dv, k, v, rings, spans, n, begin, g * tiles, whole_stop, tiles, T, scale,
                               D, BLOCK_T, S_LAYOUT, P_LAYOUT, True)  # fmt: skip
    _store(dk_ptr, dk * dk_scale, n, S, stride_dk_s, D, D_LAYOUT)
    _store(dv_ptr, dv, n, S, stride_dk_s, D, D_LAYOUT)


@gluon.jit
def attention_backward_keys_hopper_kernel(
    q_matrix, dy_matrix, k_matrix, v_matrix, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    first_ptr, end_ptr, seen_first_ptr, seen_end_ptr, stride_first_b, stride_seen_b,
    q_apart, dy_apart, k_apart, v_apart, T, S, K, group, heads, section, scale, dk_scale,
    D: gl.constexpr, BLOCK_T: gl.constexpr,
):  # fmt: skip
    tile, bk = place(gl.program_id(0), gl.cdiv(S, 2 * SHARE), heads, section, False)
    b = bk // K
    kv = bk % K
    n = tile * (2 * SHARE)
    first_ptr += b.to(gl.int64) * stride_first_b
    end_ptr += b.to(gl.int64) * stride_first_b
    seen_first_ptr += b.to(gl.int64) * stride_seen_b
    seen_end_ptr += b.to(gl.int64) * stride_seen_b
    begin = gl.load(seen_first_ptr + n) // BLOCK_T * BLOCK_T
    stop = gl.load(seen_end_ptr + gl.minimum(n + 2 * SHARE, S) - 1)
    tiles = gl.maximum(gl.cdiv(stop - begin, BLOCK_T), 0)
    k_tiles = gl.allocate_shared_memory(k_matrix.dtype, [2, SHARE, D], k_matrix.layout)
    v_tiles = gl.allocate_shared_memory(v_matrix.dtype, [2, SHARE, D], v_matrix.layout)
    q_tiles, dy_tiles, own_full, q_full, dy_full, empty = _rings(q_matrix, dy_matrix, BLOCK_T, D, KEY_STAGES, 2)
    lse_tiles = gl.allocate_shared_memory(gl.float32, [KEY_STAGES, BLOCK_T], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    delta_tiles = gl.allocate_shared_memory(gl.float32, [KEY_STAGES, BLOCK_T], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    rings = (q_tiles, dy_tiles, own_full, q_full, dy_full, empty, lse_tiles, delta_tiles)
    head = (b * K + kv) * group  # of (B, H)
    what = (k_matrix, v_matrix, q_matrix, dy_matrix, k_tiles, v_tiles)
    where = (b * k_apart + n, b * v_apart + n, kv * D, b * q_apart + begin, b * dy_apart + begin, kv * group * D,
             group, tiles, begin)  # fmt: skip
    rows = (lse_ptr + head.to(gl.int64) * T, delta_ptr + head.to(gl.int64) * T)
    spans = (first_ptr, end_ptr)
    seen = (seen_first_ptr, seen_end_ptr)
    offset = (b.to(gl.int64) * S * K + kv) * D
    results = (dk_ptr + offset, dv_ptr + offset, K * D)
    gl.warp_specialize(
        [
            (_load_queries, (what, where, rings, rows, T, BLOCK_T, D)),
            (_keys, (k_tiles.index(0), v_tiles.index(0), n, rings, spans, seen, results, begin, group, tiles, T, S,
                     scale, dk_scale, D, BLOCK_T)),
            (_keys, (k_tiles.index(1), v_tiles.index(1), n + SHARE, rings, spans, seen, results, begin, group, tiles, T,
                     S, scale, dk_scale, D, BLOCK_T)),
        ],
        [4, 4],
        [240, 240],
    )  # fmt: skip


# ---- dq


@gluon.jit
def _over_keys(
    dq, q, dy, rings, lse, delta, first, end, begin, start, stop, scale,
    BLOCK_S: gl.constexpr, S_LAYOUT: gl.constexpr, P_LAYOUT: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Tiles ``start`` to ``stop`` of keys into ``dq (SHARE, D)``."""
    k_tiles, v_tiles, _, k_full, v_full, empty = rings
    for j in range(start, stop):
        stage = j % QUERY_STAGES
        phase = (j // QUERY_STAGES) & 1
        nothing = gl.zeros([SHARE, BLOCK_S], gl.float32, S_LAYOUT)
        mbarrier.wait(k_full.index(stage), phase)
        s = warpgroup_mma(q, k_tiles.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(stage), phase)
        dp = warpgroup_mma(dy, v_tiles.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(num_outstanding=1, deps=[s])
        s = s * scale - lse[:, None]
        if MASKED:
            at = (begin + j * BLOCK_S + gl.arange(0, BLOCK_S, layout=gl.SliceLayout(0, S_LAYOUT)))[None, :]
            s = gl.where((at >= first[:, None]) & (at < end[:, None]), s, float("-inf"))
        p = gl.exp2(s)
        dp = warpgroup_mma_wait(num_outstanding=0, deps=[dp])
        ds_left = gl.convert_layout((p * (dp - delta[:, None])).to(q.dtype), P_LAYOUT)
        dq = warpgroup_mma(ds_left, k_tiles.index(stage), dq, is_async=True)
        dq, ds_left = warpgroup_mma_wait(num_outstanding=0, deps=[dq, ds_left])
        mbarrier.arrive(empty.index(stage))
    return dq


@gluon.jit
def _queries(
    q, dy, t, rings, rows, dq_ptr, stride_dq_t, begin, tiles, T, scale, dq_scale,
    D: gl.constexpr, BLOCK_S: gl.constexpr,
):  # fmt: skip
    """A consumer: dq of 64 queries from ``t`` on, over ``tiles`` tiles of keys."""
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_S, 16])
    D_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, D_LAYOUT, 2)
    lse_ptr, delta_ptr, first_ptr, end_ptr = rows
    at_t = t + gl.arange(0, SHARE, layout=gl.SliceLayout(1, S_LAYOUT))
    row = gl.minimum(at_t, T - 1)
    first, end = gl.load(first_ptr + row), gl.load(end_ptr + row)
    lse = gl.load(lse_ptr + at_t, mask=at_t < T, other=float("inf"))
    delta = gl.load(delta_ptr + at_t, mask=at_t < T, other=0.0)
    top, bottom = gl.minimum(t, T - 1), gl.minimum(t + SHARE, T) - 1
    whole_start = gl.cdiv(gl.load(first_ptr + bottom) - begin, BLOCK_S)
    whole_start = gl.minimum(gl.maximum(whole_start, 0), tiles)
    whole_stop = gl.minimum(gl.maximum((gl.load(end_ptr + top) - begin) // BLOCK_S, whole_start), tiles)
    dq = gl.zeros([SHARE, D], gl.float32, D_LAYOUT)
    own_full = rings[2]
    mbarrier.wait(own_full, 0)
    dq = _over_keys(dq, q, dy, rings, lse, delta, first, end, begin, 0, whole_start, scale,
                    BLOCK_S, S_LAYOUT, P_LAYOUT, True)  # fmt: skip
    dq = _over_keys(dq, q, dy, rings, lse, delta, first, end, begin, whole_start, whole_stop, scale,
                    BLOCK_S, S_LAYOUT, P_LAYOUT, False)  # fmt: skip
    dq = _over_keys(dq, q, dy, rings, lse, delta, first, end, begin, whole_stop, tiles, scale,
                    BLOCK_S, S_LAYOUT, P_LAYOUT, True)  # fmt: skip
    _store(dq_ptr, dq * dq_scale, t, T, stride_dq_t, D, D_LAYOUT)


@gluon.jit
def attention_backward_queries_hopper_kernel(
    q_matrix, dy_matrix, k_matrix, v_matrix, lse_ptr, delta_ptr, dq_ptr, first_ptr, end_ptr, stride_first_b,
    q_apart, dy_apart, k_apart, v_apart, T, H, group, heads, section, scale, dq_scale,
    D: gl.constexpr, BLOCK_S: gl.constexpr,
):  # fmt: skip
    tile, bh = place(gl.program_id(0), gl.cdiv(T, 2 * SHARE), heads, section, True)
    b = bh // H
    h = bh % H
    t = tile * (2 * SHARE)
    first_ptr += b.to(gl.int64) * stride_first_b
    end_ptr += b.to(gl.int64) * stride_first_b
    begin = gl.load(first_ptr + t) // BLOCK_S * BLOCK_S
    stop = gl.load(end_ptr + gl.minimum(t + 2 * SHARE, T) - 1)
    tiles = gl.maximum(gl.cdiv(stop - begin, BLOCK_S), 0)
    q_tiles = gl.allocate_shared_memory(q_matrix.dtype, [2, SHARE, D], q_matrix.layout)
    dy_tiles = gl.allocate_shared_memory(dy_matrix.dtype, [2, SHARE, D], dy_matrix.layout)
    rings = _rings(k_matrix, v_matrix, BLOCK_S, D, QUERY_STAGES, 1)
    what = (q_matrix, dy_matrix, k_matrix, v_matrix, q_tiles, dy_tiles)
    where = (b * q_apart + t, b * dy_apart + t, h * D, b * k_apart + begin, b * v_apart + begin, h // group * D,
             1, tiles)  # fmt: skip
    rows = (lse_ptr + bh.to(gl.int64) * T, delta_ptr + bh.to(gl.int64) * T, first_ptr, end_ptr)
    dq_ptr += (b.to(gl.int64) * T * H + h) * D
    gl.warp_specialize(
        [
            (_load, (what, where, rings, BLOCK_S, D)),
            (_queries, (q_tiles.index(0), dy_tiles.index(0), t, rings, rows, dq_ptr, H * D, begin, tiles, T, scale,
                        dq_scale, D, BLOCK_S)),
            (_queries, (q_tiles.index(1), dy_tiles.index(1), t + SHARE, rings, rows, dq_ptr, H * D, begin, tiles, T,
                        scale, dq_scale, D, BLOCK_S)),
        ],
        [4, 4],
        [240, 240],
    )  # fmt: skip
