# A kernel is Triton's dialect of Python, of which a type checker knows too little.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportOperatorIssue=false, reportAssignmentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""The backward of attention with the probabilities computed again from ``lse`` (FlashAttention-2, arXiv 2307.08691).

    delta = sum over channels of dy * y                  what the softmax takes off: sum over keys of dp * p
    p     = 2^(s - lse)
    dv    = p^T dy          dp = dy v^T          ds = p * (dp - delta),  times 1 - (s / c)^2 with a softcap c
    dk    = scale * ds^T q                       dq = scale * ds k

Two forms. *Split*: one kernel owns a tile of keys and gives dk and dv, another owns a tile of queries and gives dq;
seven products, every sum in a fixed order. *Fused*: the first kernel also adds each tile's share of dq to a buffer in
float32, by the copy engine's reduce-add; five products, but the order of those additions is the hardware's.
"""

import triton
import triton.language as tl

from minitune_kernels.attention_forward import load_tile, place, reach
from minitune_kernels.special import tanh


@triton.jit
def delta_kernel(
    dy_ptr, y_ptr, delta_ptr, stride_dy_b, stride_dy_t, stride_dy_h, stride_y_b, stride_y_t, stride_y_h, T, H,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """``delta (B, H, T)``."""
    t = tl.program_id(0) * BLOCK_T
    bh = tl.program_id(1)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    at_t = tl.arange(0, BLOCK_T)
    at_d = tl.arange(0, BLOCK_D)
    dy = load_tile(dy_ptr + b * stride_dy_b + h * stride_dy_h, t, T, stride_dy_t, at_t, at_d, D, BLOCK_D, True)
    y = load_tile(y_ptr + b * stride_y_b + h * stride_y_h, t, T, stride_y_t, at_t, at_d, D, BLOCK_D, True)
    delta = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)
    tl.store(delta_ptr + bh.to(tl.int64) * T + t + at_t, delta, mask=(t + at_t) < T)


@triton.jit
def over_queries(
    dk, dv, k, v, q_ptr, dy_ptr, lse_ptr, delta_ptr, first_ptr, end_ptr, dq_desc, stride_q_t, stride_dy_t, n, begin,
    stop, T, scale, cap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    MASKED: tl.constexpr, SOFTCAP: tl.constexpr, FUSED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take the queries from ``begin`` to ``stop`` of one head into ``dk`` and ``dv (BLOCK_S, BLOCK_D)``.

    All tiles stand transposed, keys by queries, so that p and ds are left factors where they came into being.
    """
    at_t = tl.arange(0, BLOCK_T)
    at_d = tl.arange(0, BLOCK_D)
    at_s = n + tl.arange(0, BLOCK_S)
    for t in tl.range(begin, stop, BLOCK_T):
        q = load_tile(q_ptr, t, T, stride_q_t, at_t, at_d, D, BLOCK_D, MASKED)
        inside = (t + at_t) < T
        if MASKED:
            lse = tl.load(lse_ptr + t + at_t, mask=inside, other=float("inf"))
            delta = tl.load(delta_ptr + t + at_t, mask=inside, other=0.0)
        else:
            lse = tl.load(lse_ptr + t + at_t)
            delta = tl.load(delta_ptr + t + at_t)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # (BLOCK_S, BLOCK_T)
        if SOFTCAP:
            bent = tanh(s * scale)
            s = cap * bent - lse[None, :]
        else:
            s = s * scale - lse[None, :]
        if MASKED:
            row = tl.minimum(t + at_t, T - 1)
            first, end = tl.load(first_ptr + row), tl.load(end_ptr + row)
            s = tl.where((at_s[:, None] >= first[None, :]) & (at_s[:, None] < end[None, :]), s, float("-inf"))
        p = tl.exp2(s)
        dy = load_tile(dy_ptr, t, T, stride_dy_t, at_t, at_d, D, BLOCK_D, MASKED)
        dv = tl.dot(p.to(dy.dtype), dy, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(dy), input_precision=PRECISION)  # (BLOCK_S, BLOCK_T)
        ds = p * (dp - delta[None, :])
        if SOFTCAP:
            ds = ds * (1.0 - bent * bent)
        ds = ds.to(q.dtype)
        dk = tl.dot(ds, q, dk, input_precision=PRECISION)
        if FUSED:
            dq_desc.atomic_add([t, 0], tl.dot(tl.trans(ds), k, input_precision=PRECISION))
    return dk, dv


@triton.jit
def attention_backward_keys_kernel(
    q_ptr, k_ptr, v_ptr, dy_ptr, lse_ptr, delta_ptr, dq_ptr, dk_ptr, dv_ptr,
    first_ptr, end_ptr, seen_first_ptr, seen_end_ptr,
    stride_q_b, stride_q_t, stride_q_h, stride_k_b, stride_k_s, stride_k_h, stride_v_b, stride_v_s, stride_v_h,
    stride_dy_b, stride_dy_t, stride_dy_h, stride_dk_b, stride_dk_s, stride_dk_h, stride_first_b, stride_seen_b,
    T, S, H, K, group, heads, section, scale, dk_scale, cap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    SOFTCAP: tl.constexpr, FUSED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of BLOCK_S keys: over the queries of every head that shares them. ``heads`` counts B * K here.

    ``dq_ptr`` is the float32 buffer (B, T, H, D) of the fused form, not touched otherwise.
    """
    tile, bk = place(tl.program_id(0), tl.cdiv(S, BLOCK_S), heads, section, False)
    b, kv = (bk // K).to(tl.int64), (bk % K).to(tl.int64)
    n = tile * BLOCK_S
    at_s = tl.arange(0, BLOCK_S)
    at_d = tl.arange(0, BLOCK_D)
    k = load_tile(k_ptr + b * stride_k_b + kv * stride_k_h, n, S, stride_k_s, at_s, at_d, D, BLOCK_D, True)
    v = load_tile(v_ptr + b * stride_v_b + kv * stride_v_h, n, S, stride_v_s, at_s, at_d, D, BLOCK_D, True)

    first_ptr += b * stride_first_b
    end_ptr += b * stride_first_b
    seen_first_ptr += b * stride_seen_b
    seen_end_ptr += b * stride_seen_b
    last = tl.minimum(n + BLOCK_S, S) - 1
    begin, whole_begin, whole_stop, stop = reach(seen_first_ptr, seen_end_ptr, n, last, BLOCK_T)

    dk = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    for g in range(group):
        h = kv * group + g
        q_head = q_ptr + b * stride_q_b + h * stride_q_h
        dy_head = dy_ptr + b * stride_dy_b + h * stride_dy_h
        lse_head = lse_ptr + (b * H + h) * T
        delta_head = delta_ptr + (b * H + h) * T
        if FUSED:
            dq_desc = tl.make_tensor_descriptor(
                dq_ptr + (b * T * H + h) * D, shape=[T, D], strides=[H * D, 1], block_shape=[BLOCK_T, BLOCK_D]
            )
        else:
            dq_desc = dq_ptr
        dk, dv = over_queries(dk, dv, k, v, q_head, dy_head, lse_head, delta_head, first_ptr, end_ptr, dq_desc,
                              stride_q_t, stride_dy_t, n, begin, whole_begin, T, scale, cap, D, BLOCK_D, BLOCK_T,
                              BLOCK_S, True, SOFTCAP, FUSED, PRECISION)  # fmt: skip
        dk, dv = over_queries(dk, dv, k, v, q_head, dy_head, lse_head, delta_head, first_ptr, end_ptr, dq_desc,
                              stride_q_t, stride_dy_t, n, whole_begin, whole_stop, T, scale, cap, D, BLOCK_D, BLOCK_T,
                              BLOCK_S, False, SOFTCAP, FUSED, PRECISION)  # fmt: skip
        dk, dv = over_queries(dk, dv, k, v, q_head, dy_head, lse_head, delta_head, first_ptr, end_ptr, dq_desc,
                              stride_q_t, stride_dy_t, n, whole_stop, stop, T, scale, cap, D, BLOCK_D, BLOCK_T,
                              BLOCK_S, True, SOFTCAP, FUSED, PRECISION)  # fmt: skip

    inside = ((n + at_s) < S)[:, None] & (at_d[None, :] < D)
    at = b * stride_dk_b + kv * stride_dk_h + n.to(tl.int64) * stride_dk_s + at_s[:, None] * stride_dk_s + at_d[None, :]
    tl.store(dk_ptr + at, (dk * dk_scale).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=inside)


@triton.jit
def over_keys(
    dq, q, dy, lse, delta, k_ptr, v_ptr, stride_k_s, stride_v_s, first, end, begin, stop, S, scale, cap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    MASKED: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take the keys from ``begin`` to ``stop`` into ``dq (BLOCK_T, BLOCK_D)``."""
    at_s = tl.arange(0, BLOCK_S)
    at_d = tl.arange(0, BLOCK_D)
    for n in tl.range(begin, stop, BLOCK_S):
        k = load_tile(k_ptr, n, S, stride_k_s, at_s, at_d, D, BLOCK_D, MASKED)
        v = load_tile(v_ptr, n, S, stride_v_s, at_s, at_d, D, BLOCK_D, MASKED)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (BLOCK_T, BLOCK_S)
        if SOFTCAP:
            bent = tanh(s * scale)
            s = cap * bent - lse[:, None]
        else:
            s = s * scale - lse[:, None]
        if MASKED:
            at = n + at_s[None, :]
            s = tl.where((at >= first[:, None]) & (at < end[:, None]), s, float("-inf"))
        p = tl.exp2(s)
        dp = tl.dot(dy, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        if SOFTCAP:
            ds = ds * (1.0 - bent * bent)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit
def attention_backward_queries_kernel(
    q_ptr, k_ptr, v_ptr, dy_ptr, lse_ptr, delta_ptr, dq_ptr, first_ptr, end_ptr,
    stride_q_b, stride_q_t, stride_q_h, stride_k_b, stride_k_s, stride_k_h, stride_v_b, stride_v_s, stride_v_h,
    stride_dy_b, stride_dy_t, stride_dy_h, stride_dq_b, stride_dq_t, stride_dq_h, stride_first_b,
    T, S, H, group, heads, section, scale, dq_scale, cap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of BLOCK_T queries of one head."""
    tile, bh = place(tl.program_id(0), tl.cdiv(T, BLOCK_T), heads, section, True)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    t = tile * BLOCK_T
    at_t = tl.arange(0, BLOCK_T)
    at_d = tl.arange(0, BLOCK_D)
    inside = (t + at_t) < T
    k_ptr += b * stride_k_b + h // group * stride_k_h
    v_ptr += b * stride_v_b + h // group * stride_v_h
    q = load_tile(q_ptr + b * stride_q_b + h * stride_q_h, t, T, stride_q_t, at_t, at_d, D, BLOCK_D, True)
    dy = load_tile(dy_ptr + b * stride_dy_b + h * stride_dy_h, t, T, stride_dy_t, at_t, at_d, D, BLOCK_D, True)
    lse = tl.load(lse_ptr + bh.to(tl.int64) * T + t + at_t, mask=inside, other=float("inf"))
    delta = tl.load(delta_ptr + bh.to(tl.int64) * T + t + at_t, mask=inside, other=0.0)

    first_ptr += b * stride_first_b
    end_ptr += b * stride_first_b
    row = tl.minimum(t + at_t, T - 1)
    first, end = tl.load(first_ptr + row), tl.load(end_ptr + row)  # (BLOCK_T,)
    last = tl.minimum(t + BLOCK_T, T) - 1
    begin, whole_begin, whole_stop, stop = reach(first_ptr, end_ptr, t, last, BLOCK_S)

    dq = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    dq = over_keys(dq, q, dy, lse, delta, k_ptr, v_ptr, stride_k_s, stride_v_s, first, end, begin, whole_begin, S,
                   scale, cap, D, BLOCK_D, BLOCK_S, True, SOFTCAP, PRECISION)  # fmt: skip
    dq = over_keys(dq, q, dy, lse, delta, k_ptr, v_ptr, stride_k_s, stride_v_s, first, end, whole_begin, whole_stop, S,
                   scale, cap, D, BLOCK_D, BLOCK_S, False, SOFTCAP, PRECISION)  # fmt: skip
    dq = over_keys(dq, q, dy, lse, delta, k_ptr, v_ptr, stride_k_s, stride_v_s, first, end, whole_stop, stop, S,
                   scale, cap, D, BLOCK_D, BLOCK_S, True, SOFTCAP, PRECISION)  # fmt: skip

    at = b * stride_dq_b + h * stride_dq_h + t.to(tl.int64) * stride_dq_t + at_t[:, None] * stride_dq_t + at_d[None, :]
    tl.store(dq_ptr + at, (dq * dq_scale).to(dq_ptr.dtype.element_ty), mask=inside[:, None] & (at_d[None, :] < D))
