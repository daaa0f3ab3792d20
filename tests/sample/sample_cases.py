"""Models and comparisons that the tests of sampling share."""

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.parity import CASES, Case, reference_model
from minitune.checkpoint import load_checkpoint
from minitune.models import LanguageModel
from minitune.ops import BUILTIN, Ops
from minitune.sample import SamplerSettings, Slots

POSITIONS = 320
"""More than 200 tokens behind a prompt of 100."""
TIE = 1e-3


def longer(case: Case) -> Case:
    """The case with room for a long text."""
    key = "n_positions" if case.family == "gpt2" else "max_position_embeddings"
    return dataclasses.replace(case, settings=case.settings | {key: POSITIONS})


@functools.cache
def reference(name: str) -> Any:
    """The reference library's model of random weights; with nothing in its settings that ends or forbids a text."""
    return reference_model(longer(next(case for case in CASES if case.name == name)))


@functools.cache
def ours(name: str, ops: Ops = BUILTIN) -> LanguageModel:
    """The same model, here."""
    with tempfile.TemporaryDirectory() as folder:
        reference(name).save_pretrained(folder)
        return load_checkpoint(Path(folder), ops=ops).model.eval().requires_grad_(False)


def some_ids(tokens: int, seed: int = 0, vocab_size: int = 61) -> list[int]:
    return torch.randint(0, vocab_size, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def run(slots: Slots, found: dict[int, list[int]] | None = None) -> dict[int, list[int]]:
    """Step until every text has ended; the ids that each slot made."""
    found = {} if found is None else found
    while slots.busy:
        for event in slots.step():
            found.setdefault(event.slot, []).append(event.token)
    return found


def alone(model: LanguageModel, prompt: Sequence[int], settings: SamplerSettings, seed: int = 0) -> list[int]:
    """What a prompt gives by itself; no id stops it."""
    slots = Slots(model, 1)
    slot = slots.add(prompt, settings, seed=seed, stop_ids=())
    return run(slots)[slot]


@torch.no_grad()
def assert_greedy(model: LanguageModel, prompt: Sequence[int], made: Sequence[int]) -> None:
    """Each made id must be the likeliest of a full pass over what is before it, or as likely within 1e-3.

    One pass does for all positions: that a position does not see what is behind it is tested elsewhere.
    """
    ids = torch.tensor([[*prompt, *made[:-1]]])
    logits = model.logits(model(ids))[0, len(prompt) - 1 :]  # (made, V)
    short = logits.amax(-1) - logits.gather(-1, torch.tensor(made)[:, None])[:, 0]
    assert short.max() <= TIE, f"token {int((short > TIE).int().argmax())} is {float(short.max()):.3g} below the best"


@torch.no_grad()
def assert_same(model: LanguageModel, prompt: Sequence[int], a: Sequence[int], b: Sequence[int]) -> None:
    """Two greedy texts are equal, or first differ where the two best logits lie within 1e-3."""
    assert len(a) == len(b)
    if a != b:
        first = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        best = model.logits(model(torch.tensor([[*prompt, *a[:first]]]))[0, -1]).topk(2).values
        assert best[0] - best[1] <= TIE, f"the texts differ at token {first}, with no tie"
