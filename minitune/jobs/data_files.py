"""What checking, cleaning and splitting share: files read twice, folders written whole, places in words."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import minitune
from minitune.data.formats import Entry, Row, entries
from minitune.data.layouts import Columns
from minitune.data.readers import no_rows, original
from minitune.data.sources import check_used, parse_columns
from minitune.errors import ConfigError, DataError
from minitune.files import sha256, write_json

Progress = Callable[[str, int, int], None]
"""Told what is done, how many of it are, and how many there are (0: not known)."""

EXCERPT = 160


class Place(NamedTuple):
    """Where an object of a file starts."""

    file: str
    line: int
    row: int  # counted from 0

    @property
    def where(self) -> str:
        """The place in words, line and row counted from 1."""
        return (
            f"{self.file} line {self.line} (row {self.row + 1})" if self.line else f"{self.file} (row {self.row + 1})"
        )


class Files:
    """Instruction files that are read once to decide and once more to write; refused where they change in between."""

    def __init__(self, names: Sequence[str], columns: str, progress: Progress | None = None):
        if not names:
            raise ConfigError("no instruction file is named")
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            raise ConfigError(f"{twice} is named twice")
        self.names = list(names)
        self.columns: Columns = parse_columns(columns)
        self.hashes: dict[str, str] = {}
        self.count = 0
        self._progress = progress or (lambda stage, done, total: None)

    def read(self, stage: str = "reading") -> Iterator[Entry]:
        """Yield every object of every file, good or bad, in order; ``DataError`` where a file changed in between."""
        done, total = 0, self.count
        for name in self.names:
            head, found = entries(name, self.columns or None)
            digest = sha256(Path(name))
            if self.hashes.setdefault(name, digest) != digest:
                raise DataError(f"{name} was changed while it was read; run the command again")
            good = False
            for entry in found:
                done += 1
                good = good or entry.bad is None
                yield entry
                if done % 1000 == 0:
                    self._progress(stage, done, total)
            unusual = "" if good else no_rows(name, head)
            if unusual:
                raise DataError(unusual)
        self._progress(stage, done, done)
        self.count = done
        check_used(self.columns, self.names)


def place_of(entry: Entry) -> Place:
    """Return where an object stands."""
    if entry.bad is not None:
        return Place(entry.bad.file, entry.bad.line, entry.bad.index)
    row = entry.rows[0]
    return Place(row.file, row.line, row.index)


def json_line(entry: Entry) -> str:
    """Return an object as a line of JSON Lines, unchanged."""
    return original(entry.found) + "\n"


def excerpt(text: str, length: int = EXCERPT) -> str:
    """Return a text on one line, its middle left out where it is long: what is wrong is mostly at an end."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    half = (length - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def row_excerpt(row: Row) -> str:
    """Return a row in short: what was asked last, and the answer."""
    asked = row.prompt[-1:] if row.prompt else ()
    question = " ".join(f"{turn.content} {turn.context}" for turn in asked)
    return f"{excerpt(question, EXCERPT // 2)} => {excerpt(row.answer)}" if question else excerpt(row.answer)


def check_out(out: Path, *, force: bool, inputs: Sequence[str], ours: Sequence[str]) -> None:
    """Refuse an output folder that is a file, holds an input, or holds what this command did not write.

    ``ours``: the names of the files that this command writes; the first says, by the key "minitune", that it did.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; it must be a new folder")
    resolved = out.resolve()
    for name in inputs:
        if resolved in Path(name).resolve().parents:
            raise ConfigError(f"--out {out} holds {name}, which this command reads; choose another folder")
    held = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if held and not force:
        raise ConfigError(f"--out {out} is not empty; choose a new folder, or pass --force to replace what is there")
    foreign = [name for name in held if name not in ours]
    if held and (foreign or ours[0] not in held):
        what = foreign[0] if foreign else held[0]
        raise ConfigError(f"--out {out} holds {what}, which this command did not write, so --force does not replace it")


def write_report(path: Path, report: Any, **more: Any) -> None:
    """Write a report (a dataclass) as JSON, with the version that made it."""
    write_json(path, {"minitune": minitune.__version__, **dataclasses.asdict(report), **more})
