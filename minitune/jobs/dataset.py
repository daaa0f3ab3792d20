"""Instruction files -> checked, tokenised examples in a store, and which of them are trained on and which validated.

    files -> rows (streamed) -> examples: ids and mask, checked (``encode``) -> a store, remembered by what made it

A store is made once for its files, tokenizer, template and settings, and mapped into memory ever after; splitting it
costs a hash a row.
"""

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minitune.chat import AnyTemplate
from minitune.config import PretrainConfig, TrainConfig
from minitune.data.batch import epoch_order
from minitune.data.formats import Row, bad_rows_message
from minitune.data.sources import copies, parse_source
from minitune.data.split import split_groups
from minitune.data.store import Document, TokenStore
from minitune.errors import ConfigError, DataError
from minitune.jobs.encode import Recipe
from minitune.jobs.prepared import Preparation, Prepared, Progress, rows_of
from minitune.mask_report import RULES, MaskReport
from minitune.tokenizer import Tokenizer

LONGEST_DEFAULT = 2048
SHOWN = 2


@dataclass(frozen=True)
class Part:
    """The examples of training or validation: places in a store; ``part[i]`` is an example."""

    store: TokenStore
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> Document:
        return self.store[int(self.places[i])]

    def __iter__(self) -> Iterator[Document]:
        return (self[i] for i in range(len(self)))

    @property
    def rows(self) -> np.ndarray:
        """The numbers of the rows that the examples come from."""
        return self.store.rows[self.places]

    @property
    def lengths(self) -> np.ndarray:
        """Inputs of each example: its ids but the last, which predicts nothing."""
        return self.store.lengths[self.places] - 1


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Both parts, the rows shown before and after, and what a report says of all."""

    train: Part
    val: Part
    shown: Sequence[Row]
    prepared: list[Prepared]
    leaked_rows: int
    max_length: int
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def report(self) -> MaskReport:
        """The mask report of all files."""
        total = MaskReport()
        for prepared in self.prepared:
            total.merge(prepared.report)
        return total

    @property
    def bad_rows(self) -> int:
        return sum(prepared.bad_rows for prepared in self.prepared)

    @property
    def long_rows(self) -> int:
        return sum(prepared.long_rows for prepared in self.prepared)

    @property
    def train_rows(self) -> int:
        """Rows whose examples are trained on."""
        return len(np.unique(self.train.rows))

    @property
    def val_rows(self) -> int:
        """Rows whose examples are validated on."""
        return len(np.unique(self.val.rows))

    def epoch(self, epoch: int, seed: int) -> np.ndarray:
        """Which training examples an epoch sees: each once, or as often as the weight of its file says."""
        if all(weight == 1 for weight in self.weights.values()):
            return np.arange(len(self.train), dtype=np.int32)
        numbers = self.train.rows
        distinct = np.unique(numbers)
        files = [self.prepared[0].file_of(int(number)) for number in distinct]
        examples: dict[int, list[int]] = {}
        for place, number in enumerate(numbers.tolist()):
            examples.setdefault(number, []).append(place)
        chosen = copies(files, self.weights, seed=seed, epoch=epoch)
        return np.array([place for at in chosen for place in examples[int(distinct[at])]], np.int32)

    def summary(self) -> dict[str, Any]:
        """What ``inspect.json`` holds."""
        return self.report.as_json() | {
            "rules": RULES,
            "train_examples": len(self.train),
            "val_examples": len(self.val),
            "train_rows": self.train_rows,
            "val_rows": self.val_rows,
            "dropped_bad_rows": self.bad_rows,
            "dropped_long_rows": self.long_rows,
            "val_rows_also_in_train": self.leaked_rows,
            "max_length": self.max_length,
        }


def data_specs(text: str) -> list[str]:
    """The files of ``--data``: one name, or several with spaces between them, each perhaps with its ``=weight``."""
    if Path(text).is_file() or Path(text.rpartition("=")[0] or text).is_file():
        return [text]
    return shlex.split(text) or [text]


def recipe_of(
    config: TrainConfig, template: AnyTemplate, stop_ids: Sequence[int], positions: int, *, named: bool
) -> Recipe:
    """The recipe that the settings ask for; ``positions`` is what the model was made for."""
    max_length = config.max_length or min(positions, LONGEST_DEFAULT)
    if max_length > positions:
        raise ConfigError(f"--max-length {max_length} is more than the {positions} positions of this model")
    text_only = isinstance(config, PretrainConfig)
    return Recipe(
        text_only=text_only,
        template=template,
        template_named=named,
        stop_ids=tuple(stop_ids),
        train_on=config.train_on,
        max_length=max_length,
        on_long=config.on_long,
    )


def prepare(
    config: TrainConfig,
    tokenizer: Tokenizer,
    folder: Path,
    recipe: Recipe,
    positions: int,
    progress: Progress | None = None,
) -> Dataset:
    """The examples of the files that ``config`` names, split into training and validation.

    ``folder`` is where the tokenizer can be loaded from again; ``positions`` what the model was made for. Raises
    DataError or ConfigError with one line, also where the mask of any row is wrong.
    """
    sources = [parse_source(spec) for spec in data_specs(config.data)]
    make = Preparation(config, tokenizer, folder, recipe, progress)
    main = make.run([source.name for source in sources], limit=config.rows)
    val = _validation(config.val)
    refuse(main, config, recipe, positions)
    everything = np.arange(len(main.store))
    parts, leaked, prepared = Part(main.store, everything), 0, [main]
    held = Part(main.store, everything[:0])
    if isinstance(val, Path):
        other = make.run([config.val], limit=0)
        refuse(other, config, recipe, positions)
        prepared.append(other)
        held = Part(other.store, np.arange(len(other.store)))
        leaked = shared_questions(main.store.questions, other.store.questions)
    elif val:
        parts, held = split(main, val, config)
    shown_of, part = (prepared[-1], held) if len(held) else (main, parts)
    return Dataset(
        train=parts,
        val=held,
        shown=rows_of(shown_of, first_rows(part, SHOWN), config.columns),
        prepared=prepared,
        leaked_rows=leaked,
        max_length=recipe.max_length,
        weights={source.name: source.weight for source in sources},
    )


def first_rows(part: Part, count: int) -> list[int]:
    """The numbers of the first rows of a part."""
    found: dict[int, None] = {}
    for place in part.places:
        if len(found) == count:
            break
        found[int(part.store.rows[place])] = None
    return list(found)


def split(main: Prepared, val: float | int, config: TrainConfig) -> tuple[Part, Part]:
    """Training and validation, rows with the same question in one of them; of plain text, its pieces are drawn."""
    if config.on_long == "split":
        return _split_pieces(main, val, config)
    total = len(main.store.numbers)
    wanted = int(val) if val >= 1 else math.floor(val * total + 0.5)
    if not 0 < wanted < total:
        what = "no row to validate on; ask for more" if wanted < 1 else "no row to train on; ask for fewer"
        held = f"--val {config.val} of {total:,} rows leaves {what}"
        raise DataError(f"{config.data}: {held}, or pass --val 0 for no validation")
    try:
        parts = split_groups(main.store.questions, [wanted], seed=config.seed)
    except DataError as error:
        raise DataError(f"{config.data}: {error}; or pass --val 0 for no validation") from None
    chosen = np.zeros(main.readable, bool)
    chosen[main.store.numbers[parts == 0]] = True
    inside = chosen[main.store.rows]
    return Part(main.store, np.flatnonzero(~inside)), Part(main.store, np.flatnonzero(inside))


def _split_pieces(main: Prepared, val: float | int, config: TrainConfig) -> tuple[Part, Part]:
    """Some pieces of the text for validation: one long document is many pieces."""
    total = len(main.store)
    wanted = int(val) if val >= 1 else math.floor(val * total + 0.5)
    if not 0 < wanted < total:
        raise DataError(
            f"{config.data}: --val {config.val} of {total:,} pieces of {config.max_length or 'the longest'} tokens "
            "leaves nothing on one side; ask for another share, or pass --val 0 for no validation"
        )
    chosen = np.zeros(total, bool)
    chosen[epoch_order(total, seed=config.seed, epoch=-1)[:wanted]] = True
    return Part(main.store, np.flatnonzero(~chosen)), Part(main.store, np.flatnonzero(chosen))


def shared_questions(train: np.ndarray, val: np.ndarray) -> int:
    """How many rows of ``val`` ask what a row of ``train`` asks; both are hashes, a row of bytes each."""
    kind = f"V{train.shape[1]}"
    known = np.sort(np.ascontiguousarray(train).view(kind).ravel())
    asked = np.ascontiguousarray(val).view(kind).ravel()
    if not len(known):
        return 0
    return int((known[np.searchsorted(known, asked).clip(max=len(known) - 1)] == asked).sum())


def refuse(prepared: Prepared, config: TrainConfig, recipe: Recipe, positions: int) -> None:
    """Raise DataError for the first of ``refusals``."""
    found = refusals(prepared, config, recipe, positions)
    if found:
        raise DataError(found[0])


def refusals(prepared: Prepared, config: TrainConfig, recipe: Recipe, positions: int) -> list[str]:
    """Why no run starts on these rows: bad and too long ones, where these are errors, or a mask that is wrong."""
    report, found = prepared.report, []
    if prepared.bad_rows and config.on_bad == "error":
        found.append(bad_rows_message(prepared.bad, prepared.bad_rows, prepared.rows))
    if prepared.long_rows and recipe.on_long == "error":
        where, tokens = prepared.long[0]
        found.append(
            f"{where}: {tokens} tokens, over --max-length {recipe.max_length}, like {prepared.long_rows} of "
            f"{report.rows + prepared.long_rows} rows; pass --on-long drop to leave them out, or truncate-history to "
            f"shorten them (the model has {positions} positions)"
        )
    if report.failures:
        where, _, what = report.problems[0]
        found.append(
            f"{where}: the loss mask is wrong ({report.failures.total()} of {report.rows} rows): {what}; see minitune "
            "inspect"
        )
    elif not len(prepared.store):
        files, limit = ", ".join(prepared.files), recipe.max_length
        bad = f"the first is bad, {prepared.bad[0][0]}: {prepared.bad[0][1]}" if prepared.bad else ""
        found.append(f"{files}: no row is left to train on ({bad or f'all are longer than {limit} tokens'})")
    return found


def _validation(value: str) -> float | int | Path:
    """``--val``: a file, a count, or a fraction."""
    try:
        number = float(value)
    except ValueError:
        if Path(value).exists():
            return Path(value)
        raise ConfigError(f"--val {value!r} is no file, and neither a fraction (0.05) nor a count (200)") from None
    if not 0 <= number < math.inf or (number >= 1 and number != int(number)):
        raise ConfigError(f"--val {value} must be a fraction below 1, a whole count, or 0 for none")
    return int(number) if number >= 1 else number
