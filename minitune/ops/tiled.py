"""Attention in tiles, without ever holding all scores: the algorithm of the kernels, in PyTorch, to be read.

A softmax looks at a whole row, but a row can be walked. For the keys seen so far three things are kept: the largest
score m, the sum l of exp(s - m), and the sum acc of exp(s - m) v. A larger score later scales both sums down. At the
end y = acc / l (Milakov & Gimelshein, arXiv 1805.02867; Dao et al., FlashAttention, arXiv 2205.14135).

    m' = max(m, max s)      l' = e^(m - m') l + sum e^(s - m')      acc' = e^(m - m') acc + sum e^(s - m') v

For the backward lse = m + log l is kept, one number a query and head, and the probabilities of a tile are made again:

    p = exp(s - lse)        delta = sum of dy * y                   ds = p * (dy v^T - delta)

Shapes as in attention.py; here heads stand before queries, so that a tile is a matrix.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minitune.ops.plan import in_sight
from minitune.ops.precision import wide


@dataclass(frozen=True)
class Partial:
    """What a row of attention knows after some of its keys: ``m (..., T)``, ``l (..., T)``, ``acc (..., T, D)``."""

    m: Tensor
    l: Tensor
    acc: Tensor


def nothing_seen(q: Tensor) -> Partial:
    """The state before the first key, for ``q (..., T, D)``."""
    m = torch.full(q.shape[:-1], -torch.inf, dtype=q.dtype, device=q.device)
    return Partial(m, torch.zeros_like(m), torch.zeros_like(q))


def absorb(state: Partial, s: Tensor, v: Tensor) -> Partial:
    """The state after keys with scores ``s (..., T, S)``, -inf where hidden, and values ``v (..., S, D)``."""
    m = torch.maximum(state.m, s.amax(-1))  # TILE-1
    top = m.masked_fill(m == -torch.inf, 0.0)  # nothing seen yet: -inf - -inf would be NaN
    fade = (state.m - top).exp()  # what the sums were scaled by is too large by this
    e = (s - top[..., None]).exp()
    return Partial(
        m,
        fade * state.l + e.sum(-1),  # TILE-2
        fade[..., None] * state.acc + e @ v,  # TILE-3
    )


def merge(a: Partial, b: Partial) -> Partial:
    """The state of the keys of both, which may have been seen in any order or by other hands."""
    m = torch.maximum(a.m, b.m)
    top = m.masked_fill(m == -torch.inf, 0.0)
    fade_a, fade_b = (a.m - top).exp(), (b.m - top).exp()
    return Partial(
        m,
        fade_a * a.l + fade_b * b.l,  # TILE-5
        fade_a[..., None] * a.acc + fade_b[..., None] * b.acc,  # TILE-5
    )


def finish(state: Partial) -> tuple[Tensor, Tensor]:
    """``y (..., T, D)`` and ``lse (..., T)``; a query that saw no key has 0 and -inf."""
    y = state.acc / state.l.masked_fill(state.l == 0, 1.0)[..., None]  # TILE-4
    return y, state.m + state.l.log()  # TILE-4


def visible_tiles(
    queries: int, keys: int, tile_t: int, tile_s: int, *, causal: bool, window: int | None
) -> Iterator[tuple[slice, slice]]:
    """Tiles of queries and keys in which anything is visible; the queries stand at the end of the keys."""
    for t in range(0, queries, tile_t):
        at = slice(t, min(t + tile_t, queries))
        first = max(0, at.start + keys - queries - window + 1) if window is not None else 0  # TILE-6
        end = max(0, min(keys, at.stop + keys - queries)) if causal else keys  # TILE-6
        for s in range(first // tile_s * tile_s, end, tile_s):
            yield at, slice(s, min(s + tile_s, keys))


def tiled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tile_t: int = 64,
    tile_s: int = 64,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``y`` like ``q (B, T, H, D)`` and ``lse (B, H, T)``, with no more than one tile of scores at a time.

    As ``attention`` without a plan. Computed in float32 or wider.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    Q, K, V = _by_head(q, k, v)  # (B, H, T, D), twice (B, H, S, D)
    states = {}
    sight = {"causal": causal, "window": window}
    for at, by in visible_tiles(Q.shape[2], K.shape[2], tile_t, tile_s, causal=causal, window=window):
        s = _scores(Q, K, at, by, scale, **sight)  # (B, H, tile_t, tile_s)
        state = states.get(at.start) or nothing_seen(Q[:, :, at])
        states[at.start] = absorb(state, s, V[:, :, by])
    parts = [finish(states.get(t) or nothing_seen(Q[:, :, t : t + tile_t])) for t in range(0, Q.shape[2], tile_t)]
    y, lse = torch.cat([y for y, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)
    return y.transpose(1, 2).to(q.dtype), lse


def tiled_attention_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    lse: Tensor,
    *,
    tile_t: int = 64,
    tile_s: int = 64,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients ``(dq, dk, dv)`` from what ``tiled_attention`` returned; the probabilities are made again by tiles."""
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    Q, K, V = _by_head(q, k, v)
    dY, Y = (t.to(Q.dtype).transpose(1, 2) for t in (dy, y))  # (B, H, T, D)
    delta = (dY * Y).sum(-1)  # (B, H, T), ATB-2
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # a query that saw nothing has no probabilities
    dQ, dK, dV = torch.zeros_like(Q), torch.zeros_like(K), torch.zeros_like(V)
    for at, by in visible_tiles(Q.shape[2], K.shape[2], tile_t, tile_s, causal=causal, window=window):
        s = _scores(Q, K, at, by, scale, causal=causal, window=window)
        p = (s - lse[:, :, at, None]).exp()  # ATB-1
        dp = dY[:, :, at] @ V[:, :, by].mT
        ds = p * (dp - delta[:, :, at, None])  # ATB-3
        dV[:, :, by] += p.mT @ dY[:, :, at]  # ATB-4
        dK[:, :, by] += scale * ds.mT @ Q[:, :, at]  # ATB-4
        dQ[:, :, at] += scale * ds @ K[:, :, by]  # ATB-5
    shared = [t.unflatten(1, (k.shape[2], -1)).sum(2) for t in (dK, dV)]  # heads that share keys add up: (B, K, S, D)
    dk, dv = (t.transpose(1, 2).to(k.dtype) for t in shared)
    return dQ.transpose(1, 2).to(q.dtype), dk, dv


def _by_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heads first, each query head with its keys and values, in float32 or wider."""
    group = q.shape[2] // k.shape[2]
    Q, K, V = (t.to(wide(q.dtype)).transpose(1, 2) for t in (q, k, v))
    return Q, K.repeat_interleave(group, 1), V.repeat_interleave(group, 1)


def _scores(Q: Tensor, K: Tensor, at: slice, by: slice, scale: float, *, causal: bool, window: int | None) -> Tensor:
    """The scores of one tile, -inf where a query does not see a key."""
    place = torch.arange(K.shape[2], device=Q.device)
    at_q = place.new_tensor(range(at.start, at.stop)) + K.shape[2] - Q.shape[2]
    seen = in_sight(at_q, place[by], causal, window)
    return (scale * Q[:, :, at] @ K[:, :, by].mT).masked_fill(~seen, -torch.inf)
