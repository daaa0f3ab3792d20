"""An instruction file -> encoded, checked rows for training and validation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minitune.chat import TEMPLATES, Encoded, Message, render
from minitune.config import SFTConfig
from minitune.data.formats import Row, read_rows, rows_or_error
from minitune.data.split import shared_rows, split_rows
from minitune.errors import ConfigError, DataError
from minitune.mask_report import MaskReport, check_mask
from minitune.tokenizer import Tokenizer

LONGEST_DEFAULT = 2048


@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows of training or validation, as text and as ids with their mask."""

    rows: Sequence[Row]
    encoded: Sequence[Encoded]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Both parts, and what happened on the way: nothing is left out without being counted."""

    train: Part
    val: Part
    report: MaskReport
    bad_rows: int
    long_rows: int
    leaked_rows: int
    max_length: int

    def summary(self) -> dict[str, Any]:
        """What ``inspect.json`` holds."""
        return asdict(self.report) | {
            "train_rows": len(self.train.rows),
            "val_rows": len(self.val.rows),
            "dropped_bad_rows": self.bad_rows,
            "dropped_long_rows": self.long_rows,
            "val_rows_also_in_train": self.leaked_rows,
            "max_length": self.max_length,
        }


def messages_of(row: Row) -> Sequence[Message]:
    """The turns of a row; DataError for what this version does not train: a part of it would be lost."""
    what = ""
    if row.layout in ("completion", "text"):
        what = f"is in the {row.layout!r} layout, which no template stands around"
    elif row.weight != 1 or any(turn.train is not None or turn.weight != 1 for turn in row.messages):
        what = "has a 'train' or 'weight' of its own"
    elif [turn.role for turn in row.messages] != ["user", "assistant"]:
        what = f"has the turns {', '.join(turn.role for turn in row.messages)}"
    if what:
        raise DataError(f"{row.where}: {what}; sft of this version trains one question and its answer")
    return row.messages


def prepare(config: SFTConfig, tokenizer: Tokenizer, stop_ids: Sequence[int], positions: int) -> Dataset:
    """Read, split, encode and check the rows that ``config`` names.

    ``positions`` is what the model was made for. Raises DataError or ConfigError with one line.
    """
    max_length = config.max_length or min(positions, LONGEST_DEFAULT)
    if max_length > positions:
        raise ConfigError(f"--max-length {max_length} is more than the {positions} positions of this model")
    template, stop_id = TEMPLATES[config.template], stop_of(tokenizer, stop_ids)
    found = read_rows(config.data, limit=config.rows or None)
    bad = len(found.bad)
    rows = rows_or_error(found, on_bad=config.on_bad)
    val = _validation(config.val)
    leaked = 0
    if isinstance(val, Path):
        found = read_rows(config.val)
        bad += len(found.bad)
        train_rows, val_rows = rows, rows_or_error(found, on_bad=config.on_bad)
        leaked = len(shared_rows(train_rows, val_rows))
    elif val:
        try:
            train_rows, val_rows = split_rows(rows, val=val, seed=config.seed)
        except DataError as error:
            raise DataError(f"{config.data}: {error}; or pass --val 0 for no validation") from None
    else:
        train_rows, val_rows = rows, []

    def render_row(row: Row) -> Encoded:
        return render(messages_of(row), template, tokenizer, stop_id)

    train, train_long = _encode(train_rows, render_row, max_length, config.on_long, positions)
    held, val_long = _encode(val_rows, render_row, max_length, config.on_long, positions)
    if not train.rows:
        raise DataError(f"{config.data}: no row is left to train on (all are longer than {max_length} tokens)")
    everything = [*train.rows, *held.rows]
    report = check_mask(
        [*train.encoded, *held.encoded],
        [row.answer for row in everything],
        [row.where for row in everything],
        tokenizer,
        set(stop_ids),
    )
    return Dataset(
        train=train,
        val=held,
        report=report,
        bad_rows=bad,
        long_rows=train_long + val_long,
        leaked_rows=leaked,
        max_length=max_length,
    )


def stop_of(tokenizer: Tokenizer, stop_ids: Sequence[int]) -> int:
    """The id that ends a trained answer: the tokenizer's end of text if the generator stops on it, else the first."""
    if tokenizer.eos_id in stop_ids and tokenizer.eos_id is not None:
        return tokenizer.eos_id
    if not stop_ids:
        raise ConfigError("this model names no id that ends a text (eos_token_id), so an answer could never end")
    return stop_ids[0]


def _encode(
    rows: Sequence[Row], render_row: Callable[[Row], Encoded], max_length: int, on_long: str, positions: int
) -> tuple[Part, int]:
    """Encode rows; those longer than ``max_length`` stop the run, or are left out and counted."""
    kept, encoded, long = [], [], []
    for row in rows:
        item = render_row(row)
        if len(item.ids) <= max_length:
            kept.append(row)
            encoded.append(item)
        else:
            long.append((row, len(item.ids)))
    if long and on_long == "error":
        row, tokens = long[0]
        raise DataError(
            f"{row.where}: {tokens} tokens, over --max-length {max_length}, like {len(long)} of {len(rows)} rows; "
            f"pass --on-long drop to leave them out (the model has {positions} positions)"
        )
    return Part(rows=kept, encoded=encoded), len(long)


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
