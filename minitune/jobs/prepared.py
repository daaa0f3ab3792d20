"""Files -> a store of checked examples, made once for its files, tokenizer, template and settings, then remembered."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minitune.chat import terminator
from minitune.config import TrainConfig
from minitune.data.formats import BadRow, Row, entries, refuse_bad
from minitune.data.layouts import Columns
from minitune.data.sources import check_used, parse_columns
from minitune.data.store import Piece, TokenStore, write_store
from minitune.errors import DataError
from minitune.files import cache_folder, code_fingerprint, sha256
from minitune.jobs.encode import Recipe, encode_rows
from minitune.mask_report import MaskReport
from minitune.tokenizer import Tokenizer

FIRST = 20
"""Rows of a kind that are kept by name."""
Progress = Callable[[int, float], None]
"""Called with the rows that are encoded so far, and the share of the files that is read: 1 when all is done."""


@dataclass(frozen=True)
class Prepared:
    """The examples of some files, and what happened on the way: nothing is left out without being counted.

    ``store.numbers`` and ``store.questions``: of each row with examples its number, and the hash of its question, by
    which rows are split. ``starts``: the number of the first row of each file; ``readable``: rows that have a number.
    ``bad`` and ``long``: the first rows that were left out because they cannot be read or the template has no form for
    them, with the reason, or too long, with their tokens; ``bad_rows`` and ``long_rows`` count all.
    """

    store: TokenStore
    report: MaskReport
    files: tuple[str, ...]
    starts: tuple[int, ...]
    readable: int
    bad_rows: int
    long_rows: int
    bad: tuple[tuple[str, str], ...]
    long: tuple[tuple[str, int], ...]
    remembered: bool

    @property
    def rows(self) -> int:
        """All rows of the files, with examples or without."""
        return self.report.rows + self.bad_rows + self.long_rows

    def file_of(self, number: int) -> str:
        """The file of a row."""
        return self.files[int(np.searchsorted(self.starts, number, side="right")) - 1]


class Reader:
    """Numbers the readable rows of files, one file after the other, and counts the others."""

    def __init__(self, files: Sequence[str], columns: str, limit: int):
        self.files, self.limit = files, limit
        self.columns: Columns = parse_columns(columns)
        self.starts: list[int] = []
        self.bad: list[BadRow] = []
        """The first of them, and one where a file could not be read to its end."""
        self.bad_rows = self.good = 0
        self.sizes = [Path(name).stat().st_size if Path(name).is_file() else 0 for name in files]
        self.read = 0

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        for place, file in enumerate(self.files):
            self.starts.append(self.good)
            before = sum(self.sizes[:place])
            for entry in entries(file, self.columns or None)[1]:
                self.read = before + entry.found.end
                if entry.bad is not None:
                    self.bad_rows += 1
                    if len(self.bad) < FIRST or entry.bad.unread:
                        self.bad.append(entry.bad)
                for row in entry.rows:
                    yield self.good, row
                    self.good += 1
                    if self.good == self.limit:
                        return

    @property
    def share(self) -> float:
        """How much of the work is read; below 1."""
        limited = self.good / self.limit if self.limit else 0.0
        return min(0.99, max(self.read / max(1, sum(self.sizes)), limited))

    def refuse(self) -> None:
        """Raise DataError for no good row, for a file that could not be read to its end, and for unused columns."""
        check_used(self.columns, self.files)
        refuse_bad(self.bad, good=self.good, on_bad="drop")
        if not self.good:
            first = f": {self.bad[0].where}: {self.bad[0].reason}" if self.bad else ""
            count = f"all {self.bad_rows:,} rows are bad, the first is" if self.bad_rows > 1 else "its one row is bad"
            what = count if self.bad else "there is no row in it"
            raise DataError(f"{', '.join(self.files)}: has no row to train on; {what}{first}")


class Preparation:
    """Makes stores of examples, or opens them where they were made before."""

    def __init__(
        self, config: TrainConfig, tokenizer: Tokenizer, folder: Path, recipe: Recipe, progress: Progress | None = None
    ):
        self.config, self.tokenizer, self.folder = config, tokenizer, folder
        self.recipe, self.progress = recipe, progress

    def run(self, files: Sequence[str], limit: int) -> Prepared:
        """The examples of files; of the first ``limit`` good rows, where it is not 0."""
        twice = next((name for place, name in enumerate(files) if name in files[:place]), None)
        if twice is not None:
            raise DataError(f"{twice} is named twice; {twice}=2 reads its rows twice an epoch")
        place = cache_folder() / "prepared" / self._key(files, limit)
        if (place / "store.json").is_file():
            try:
                return self._opened(TokenStore(place), files, remembered=True)
            except DataError:
                shutil.rmtree(place, ignore_errors=True)  # someone has removed half of it
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            place = Path(tempfile.mkdtemp(prefix="minitune-")) / "store"  # nowhere to keep it
        return self._opened(self._made(place, files, limit), files, remembered=False)

    def _key(self, files: Sequence[str], limit: int) -> str:
        """A hash of everything that decides what is prepared."""
        # Whether a long row is an error is decided when the store is used.
        on_long = self.recipe.on_long if self.recipe.on_long in ("truncate-history", "split") else "drop"
        settings = asdict(replace(self.recipe, template=self.recipe.template.fingerprint, on_long=on_long))
        parts: dict[str, Any] = {
            "files": [(name, sha256(Path(name)) if Path(name).is_file() else "") for name in files],
            "tokenizer": self.tokenizer.fingerprint,
            "stop": terminator(self.recipe.template, self.tokenizer),
            "settings": settings,
            "columns": self.config.columns,
            "limit": limit,
            "code": code_fingerprint(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def _made(self, place: Path, files: Sequence[str], limit: int) -> TokenStore:
        reader, report = Reader(files, self.config.columns, limit), MaskReport()
        long: list[tuple[str, int]] = []
        refused: list[tuple[str, str]] = []
        counts = {"bad_rows": 0, "long_rows": 0}

        def tell(share: float) -> None:
            if self.progress is not None:
                self.progress(report.rows + sum(counts.values()), share)

        def pieces() -> Iterator[Piece]:
            for chunk in encode_rows(reader, self.tokenizer, self.folder, self.recipe, _cores()):
                report.merge(chunk.report)
                counts["long_rows"] += len(chunk.long)
                counts["bad_rows"] += len(chunk.refused)
                long.extend(chunk.long[: FIRST - len(long)])
                refused.extend(chunk.refused[: FIRST - len(refused)])
                tell(reader.share)
                yield chunk.piece
            reader.refuse()
            tell(1.0)

        def rest() -> dict[str, Any]:
            bad = [*((row.where, row.reason) for row in reader.bad), *refused][:FIRST]
            counts["bad_rows"] += reader.bad_rows
            kept = {"report": report.as_json(), "starts": reader.starts, "readable": reader.good}
            return kept | {"bad": bad, "long": long} | counts

        try:
            return write_store(place, pieces(), vocab_size=self.tokenizer.vocab_size, rest=rest)
        except OSError as error:
            why = error.strerror or error
            raise DataError(f"{place}: the prepared tokens cannot be written ({why}); see MINITUNE_CACHE") from None

    def _opened(self, store: TokenStore, files: Sequence[str], *, remembered: bool) -> Prepared:
        meta = store.meta
        return Prepared(
            store=store,
            report=MaskReport.from_json(meta["report"]),
            files=tuple(files),
            starts=tuple(meta["starts"]),
            readable=meta["readable"],
            bad_rows=meta["bad_rows"],
            long_rows=meta["long_rows"],
            bad=tuple(map(tuple, meta["bad"])),
            long=tuple(map(tuple, meta["long"])),
            remembered=remembered,
        )


def _cores() -> int:
    """Cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def rows_of(prepared: Prepared, numbers: Sequence[int], columns: str) -> list[Row]:
    """The rows of these numbers, read again from their files, in the order of ``numbers``."""
    wanted, found = set(numbers), {}
    for number, row in Reader(prepared.files, columns, limit=max(wanted, default=-1) + 1):
        if number in wanted:
            found[number] = row
    return [found[number] for number in numbers]
