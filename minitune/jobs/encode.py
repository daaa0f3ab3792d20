"""Rows -> examples of ids and weights, checked, in as many processes as the machine has cores."""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from minitune.chat import TEMPLATES, AnyTemplate, Encoded, Message, examples, terminator
from minitune.data.formats import Row
from minitune.data.normal import digest, question_text
from minitune.data.store import Piece
from minitune.errors import ConfigError, DataError
from minitune.mask_report import Checks, MaskReport
from minitune.tokenizer import Tokenizer, load_tokenizer

OnLong = Literal["error", "drop", "truncate-history"]
PLAIN_LAYOUTS = ("completion", "text")
CHUNK = 512
WORTH_A_POOL = 4 * CHUNK
"""Rows from which on the start of other processes pays."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides how a row becomes examples, beside the tokenizer.

    ``stop_ids``: what the generator stops on. Rows of plain text and of prompt and completion are written by the
    plain template, unless ``template_named`` says that the user asked for this one.
    """

    template: AnyTemplate
    template_named: bool
    stop_ids: tuple[int, ...]
    train_on: Literal["all", "last"]
    max_length: int
    on_long: OnLong

    def template_of(self, row: Row) -> AnyTemplate:
        """The template that writes a row."""
        return TEMPLATES["plain"] if row.layout in PLAIN_LAYOUTS and not self.template_named else self.template


@dataclass
class Chunk:
    """What became of some rows, in order."""

    piece: Piece
    report: MaskReport
    questions: list[tuple[int, bytes]]
    """For each row that gave examples its number and the hash of its question."""
    long: list[tuple[str, int]] = field(default_factory=list)
    """Rows that were left out for their length: place and tokens."""


class Encoder:
    """Encodes rows with one tokenizer by one recipe."""

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe):
        self.tokenizer, self.recipe = tokenizer, recipe
        self._made: dict[AnyTemplate, tuple[int, Checks]] = {}

    def stop_and_checks(self, template: AnyTemplate) -> tuple[int, Checks]:
        """The id that ends an answer of this template, and what its examples are checked against."""
        if template not in self._made:
            stop_id = terminator(template, self.tokenizer)
            self._made[template] = stop_id, Checks.of(self.tokenizer, template, self.recipe.stop_ids)
        return self._made[template]

    def chunk(self, rows: Sequence[tuple[int, Row]]) -> Chunk:
        """Encode and check some numbered rows."""
        report, made, questions, long = MaskReport(), [], [], []
        for number, row in rows:
            fitted = self.row(row)
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
                made.append((number, example.ids, weights))
        return Chunk(Piece.of(made), report, questions, long)

    def row(self, row: Row) -> "Fitted":
        """The examples of one row, made to fit where the recipe says so. Raises DataError that names the row."""
        template, limit = self.recipe.template_of(row), self.recipe.max_length
        stop_id, _ = self.stop_and_checks(template)

        def made(messages: Sequence[Message]) -> list[Encoded]:
            return examples(messages, template, self.tokenizer, stop_id, train_on=self.recipe.train_on)

        try:
            found, messages, shortened = made(row.messages), row.messages, False
            tokens = longest = max((len(example.ids) for example in found), default=0)
            if longest > limit and self.recipe.on_long != "truncate-history":
                return Fitted([], tokens=tokens)
            while longest > limit and len(fewer := without_oldest(messages)) < len(messages):
                messages, shortened = fewer, True
                found = made(messages)
                longest = max((len(example.ids) for example in found), default=0)
        except (ConfigError, DataError) as error:
            raise type(error)(f"{row.where}: {error}") from None
        if longest <= limit:
            return Fitted(found, shortened=shortened)
        short = cut_example(found[-1], limit)
        if short is None:
            return Fitted([], tokens=tokens)
        complete = short.trained_tokens == found[-1].trained_tokens
        return Fitted([short], shortened=shortened, cut=not complete)


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

    Few rows are encoded here. Raises DataError or ConfigError for the first row that has no form.
    """
    chunks = _chunks(rows)
    encoder = Encoder(tokenizer, recipe)
    first = list(islice(chunks, WORTH_A_POOL // CHUNK))
    if processes < 2 or sum(map(len, first)) < WORTH_A_POOL:
        yield from (encoder.chunk(chunk) for part in (first, chunks) for chunk in part)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_begin, initargs=(folder, recipe)) as pool:
        waiting: deque[Future[Chunk]] = deque()
        try:
            for part in (first, chunks):
                for chunk in part:
                    waiting.append(pool.submit(_in_pool, chunk))
                    if len(waiting) > 3 * processes:
                        yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _chunks(rows: Iterable[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    walk = iter(rows)
    while chunk := list(islice(walk, CHUNK)):
        yield chunk


_encoder: Encoder | None = None


def _begin(folder: Path, recipe: Recipe) -> None:
    global _encoder
    _encoder = Encoder(load_tokenizer(folder), recipe)


def _in_pool(chunk: Sequence[tuple[int, Row]]) -> Chunk:
    assert _encoder is not None
    return _encoder.chunk(chunk)
