# A kernel is Triton's dialect of Python, of which a type checker knows too little.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportOperatorIssue=false, reportAssignmentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""Attention of a few queries over a long cache: the keys are split among programs (Flash-Decoding).

One query a row leaves a GPU idle where a program owns a (row, head): so the keys of a row are cut into ``splits``
pieces, each program takes one piece for all query heads that share its key/value head, in one tile, and a second
kernel puts the pieces together:

    of piece i:   m_i = max s        l_i = sum 2^(s - m_i)        acc_i = sum 2^(s - m_i) v
    together:     m = max m_i        y = (sum 2^(m_i - m) acc_i) / (sum 2^(m_i - m) l_i)

Each key and value is read once: the roofline is memory, 2 S D bytes-of-the-type a key/value head.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minitune_kernels.attention_forward import in_base_two, precision, walk
from minitune_kernels.launch import cdiv, interpreted, launch, operator, power_of_two, processors

MOST_ROWS = 64
"""Queries times heads of a group that fit one tile."""


def decodes(T: int, S: int, group: int) -> bool:
    """Whether T queries of ``group`` heads over S keys are few enough, and the keys many enough, to split the keys."""
    least = 64 if interpreted() else 256
    return T * group <= MOST_ROWS and T <= 16 and least <= S


@triton.jit
def decode_attention_kernel(
    q_ptr, k_ptr, v_ptr, acc_ptr, m_ptr, l_ptr, first_ptr, end_ptr,
    stride_q_b, stride_q_t, stride_q_h, stride_k_b, stride_k_s, stride_k_h, stride_v_b, stride_v_s, stride_v_h,
    stride_first_b, T, S, K, group, rows, splits, scale, cap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
    SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One piece of the keys of one key/value head; its ``rows`` are ``T`` queries of ``group`` heads, heads fastest."""
    split = tl.program_id(0)
    bk = tl.program_id(1)
    b, kv = (bk // K).to(tl.int64), (bk % K).to(tl.int64)
    at_r = tl.arange(0, BLOCK_R)
    at_d = tl.arange(0, BLOCK_D)
    row = tl.minimum(at_r, rows - 1)
    query, h = row // group, kv * group + row % group
    q_tile = q_ptr + b * stride_q_b + query[:, None] * stride_q_t + h[:, None] * stride_q_h + at_d[None, :]
    q = tl.load(q_tile, mask=at_d[None, :] < D, other=0.0)  # (BLOCK_R, BLOCK_D)
    first_ptr += b * stride_first_b
    end_ptr += b * stride_first_b
    first, end = tl.load(first_ptr + query), tl.load(end_ptr + query)

    # The blocks that anyone sees are shared out evenly.
    lowest = tl.load(first_ptr) // BLOCK_S
    blocks = tl.maximum(tl.cdiv(tl.load(end_ptr + T - 1), BLOCK_S) - lowest, 0)
    begin = (lowest + blocks * split // splits) * BLOCK_S
    stop = (lowest + blocks * (split + 1) // splits) * BLOCK_S
    # Nobody needs a mask between the last row's first key and the first row's end.
    whole_begin = tl.minimum(tl.maximum(tl.cdiv(tl.load(first_ptr + T - 1), BLOCK_S) * BLOCK_S, begin), stop)
    whole_stop = tl.maximum(tl.minimum(tl.load(end_ptr) // BLOCK_S * BLOCK_S, stop), whole_begin)

    acc = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    m = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_R,), tl.float32)
    k_ptr += b * stride_k_b + kv * stride_k_h
    v_ptr += b * stride_v_b + kv * stride_v_h
    acc, m, l = walk(acc, m, l, q, k_ptr, v_ptr, stride_k_s, stride_v_s, first, end, begin, whole_begin, S,
                     scale, cap, D, BLOCK_D, BLOCK_S, True, SOFTCAP, PRECISION)  # fmt: skip
    acc, m, l = walk(acc, m, l, q, k_ptr, v_ptr, stride_k_s, stride_v_s, first, end, whole_begin, whole_stop, S,
                     scale, cap, D, BLOCK_D, BLOCK_S, False, SOFTCAP, PRECISION)  # fmt: skip
    acc, m, l = walk(acc, m, l, q, k_ptr, v_ptr, stride_k_s, stride_v_s, first, end, whole_stop, stop, S,
                     scale, cap, D, BLOCK_D, BLOCK_S, True, SOFTCAP, PRECISION)  # fmt: skip

    # (B * K, rows, splits) and behind it D
    at = (bk.to(tl.int64) * rows + at_r) * splits + split
    inside = at_r < rows
    tl.store(m_ptr + at, m, mask=inside)
    tl.store(l_ptr + at, l, mask=inside)
    tl.store(acc_ptr + at[:, None] * D + at_d[None, :], acc, mask=inside[:, None] & (at_d[None, :] < D))


@triton.jit
def combine_kernel(
    acc_ptr, m_ptr, l_ptr, y_ptr, stride_y_b, stride_y_t, stride_y_h, K, group, rows, splits,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Put the pieces of one row together."""
    row, bk = tl.program_id(0), tl.program_id(1)
    at_p = tl.arange(0, BLOCK_P)
    at_d = tl.arange(0, BLOCK_D)
    base = (bk.to(tl.int64) * rows + row) * splits
    m_i = tl.load(m_ptr + base + at_p, mask=at_p < splits, other=float("-inf"))
    l_i = tl.load(l_ptr + base + at_p, mask=at_p < splits, other=0.0)
    m = tl.max(m_i, 0)
    part = tl.where(l_i == 0.0, 0.0, tl.exp2(m_i - tl.where(m == float("-inf"), 0.0, m)))
    l = tl.sum(part * l_i, 0)
    mask = (at_p[:, None] < splits) & (at_d[None, :] < D)
    acc_i = tl.load(acc_ptr + (base + at_p[:, None]) * D + at_d[None, :], mask=mask, other=0.0)
    y = tl.sum(part[:, None] * acc_i, 0) / tl.where(l == 0.0, 1.0, l)
    b, h = bk // K, bk % K * group + row % group
    at = b.to(tl.int64) * stride_y_b + row // group * stride_y_t + h * stride_y_h
    tl.store(y_ptr + at + at_d, y.to(y_ptr.dtype.element_ty), mask=at_d < D)


def _fake(q: Tensor, k: Tensor, v: Tensor, first: Tensor, end: Tensor, scale: float, softcap: float) -> Any:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@operator(
    "decode_attention(Tensor q, Tensor k, Tensor v, Tensor first, Tensor end, float scale, float softcap) -> Tensor",
    _fake,
)
def decode_attention(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor, end: Tensor, scale: float, softcap: float
) -> Tensor:
    """``y`` like ``q (B, T, H, D)``, for few queries: T times the heads of a group is at most MOST_ROWS."""
    y = _fake(q, k, v, first, end, scale, softcap)
    B, T, H, D = q.shape
    S, K = k.shape[1], k.shape[2]
    group = H // K
    rows = T * group
    block = 16 if interpreted() else 64 if D <= 128 else 32
    splits = pieces(B * K, S, block, processors(q.device))
    half = power_of_two(D, 16)
    acc = q.new_empty((B * K, rows, splits, D), dtype=torch.float32)
    m, l = (q.new_empty((B * K, rows, splits), dtype=torch.float32) for _ in range(2))
    scale, cap = in_base_two(scale, softcap)
    launch(
        decode_attention_kernel, (splits, B * K),
        q, k, v, acc, m, l, first, end,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], first.stride(0) if first.shape[0] > 1 else 0,
        T, S, K, group, rows, splits, scale, cap,
        D=D, BLOCK_D=half, BLOCK_R=power_of_two(rows, 16), BLOCK_S=block, SOFTCAP=softcap > 0,
        PRECISION=precision(q.dtype), num_warps=4, num_stages=3,
    )  # fmt: skip
    launch(combine_kernel, (rows, B * K), acc, m, l, y, *y.stride()[:3], K, group, rows, splits,
           D=D, BLOCK_D=half, BLOCK_P=power_of_two(splits), num_warps=4)  # fmt: skip
    return y


def pieces(heads: int, S: int, block: int, processors: int) -> int:
    """How many pieces the keys are cut into: two waves of programs, at least two blocks each, at most 128."""
    wanted = cdiv(2 * processors, max(heads, 1))
    return max(1, min(wanted, S // (2 * block), 128))
