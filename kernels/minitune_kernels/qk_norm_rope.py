# A kernel is Triton's dialect of Python, of which a type checker knows too little.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
"""The norm of every query and key head (Qwen3, arXiv 2505.09388) and its rotation, in one launch.

    n = (offset + w) * x * rstd,  rstd = 1 / sqrt(mean over D of x^2 + eps)         y1 = n1 cos - n2 sin
    dn1 = dy1 cos + dy2 sin       g = dn * (offset + w)                             y2 = n2 cos + n1 sin
    dn2 = dy2 cos - dy1 sin       dx = rstd * (g - x_hat * mean(g * x_hat))         dw = sum of dn * x_hat

Between the two n is rounded as the family rounds it (``rms_norm.py``) and stays in registers: apart, it would be
written and read again in each direction. Kept for the backward are q and k as they came; rstd is made again, since the
row is read anyway. The backward is a persistent grid: a program keeps the partial dw of both weights in float32 and
writes them once, no atomics; frozen weights have none.

Bytes that must move: queries and keys read and written once, and once more read backward; the tables, which all heads
share.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minitune_kernels.launch import cdiv, interpreted, launch, operator, power_of_two, processors
from minitune_kernels.rms_norm import _scale, _scaled
from minitune_kernels.rows import check_types, sum_partials


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    offset: float = 0.0,
    scale_in_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """``rope`` of the ``rms_norm`` of each head of ``q (B, T, H, D)`` and ``k (B, T, K, D)``, scaled by weights (D,).

    ``cos, sin (B or 1, T, pairs)``: the first ``2 * pairs`` channels are rotated. Options as of ``rms_norm``. Raises
    ValueError for float64. The tables take no gradient.
    """
    check_types("qk_norm_rope", q=q, k=k, q_weight=q_weight, k_weight=k_weight, cos=cos, sin=sin)
    D = q.shape[-1]
    if q_weight.shape != (D,) or k_weight.shape != (D,) or k.shape[-1] != D or q_weight.dtype != k_weight.dtype:
        raise ValueError(
            f"qk_norm_rope: q {tuple(q.shape)}, k {tuple(k.shape)} and weights {tuple(q_weight.shape)} of "
            f"{q_weight.dtype}, {tuple(k_weight.shape)} of {k_weight.dtype} do not fit; expected two weights ({D},) of "
            "one type"
        )
    if cos.shape != sin.shape or cos.shape[-2] != q.shape[1] or 2 * cos.shape[-1] > D:
        raise ValueError(
            f"qk_norm_rope: q {tuple(q.shape)}, cos {tuple(cos.shape)}, sin {tuple(sin.shape)} do not fit; "
            "expected (B, T, H, D) and twice (B or 1, T, pairs) with at most D / 2 pairs"
        )
    return _QKNormRope.apply(q, k, q_weight, k_weight, cos, sin, float(eps), float(offset), scale_in_fp32)


class _QKNormRope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float,
        offset: float, late: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.save_for_backward(q, k, q_weight, k_weight, cos, sin)
        ctx.options = eps, offset, late
        return norm_and_rotate(q, k, q_weight, k_weight, cos, sin, eps, offset, late)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        train = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        dq, dk, dw = norm_and_rotate_backward(dq, dk, *ctx.saved_tensors, *ctx.options, train)
        dq_weight, dk_weight = dw.unbind() if train else (None, None)
        return dq, dk, dq_weight, dk_weight, *[None] * 5


# ---- the operators: tensors in, tensors out


def _fake(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _backward_fake(
    dq: Tensor, dk: Tensor, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    eps: float, offset: float, late: bool, train: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), q_weight.new_empty((2, q.shape[-1]) if train else (0,))


@operator(
    "norm_and_rotate(Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, Tensor cos, Tensor sin, float eps,"
    " float offset, bool late) -> (Tensor, Tensor)",
    _fake,
)
def norm_and_rotate(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float, offset: float,
    late: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``q`` and ``k`` normalised and rotated; contiguous."""
    q_out, k_out = _fake(q, k)
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    tokens, sizes, meta = _sizes(q, k, cos, late, elements=4096)
    launch(
        _forward, (cdiv(tokens, meta["TOKENS"]),), q, k, q_weight.contiguous(), k_weight.contiguous(),
        cos.contiguous(), sin.contiguous(), q_out, k_out, *sizes, *q.stride()[:3], *k.stride()[:3], eps, offset,
        **meta,
    )  # fmt: skip
    return q_out, k_out


@operator(
    "norm_and_rotate_backward(Tensor dq, Tensor dk, Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, Tensor cos,"
    " Tensor sin, float eps, float offset, bool late, bool train) -> (Tensor, Tensor, Tensor)",
    _backward_fake,
)
def norm_and_rotate_backward(
    dq: Tensor, dk: Tensor, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    eps: float, offset: float, late: bool, train: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``q`` and ``k``, contiguous, and with ``train`` those of both weights, (2, D)."""
    q_out, k_out = _fake(q, k)
    q, k, dq, dk = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, dq, dk))
    tokens, sizes, meta = _sizes(q, k, cos, late, elements=2048)
    D = q.shape[-1]
    P = min(processors(q.device) * PER_PROCESSOR, cdiv(tokens, meta["TOKENS"]))
    partials = torch.empty(2, P, D, dtype=torch.float32, device=q.device) if train else None
    launch(
        _backward, (P,), dq, dk, q, k, q_weight.contiguous(), k_weight.contiguous(), cos.contiguous(),
        sin.contiguous(), q_out, k_out, partials, *sizes, *dq.stride()[:3], *dk.stride()[:3], *q.stride()[:3],
        *k.stride()[:3], eps, offset, TRAIN=train, **meta,
    )  # fmt: skip
    return q_out, k_out, q_weight.new_empty(0) if partials is None else sum_partials(partials, q_weight.dtype)


PER_PROCESSOR = 2
"""Programs of the backward's grid on a processor."""


def _sizes(q: Tensor, k: Tensor, cos: Tensor, late: bool, *, elements: int) -> tuple[int, tuple[int, ...], dict]:
    """Tokens in all; the numbers that both kernels take; and their constants, for about so many elements a program."""
    B, T, H, D = q.shape
    K, pairs = k.shape[2], cos.shape[-1]
    block, rest = power_of_two(pairs), power_of_two(max(1, D - 2 * pairs))
    stays = 2 * pairs < D
    one = power_of_two(H + K) * (2 * block + (rest if stays else 0))  # elements of a token
    tokens = 2 if interpreted() else max(1, elements // one)
    sizes = (B * T, T, H, K, D, pairs, 0 if cos.shape[0] == 1 else T * pairs)
    meta = {"LATE": late, "TOKENS": tokens, "HEADS": power_of_two(H), "KEY_HEADS": power_of_two(K), "BLOCK": block}
    return B * T, sizes, meta | {"REST": rest, "STAYS": stays, "num_warps": 16 if stays else 8 if one > 4096 else 4}


# ---- the kernels


@triton.jit
def _places(
    token, t, b, H, tokens, stride_b, stride_t, stride_h, HEADS: tl.constexpr,
):  # fmt: skip
    """Where each head of each token starts, ``(TOKENS, HEADS, 1)``, and which of them there are."""
    h = tl.arange(0, HEADS)[None, :, None]
    return (b * stride_b + t * stride_t)[:, None, None] + h * stride_h, (token < tokens)[:, None, None] & (h < H)


@triton.jit
def _weights(w_ptr, D, pairs, BLOCK: tl.constexpr, REST: tl.constexpr):
    """The weights of the first and the second half of the rotated channels, and of those that stay."""
    pair, rest = tl.arange(0, BLOCK), 2 * pairs + tl.arange(0, REST)
    w1 = tl.load(w_ptr + pair, pair < pairs, other=0.0)
    w2 = tl.load(w_ptr + pairs + pair, pair < pairs, other=0.0)
    return w1, w2, tl.load(w_ptr + rest, rest < D, other=0.0)


@triton.jit
def _tables(cos_ptr, sin_ptr, token, b, t, tokens, pairs, stride_table_b, BLOCK: tl.constexpr):
    """cos and sin of a few tokens: ``(TOKENS, 1, BLOCK)``."""
    pair = tl.arange(0, BLOCK)
    at = (b * stride_table_b + t * pairs)[:, None] + pair[None, :]
    mask = (token < tokens)[:, None] & (pair < pairs)[None, :]
    cos = tl.load(cos_ptr + at, mask, other=0.0).to(tl.float32)[:, None, :]
    return cos, tl.load(sin_ptr + at, mask, other=0.0).to(tl.float32)[:, None, :]


@triton.jit
def _heads_forward(
    x_ptr, w_ptr, y_ptr, cos, sin, token, b, t, tokens, H, D, pairs, stride_b, stride_t, stride_h, eps, offset,
    LATE: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr, STAYS: tl.constexpr,
):  # fmt: skip
    """All heads of a few tokens."""
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    start, own = _places(token, t, b, H, tokens, stride_b, stride_t, stride_h, HEADS)
    to = y_ptr + (token[:, None, None] * H + tl.arange(0, HEADS)[None, :, None]) * D
    pair, at = tl.arange(0, BLOCK)[None, None, :], 2 * pairs + tl.arange(0, REST)[None, None, :]
    mask = own & (pair < pairs)
    w1, w2, w3 = _weights(w_ptr, D, pairs, BLOCK, REST)
    x1 = tl.load(x_ptr + start + pair, mask, other=0.0).to(tl.float32)
    x2 = tl.load(x_ptr + start + pairs + pair, mask, other=0.0).to(tl.float32)
    squares = tl.sum(x1 * x1 + x2 * x2, 2)
    if STAYS:
        x3 = tl.load(x_ptr + start + at, own & (at < D), other=0.0).to(tl.float32)
        squares += tl.sum(x3 * x3, 2)
    rstd = tl.rsqrt(squares / D + eps)[:, :, None]
    n1 = _scaled(x1 * rstd, _scale(w1, offset, dtype, LATE)[None, None, :], dtype, LATE).to(tl.float32)
    n2 = _scaled(x2 * rstd, _scale(w2, offset, dtype, LATE)[None, None, :], dtype, LATE).to(tl.float32)
    tl.store(to + pair, (n1 * cos - n2 * sin).to(dtype), mask)
    tl.store(to + pairs + pair, (n2 * cos + n1 * sin).to(dtype), mask)
    if STAYS:
        n3 = _scaled(x3 * rstd, _scale(w3, offset, dtype, LATE)[None, None, :], dtype, LATE)
        tl.store(to + at, n3, own & (at < D))


@triton.jit
def _forward(
    q_ptr, k_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, tokens, T, H, K, D, pairs,
    stride_table_b, stride_q_b, stride_q_t, stride_q_h, stride_k_b, stride_k_t, stride_k_h, eps, offset,
    LATE: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, BLOCK: tl.constexpr,
    REST: tl.constexpr, STAYS: tl.constexpr,
):  # fmt: skip
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    b, t = token // T, token % T
    cos, sin = _tables(cos_ptr, sin_ptr, token, b, t, tokens, pairs, stride_table_b, BLOCK)
    _heads_forward(q_ptr, q_weight_ptr, q_out_ptr, cos, sin, token, b, t, tokens, H, D, pairs, stride_q_b, stride_q_t,
                   stride_q_h, eps, offset, LATE, HEADS, BLOCK, REST, STAYS)  # fmt: skip
    _heads_forward(k_ptr, k_weight_ptr, k_out_ptr, cos, sin, token, b, t, tokens, K, D, pairs, stride_k_b, stride_k_t,
                   stride_k_h, eps, offset, LATE, KEY_HEADS, BLOCK, REST, STAYS)  # fmt: skip


@triton.jit
def _heads_backward(
    dy_ptr, x_ptr, w_ptr, dx_ptr, dw1, dw2, dw3, cos, sin, token, b, t, tokens, H, D, pairs, stride_dy_b, stride_dy_t,
    stride_dy_h, stride_b, stride_t, stride_h, eps, offset, LATE: tl.constexpr, TRAIN: tl.constexpr,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr, STAYS: tl.constexpr,
):  # fmt: skip
    """All heads of a few tokens; the sums of the weight's gradient, with what these add to them."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    start, own = _places(token, t, b, H, tokens, stride_b, stride_t, stride_h, HEADS)
    above, _ = _places(token, t, b, H, tokens, stride_dy_b, stride_dy_t, stride_dy_h, HEADS)
    to = dx_ptr + (token[:, None, None] * H + tl.arange(0, HEADS)[None, :, None]) * D
    pair, at = tl.arange(0, BLOCK)[None, None, :], 2 * pairs + tl.arange(0, REST)[None, None, :]
    mask, rest = own & (pair < pairs), own & (at < D)
    w1, w2, w3 = _weights(w_ptr, D, pairs, BLOCK, REST)
    x1 = tl.load(x_ptr + start + pair, mask, other=0.0).to(tl.float32)
    x2 = tl.load(x_ptr + start + pairs + pair, mask, other=0.0).to(tl.float32)
    dy1 = tl.load(dy_ptr + above + pair, mask, other=0.0).to(tl.float32)
    dy2 = tl.load(dy_ptr + above + pairs + pair, mask, other=0.0).to(tl.float32)
    squares = tl.sum(x1 * x1 + x2 * x2, 2)
    if STAYS:
        x3 = tl.load(x_ptr + start + at, rest, other=0.0).to(tl.float32)
        squares += tl.sum(x3 * x3, 2)
    rstd = tl.rsqrt(squares / D + eps)[:, :, None]
    x1, x2 = x1 * rstd, x2 * rstd  # x_hat
    dn1, dn2 = dy1 * cos + dy2 * sin, dy2 * cos - dy1 * sin
    if TRAIN:
        dw1 += dn1 * x1
        dw2 += dn2 * x2
    g1 = dn1 * _scale(w1, offset, dtype, LATE)[None, None, :]
    g2 = dn2 * _scale(w2, offset, dtype, LATE)[None, None, :]
    products = tl.sum(g1 * x1 + g2 * x2, 2)
    if STAYS:
        x3 = x3 * rstd
        dn3 = tl.load(dy_ptr + above + at, rest, other=0.0).to(tl.float32)
        if TRAIN:
            dw3 += dn3 * x3
        g3 = dn3 * _scale(w3, offset, dtype, LATE)[None, None, :]
        products += tl.sum(g3 * x3, 2)
    mean = (products / D)[:, :, None]
    tl.store(to + pair, (rstd * (g1 - x1 * mean)).to(dtype), mask)
    tl.store(to + pairs + pair, (rstd * (g2 - x2 * mean)).to(dtype), mask)
    if STAYS:
        tl.store(to + at, (rstd * (g3 - x3 * mean)).to(dtype), rest)
    return dw1, dw2, dw3


@triton.jit
def _write_sums(to, dw1, dw2, dw3, D, pairs, BLOCK: tl.constexpr, REST: tl.constexpr, STAYS: tl.constexpr):
    pair, at = tl.arange(0, BLOCK), 2 * pairs + tl.arange(0, REST)
    tl.store(to + pair, tl.sum(tl.sum(dw1, 0), 0), pair < pairs)
    tl.store(to + pairs + pair, tl.sum(tl.sum(dw2, 0), 0), pair < pairs)
    if STAYS:
        tl.store(to + at, tl.sum(tl.sum(dw3, 0), 0), at < D)


@triton.jit
def _backward(
    dq_ptr, dk_ptr, q_ptr, k_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, partials_ptr,
    tokens, T, H, K, D, pairs, stride_table_b, stride_dq_b, stride_dq_t, stride_dq_h, stride_dk_b, stride_dk_t,
    stride_dk_h, stride_q_b, stride_q_t, stride_q_h, stride_k_b, stride_k_t, stride_k_h, eps, offset,
    LATE: tl.constexpr, TRAIN: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr,
    BLOCK: tl.constexpr, REST: tl.constexpr, STAYS: tl.constexpr,
):  # fmt: skip
    q1 = tl.zeros((TOKENS, HEADS, BLOCK), dtype=tl.float32)
    q2 = tl.zeros((TOKENS, HEADS, BLOCK), dtype=tl.float32)
    q3 = tl.zeros((TOKENS, HEADS, REST), dtype=tl.float32)
    k1 = tl.zeros((TOKENS, KEY_HEADS, BLOCK), dtype=tl.float32)
    k2 = tl.zeros((TOKENS, KEY_HEADS, BLOCK), dtype=tl.float32)
    k3 = tl.zeros((TOKENS, KEY_HEADS, REST), dtype=tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(tokens, TOKENS), tl.num_programs(0)):
        token = (tile * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
        b, t = token // T, token % T
        cos, sin = _tables(cos_ptr, sin_ptr, token, b, t, tokens, pairs, stride_table_b, BLOCK)
        q1, q2, q3 = _heads_backward(
            dq_ptr, q_ptr, q_weight_ptr, q_out_ptr, q1, q2, q3, cos, sin, token, b, t, tokens, H, D, pairs,
            stride_dq_b, stride_dq_t, stride_dq_h, stride_q_b, stride_q_t, stride_q_h, eps, offset, LATE, TRAIN,
            HEADS, BLOCK, REST, STAYS)  # fmt: skip
        k1, k2, k3 = _heads_backward(
            dk_ptr, k_ptr, k_weight_ptr, k_out_ptr, k1, k2, k3, cos, sin, token, b, t, tokens, K, D, pairs,
            stride_dk_b, stride_dk_t, stride_dk_h, stride_k_b, stride_k_t, stride_k_h, eps, offset, LATE, TRAIN,
            KEY_HEADS, BLOCK, REST, STAYS)  # fmt: skip
    if TRAIN:
        to = partials_ptr + tl.program_id(0) * D
        _write_sums(to, q1, q2, q3, D, pairs, BLOCK, REST, STAYS)
        _write_sums(to + tl.num_programs(0) * D, k1, k2, k3, D, pairs, BLOCK, REST, STAYS)
