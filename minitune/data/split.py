"""Train and validation parts that share no instruction.

Two rows are the same question where what they say before the first answer (Alpaca: instruction and input) is equal
after Unicode composition (NFC), case folding and folding of white space. Such rows form a group, and a group is never
cut: a validation loss on a question that was trained on measures memory, not learning.
"""

import hashlib
import math
import unicodedata
from collections.abc import Iterable, Sequence

from minitune.data.formats import Row
from minitune.errors import ConfigError, DataError


def split_rows(rows: Sequence[Row], *, val: float | int, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into a train and a validation part, both in the order of ``rows``.

    ``val`` below 1 is the fraction of rows to validate on, from 1 on their count. Groups of equal questions are ranked
    by a hash of the seed and of the question, and are taken for validation in that order as long as they fit: the
    count is met exactly, or missed from below by less than the size of one group. The choice depends on the set of
    rows and the seed alone, not on the order of the file, the process or the machine.

    Raises ``ConfigError`` where ``val`` is no such number, ``DataError`` where either part would be empty.
    """
    wanted = _wanted(len(rows), val)
    groups: dict[bytes, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(_question(row), []).append(place)
    salt = f"{seed}:".encode()
    taken: set[int] = set()
    for question in sorted(groups, key=lambda question: hashlib.sha256(salt + question).digest()):
        if len(taken) + len(groups[question]) <= wanted:
            taken.update(groups[question])
    if not taken:
        smallest = min(len(places) for places in groups.values())
        raise DataError(
            f"cannot hold back {_count(wanted)} of {len(rows):,}: rows with the same instruction and input stay "
            f"together, and the smallest such group has {_count(smallest)}; ask for more, or validate on another file"
        )
    train = [row for place, row in enumerate(rows) if place not in taken]
    return train, [rows[place] for place in sorted(taken)]


def shared_rows(train: Iterable[Row], val: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Return the leaks of a validation set: each of its rows whose question is also trained on, in its order.

    A pair is (the first train row with that question, the validation row); the answers may differ.
    """
    first: dict[bytes, Row] = {}
    for row in train:
        first.setdefault(_question(row), row)
    pairs = ((first.get(_question(row)), row) for row in val)
    return [(trained, row) for trained, row in pairs if trained is not None]


def _wanted(total: int, val: float | int) -> int:
    """Return how many of ``total`` rows ``val`` asks for, such that both parts can hold at least one."""
    if isinstance(val, bool) or not 0 < val < math.inf or (val > 1 and val != int(val)):
        raise ConfigError(f"val is {val!r}; expected a fraction of the rows below 1, or a whole number of rows")
    wanted = int(val) if val >= 1 else math.floor(val * total + 0.5)
    if wanted < 1:
        raise DataError(f"val {val!r} of {_count(total)} leaves no row to validate on; ask for more rows")
    if wanted >= total:
        raise DataError(f"val {val!r} of {_count(total)} leaves no row to train on; ask for fewer rows")
    return wanted


def _question(row: Row) -> bytes:
    """Return the SHA-256 of what a row says before its first answer, folded as the module says."""
    return hashlib.sha256(question_text(row).encode("utf-8", "surrogatepass")).digest()


def question_text(row: Row) -> str:
    """Return what a row says before the assistant's first answer, folded; of plain text, all of it.

    An answer that comes before any question, as some ShareGPT rows start, belongs to it.
    """
    asked = [place for place, turn in enumerate(row.messages) if turn.role in ("user", "tool")]
    first = asked[0] if asked else len(row.messages)
    answers = [place for place, turn in enumerate(row.messages) if turn.role == "assistant" and place > first]
    before = row.messages[: answers[0]] if answers else row.messages
    # Folding leaves no line end in any part, so those between them are unmistakable.
    return "\n".join(f"{_folded(turn.content)}\n{_folded(turn.context)}" for turn in before)


def _folded(text: str) -> str:
    # Case folding can take a composed character apart (U+0390), hence the second composition.
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())


def _count(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows:,} rows"
