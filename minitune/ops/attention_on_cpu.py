"""Causal attention on a CPU by products of oneDNN, a tile of queries at a time: attention.py made fast for long rows.

    s = scale q k^T          p = softmax(s)          y = p v
    dv = p^T dy              ds = p * (dy v^T - sum of dy * y)              dq = scale ds k        dk = scale ds^T q

torch's own multiplies small blocks by MKL (see product.py). Here the query heads that share a key/value head stand
behind each other in one matrix, (tile * G, D) with G = H / K, and a tile sees the keys up to its last query, so that
what is computed for nothing is half a tile a row. Kept for the backward are q, k and v; p is made again.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minitune.ops.product import onednn, product

TILE = 128
LONG = 384
"""Below so many queries torch's own is as fast: there are as many calls as tiles."""


def served(q: Tensor, k: Tensor) -> bool:
    """Whether causal attention of rows whose queries stand at the end of their keys is better made here."""
    long = LONG <= q.shape[1] <= k.shape[1]
    return long and q.device.type == "cpu" and q.dtype == k.dtype == torch.float32 and onednn()


def attention_on_cpu(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Causal attention of ``q (B, T, H, D)`` at the end of ``k, v (B, S, K, D)``, like ``q``."""
    return _Attention.apply(q, k, v, 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        Q, K, V = _by_group(q, k.shape[2], scale), _by_head(k), _by_head(v)
        Y = torch.empty_like(Q)  # (B, K, T, G, D)
        for at, end, place in _tiles(Q, K):
            p = _probabilities(Q[place][at].flatten(0, 1), K[place][:end], at.stop - at.start)
            Y[place][at] = product(p, V[place][:end].T).view_as(Q[place][at])
        return Y.transpose(1, 2).flatten(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v = ctx.saved_tensors
        scale, heads = ctx.scale, k.shape[2]
        Q, K, V, D = _by_group(q, heads, scale), _by_head(k), _by_head(v), _by_group(dy, heads)
        dQ, dK, dV = torch.empty_like(Q), torch.zeros_like(K), torch.zeros_like(V)
        for at, end, place in _tiles(Q, K):
            rows, d = Q[place][at].flatten(0, 1), D[place][at].flatten(0, 1)  # (tile * G, D)
            keys, values = K[place][:end], V[place][:end]
            p = _probabilities(rows, keys, at.stop - at.start)
            dV[place][:end] += product(p.T, d.T)
            ds = product(d, values)  # dp, (tile * G, end)
            ds.sub_((ds * p).sum(-1, keepdim=True)).mul_(p)
            dQ[place][at] = product(ds, keys.T).mul_(scale).view_as(Q[place][at])
            dK[place][:end] += product(ds.T, rows.T)  # the scale is in the rows
        return dQ.transpose(1, 2).flatten(2, 3), dK.transpose(1, 2), dV.transpose(1, 2), None


def _by_head(x: Tensor) -> Tensor:
    """``(B, S, K, D)`` as ``(B, K, S, D)``: a head's keys are a matrix without gaps."""
    return x.transpose(1, 2).contiguous()


def _by_group(x: Tensor, heads: int, scale: float = 1.0) -> Tensor:
    """``(B, T, H, D)`` as ``(B, K, T, G, D)``, times ``scale``; a tile of it is a matrix of T * G rows."""
    grouped = x.unflatten(2, (heads, -1)).transpose(1, 2)
    return grouped.contiguous() if scale == 1.0 else torch.mul(grouped, scale).contiguous()


def _tiles(Q: Tensor, K: Tensor) -> Iterator[tuple[slice, int, tuple[int, int]]]:
    """Queries, how many keys the last of them sees, and the row of the batch and the key/value head they belong to."""
    B, heads, T, S = *Q.shape[:3], K.shape[2]
    for start in range(0, T, TILE):
        stop = min(start + TILE, T)
        for place in itertools.product(range(B), range(heads)):
            yield slice(start, stop), S - T + stop, place


def _probabilities(rows: Tensor, keys: Tensor, tile: int) -> Tensor:
    """``p (tile * G, end)`` of scaled queries; a query sees the keys up to its own, the last query all of them."""
    s = product(rows, keys)
    later = torch.ones(tile, tile, dtype=torch.bool, device=s.device).triu_(1)
    s.view(tile, -1, len(keys))[:, :, len(keys) - tile :].masked_fill_(later[:, None], -torch.inf)
    return torch.softmax(s, -1, out=s)
