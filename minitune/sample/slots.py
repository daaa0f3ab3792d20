"""Generation as a ``step()`` over slots: many texts at once, which join and leave when they like.

A slot is a row of one cache with a text of its own: its length, its settings, its seed. A step feeds each text what the
cache has not seen of it yet (a piece of a prompt, or the token made last) and makes the next token of every text that
is then complete. Rows of different lengths are padded on the right, where no query looks.

    slots = Slots(model, rows=8)
    slots.add(ids, settings, seed=1)
    while slots.busy:
        for event in slots.step(): ...

What a free slot still holds is not thrown away: a text that begins alike goes on behind it (the next turn of a
conversation), and one that begins like another slot's text gets a copy (several samples of a prompt, a template's
opening).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minitune.errors import ConfigError
from minitune.models import LanguageModel
from minitune.models.cache import KVCache
from minitune.sample.filters import choose
from minitune.sample.graph import DecodeGraph, decode_graph
from minitune.sample.noise import uniform
from minitune.sample.settings import SamplerSettings, checked_seed

Finish = Literal["stop", "length", "context"]
"""``stop``: the model or a stop string ended it; ``length``: max_tokens; ``context``: no positions are left."""

CHUNK = 512
"""Tokens of a prompt that are fed at a time, so that texts under way do not wait for a long one."""
PREFILL_TOKENS = 4096
"""Tokens in one call, padding included, of all prompts that are fed together."""
WORTH_WAITING = 16
"""A prompt waits for another that is being fed if it can then copy at least so many tokens."""


@dataclass(frozen=True, slots=True)
class Event:
    """A token that a slot made; with ``finish`` it is the last, and the slot is free.

    ``logprob`` and ``top``, the likeliest ids with theirs, are of the model's own distribution: before penalty,
    temperature and filters. None and empty where the settings do not ask for them.
    """

    slot: int
    token: int
    finish: Finish | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class _Text:
    """A text under way: ``ids`` is the prompt and what was made behind it."""

    ids: list[int]
    prompt: int
    settings: SamplerSettings
    seed: int
    stop_ids: frozenset[int]
    seen: Tensor | None

    @property
    def made(self) -> int:
        return len(self.ids) - self.prompt


class Slots:
    """``rows`` texts at a time through one model; ``positions`` allocates room at once, which else grows as needed.

    ``graph``: whether a token for each text is one CUDA graph (graph.py), while the weights stay where they are; only
    where asked for, until it has been measured on a GPU. Raises ConfigError where the model does not allow it.
    """

    def __init__(self, model: LanguageModel, rows: int, *, positions: int = 0, chunk: int = CHUNK, graph: bool = False):
        if rows < 1:
            raise ConfigError(f"the number of texts at a time is {rows}; it must be at least 1")
        self.model = model
        self.limit = model.config.max_positions
        self._chunk = min(chunk, self.limit)
        self._device = model.embed.weight.device
        self.cache = KVCache(
            model.config,
            rows,
            min(max(positions, 1), self.limit),
            device=self._device,
            dtype=model.compute_dtype,
            chunk=self._chunk,
        )
        self._graph = decode_graph(model, self.cache, graph)
        self._texts: dict[int, _Text] = {}  # in the order they came
        self._held: list[list[int]] = [[] for _ in range(rows)]  # ids of each row; the cache's length says how many

    @property
    def busy(self) -> bool:
        """Whether any text is under way."""
        return bool(self._texts)

    @property
    def free(self) -> int:
        """Slots that a text can join."""
        return len(self._held) - len(self._texts)

    def add(
        self,
        prompt: Sequence[int],
        settings: SamplerSettings | None = None,
        *,
        seed: int = 0,
        stop_ids: Sequence[int] | None = None,
    ) -> int:
        """Let a text join and return its slot; it goes on behind ``prompt`` from the next step.

        ``stop_ids`` are the model's own by themselves. Raises ConfigError for a prompt that is empty, fills all
        positions or has ids the model does not embed, and for a seed out of range.
        """
        settings = settings or SamplerSettings()
        ids, V = list(prompt), self.model.config.vocab_size
        if not ids:
            raise ConfigError("the prompt is empty and this tokenizer has no token to start a text with")
        if len(ids) >= self.limit:
            raise ConfigError(f"the prompt has {len(ids)} tokens; this model has {self.limit} positions")
        if not 0 <= min(ids) <= max(ids) < V:
            raise ConfigError(
                f"the prompt has the id {min(ids) if min(ids) < 0 else max(ids)}; the model has 0 to {V - 1}"
            )
        checked_seed(seed)
        if not self.free:
            raise RuntimeError("every slot has a text; step until one is free")
        slot = max((s for s in range(len(self._held)) if s not in self._texts), key=lambda s: self._shared(s, ids))
        need = min(self.limit, len(ids) + settings.max_tokens)
        if need > self.cache.capacity:
            with torch.inference_mode():
                self.cache.reserve(min(self.limit, max(need, 2 * self.cache.capacity)))
                self._graph = self._graph and DecodeGraph(self.model, self.cache)
        self.cache.cut(slot, self._shared(slot, ids))
        seen = None
        if settings.repetition_penalty != 1:
            seen = torch.zeros(V, dtype=torch.bool, device=self._device)
            seen[torch.tensor(ids, device=self._device)] = True
        stops = frozenset(self.model.stop_ids if stop_ids is None else stop_ids)
        self._texts[slot] = _Text(ids, len(ids), settings, seed, stops, seen)
        self._held[slot] = ids
        return slot

    def remove(self, slot: int) -> None:
        """Let the text of a slot leave, finished or not."""
        self._texts.pop(slot, None)

    def forget(self) -> None:
        """Let every text leave and trust nothing the rows hold, as after a step that was interrupted."""
        self._texts.clear()
        for slot in range(len(self._held)):
            self.cache.cut(slot, 0)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Feed every text what comes next, and return the tokens that were made; texts that ended have left."""
        prompts = self._prompts()
        ready = [slot for slot in sorted(self._texts) if self._pending(slot) == 1]
        events = self._advance(prompts) if prompts else []
        if ready:
            events += self._advance_by_graph(ready) or self._advance(ready)
        return events

    def _pending(self, slot: int) -> int:
        """Tokens of its text that the cache has not seen."""
        return len(self._texts[slot].ids) - self.cache.lengths[slot]

    def _shared(self, slot: int, ids: list[int]) -> int:
        """Leading tokens of ``ids`` that the row of a slot can lend; one is always left to compute."""
        held = self._held[slot][: self.cache.lengths[slot]]
        length = _common(held, ids[:-1])
        return length if self.cache.holds(slot, length) else 0

    def _prompts(self) -> list[int]:
        """The slots whose prompts are fed in this step, in ascending order: the first that came, and those that fit."""
        chosen: list[int] = []
        longest = width = 0
        for slot, text in self._texts.items():
            if self._pending(slot) == 1:
                continue
            self._borrow(slot)
            pending, length = self._pending(slot), self.cache.lengths[slot]
            if pending == 1 or any(
                _common(self._texts[other].ids, text.ids[:-1]) - length >= WORTH_WAITING for other in chosen
            ):
                continue
            w, l = max(width, min(pending, self._chunk)), max(longest, length)
            if chosen and ((len(chosen) + 1) * w > PREFILL_TOKENS or l + w > self.cache.capacity):
                continue
            chosen.append(slot)
            longest, width = l, w
        return sorted(chosen)

    def _borrow(self, slot: int) -> None:
        """Copy the beginning of a text from the row that has most of it, if that is more than its own row has."""
        ids = self._texts[slot].ids
        best = max(range(len(self._held)), key=lambda s: self._shared(s, ids))
        shared = self._shared(best, ids)
        if best != slot and shared - self.cache.lengths[slot] >= WORTH_WAITING:
            self.cache.copy([best], [slot])
            self.cache.cut(slot, shared)

    def _advance(self, slots: list[int]) -> list[Event]:
        """One call of the model for some slots, and the events of those whose text it completes."""
        T = min(self._chunk, max(map(self._pending, slots)))
        counts = [min(T, self._pending(slot)) for slot in slots]
        ids = torch.zeros(len(slots), T, dtype=torch.int64)
        for row, (slot, n) in enumerate(zip(slots, counts, strict=True)):
            start = self.cache.lengths[slot]
            ids[row, :n] = torch.tensor(self._texts[slot].ids[start : start + n])
        complete = [row for row, slot in enumerate(slots) if counts[row] == self._pending(slot)]
        hidden = self.model(ids.to(self._device), plan=self.cache.plan(T, slots), cache=self.cache)  # (B, T, C)
        self.cache.advance(counts, slots)
        if not complete:
            return []
        last = hidden[complete, [counts[row] - 1 for row in complete]]  # (B, C)
        return self._choose([slots[row] for row in complete], self.model.logits(last))

    def _advance_by_graph(self, slots: list[int]) -> list[Event] | None:
        """``_advance`` by one token of each slot through the graph; None where it does not serve."""
        if self._graph is None or self.model.training:
            return None
        texts = [self._texts[slot] for slot in slots]
        left = max(text.settings.max_tokens - text.made for text in texts)
        made = self._graph.step({slot: text.ids[-1] for slot, text in zip(slots, texts, strict=True)}, left)
        if made is None:
            self._graph = None if self._graph.failed else self._graph
            return None
        logits, largest, ids = made
        self.cache.advance(1, slots)
        if all(text.settings.plain for text in texts) and all(math.isfinite(largest[slot]) for slot in slots):
            return [self._event(slot, ids[slot]) for slot in slots]
        return self._choose(slots, logits if len(slots) == len(logits) else logits[slots])

    def _choose(self, slots: list[int], logits: Tensor) -> list[Event]:
        """The next token of each slot from its ``logits (B, V)``, and whether it is the last."""
        best, ids = logits.max(-1)
        if not bool(best.isfinite().all()):
            raise ConfigError("the model's logits are not finite; load it with --dtype float32, or check its weights")
        groups: dict[SamplerSettings, list[int]] = {}
        for row, slot in enumerate(slots):
            groups.setdefault(self._texts[slot].settings, []).append(row)
        for settings, rows in groups.items():
            texts = [self._texts[slots[row]] for row in rows]
            if settings.greedy and settings.repetition_penalty == 1:
                continue  # the largest logit it is
            u = torch.tensor([0.0 if settings.greedy else uniform(t.seed, t.made) for t in texts], dtype=torch.float64)
            seen = None if texts[0].seen is None else torch.stack([t.seen for t in texts if t.seen is not None])
            where = logits.device if logits.device.type != "mps" else "cpu"
            ids[rows] = choose(logits[rows], settings, u.to(where), seen).to(ids.device)
        return [
            self._event(slot, token, *logprobs)
            for slot, token, logprobs in zip(slots, ids.tolist(), self._logprobs(slots, logits, ids), strict=True)
        ]

    def _logprobs(self, slots: list[int], logits: Tensor, ids: Tensor) -> list[tuple]:
        """For each slot that asks: the log probability of its token, and the likeliest ids with theirs."""
        found: list[tuple] = [()] * len(slots)
        wanted = {row: n for row, s in enumerate(slots) if (n := self._texts[s].settings.logprobs) is not None}
        if not wanted:
            return found
        rows = list(wanted)
        logp = torch.log_softmax(logits[rows].float(), -1)  # (B, V)
        chosen = logp.gather(-1, ids[rows, None])[:, 0].tolist()
        values, tops = logp.topk(min(max(wanted.values()), logp.shape[-1]), dim=-1)
        for i, (row, n) in enumerate(wanted.items()):
            top = tuple(zip(tops[i, :n].tolist(), values[i, :n].tolist(), strict=True))
            found[row] = (chosen[i], top)
        return found

    def _event(self, slot: int, token: int, logprob: float | None = None, top: tuple = ()) -> Event:
        text = self._texts[slot]
        text.ids.append(token)
        if text.seen is not None:
            text.seen[token] = True
        finish: Finish | None = None
        if token in text.stop_ids:
            finish = "stop"
        elif text.made == text.settings.max_tokens:
            finish = "length"
        elif self.cache.lengths[slot] == self.limit:
            finish = "context"
        if finish:
            self.remove(slot)
        return Event(slot, token, finish, logprob, top)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Leading items that two sequences share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
