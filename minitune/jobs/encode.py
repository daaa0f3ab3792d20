"""Rows -> examples of ids and weights, checked, in as many processes as the machine has cores."""

import contextlib
import multiprocessing
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Literal

from minitune.chat import TEMPLATES, AnyTemplate, Encoded, Message, examples, terminator
from minitune.data.formats import Row
from minitune.data.normal import digest, question_text
from minitune.data.store import Piece
from minitune.errors import DataError
from minitune.mask_report import Checks, MaskReport
from minitune.tokenizer import Tokenizer, load_tokenizer

OnLong = Literal["error", "drop", "truncate-history", "split"]
PLAIN_LAYOUTS = ("completion", "text")
CHUNK = 512
ALONE_S = 2.0
"""Seconds of work after which the start of other processes, which takes one or two, begins to pay."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides how a row becomes examples, beside the tokenizer.

    ``stop_ids``: what the generator stops on. Rows of plain text and of prompt and completion are written by the
    plain template, unless ``template_named`` says that the user asked for this one. ``text_only``: other rows than
    plain text are refused, since every token is to be trained.
    """

    template: AnyTemplate
    template_named: bool
    stop_ids: tuple[int, ...]
    train_on: Literal["all", "last"]
    max_length: int
    on_long: OnLong
    text_only: bool = False

    def template_of(self, row: Row) -> AnyTemplate:
        """The template that writes a row."""
        return TEMPLATES["plain"] if row.layout in PLAIN_LAYOUTS and not self.template_named else self.template


@dataclass
class Chunk:
    """What became of some rows, in order."""

    piece: Piece
    report: MaskReport
    long: list[tuple[str, int]] = field(default_factory=list)
    """Rows that were left out for their length: place and tokens."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Rows that the template has no form for: place and reason."""


class Encoder:
    """Encodes rows with one tokenizer by one recipe."""

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe):
        self.tokenizer, self.recipe = tokenizer, recipe
        # By identity, with the template beside it so that it stays the same one: to hash one is to walk all of it.
        self._made: dict[int, tuple[AnyTemplate, int, Checks]] = {}

    def stop_and_checks(self, template: AnyTemplate) -> tuple[int, Checks]:
        """The id that ends an answer of this template, and what its examples are checked against."""
        if id(template) not in self._made:
            stop_id = terminator(template, self.tokenizer)
            checks = Checks.of(self.tokenizer, template, self.recipe.stop_ids)
            self._made[id(template)] = template, stop_id, checks
        return self._made[id(template)][1:]

    def chunk(self, rows: Sequence[tuple[int, Row]]) -> Chunk:
        """Encode and check some numbered rows."""
        report, made, questions, long, refused = MaskReport(), [], [], [], []
        for number, row in rows:
            try:
                fitted = self.row(row)
            except DataError as error:
                refused.append((row.where, str(error)))
                continue
            if fitted.tokens:
                long.append((row.where, fitted.tokens))
                continue
            _, checks = self.stop_and_checks(self.recipe.template_of(row))
            report.shortened_rows += fitted.shortened
            answers = [answers_of(example) for example in fitted.examples]
            report.add(row.where, fitted.examples, answers, checks, cut=fitted.cut)
            questions.append((number, digest(question_text(row))))
            for example in fitted.examples:
                weights = [weight * row.weight for weight in example.weights] if row.weight != 1 else example.weights
                made += [(number, ids, w) for ids, w in pieces(example.ids, weights, self.recipe.max_length)]
        return Chunk(Piece.of(made, questions), report, long, refused)

    def row(self, row: Row) -> "Fitted":
        """The examples of one row, made to fit where the recipe says so.

        Raises DataError where the template has no form for it, ConfigError for a tokenizer that lacks its tokens.
        """
        if self.recipe.text_only and row.layout != "text":
            raise DataError(f"is a row of {row.layout}; pretrain takes plain text (`text`), sft takes conversations")
        template, limit = self.recipe.template_of(row), self.recipe.max_length
        stop_id, _ = self.stop_and_checks(template)

        def made(messages: Sequence[Message]) -> list[Encoded]:
            return examples(messages, template, self.tokenizer, stop_id, train_on=self.recipe.train_on)

        found, messages, shortened = made(row.messages), row.messages, False
        tokens = longest = max((len(example.ids) for example in found), default=0)
        if self.recipe.on_long == "split":
            return Fitted(found)
        if longest > limit and self.recipe.on_long != "truncate-history":
            return Fitted([], tokens=tokens)
        while longest > limit and len(fewer := without_oldest(messages)) < len(messages):
            messages, shortened = fewer, True
            found = made(messages)
            longest = max((len(example.ids) for example in found), default=0)
        if longest <= limit:
            return Fitted(found, shortened=shortened)
        short = cut_example(found[-1], limit)
        if short is None:
            return Fitted([], tokens=tokens)
        complete = short.trained_tokens == found[-1].trained_tokens
        return Fitted([short], shortened=shortened, cut=not complete)


def pieces(ids: Sequence[int], weights: Sequence[float], limit: int) -> Iterator[tuple[Sequence[int], list[float]]]:
    """A text in pieces of at most ``limit`` ids, so that each id but the first is predicted exactly once.

    A piece begins with the last id of the one before it, which it only reads.
    """
    yield ids[:limit], list(weights[:limit])
    for start in range(limit - 1, len(ids) - 1, limit - 1):
        yield ids[start : start + limit], [0.0, *weights[start + 1 : start + limit]]


@dataclass(frozen=True)
class Fitted:
    """The examples of one row; ``tokens`` above 0: there are none, since it has that many."""

    examples: list[Encoded]
    shortened: bool = False
    cut: bool = False
    tokens: int = 0


def answers_of(example: Encoded) -> list[str]:
    """The texts of the trained answers, in order."""
    found: dict[int, str] = {}
    for span in example.spans:
        if span.trained:
            found.setdefault(span.turn, span.text)
    return list(found.values())


def without_oldest(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A conversation without its oldest exchange: from the second user turn on, behind the system message if any."""
    start = 1 if messages[0].role == "system" else 0
    later = [i for i, message in enumerate(messages) if message.role == "user" and i > start]
    rest = tuple(messages[later[0] :]) if later else ()
    if not any(message.role == "assistant" for message in rest):
        return tuple(messages)
    return (*messages[:start], *rest)


def cut_example(example: Encoded, limit: int) -> Encoded | None:
    """The first ``limit`` ids, if one of them is trained. The last answer then lacks its end."""
    spans = tuple(span._replace(end=min(span.end, limit)) for span in example.spans if span.start < limit)
    short = Encoded(example.ids[:limit], spans)
    return short if short.trained_tokens else None


def encode_rows(
    rows: Iterable[tuple[int, Row]], tokenizer: Tokenizer, folder: Path, recipe: Recipe, processes: int
) -> Iterator[Chunk]:
    """Encode numbered rows in chunks, in order; ``folder`` is where other processes load the tokenizer from.

    The first seconds' worth is encoded here, and so is all where no other process can be started. Raises ConfigError
    for a tokenizer that cannot serve the template.
    """
    chunks = _chunks(rows)
    encoder = Encoder(tokenizer, recipe)
    started = time.perf_counter()
    for chunk in chunks:
        if processes > 1 and time.perf_counter() - started > ALONE_S:
            yield from _together(chain([chunk], chunks), encoder, folder, processes)
        else:
            yield encoder.chunk(chunk)


_Numbered = Sequence[tuple[int, Row]]


def _together(chunks: Iterable[_Numbered], encoder: Encoder, folder: Path, processes: int) -> Iterator[Chunk]:
    spawn, begin = multiprocessing.get_context("spawn"), (folder, encoder.recipe)
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_begin, initargs=begin) as pool:
        waiting: deque[tuple[_Numbered, Future[Chunk] | None]] = deque()
        try:
            for chunk in chunks:
                waiting.append((chunk, _sent(pool, chunk)))
                if len(waiting) > 3 * processes:
                    yield _received(encoder, *waiting.popleft())
            while waiting:
                yield _received(encoder, *waiting.popleft())
        finally:
            for _, future in waiting:
                if future is not None:
                    future.cancel()


def _sent(pool: ProcessPoolExecutor, chunk: _Numbered) -> Future[Chunk] | None:
    """Give a chunk to the processes, the first of which starts them; None where they have died."""
    try:
        with _without_main():
            return pool.submit(_in_pool, chunk)
    except BrokenProcessPool:
        return None


def _received(encoder: Encoder, chunk: _Numbered, future: Future[Chunk] | None) -> Chunk:
    """What the processes made of a chunk, or made of it here where they have died."""
    try:
        return encoder.chunk(chunk) if future is None else future.result()
    except BrokenProcessPool:
        return encoder.chunk(chunk)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Start processes that do not run the user's script again: it need not have a guard for being imported."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _chunks(rows: Iterable[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    walk = iter(rows)
    while chunk := list(islice(walk, CHUNK)):
        yield chunk


_encoder: Encoder | None = None


def _begin(folder: Path, recipe: Recipe) -> None:
    global _encoder
    _encoder = Encoder(load_tokenizer(folder), recipe)


def _in_pool(chunk: _Numbered) -> Chunk:
    assert _encoder is not None
    return _encoder.chunk(chunk)
