"""Chapter 14: places and masks a token at a time, and a packed step against its documents one by one, in a model."""

import random
from dataclasses import dataclass

import pytest
import torch
from math_cases import numbers, same, small_config

from minitune.data.batch import pack_rows, pad_rows
from minitune.data.pack import fill, pack
from minitune.models.decoder import Decoder
from minitune.ops import IGNORE, REFERENCE, AttentionPlan


@dataclass
class Document:
    ids: list[int]
    trained: list[bool]

    @property
    def weights(self) -> list[float]:
        return [1.0] * len(self.ids)


DOCUMENTS = [
    Document([1, 2, 3, 4], [False, False, True, True]),
    Document([6, 5], [False, True]),
    Document([4, 4, 0, 2, 6], [True, True, False, True, True]),
]
CAPACITY = 9


def test_inputs_targets_and_places() -> None:
    """PACK-1, PACK-2, PACK-4: said document by document."""
    batch = pack_rows([DOCUMENTS], CAPACITY)
    inputs, targets, positions = [], [], []
    for document in DOCUMENTS:
        for t in range(len(document.ids) - 1):
            inputs.append(document.ids[t])
            targets.append(document.ids[t + 1] if document.trained[t + 1] else IGNORE)
            positions.append(t)
    rest = CAPACITY - len(inputs)
    assert batch.ids[0].tolist() == inputs + [0] * rest
    assert batch.targets[0].tolist() == targets + [IGNORE] * rest
    assert batch.plan.positions[0].tolist() == positions + list(range(rest))


@pytest.mark.parametrize("window", [None, 1, 2])
def test_who_sees_whom(window: int | None) -> None:
    """PACK-2, PACK-3: by the largest start at or before each place, pair by pair."""
    starts = [0, 3, 4, 8]
    plan = AttentionPlan(
        positions=torch.zeros(1, 8, dtype=torch.int64),
        cu_seqlens_q=torch.tensor(starts, dtype=torch.int32),
        cu_seqlens_k=torch.tensor(starts, dtype=torch.int32),
    )
    document = [max(k for k, c in enumerate(starts) if c <= a) for a in range(8)]
    place = [a - starts[document[a]] for a in range(8)]
    want = [
        [
            document[a] == document[b] and place[b] <= place[a] and (window is None or place[b] > place[a] - window)
            for b in range(8)
        ]
        for a in range(8)
    ]
    assert plan.visible(8, causal=True, window=window)[0].tolist() == want


@pytest.mark.parametrize("capacity", [20, 64])
def test_best_fit(capacity: int) -> None:
    """PACK-5, PACK-6: against the rule, looking at every open row; each document once, no row too full."""
    rng = random.Random(2)
    lengths = [rng.randint(1, 20) for _ in range(300)]
    rooms: list[int] = []
    used: list[int] = []
    for n in lengths:
        fitting = [room for room in rooms if room >= n]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - n)
        else:
            rooms.append(capacity - n)
    rows = pack(lengths, capacity)
    used = [sum(lengths[place] for place in row) for row in rows]
    assert sorted(capacity - total for total in used) == sorted(rooms)
    assert sorted(place for row in rows for place in row) == list(range(300))
    same(fill(lengths, rows, capacity), sum(lengths) / (len(used) * capacity))
    assert len(used) <= 1.7 * -(-sum(lengths) // capacity) + 1


@pytest.mark.parametrize("options", [{}, {"windows": (2, 3)}], ids=str)
def test_a_packed_step_is_its_documents_one_by_one(options: dict) -> None:
    """PACK-3, PACK-4: loss and every gradient; padded the same; and no gradient from one document to another."""
    model = Decoder(small_config(**options), REFERENCE, torch.float64).double()
    model.initialize(0)
    for n, weight in enumerate(model.parameters()):
        weight.data += 0.3 * numbers(*weight.shape, seed=n)
    weights = list(model.parameters())

    def step(batch):
        loss, denominator = model.loss(model(batch.ids, plan=batch.plan), batch.targets)
        return loss, denominator, torch.autograd.grad(loss, weights)

    loss, denominator, gradients = step(pack_rows([DOCUMENTS], CAPACITY))
    alone = [step(pad_rows([document])) for document in DOCUMENTS]
    same(loss, torch.stack([part[0] for part in alone]).sum())
    same(denominator, torch.stack([part[1] for part in alone]).sum())
    same(gradients, [torch.stack(parts).sum(0) for parts in zip(*(part[2] for part in alone), strict=True)])
    same(gradients, step(pad_rows(DOCUMENTS))[2])
    same(gradients, step(pack_rows([DOCUMENTS[:2], DOCUMENTS[2:]], CAPACITY))[2])
    # The loss of the first document moves with no embedding that only the others have.
    first = pack_rows([[Document(DOCUMENTS[0].ids, DOCUMENTS[0].trained), Document([6, 5, 0], [False] * 3)]], CAPACITY)
    x = model.embed(first.ids, torch.float64).detach().requires_grad_()
    cos, sin = model.rotary(first.plan.positions)
    y = x
    for block in model.blocks:
        y = block(y, cos, sin, first.plan, None)
    (dx,) = torch.autograd.grad(model.loss(model.norm(y), first.targets)[0], x)
    assert dx[0, :3].abs().min() > 0
    assert not dx[0, 3:].any()
