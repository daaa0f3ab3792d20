"""From encoded rows to batches of inputs and targets: padded under each other, or packed behind each other."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from minitune.ops import IGNORE, AttentionPlan, rows_plan


class Example(Protocol):
    """What a batch is made of: n ids, and for each whether it is trained and what its loss is multiplied by."""

    @property
    def ids(self) -> Sequence[int] | np.ndarray: ...

    @property
    def trained(self) -> Sequence[bool] | np.ndarray: ...

    @property
    def weights(self) -> Sequence[float] | np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward and backward works on.

    ids            (B, T) int64 inputs
    targets        (B, T) int64: the id that position t has to predict, or ``IGNORE``
    plan           positions and who sees whom
    token_weight   (B, T) or None: what each target's loss is multiplied by
    tokens         inputs that are not padding
    """

    ids: Tensor
    targets: Tensor
    plan: AttentionPlan
    token_weight: Tensor | None = None
    tokens: int

    @property
    def denominator(self) -> float:
        """What this batch adds to the divisor of the step: its trained tokens, or their weights."""
        kept = self.targets != IGNORE
        if self.token_weight is None:
            return float(kept.sum())
        return float(self.token_weight[kept].sum())

    @property
    def documents(self) -> list[int]:
        """Lengths of the documents that see themselves alone, row after row, padding behind a packed row included."""
        B, T = self.ids.shape
        cu = self.plan.cu_seqlens_q
        return [T] * B if cu is None else cu.diff().tolist()

    @property
    def trained_tokens(self) -> int:
        return int((self.targets != IGNORE).sum())


def pad_rows(rows: Sequence[Example], device: torch.device | str = "cpu", *, left: bool = False) -> Batch:
    """Put rows under each other, padded on the right (or ``left``) to the longest.

    Position t has id t as input and id t + 1 as target, if that is trained. Padding is masked by place, never by id,
    so that a pad id equal to the end-of-text id does not hide it. On the right, causal attention never looks at it; on
    the left it is a document of its own before the row's.
    """
    longest = max(len(row.ids) for row in rows) - 1
    if left:
        return _concatenated([[longest - len(row.ids) + 1, row] for row in rows], device)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    targets = torch.full((len(rows), longest), IGNORE, dtype=torch.int64)
    weight = torch.zeros(len(rows), longest)
    weighted = False
    for i, row in enumerate(rows):
        n = len(row.ids) - 1
        ids[i, :n], targets[i, :n], weight[i, :n], own = _shifted(row)
        weighted |= own
    return Batch(
        ids=ids.to(device),
        targets=targets.to(device),
        plan=rows_plan(len(rows), longest, device),
        token_weight=weight.to(device) if weighted else None,
        tokens=sum(len(row.ids) - 1 for row in rows),
    )


def pack_rows(
    rows: Sequence[Sequence[Example]], capacity: int, device: torch.device | str = "cpu", *, fill: bool = True
) -> Batch:
    """Put packed rows of ``capacity`` inputs behind each other: ids and targets are (1, rows * capacity).

    Every document keeps its own positions and sees itself alone (``cu_seqlens``). A document of n ids has n - 1 inputs,
    so that its first id is never predicted from another document, and its last is no input to one. What a row has left
    is a document of padding; without ``fill`` it is left out, so that nothing is computed for it and no two batches
    have one shape.
    """
    for row in rows:
        if (inputs := sum(len(document.ids) - 1 for document in row)) > capacity:
            raise ValueError(f"documents of {inputs} inputs do not fit into a row of {capacity}")
    if not fill:
        return _concatenated(rows, device)
    filled = [[*row, capacity - sum(len(document.ids) - 1 for document in row)] for row in rows]
    return _concatenated(filled, device)


def _concatenated(rows: Sequence[Sequence[Example | int]], device: torch.device | str) -> Batch:
    """Rows of documents and of stretches of padding (their lengths), behind each other."""
    T = sum(part if isinstance(part, int) else len(part.ids) - 1 for row in rows for part in row)
    ids = torch.zeros(1, T, dtype=torch.int64)
    targets = torch.full((1, T), IGNORE, dtype=torch.int64)
    positions = torch.zeros(1, T, dtype=torch.int64)
    weight = torch.zeros(1, T)
    lengths: list[int] = []
    at = tokens = 0
    weighted = False
    for row in rows:
        for document in row:
            n = document if isinstance(document, int) else len(document.ids) - 1
            part = slice(at, at + n)
            if not isinstance(document, int):
                ids[0, part], targets[0, part], weight[0, part], own = _shifted(document)
                weighted |= own
                tokens += n
            positions[0, part] = torch.arange(n)  # PACK-4
            lengths += [n] if n else []
            at += n
    cu = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    longest = max(lengths)
    plan = AttentionPlan(
        positions=positions.to(device), cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=longest, max_seqlen_k=longest
    )
    return Batch(
        ids=ids.to(device),
        targets=targets.to(device),
        plan=plan,
        token_weight=weight.to(device) if weighted else None,
        tokens=tokens,
    )


def _shifted(row: Example) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Inputs, targets and loss weights of one document, and whether a weight differs from 1."""
    # Copies: what is mapped into memory cannot be written, and torch would warn of it.
    ids = torch.from_numpy(np.array(row.ids, np.int64))
    trained = torch.from_numpy(np.array(row.trained, np.bool_))[1:]
    weights = torch.from_numpy(np.array(row.weights, np.float32))[1:]
    return ids[:-1], torch.where(trained, ids[1:], IGNORE), weights, bool((weights[trained] != 1).any())  # PACK-1


def epoch_order(rows: int, *, seed: int, epoch: int) -> list[int]:
    """The rows 0 .. ``rows`` - 1 in the order of one epoch: each exactly once, the same for a seed everywhere."""
    order = list(range(rows))
    random.Random(f"minitune {seed} {epoch}").shuffle(order)
    return order


def step_rows(rows: int, *, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Rows of optimizer step 0, 1, 2 ...: endless epochs, cut into batches; the last of an epoch may be smaller."""
    epoch = 0
    while True:
        order = epoch_order(rows, seed=seed, epoch=epoch)
        for start in range(0, rows, batch_size):
            yield order[start : start + batch_size]
        epoch += 1
