"""Which documents share a row: best fit, so that rows of a fixed length are nearly full and no document is ever cut.

Documents come in the order of the epoch, which a seed decides. Each goes into the fullest open row that still has room
for it; where none has, a new row is opened. All rows stay open, so that late short documents fill what early long ones
left. Johnson (1973, "Near-optimal bin packing algorithms") bounds best fit by 1.7 times the fewest rows; instruction
data, mostly short, fills over 97 %.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Sequence

from minitune.errors import DataError


def pack(lengths: Sequence[int], capacity: int, order: Sequence[int] | None = None) -> list[list[int]]:
    """Documents to rows: lists of places in ``lengths``, of which each appears exactly once.

    ``order`` is the order in which they are placed (as they come, by default); rows are in the order they were opened.
    Raises DataError for a document longer than ``capacity``, and for one of no token.
    """
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # room left -> rows that have it, the newest last
    rooms: list[int] = []  # the keys of open_rows, ascending
    for place in range(len(lengths)) if order is None else order:
        length = lengths[place]
        if not 0 < length <= capacity:
            raise DataError(f"a document of {length} tokens cannot be packed into rows of {capacity}")
        at = bisect_left(rooms, length)
        if at == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[at]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room]
                rooms.pop(at)
        rows[row].append(place)
        left = room - length
        if left:
            if left not in open_rows:
                open_rows[left] = []
                insort(rooms, left)
            open_rows[left].append(row)
    return rows


def packed_epoch(lengths: Sequence[int], capacity: int, *, seed: int, epoch: int) -> list[list[int]]:
    """The rows of one epoch, in the order they are trained in: a function of the arguments alone.

    The documents are shuffled before they are packed, so that other ones meet in every epoch, and the rows after, since
    the last to be opened are the emptiest.
    """
    rng = random.Random(f"minitune pack {seed} {epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    rows = pack(lengths, capacity, order)
    rng.shuffle(rows)
    return rows


def fill(lengths: Sequence[int], rows: Sequence[Sequence[int]], capacity: int) -> float:
    """The share of all places in ``rows`` that holds a token."""
    return sum(lengths[place] for row in rows for place in row) / (len(rows) * capacity) if rows else 0.0
