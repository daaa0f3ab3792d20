"""Rotary positions (Su et al., arXiv 2104.09864) of queries and keys in one launch.

    y1 = x1 cos - x2 sin          y2 = x2 cos + x1 sin          x1, x2: the two halves of the rotated channels

The backward is the rotation back: the same kernel with -sin. Not in place: the tensors that come in are slices of a
projection which autograd may have saved.

Bytes that must move: queries and keys read once and written once, and the tables, which all heads share.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minitune_kernels.launch import cdiv, interpreted, launch, operator, power_of_two
from minitune_kernels.rows import check_types


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the first ``2 * cos.shape[-1]`` channels of ``q (B, T, H, D)`` and ``k (B, T, K, D)``.

    ``cos, sin (B or 1, T, pairs)``; the rotation is computed in float32 and rounded once. Raises ValueError for
    float64. The tables take no gradient.
    """
    check_types("rope", q=q, k=k, cos=cos, sin=sin)
    if cos.shape != sin.shape or cos.shape[-2] != q.shape[1] or 2 * cos.shape[-1] > q.shape[-1]:
        raise ValueError(
            f"rope: q {tuple(q.shape)}, cos {tuple(cos.shape)}, sin {tuple(sin.shape)} do not fit; "
            "expected (B, T, H, D) and twice (B or 1, T, pairs) with at most D / 2 pairs"
        )
    return _Rope.apply(q, k, cos, sin)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return rotate(q, k, cos, sin, False)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return *rotate(dq, dk, cos, sin, True), None, None


def _fake(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


@operator("rotate(Tensor q, Tensor k, Tensor cos, Tensor sin, bool back) -> (Tensor, Tensor)", _fake)
def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """``q`` and ``k`` rotated, or with ``back`` rotated back; contiguous."""
    q_out, k_out = _fake(q, k, cos, sin, back)
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    cos, sin = cos.contiguous(), sin.contiguous()
    B, T, H, D = q.shape
    K, pairs = k.shape[2], cos.shape[-1]
    block = power_of_two(pairs)
    rest = power_of_two(max(1, D - 2 * pairs))
    tokens = 2 if interpreted() else max(1, 2048 // (power_of_two(H + K) * block))
    launch(
        _rotate, (cdiv(B * T, tokens),), q, k, cos, sin, q_out, k_out, B * T, T, H, K, D, pairs,
        0 if cos.shape[0] == 1 else T * pairs, *q.stride()[:3], *k.stride()[:3],
        BACK=back, TOKENS=tokens, HEADS=power_of_two(H), KEY_HEADS=power_of_two(K), BLOCK=block, REST=rest,
        COPY=2 * pairs < D, num_warps=8 if (H + K) * block >= 2048 else 4,
    )  # fmt: skip
    return q_out, k_out


@triton.jit
def _heads(
    x_ptr, y_ptr, cos, sin, token, b, t, tokens, H, D, pairs, stride_b, stride_t, stride_h,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr, COPY: tl.constexpr,
):  # fmt: skip
    """All heads of a few tokens: ``(TOKENS, HEADS, BLOCK)``."""
    h = tl.arange(0, HEADS)[None, :, None]
    pair = tl.arange(0, BLOCK)[None, None, :]
    own = (token < tokens)[:, None, None] & (h < H)
    start = x_ptr + (b * stride_b + t * stride_t)[:, None, None] + h * stride_h
    to = y_ptr + (token[:, None, None] * H + h) * D
    mask = own & (pair < pairs)
    x1 = tl.load(start + pair, mask, other=0.0).to(tl.float32)
    x2 = tl.load(start + pairs + pair, mask, other=0.0).to(tl.float32)
    tl.store(to + pair, (x1 * cos - x2 * sin).to(y_ptr.dtype.element_ty), mask)
    tl.store(to + pairs + pair, (x2 * cos + x1 * sin).to(y_ptr.dtype.element_ty), mask)
    if COPY:
        at = 2 * pairs + tl.arange(0, REST)[None, None, :]
        tl.store(to + at, tl.load(start + at, own & (at < D), other=0.0), own & (at < D))


@triton.jit
def _rotate(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, tokens, T, H, K, D, pairs, stride_table_b,
    stride_q_b, stride_q_t, stride_q_h, stride_k_b, stride_k_t, stride_k_h,
    BACK: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, BLOCK: tl.constexpr,
    REST: tl.constexpr, COPY: tl.constexpr,
):  # fmt: skip
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    b, t = token // T, token % T
    pair = tl.arange(0, BLOCK)
    at = (b * stride_table_b + t * pairs)[:, None] + pair[None, :]
    mask = (token < tokens)[:, None] & (pair < pairs)[None, :]
    cos = tl.load(cos_ptr + at, mask, other=0.0).to(tl.float32)[:, None, :]
    sin = tl.load(sin_ptr + at, mask, other=0.0).to(tl.float32)[:, None, :]
    if BACK:
        sin = -sin
    _heads(q_ptr, q_out_ptr, cos, sin, token, b, t, tokens, H, D, pairs, stride_q_b, stride_q_t, stride_q_h,
           HEADS, BLOCK, REST, COPY)  # fmt: skip
    _heads(k_ptr, k_out_ptr, cos, sin, token, b, t, tokens, K, D, pairs, stride_k_b, stride_k_t, stride_k_h,
           KEY_HEADS, BLOCK, REST, COPY)  # fmt: skip
