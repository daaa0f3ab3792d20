"""Who sees whom, as intervals: what every attention mask of this engine is.

A query sees a contiguous run of keys, from ``first`` to before ``end``. Causal or not, a window, a cache before the
queries, packed documents: each only moves the two ends, and neither ever moves back from one query to the next. So two
small integer vectors replace the (T, S) mask:

    causal             end   = position + 1              not causal     end = keys of the document
    window of W keys   first = position + 1 - W          else           first = start of the document

and the same the other way round, since both are monotone: key j is seen by the queries from ``seen_first`` (how many
queries end at or before j) to before ``seen_end`` (how many queries begin at or before j).

A tile of queries then visits the keys from its first row's ``first`` to its last row's ``end``, and of these needs no
mask between its last row's ``first`` and its first row's ``end``.
"""

import weakref
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Intervals(NamedTuple):
    """``first, end`` (B or 1, T) of each query's keys and ``seen_first, seen_end`` (B or 1, S) of each key's queries.

    All int32. Where a query sees nothing, ``end <= first``.
    """

    first: Tensor
    end: Tensor
    seen_first: Tensor
    seen_end: Tensor


_of_plans: dict[int, tuple[weakref.ref[Any], dict[Any, Intervals]]] = {}
"""By the id of a plan: the plan, so that no other of the same id is taken for it, and what was made for its options."""


def intervals(plan: Any, T: int, S: int, *, causal: bool, window: int | None, device: torch.device) -> Intervals:
    """The intervals of ``T`` queries and ``S`` keys; made once for a plan and its options, on the device.

    ``plan`` has ``positions``, ``offset`` (int or (B,)), ``cu_seqlens_q`` and ``cu_seqlens_k`` as
    ``minitune.ops.AttentionPlan`` has; without one the queries stand at the end of the keys.
    """
    if plan is None or (plan.cu_seqlens_q is None and isinstance(plan.offset, int)):
        offset = S - T if plan is None else plan.offset
        if torch.compiler.is_compiling():
            return _rows(torch.tensor([[offset]], device=device), T, S, causal, window)
        return _constant(T, S, offset, causal, window, device)
    if torch.compiler.is_compiling():
        return _of_plan(plan, T, S, causal, window)
    made = _made_for(plan)
    key = (T, S, causal, window)
    if key not in made:
        with torch.inference_mode(False):  # what is made while sampling may be kept by a training step
            made[key] = _of_plan(plan, T, S, causal, window)
    return made[key]


def _made_for(plan: Any) -> dict[Any, Intervals]:
    """What was made for this very plan. Two plans may share their positions, or their document starts."""
    key = id(plan)
    found = _of_plans.get(key)
    if found is None or found[0]() is not plan:
        found = _of_plans[key] = (weakref.ref(plan, lambda _: _of_plans.pop(key, None)), {})
    return found[1]


@lru_cache(maxsize=64)
def _constant(T: int, S: int, offset: int, causal: bool, window: int | None, device: torch.device) -> Intervals:
    with torch.inference_mode(False):
        return _rows(torch.tensor([[offset]], device=device), T, S, causal, window)


def _of_plan(plan: Any, T: int, S: int, causal: bool, window: int | None) -> Intervals:
    if plan.cu_seqlens_q is not None:
        return _packed(plan.cu_seqlens_q.long(), plan.cu_seqlens_k.long(), T, S, causal, window)
    return _rows(plan.offset.long().reshape(-1, 1), T, S, causal, window)


def _rows(offset: Tensor, T: int, S: int, causal: bool, window: int | None) -> Intervals:
    """Every row a document: query t stands at position ``offset + t`` of its row."""
    position = offset + torch.arange(T, device=offset.device)  # (B or 1, T)
    end = (position + 1).clamp(0, S) if causal else torch.full_like(position, S)
    first = torch.zeros_like(position) if window is None else (position + 1 - window).clamp(0, S)
    return _both_ways(first, end, S)


def _packed(cu_q: Tensor, cu_k: Tensor, T: int, S: int, causal: bool, window: int | None) -> Intervals:
    """Documents one after another; queries stand at the end of their document's keys.

    What stands behind the last end is one more document.
    """
    cu_q = torch.cat((cu_q, cu_q.new_full((1,), T)))
    cu_k = torch.cat((cu_k, cu_k.new_full((1,), S)))
    query = torch.arange(T, device=cu_q.device)
    document = torch.bucketize(query, cu_q[1:], right=True)  # (T,)
    start, stop = cu_k[document], cu_k[document + 1]
    # The last query of a document stands on its last key.
    at = query - cu_q[document + 1] + stop
    end = torch.minimum((at + 1).clamp_min(0), stop) if causal else stop
    end = torch.maximum(end, start)
    first = start if window is None else torch.minimum(torch.maximum(at + 1 - window, start), stop)
    return _both_ways(first[None], end[None], S)


def _both_ways(first: Tensor, end: Tensor, S: int) -> Intervals:
    key = torch.arange(S, device=first.device).expand(len(first), -1).contiguous()
    seen_first = torch.searchsorted(end.contiguous(), key, right=True)  # queries with end <= key
    seen_end = torch.searchsorted(first.contiguous(), key, right=True)  # queries with first <= key
    first, end, seen_first, seen_end = (x.to(torch.int32).contiguous() for x in (first, end, seen_first, seen_end))
    return Intervals(first, end, seen_first, seen_end)
