"""Prompts in, text out: the loops over ``Slots.step()``."""

import dataclasses
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from minitune.errors import ConfigError
from minitune.models import LanguageModel
from minitune.sample.settings import SamplerSettings
from minitune.sample.slots import Event, Finish, Slots
from minitune.sample.stops import StopStrings
from minitune.tokenizer import Tokenizer

Prompt = str | Sequence[int]
"""A text, which starts as the model's texts do, or ids, which are taken as they are."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds: text that is complete characters, the token, and on the last one why it ended.

    ``logprob`` and ``top`` are the event's: see ``Event``.
    """

    text: str
    token: int
    finish: Finish | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole continuation of prompt number ``prompt`` with this seed; ``ids`` ends with the stop id if one ended it.

    ``logprobs`` has a number for each id, and ``top`` the likeliest ids with theirs; empty if not asked for. ``score``
    is a beam's.
    """

    text: str
    ids: tuple[int, ...]
    finish: Finish
    prompt: int = 0
    seed: int = 0
    logprobs: tuple[float, ...] = ()
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    score: float | None = None


class Reader:
    """The events of one text as text: whole characters, nothing of a stop id, nothing of a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str]):
        # Behind nothing but control tokens the text begins here, and a leading space belongs to the tokenizer.
        self._stream = tokenizer.stream(continues=not set(prompt) <= tokenizer.control_ids)
        self._stops = StopStrings(stops)

    def push(self, event: Event) -> Piece:
        """The piece of an event. Its finish is ``stop`` too where a stop string ended the text."""
        text = "" if event.finish == "stop" else self._stream.push(event.token)
        if event.finish:
            text += self._stream.finish()
        shown, stopped = self._stops.push(text)
        if event.finish and not stopped:
            shown += self._stops.finish()
        return Piece(shown, event.token, "stop" if stopped else event.finish, event.logprob, event.top)


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The ids of a prompt: a text starts with the start token where the model's texts do."""
    if not isinstance(prompt, str):
        return list(prompt)
    start = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    return start + tokenizer.encode(prompt)


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    settings: SamplerSettings | None = None,
    seed: int = 0,
    stop_ids: Sequence[int] | None = None,
    slots: Slots | None = None,
    graph: bool = False,
    **changes: Any,
) -> Generator[Piece, None, None]:
    """Continue ``prompt`` and yield the text as it comes, never half a character.

    ``changes`` are fields of SamplerSettings: ``max_tokens=64, temperature=0.8, stop=("###",)``. ``slots`` of an
    earlier call may be given again; what they still hold of the prompt is not computed again. ``graph`` as of Slots.
    """
    settings = _settings(settings, changes)
    ids = prompt_ids(tokenizer, prompt)
    with _evaluating(model):
        slots = slots or Slots(model, 1, positions=len(ids) + settings.max_tokens, graph=graph)
        slot = slots.add(ids, settings, seed=seed, stop_ids=stop_ids)
        reader = Reader(tokenizer, ids, settings.stop)
        try:
            finish = None
            while finish is None:
                for event in slots.step():
                    if event.slot == slot:
                        piece = reader.push(event)
                        finish = piece.finish
                        yield piece
        finally:
            slots.remove(slot)


def generate_batch(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Iterable[Prompt],
    *,
    settings: SamplerSettings | None = None,
    seed: int = 0,
    n: int = 1,
    batch_size: int = 8,
    stop_ids: Sequence[int] | None = None,
    graph: bool = False,
    **changes: Any,
) -> list[Completion]:
    """Continue every prompt, ``batch_size`` at a time; the results stand in the order of the prompts.

    Each prompt has ``n`` samples, with the seeds ``seed, seed + 1, ...``: what each alone would give. ``changes`` are
    fields of SamplerSettings; ``graph`` as of Slots.
    """
    settings = _settings(settings, changes)
    done = complete(
        model,
        tokenizer,
        prompts,
        settings=settings,
        seed=seed,
        n=n,
        batch_size=batch_size,
        stop_ids=stop_ids,
        graph=graph,
    )
    return sorted(done, key=lambda completion: (completion.prompt, completion.seed))


def complete(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Iterable[Prompt],
    *,
    settings: SamplerSettings,
    seed: int = 0,
    n: int = 1,
    batch_size: int = 8,
    stop_ids: Sequence[int] | None = None,
    graph: bool = False,
) -> Iterator[Completion]:
    """``generate_batch`` as completions end, whichever is first; a prompt is only taken when a slot is free for it."""
    if n < 1:
        raise ConfigError(f"the number of samples is {n}; it must be at least 1")
    jobs = ((number, ids, seed + j) for number, ids in _numbered(tokenizer, prompts) for j in range(n))
    under_way: dict[int, tuple[Reader, int, int, list[Piece]]] = {}
    with _evaluating(model):
        slots = Slots(model, batch_size, graph=graph)
        job = next(jobs, None)
        while job is not None or slots.busy:
            while job is not None and slots.free:
                number, ids, own_seed = job
                try:
                    slot = slots.add(ids, settings, seed=own_seed, stop_ids=stop_ids)
                except ConfigError as error:
                    raise ConfigError(f"prompt {number + 1}: {error}") from None
                under_way[slot] = (Reader(tokenizer, ids, settings.stop), number, own_seed, [])
                job = next(jobs, None)
            for event in slots.step():
                reader, number, own_seed, pieces = under_way[event.slot]
                pieces.append(reader.push(event))
                if pieces[-1].finish:
                    slots.remove(event.slot)
                    yield completion_of(pieces, number, own_seed)


def generate_ids(
    model: LanguageModel,
    prompt: Sequence[int],
    *,
    seed: int = 0,
    stop_ids: Sequence[int] | None = None,
    graph: bool = False,
    **changes: Any,
) -> Iterator[tuple[int, Finish | None]]:
    """Yield ``(id, finish)`` after the ids of ``prompt``; a stop id (the model's own by itself) is yielded last.

    ``changes`` are fields of SamplerSettings; ``graph`` as of Slots.
    """
    settings = _settings(None, changes)
    with _evaluating(model):
        slots = Slots(model, 1, positions=len(prompt) + settings.max_tokens, graph=graph)
        slots.add(prompt, settings, seed=seed, stop_ids=stop_ids)
        while slots.busy:
            for event in slots.step():
                yield event.token, event.finish


def _settings(settings: SamplerSettings | None, changes: dict[str, Any]) -> SamplerSettings:
    return dataclasses.replace(settings or SamplerSettings(), **changes)


def _numbered(tokenizer: Tokenizer, prompts: Iterable[Prompt]) -> Iterator[tuple[int, list[int]]]:
    for number, prompt in enumerate(prompts):
        yield number, prompt_ids(tokenizer, prompt)


def completion_of(pieces: list[Piece], number: int, seed: int) -> Completion:
    """The pieces of a text that has ended as one."""
    finish = pieces[-1].finish
    assert finish is not None
    logprobs = tuple(piece.logprob for piece in pieces if piece.logprob is not None)
    return Completion(
        text="".join(piece.text for piece in pieces),
        ids=tuple(piece.token for piece in pieces),
        finish=finish,
        prompt=number,
        seed=seed,
        logprobs=logprobs,
        top=tuple(piece.top for piece in pieces) if logprobs else (),
    )


@contextmanager
def _evaluating(model: LanguageModel) -> Iterator[None]:
    """Dropout off, and as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
