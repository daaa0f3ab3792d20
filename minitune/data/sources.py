"""Several files as one: ``a.json=2 b.jsonl``, with the columns they share, and how often an epoch sees each row."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minitune.data.formats import Rows, read_rows
from minitune.data.layouts import COLUMNS, Columns
from minitune.errors import DataError, nearest


@dataclass(frozen=True, slots=True)
class Source:
    """One instruction file, and how many times an epoch its rows are seen: 2 is twice, 0.5 every other epoch."""

    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class Mixed(Rows):
    """The rows of several files, each once, in the order of the files; ``copies`` says how often an epoch sees them."""

    sources: list[Source] = field(default_factory=list)

    @property
    def weights(self) -> dict[str, float]:
        """How many times an epoch the rows of each file are seen."""
        return {source.name: source.weight for source in self.sources}


def parse_source(spec: str) -> Source:
    """Return the file and weight of ``a.json`` or ``a.json=2``; a file whose very name that is comes first.

    Raises ``DataError`` where the weight is no number above 0.
    """
    name, equals, weight = spec.rpartition("=")
    if not equals or not name or _is_file(spec):
        return Source(spec)
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise DataError(
            f"{spec}: there is no such file, and {weight!r} is no weight; expected FILE=2 for rows seen twice an "
            "epoch, FILE=0.5 for half of them"
        )
    return Source(name, number)


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except ValueError:  # a zero byte
        return False


def parse_columns(text: str) -> Columns:
    """Return the mapping of ``instruction=question,output=answer``: ours = theirs; an empty text maps nothing.

    Raises ``DataError`` for a name that no layout knows, and for one that stands twice.
    """
    columns = Columns()
    for pair in text.split(",") if text.strip() else []:
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not equals or not theirs:
            raise DataError(f"--columns {text!r}: {pair!r} is no pair; expected for instance instruction=question")
        if ours not in COLUMNS:
            raise DataError(
                f"--columns {text!r}: {ours!r} is none of {', '.join(COLUMNS)}{nearest(ours, COLUMNS)}; the name in "
                "the file stands on the right"
            )
        if ours in columns:
            raise DataError(f"--columns {text!r}: {ours!r} stands twice")
        columns[ours] = theirs
    return columns


def read_sources(specs: Sequence[str], *, columns: str = "", limit: int | None = None) -> Mixed:
    """Read the rows of several files, each ``FILE`` or ``FILE=WEIGHT``, mapping the keys that ``columns`` names.

    ``limit``: stop after this many good rows of all. Raises ``DataError`` as ``read_rows`` does, and where a file is
    named twice or no row has any of the columns.
    """
    if not specs:
        raise DataError("no instruction file is named")
    sources = [parse_source(spec) for spec in specs]
    names = [source.name for source in sources]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise DataError(f"{twice} is named twice; {twice}=2 reads its rows twice an epoch")
    mapped = parse_columns(columns)
    rows = Mixed(sources=sources)
    for source in sources:
        left = None if limit is None else limit - len(rows.good)
        if left == 0:
            break
        found = read_rows(source.name, columns=mapped or None, limit=left)
        rows.good.extend(found.good)
        rows.bad.extend(found.bad)
    check_used(mapped, names)
    return rows


def check_used(columns: Columns, names: Sequence[str]) -> None:
    """Raise ``DataError`` where a mapping was given and no row had any of its columns."""
    if columns and not columns.used:
        said = ",".join(f"{ours}={theirs}" for ours, theirs in columns.items())
        raise DataError(f"--columns {said}: no row of {', '.join(names)} has any of {', '.join(columns.values())}")


def copies(files: Sequence[str], weights: Mapping[str, float], *, seed: int, epoch: int) -> list[int]:
    """Return which rows an epoch sees: places in ``files``, the file of each row, as often as its weight says.

    A row of weight w that ranks u, 0 <= u < 1, among those of its file stands in epoch e

        floor(w (e + 1) + u) - floor(w e + u)

    times. That is w rounded up or down, for all rows of a file together their number times w, to within one; and after
    any number of epochs no row was seen more than once more than another of its file. The ranks are drawn by ``seed``:
    at 0.5 the first epoch sees one half and the second the other.
    """
    held: dict[str, list[int]] = {}
    for place, file in enumerate(files):
        held.setdefault(file, []).append(place)
    times = [1] * len(files)
    for file, places in held.items():
        weight = weights.get(file, 1.0)
        if weight == 1:
            continue
        ranks = list(range(len(places)))
        random.Random(f"minitune copies {seed} {file}").shuffle(ranks)
        for place, rank in zip(places, ranks, strict=True):
            u = (rank + 0.5) / len(places)
            times[place] = math.floor(weight * (epoch + 1) + u) - math.floor(weight * epoch + u)
    return [place for place, count in enumerate(times) for _ in range(count)]
