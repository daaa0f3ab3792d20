"""Attention (Vaswani et al., arXiv 1706.03762), with several query heads to a key/value head (arXiv 2305.13245).

    s = scale * q k^T           p = softmax(s over the visible keys)          y = p v

The backward, with dp = dy v^T:

    dv = p^T dy          ds = p * (dp - sum over keys of dp * p)          dq = scale * ds k          dk = scale * ds^T q

and dk, dv are summed over the query heads that share a key/value head. A query that sees nothing gives 0 and takes
no gradient.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from minitune.ops.plan import AttentionPlan, in_sight
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
    itself. Scores and sums are in float32 (float64 stays float64). Raises ValueError for an option that is not built.
    """
    _check(q, k, v, window, softcap, bias)
    p, _, _ = _probabilities(q, k, plan, causal, scale)
    y = torch.einsum("bkgts,bskd->btkgd", p, v.to(p.dtype))
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients ``(dq, dk, dv)`` of ``attention``, in closed form."""
    p, grouped, scale = _probabilities(q, k, plan, causal, scale)  # (B, K, G, T, S), (B, T, K, G, D)
    dy = dy.to(p.dtype).reshape(grouped.shape)
    dv = torch.einsum("bkgts,btkgd->bskd", p, dy)
    dp = torch.einsum("btkgd,bskd->bkgts", dy, v.to(p.dtype))
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * scale
    dq = torch.einsum("bkgts,bskd->btkgd", ds, k.to(p.dtype)).reshape(q.shape)
    dk = torch.einsum("bkgts,btkgd->bskd", ds, grouped)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _probabilities(
    q: Tensor, k: Tensor, plan: AttentionPlan | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor, float]:
    """``p (B, K, G, T, S)``, the queries by group ``(B, T, K, G, D)``, and the scale; G = H / K."""
    T, D = q.shape[1], q.shape[3]
    S, K = k.shape[1], k.shape[2]
    kind = wide(q.dtype)
    scale = 1.0 / math.sqrt(D) if scale is None else scale
    grouped = q.to(kind).unflatten(2, (K, -1))  # (B, T, K, G, D)
    s = torch.einsum("btkgd,bskd->bkgts", grouped, k.to(kind)) * scale
    unseen = ~visible(plan, T, S, causal=causal, window=None, device=q.device)[:, None, None]  # (B or 1, 1, 1, T, S)
    s = s.masked_fill(unseen, -torch.inf)
    # Where nothing is visible the row of -inf would give NaN; its probabilities are 0.
    p = torch.softmax(s.masked_fill(unseen.all(-1, keepdim=True), 0.0), dim=-1)
    return p.masked_fill(unseen, 0.0), grouped, scale


def visible(
    plan: AttentionPlan | None, queries: int, keys: int, *, causal: bool, window: int | None, device: torch.device
) -> Tensor:
    """The mask (B or 1, T, S); without a plan the queries stand at the end of the keys."""
    if plan is not None:
        return plan.visible(keys, causal=causal, window=window)
    at_q = torch.arange(keys - queries, keys, device=device)[None]
    return in_sight(at_q, torch.arange(keys, device=device), causal, window)


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
    """``attention`` by ``torch.nn.functional.scaled_dot_product_attention``, without a mask where none is needed."""
    _check(q, k, v, window, softcap, bias)
    T, S = q.shape[1], k.shape[1]
    simple = plan is None or (plan.cu_seqlens_q is None and isinstance(plan.offset, int) and plan.offset + T == S)
    mask, is_causal = None, False
    if causal and simple and T == S:
        is_causal = T > 1
    elif (causal and not (simple and T == 1)) or not simple:
        mask = visible(plan, T, S, causal=causal, window=None, device=q.device)[:, None]  # (B or 1, 1, T, S)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return y.transpose(1, 2)


def _check(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, softcap: float | None, bias: Tensor | None
) -> None:
    for name, value in (("window", window), ("softcap", softcap), ("bias", bias)):
        if value is not None:
            raise ValueError(f"attention: {name} is not built yet")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit; "
            "expected (B, T, H, D) and twice (B, S, K, D) with H a multiple of K"
        )
