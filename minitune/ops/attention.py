"""Attention (Vaswani et al., arXiv 1706.03762), with several query heads to a key/value head (arXiv 2305.13245).

    r = scale * q k^T                                       scores
    s = c tanh(r / c)  with a softcap c, else r             no score passes c (Gemma 2, arXiv 2408.00118)
    s = s + bias                                            one number a head, query and key (T5, arXiv 1910.10683)
    p = softmax(s over the visible keys)          y = p v

The backward, with dp = dy v^T:

    dv = p^T dy          ds = p * (dp - sum over keys of dp * p)          dbias = ds          dr = ds * (1 - (s / c)^2)
    dq = scale * dr k                                                                        dk = scale * dr^T q

where s / c is taken before the bias; dk and dv are summed over the query heads that share a key/value head, dbias over
what it was broadcast to. A query that sees nothing gives 0 and takes no gradient.
"""

import math
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from minitune.ops import attention_on_cpu
from minitune.ops.plan import AttentionPlan, blind, visible
from minitune.ops.precision import wide


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    plan: AttentionPlan | None = None,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Let each query gather the values of the keys it sees: ``q (B, T, H, D)``, ``k, v (B, S, K, D)`` -> like ``q``.

    Without a plan every row is a document and the queries stand at the end of the keys. ``scale`` is 1/sqrt(D) by
    itself. A ``window`` of W keys includes the query's own: key j is visible to query i where ``i - W < j <= i``.
    ``bias`` broadcasts to (B, H, T, S); -inf in it hides a key. Scores and sums are in float32 (float64 stays
    float64). Raises ValueError for shapes that do not fit, a window without ``causal``, or a softcap of 0 or less.
    """
    _check(q, k, v, causal, window, softcap, bias)
    p, _, _ = _probabilities(q, k, plan, causal, scale, window, softcap, bias)
    y = torch.einsum("bkgts,bskd->btkgd", p, v.to(p.dtype))  # ATT-6
    return y.reshape(q.shape).to(q.dtype)


def attention_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    plan: AttentionPlan | None = None,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gradients ``(dq, dk, dv)`` of ``attention``, and ``dbias`` behind them where a bias is given, in closed form."""
    _check(q, k, v, causal, window, softcap, bias)
    p, grouped, slope = _probabilities(q, k, plan, causal, scale, window, softcap, bias)
    dy = dy.to(p.dtype).reshape(grouped.shape)  # (B, T, K, G, D)
    dv = torch.einsum("bkgts,btkgd->bskd", p, dy)  # ATT-7
    dp = torch.einsum("btkgd,bskd->bkgts", dy, v.to(p.dtype))  # ATT-8
    ds = p * (dp - (dp * p).sum(-1, keepdim=True))  # ATT-9
    dr = ds * slope  # ATT-11
    dq = torch.einsum("bkgts,bskd->btkgd", dr, k.to(p.dtype)).reshape(q.shape)  # ATT-12
    dk = torch.einsum("bkgts,btkgd->bskd", dr, grouped)  # ATT-12
    gradients = dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)
    if bias is None:
        return gradients
    return *gradients, ds.flatten(1, 2).sum_to_size(bias.shape).to(bias.dtype)  # ATT-10


def _probabilities(
    q: Tensor,
    k: Tensor,
    plan: AttentionPlan | None,
    causal: bool,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | float]:
    """``p (B, K, G, T, S)``, the queries by group ``(B, T, K, G, D)``, and the slope ds / d(q k^T); G = H / K."""
    B, T, H, D = q.shape
    S, K = k.shape[1], k.shape[2]
    kind = wide(q.dtype)
    slope: Tensor | float = 1.0 / math.sqrt(D) if scale is None else scale
    grouped = q.to(kind).unflatten(2, (K, -1))  # (B, T, K, G, D)
    s = torch.einsum("btkgd,bskd->bkgts", grouped, k.to(kind)) * slope  # ATT-1
    if softcap is not None:
        t = torch.tanh(s / softcap)
        s, slope = softcap * t, slope * (1 - t * t)  # ATT-2
    if bias is not None:
        s = s + bias.to(kind).expand(B, H, T, S).unflatten(1, (K, -1))  # ATT-3
    seen = visible(plan, T, S, causal=causal, window=window, device=q.device)[:, None, None]  # (B or 1, 1, 1, T, S)
    s = s.masked_fill(~seen, -torch.inf)
    # Where nothing is visible the row of -inf would give NaN; its probabilities are 0.
    nothing = (s == -torch.inf).all(-1, keepdim=True)
    p = torch.softmax(s.masked_fill(nothing, 0.0), dim=-1).masked_fill(nothing, 0.0)  # ATT-5
    return p, grouped, slope


def attention_builtin(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    plan: AttentionPlan | None = None,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """``attention`` by ``torch.nn.functional.scaled_dot_product_attention``, without a mask where none is needed.

    On a CPU long rows take attention_on_cpu.py. torch has no softcap: with one, this is the formula, and holds all
    scores.
    """
    _check(q, k, v, causal, window, softcap, bias)
    if plan is not None and bias is None and (lengths := _lengths(plan, q, k)):
        alone = partial(attention_builtin, causal=causal, scale=scale, window=window, softcap=softcap)
        return torch.cat([alone(*parts) for parts in zip(*(x.split(lengths, 1) for x in (q, k, v)), strict=True)], 1)
    if softcap is not None:
        return attention(q, k, v, plan=plan, causal=causal, scale=scale, window=window, softcap=softcap, bias=bias)
    T, S = q.shape[1], k.shape[1]
    # Rows whose last query stands on the last key.
    aligned = plan is None or (plan.cu_seqlens_q is None and isinstance(plan.offset, int) and plan.offset + T == S)
    if aligned and window is not None:
        if T == 1 and window < S:  # the next token: the keys it sees are the last ones
            k, v, bias = k[:, -window:], v[:, -window:], _last_keys(bias, window)
            S = window
        window = None if window >= S else window
    if aligned and causal and window is None and bias is None and attention_on_cpu.served(q, k):
        return attention_on_cpu.attention_on_cpu(q, k, v, scale)
    mask, nothing, is_causal = None, None, False
    if aligned and window is None and (not causal or T == 1 or (T == S and bias is None)):
        is_causal = causal and T > 1
    else:
        mask = visible(plan, T, S, causal=causal, window=window, device=q.device)[:, None]  # (B or 1, 1, T, S)
        nothing = blind(plan, T, S, causal=causal, window=window, device=q.device)
        nothing = None if nothing is None else nothing[:, None, :, None]  # (B or 1, 1, T, 1)
    if bias is not None:
        mask, nothing = _biased(bias.to(q.dtype), mask)
    elif mask is not None and nothing is not None:
        mask = mask | nothing  # not every backend takes a row without a key; what comes out is replaced below
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    if nothing is not None:
        y = y.masked_fill(nothing, 0.0)
    return y.transpose(1, 2)


def _lengths(plan: AttentionPlan, q: Tensor, k: Tensor) -> list[int]:
    """Lengths of packed documents that attend to themselves, on a CPU: one by one is less work than a mask of all."""
    cu = plan.cu_seqlens_q
    if cu is None or cu is not plan.cu_seqlens_k or q.device.type != "cpu" or q.shape[1] != k.shape[1]:
        return []
    ends = [*cu.tolist(), q.shape[1]]
    return [length for length in (b - a for a, b in pairwise(ends)) if length]


def _biased(bias: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Bias and mask in one, ``(B or 1, H or 1, T or 1, S or 1)``, and where a query sees nothing.

    A bias may hide keys by -inf, and only its values tell. Such rows get a mask of 0, so that no backend meets them.
    """
    bias = bias[(None,) * (4 - bias.ndim)]
    if mask is not None:
        bias = torch.where(mask, bias, -torch.inf)
    nothing = (bias == -torch.inf).all(-1, keepdim=True)
    return bias.masked_fill(nothing, 0.0), nothing


def _last_keys(bias: Tensor | None, keys: int) -> Tensor | None:
    """The part of a bias that belongs to the last ``keys``."""
    return bias if bias is None or bias.ndim == 0 or bias.shape[-1] == 1 else bias[..., -keys:]


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window: int | None,
    softcap: float | None,
    bias: Tensor | None,
) -> None:
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit; "
            "expected (B, T, H, D) and twice (B, S, K, D) with H a multiple of K"
        )
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"attention: window {window} with causal={causal}; it must be 1 or more keys, and causal")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"attention: softcap is {softcap}; it must be above 0, or None for no cap")
    if bias is not None:
        B, T, H, _ = q.shape
        full = (B, H, T, k.shape[1])
        aligned = zip(reversed(bias.shape), reversed(full), strict=False)
        if bias.ndim > 4 or any(n not in (1, size) for n, size in aligned):
            raise ValueError(f"attention: bias {tuple(bias.shape)} does not broadcast to (B, H, T, S) = {full}")
