"""Instruction files to rows, each with the place it came from.

Nothing is repaired and nothing is dropped here: every row is either good, with its text exactly as it stands in the
file, or bad, with its line and one reason. What to do about bad rows is the caller's choice (``rows_or_error``). What a
file is, is told by ``readers``; what a row of it means, by ``layouts``, a row at a time.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from minitune.chat import Message
from minitune.data.layouts import Columns, Fault, examples
from minitune.data.readers import Found, Head, no_rows, read_file
from minitune.errors import DataError


def _where(file: str, line: int, index: int) -> str:
    return f"{file} line {line} (row {index + 1})" if line else f"{file} (row {index + 1})"


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation as it stands in a file: its text unchanged, and the place it came from."""

    messages: tuple[Message, ...]
    layout: str  # "alpaca", "messages", "sharegpt", "completion" or "text"
    weight: float  # what the loss of this row is multiplied by
    file: str  # the name as the user gave it
    line: int  # the line on which the row starts, counted from 1; 0 where a file has no lines
    index: int  # the row's index in the file, counted from 0, bad rows included; shared by the instances of a seed task

    @property
    def where(self) -> str:
        """The place in words, line and row counted from 1: ``alpaca.json line 17 (row 4)``."""
        return _where(self.file, self.line, self.index)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What stands before the last turn of the assistant."""
        return self.messages[: self._last]

    @property
    def answer(self) -> str:
        """The last turn of the assistant."""
        return self.messages[self._last].content

    @property
    def _last(self) -> int:
        return max(place for place, turn in enumerate(self.messages) if turn.role == "assistant")


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that cannot be trained on: its place and the first reason found."""

    file: str
    line: int
    index: int
    reason: str
    unread: bool = False  # the file could not be read past this place, so any number of rows may be lost

    @property
    def where(self) -> str:
        """The place in words, line and row counted from 1: ``alpaca.json line 17 (row 4)``."""
        return _where(self.file, self.line, self.index)


@dataclass(frozen=True)
class Rows:
    """What a file holds: the good rows and the bad ones, each in file order."""

    good: list[Row] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)


class Entry(NamedTuple):
    """One object of a file: as it was cut from it, and the rows it holds, or why it holds none."""

    found: Found
    rows: tuple[Row, ...]
    bad: BadRow | None


def entries(path: str | os.PathLike[str], columns: Columns | None = None) -> tuple[Head, Iterator[Entry]]:
    """Return what a file is, and its objects as they stream: one is in memory at a time.

    Raises ``DataError`` where the file is missing, is no regular file or is nothing that rows can be read from.
    """
    name = os.fspath(path)
    head, found = read_file(name)
    return head, (_entry(name, index, one, columns) for index, one in enumerate(found))


def _entry(name: str, index: int, found: Found, columns: Columns | None) -> Entry:
    reason = found.fault
    if not reason:
        try:
            held = examples(found.value, columns)
            return Entry(found, tuple(Row(*example, name, found.line, index) for example in held), None)
        except Fault as fault:
            reason = str(fault)
    return Entry(found, (), BadRow(name, found.line, index, reason, found.unread))


def stream_rows(path: str | os.PathLike[str], columns: Columns | None = None) -> Iterator[Row | BadRow]:
    """Yield the rows of a file, good and bad, as they stream. Raises ``DataError`` as ``entries`` does."""
    for entry in entries(path, columns)[1]:
        if entry.bad is not None:
            yield entry.bad
        yield from entry.rows


def read_rows(path: str | os.PathLike[str], *, columns: Columns | None = None, limit: int | None = None) -> Rows:
    """Read the rows of one file: JSON, JSON Lines, CSV, TSV, Parquet or plain text, in any layout of ``layouts``.

    The text is UTF-8; a byte order mark and CR LF line ends are accepted. A syntax error in a JSON array ends the
    reading: one bad row with ``unread`` set stands for all that follows. ``columns``: see ``parse_columns``.
    ``limit``: stop after this many good rows.

    Raises ``DataError`` where the file is missing, is no regular file, is not text or has no good row, and where no row
    has any of the ``columns``.
    """
    name = os.fspath(path)
    if limit is not None and limit < 1:
        raise DataError(f"cannot read {limit} rows of {name}; expected a limit of at least 1")
    rows = Rows()
    head, found = entries(name, columns)
    for entry in found:
        if entry.bad is not None:
            rows.bad.append(entry.bad)
        rows.good.extend(entry.rows)
        if limit is not None and len(rows.good) >= limit:
            del rows.good[limit:]
            break
    if not rows.good:
        raise DataError(_no_good_row(name, rows.bad, head))
    return rows


def rows_or_error(rows: Rows, *, on_bad: Literal["error", "drop"]) -> list[Row]:
    """Return the good rows, after the bad ones have been refused (``"error"``) or left out (``"drop"``).

    The caller tells the user how many were left out. Raises ``DataError`` as ``refuse_bad`` does.
    """
    refuse_bad(rows.bad, good=len(rows.good), on_bad=on_bad)
    return rows.good


def refuse_bad(bad: Sequence[BadRow], *, good: int, on_bad: Literal["error", "drop"]) -> None:
    """Raise ``DataError`` that names the count of bad rows beside ``good`` ones, the first three and what to do.

    Also with ``"drop"`` where a file could not be read to its end, because dropping rows that were seen is a choice and
    losing an unknown number of unseen ones is not.
    """
    unread = [row for row in bad if row.unread]
    if unread:
        raise DataError(f"{unread[0].where}: {unread[0].reason}; mend the file")
    if bad and on_bad != "drop":
        raise DataError(bad_rows_message([(row.where, row.reason) for row in bad[:3]], len(bad), len(bad) + good))


def bad_rows_message(first: Sequence[tuple[str, str]], count: int, total: int) -> str:
    """Return what to say of ``count`` bad rows among ``total``; ``first`` are the first, with their reasons."""
    named = "; ".join(f"{where}: {reason}" for where, reason in first[:3])
    more = f"; and {count - 3:,} more" if count > 3 else ""
    verb = "is" if count == 1 else "are"
    return f"{count:,} of {total:,} rows {verb} bad: {named}{more}; fix them, or pass --on-bad drop"


def _no_good_row(name: str, bad: list[BadRow], head: Head) -> str:
    unusual = no_rows(name, head)
    if unusual and all(row.reason.startswith("broken JSON") for row in bad):
        return unusual
    if not bad:
        return f"{name} has no rows"
    count = f"all {len(bad):,} rows are bad, the first is" if len(bad) > 1 else "its one row is bad,"
    place = bad[0].where.removeprefix(name).strip()
    return f"{name} has no row to train on: {count} {place}: {bad[0].reason}"
