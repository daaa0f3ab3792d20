"""From encoded rows to padded batches of inputs and targets."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minitune.chat import Encoded
from minitune.ops import IGNORE, AttentionPlan, rows_plan


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
    def trained_tokens(self) -> int:
        return int((self.targets != IGNORE).sum())


def pad_rows(rows: Sequence[Encoded], device: torch.device | str = "cpu") -> Batch:
    """Put rows under each other, padded on the right to the longest.

    Position t has id t as input and id t + 1 as target, if that is trained. Padding is masked by place, never by id,
    so that a pad id equal to the end-of-text id does not hide it; causal attention never looks at it.
    """
    longest = max(len(row.ids) for row in rows) - 1
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    targets = torch.full((len(rows), longest), IGNORE, dtype=torch.int64)
    for i, row in enumerate(rows):
        n = len(row.ids) - 1
        ids[i, :n] = torch.tensor(row.ids[:-1])
        after = torch.tensor(row.ids[1:])
        targets[i, :n] = torch.where(torch.tensor(row.trained[1:]), after, IGNORE)
    return Batch(
        ids=ids.to(device),
        targets=targets.to(device),
        plan=rows_plan(len(rows), longest, device),
        tokens=sum(len(row.ids) - 1 for row in rows),
    )


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
