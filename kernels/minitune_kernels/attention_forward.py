# A kernel is Triton's dialect of Python, of which a type checker knows too little.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportOperatorIssue=false, reportAssignmentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""The forward of attention, tile by tile, without the (T, S) scores ever being held (FlashAttention, arXiv 2205.14135;
the online softmax of arXiv 1805.02867).

A program owns BLOCK_T queries of one head and walks over the keys they see, BLOCK_S at a time. It keeps for each query
the largest score so far ``m``, the sum of exponentials ``l`` and the weighted values ``acc``; a larger score scales
down what was summed before:

    s     = scale * log2(e) * q k^T           softmax in base 2: the GPU's exponential is 2^x
    m'    = max(m, max s)
    p     = 2^(s - m')                        acc = acc * 2^(m - m') + p v
    l     = l * 2^(m - m') + sum p            m   = m'
    y     = acc / l                           lse = m + log2 l, kept for the backward

Which keys: ``intervals.py``. Tiles that every row of the program sees whole pay for no mask; tiles that none sees are
not visited.
"""

import torch
import triton
import triton.language as tl

from minitune_kernels.special import tanh

LOG2_E = 1.4426950408889634


def in_base_two(scale: float, softcap: float) -> tuple[float, float]:
    """What a raw score is multiplied by, and the cap: ``s log2(e)``, or ``cap tanh(s scale)`` with a softcap."""
    return (scale / softcap, softcap * LOG2_E) if softcap else (scale * LOG2_E, 0.0)


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: as three products of its halves on the tensor cores, not as one that drops 13 bits."""
    return "tf32x3" if dtype == torch.float32 else "ieee"


@triton.jit
def load_tile(ptr, row, rows, stride, at_row, at_d, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Rows ``row + at_row`` of a matrix with ``rows`` rows, ``(len(at_row), BLOCK_D)``; zeros outside."""
    tile = ptr + tl.cast(row, tl.int64) * stride + at_row[:, None] * stride + at_d[None, :]
    if MASKED:
        inside = (row + at_row[:, None]) < rows
        if BLOCK_D != D:
            inside = inside & (at_d[None, :] < D)
        return tl.load(tile, mask=inside, other=0.0)
    if BLOCK_D != D:
        return tl.load(tile, mask=at_d[None, :] < D, other=0.0)
    return tl.load(tile)


@triton.jit
def walk(
    acc, m, l, q, k_ptr, v_ptr, stride_k_s, stride_v_s, first, end, begin, stop, S, scale, cap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    MASKED: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take the keys from ``begin`` to ``stop`` into ``acc (BLOCK_T, BLOCK_D)``, ``m`` and ``l (BLOCK_T,)``."""
    at_s = tl.arange(0, BLOCK_S)
    at_d = tl.arange(0, BLOCK_D)
    for n in tl.range(begin, stop, BLOCK_S):
        k = load_tile(k_ptr, n, S, stride_k_s, at_s, at_d, D, BLOCK_D, MASKED)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (BLOCK_T, BLOCK_S)
        if SOFTCAP:
            s = cap * tanh(s * scale)
        if MASKED:
            if not SOFTCAP:
                s = s * scale
            at = n + at_s[None, :]
            s = tl.where((at >= first[:, None]) & (at < end[:, None]), s, float("-inf"))
            m_new = tl.maximum(m, tl.max(s, 1))
            shift = tl.where(m_new == float("-inf"), 0.0, m_new)  # a row that has seen nothing yet
            p = tl.exp2(s - shift[:, None])
        else:
            if SOFTCAP:
                m_new = tl.maximum(m, tl.max(s, 1))
                p = tl.exp2(s - m_new[:, None])
            else:
                m_new = tl.maximum(m, tl.max(s, 1) * scale)
                p = tl.exp2(s * scale - m_new[:, None])  # one fused multiply-add an element
            shift = m_new
        alpha = tl.exp2(m - shift)
        l = l * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        v = load_tile(v_ptr, n, S, stride_v_s, at_s, at_d, D, BLOCK_D, MASKED)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        m = m_new
    return acc, m, l


@triton.jit
def place(program, tiles, heads, section, REVERSED: tl.constexpr):
    """Which tile of which (row, head) a program takes.

    Heads are taken in sections whose keys and values fit the second-level cache; within one the longest tiles, the
    last ones under a causal mask, come first, so that no long tile is left over at the end.
    """
    in_section = tiles * section
    which = program // in_section
    rest = program % in_section
    size = tl.minimum(section, heads - which * section)
    tile = rest // size
    if REVERSED:
        tile = tiles - 1 - tile
    return tile, which * section + rest % size


@triton.jit
def reach(first_ptr, end_ptr, top, bottom, BLOCK: tl.constexpr):
    """What the rows ``top`` to ``bottom`` see: from ``begin`` to ``stop``, all of it whole between the middle two.

    In steps of BLOCK; ``begin <= whole_begin <= whole_stop``, and the three stretches cover every step once.
    """
    begin = tl.load(first_ptr + top) // BLOCK * BLOCK
    stop = tl.load(end_ptr + bottom)
    whole_begin = tl.minimum(tl.cdiv(tl.load(first_ptr + bottom), BLOCK) * BLOCK, tl.cdiv(stop, BLOCK) * BLOCK)
    whole_begin = tl.maximum(whole_begin, begin)
    whole_stop = tl.maximum(tl.load(end_ptr + top) // BLOCK * BLOCK, whole_begin)
    return begin, whole_begin, whole_stop, stop


@triton.jit
def attention_forward_kernel(
    q_ptr, k_ptr, v_ptr, y_ptr, lse_ptr, first_ptr, end_ptr,
    stride_q_b, stride_q_t, stride_q_h, stride_k_b, stride_k_s, stride_k_h, stride_v_b, stride_v_s, stride_v_h,
    stride_y_b, stride_y_t, stride_y_h, stride_first_b,
    T, S, H, group, heads, section, scale, cap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, bh = place(tl.program_id(0), tl.cdiv(T, BLOCK_T), heads, section, True)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    t = tile * BLOCK_T
    at_t = tl.arange(0, BLOCK_T)
    at_d = tl.arange(0, BLOCK_D)
    k_ptr += b * stride_k_b + h // group * stride_k_h
    v_ptr += b * stride_v_b + h // group * stride_v_h
    q = load_tile(q_ptr + b * stride_q_b + h * stride_q_h, t, T, stride_q_t, at_t, at_d, D, BLOCK_D, True)

    # The ends of this tile's keys; rows behind the last query repeat it.
    first_ptr += b * stride_first_b
    end_ptr += b * stride_first_b
    row = tl.minimum(t + at_t, T - 1)
    first, end = tl.load(first_ptr + row), tl.load(end_ptr + row)  # (BLOCK_T,)
    last = tl.minimum(t + BLOCK_T, T) - 1
    begin, whole_begin, whole_stop, stop = reach(first_ptr, end_ptr, t, last, BLOCK_S)

    acc = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    m = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_T,), tl.float32)
    acc, m, l = walk(acc, m, l, q, k_ptr, v_ptr, stride_k_s, stride_v_s, first, end, begin, whole_begin, S,
                     scale, cap, D, BLOCK_D, BLOCK_S, True, SOFTCAP, PRECISION)  # fmt: skip
    acc, m, l = walk(acc, m, l, q, k_ptr, v_ptr, stride_k_s, stride_v_s, first, end, whole_begin, whole_stop, S,
                     scale, cap, D, BLOCK_D, BLOCK_S, False, SOFTCAP, PRECISION)  # fmt: skip
    acc, m, l = walk(acc, m, l, q, k_ptr, v_ptr, stride_k_s, stride_v_s, first, end, whole_stop, stop, S,
                     scale, cap, D, BLOCK_D, BLOCK_S, True, SOFTCAP, PRECISION)  # fmt: skip

    # A query that sees nothing gives 0; its lse of +inf makes every probability 0 in the backward.
    total = tl.where(l == 0.0, 1.0, l)
    y = acc / total[:, None]
    lse = tl.where(l == 0.0, float("inf"), m + tl.log2(total))
    inside = (t + at_t) < T
    y_tile = y_ptr + b * stride_y_b + h * stride_y_h + t.to(tl.int64) * stride_y_t
    y_tile += at_t[:, None] * stride_y_t + at_d[None, :]
    tl.store(y_tile, y.to(y_ptr.dtype.element_ty), mask=inside[:, None] & (at_d[None, :] < D))
    tl.store(lse_ptr + bh.to(tl.int64) * T + t + at_t, lse, mask=inside)
