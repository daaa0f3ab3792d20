"""Train and validation parts that share no instruction.

Two rows are the same question where what they say before the first answer (Alpaca: instruction and input) is equal
after Unicode composition (NFC), case folding and folding of white space. Such rows form a group, and a group is never
cut: a validation loss on a question that was trained on measures memory, not learning.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence

import numpy as np

from minitune.data.formats import Row
from minitune.data.normal import digest, question_text
from minitune.errors import ConfigError, DataError


def split_rows(rows: Sequence[Row], *, val: float | int, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into a train and a validation part, both in the order of ``rows``.

    ``val`` below 1 is the fraction of rows to validate on, from 1 on their count. Groups of equal questions are ranked
    by a hash of the seed and of the question, and are taken for validation in that order as long as they fit: the
    count is met exactly, or missed from below by less than the size of one group. The choice depends on the set of
    rows and the seed alone, not on the order of the file, the process or the machine.

    Raises ``ConfigError`` where ``val`` is no such number, ``DataError`` where either part would be empty.
    """
    wanted = _wanted("val", len(rows), val, "validate on")
    if wanted >= len(rows):
        raise DataError(f"val {val!r} of {_count(len(rows))} leaves no row to train on; ask for fewer rows")
    parts = split_groups([digest(question_text(row)) for row in rows], [wanted], seed=seed)
    train = [row for row, part in zip(rows, parts, strict=True) if part != 0]
    return train, [row for row, part in zip(rows, parts, strict=True) if part == 0]


def split_groups(keys: Sequence[bytes] | np.ndarray, wanted: Sequence[int], *, seed: int) -> np.ndarray:
    """Return the part of each row, or -1 for the rest: rows of the same key in one part, and no part too large.

    ``keys``: a hash a row, as bytes or as rows of bytes. Each part takes groups in the order of a hash of the seed and
    of the key as long as they fit, the first part first. Raises ``DataError`` where a part would be empty.
    """
    salt = f"{seed}:".encode()
    # Eight bytes of a hash tell any number of groups apart that a machine can hold.
    hashes = (hashlib.sha256(salt + bytes(key)).digest()[:8] for key in keys)
    ranks = np.fromiter((int.from_bytes(held, "big") for held in hashes), np.uint64, len(keys))
    order = np.argsort(ranks, kind="stable")
    ranks = ranks[order]
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), bool), ranks[1:] != ranks[:-1]]))
    del ranks  # there may be many rows
    sizes = np.diff(starts, append=len(keys))
    parts = np.full(len(keys), -1, np.int8)
    free = np.ones(len(sizes), bool)
    for part, count in enumerate(wanted):
        taken = 0
        for group in range(len(sizes)):
            if free[group] and taken + sizes[group] <= count:
                taken += sizes[group]
                free[group] = False
                parts[order[starts[group] : starts[group] + sizes[group]]] = part
            if taken == count:
                break
        if not taken:
            smallest = int(sizes[free].min()) if free.any() else 0
            raise DataError(
                f"cannot hold back {_count(count)} of {len(keys):,}: rows with the same instruction and input stay "
                f"together, and the smallest such group has {_count(smallest)}; ask for more, or take another file"
            )
    return parts


def part_sizes(total: int, *, train: float | None, val: float, test: float) -> dict[str, int]:
    """Return how many of ``total`` rows each part is to have: a fraction below 1, a count, or 0 for no such part.

    ``train`` None is all that the others leave. Raises ``ConfigError`` where a number is neither, and ``DataError``
    where a part would be empty or the parts are more than there is.
    """
    if train is not None and train < 1 and math.isclose(train + val + test, 1):
        train = None  # rounding by itself could ask for a row too many
    asked = {"val": val, "test": test, "train": train}
    sizes = {name: _wanted(name, total, number, f"put into {name}") for name, number in asked.items() if number}
    if train == 0 or not sizes.keys() - {"train"}:
        raise ConfigError("a split needs rows to train on and --val or --test above 0")
    held = sum(sizes.values())
    if held > total or (train is None and held == total):
        said = ", ".join(f"{name} {count:,}" for name, count in sizes.items())
        left = "more than there is" if held > total else "which leaves no row to train on"
        raise DataError(f"{said}: that is {held:,} of {_count(total)}, {left}; ask for fewer rows")
    return sizes


def shared_rows(train: Iterable[Row], val: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Return the leaks of a validation set: each of its rows whose question is also trained on, in its order.

    A pair is (the first train row with that question, the validation row); the answers may differ.
    """
    first: dict[bytes, Row] = {}
    for row in train:
        first.setdefault(digest(question_text(row)), row)
    pairs = ((first.get(digest(question_text(row))), row) for row in val)
    return [(trained, row) for trained, row in pairs if trained is not None]


def _wanted(name: str, total: int, number: float, purpose: str) -> int:
    """Return how many of ``total`` rows a number asks for: a fraction below 1, or a count; at least one."""
    if isinstance(number, bool) or not 0 < number < math.inf or (number > 1 and number != int(number)):
        raise ConfigError(f"{name} is {number!r}; expected a fraction of the rows below 1, or a whole number of rows")
    wanted = int(number) if number >= 1 else math.floor(number * total + 0.5)
    if wanted < 1:
        raise DataError(f"{name} {number!r} of {_count(total)} leaves no row to {purpose}; ask for more rows")
    return wanted


def _count(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows:,} rows"
