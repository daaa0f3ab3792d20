"""Who may see whom: the attention plan of a batch, built once and shared by all layers.

Two layouts, one rule. A query at position ``i`` of its document sees the keys at positions ``j <= i`` of the same
document (causal), and of these only ``j > i - window`` where there is a window.

* rows: every row of a batch ``(B, T)`` is a document. With a cache, ``offset`` says how many keys each row had before
  its first query; keys behind a row's last query (room in the cache, padding on the right) are never visible.
* packed: B is 1, and ``cu_seqlens_q`` and ``cu_seqlens_k`` hold where each document starts, and the end. Queries are
  aligned with the end of their document's keys, so a chunk of queries after cached keys is the same case. A document
  may be empty; what stands behind the end (room, padding) is a document of its own.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Positions and visibility of one batch.

    positions      (B, T) int64: place of each query in its document, for rotary and learned positions
    offset         keys before the first query of a row: one int for all rows, or (B,) int64
    cu_seqlens_q   (documents + 1,) int32 for packed rows, else None; cu_seqlens_k alike for the keys
    max_seqlen_q   longest document, in queries; max_seqlen_k alike in keys; 0 where not packed

    Raises ValueError where only one of the two cu_seqlens is given, or they count different numbers of documents.
    """

    positions: Tensor
    offset: int | Tensor = 0
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    max_seqlen_q: int = 0
    max_seqlen_k: int = 0
    # Not copied by dataclasses.replace: another plan has other masks.
    _made: dict[tuple[bool, int, bool, int | None], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        q, k = self.cu_seqlens_q, self.cu_seqlens_k
        if (q is None) != (k is None) or (q is not None and k is not None and q.shape != k.shape):
            shapes = [None if cu is None else tuple(cu.shape) for cu in (q, k)]
            raise ValueError(f"cu_seqlens_q and cu_seqlens_k are {shapes[0]} and {shapes[1]}; give both, of one shape")

    def visible(self, keys: int, *, causal: bool, window: int | None) -> Tensor:
        """The mask (B or 1, T, S) of what each query may see, for ``keys`` = S; made once, shared by the layers."""
        key = (True, keys, causal, window)
        if key not in self._made:
            self._made[key] = self._build(keys, causal, window)
        return self._made[key]

    def blind(self, keys: int, *, causal: bool, window: int | None) -> Tensor:
        """True where a query sees no key at all, (B or 1, T); made once, shared by the layers."""
        key = (False, keys, causal, window)
        if key not in self._made:
            self._made[key] = ~self.visible(keys, causal=causal, window=window).any(-1)
        return self._made[key]

    def _build(self, keys: int, causal: bool, window: int | None) -> Tensor:
        device = self.positions.device
        queries = self.positions.shape[1]
        if self.cu_seqlens_q is not None and self.cu_seqlens_k is not None:
            doc_q, at_q, length_q = _documents(self.cu_seqlens_q, queries)
            doc_k, at_k, length_k = _documents(self.cu_seqlens_k, keys)
            at_q = at_q + (length_k - length_q)[doc_q]  # queries stand at the end of their document's keys
            same = doc_q[:, None] == doc_k[None, :]
            return (same & in_sight(at_q, at_k, causal, window))[None]  # PACK-3
        offset = torch.as_tensor(self.offset, device=device).reshape(-1, 1)
        at_q = offset + torch.arange(queries, device=device)  # (B or 1, T)
        return in_sight(at_q, torch.arange(keys, device=device), causal, window)


def rows_plan(batch: int, queries: int, device: torch.device | str, offset: int | Tensor = 0) -> AttentionPlan:
    """The plan of ``batch`` rows of ``queries`` tokens after ``offset`` cached keys (an int, or one a row)."""
    start = torch.as_tensor(offset, device=device).reshape(-1, 1)
    positions = (start + torch.arange(queries, device=device)).expand(batch, -1)
    return AttentionPlan(positions=positions, offset=offset)


def visible(
    plan: AttentionPlan | None, queries: int, keys: int, *, causal: bool, window: int | None, device: torch.device
) -> Tensor:
    """The mask (B or 1, T, S); without a plan the queries stand at the end of the keys."""
    if plan is not None:
        return plan.visible(keys, causal=causal, window=window)
    at_q = torch.arange(keys - queries, keys, device=device)[None]
    return in_sight(at_q, torch.arange(keys, device=device), causal, window)


def blind(
    plan: AttentionPlan | None, queries: int, keys: int, *, causal: bool, window: int | None, device: torch.device
) -> Tensor | None:
    """True where a query sees no key at all, (B or 1, T); None where that cannot be.

    Whether it can be is told from numbers that the host knows, so that it never waits for the device: a query that
    stands on a key sees that key.
    """
    if plan is not None and plan.cu_seqlens_q is not None:
        if plan.cu_seqlens_q is plan.cu_seqlens_k and queries == keys:
            return None
    else:
        offset = keys - queries if plan is None else plan.offset
        on_keys = isinstance(offset, int) and 0 <= offset <= keys - queries
        if keys > 0 and (on_keys or not causal):
            return None
    if plan is not None:
        return plan.blind(keys, causal=causal, window=window)
    return ~visible(None, queries, keys, causal=causal, window=window, device=device).any(-1)


def in_sight(at_q: Tensor, at_k: Tensor, causal: bool, window: int | None) -> Tensor:
    """True where the query at ``at_q (..., T)`` may see the key at ``at_k (S,)``: ``(..., T, S)``.

    A window of W keys includes the query's own: ``i - W < j <= i``.
    """
    i, j = at_q[..., :, None], at_k
    seen = torch.ones_like(i, dtype=torch.bool) & torch.ones_like(j, dtype=torch.bool)
    if causal:
        seen = seen & (j <= i)  # ATT-4
    if window is not None:
        seen = seen & (j > i - window)  # ATT-4
    return seen


def _documents(cu_seqlens: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each of ``tokens`` packed tokens the index of its document, and its place in it; and the documents' lengths.

    What stands behind the end is one more document, mostly an empty one.
    """
    starts = torch.cat((cu_seqlens.long(), torch.tensor([tokens], device=cu_seqlens.device)))
    index = torch.arange(tokens, device=cu_seqlens.device)
    document = torch.bucketize(index, starts[1:], right=True)  # PACK-2
    return document, index - starts[document], starts.diff()
