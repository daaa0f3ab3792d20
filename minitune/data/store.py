"""Tokens of prepared examples in files that are mapped into memory: opening them costs nothing, however many there are.

A store is a folder:

    ids.bin       every id of every example behind each other, uint16 where the vocabulary allows it, else uint32
    weights.bin   float32 beside each id: what its loss is multiplied by, 0 where it is not trained
    ends.bin      int64, for each example where it ends
    rows.bin      int64, for each example the number of the row it comes from
    numbers.bin   int64, for each row that gave examples its number
    questions.bin 32 bytes, for each of these the hash of its question
    store.json    how to read them, and what else there is to know

It is written whole or not at all.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from minitune.errors import DataError

FORMAT = 2
HASH_BYTES = 32
_FILES = ("ids", "weights", "ends", "rows", "numbers", "questions")


class Document(NamedTuple):
    """One example: n ids, and for each what its loss is multiplied by; 0 is not trained."""

    ids: np.ndarray  # (n,) unsigned
    weights: np.ndarray  # (n,) float

    @property
    def trained(self) -> np.ndarray:
        """For each id, whether it is trained."""
        return self.weights > 0


class Piece(NamedTuple):
    """Some examples on their way into a store."""

    ids: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    numbers: np.ndarray
    questions: np.ndarray  # (rows, 32) uint8

    @classmethod
    def of(
        cls, examples: Sequence[tuple[int, Sequence[int], Sequence[float]]], questions: Sequence[tuple[int, bytes]]
    ) -> "Piece":
        """Examples as (row, ids, weights), and of each row that gave some its number and the hash of its question."""
        ids = [np.asarray(e[1], np.uint32) for e in examples] or [np.empty(0, np.uint32)]
        weights = [np.asarray(e[2], np.float32) for e in examples] or [np.empty(0, np.float32)]
        lengths = np.array([len(e[1]) for e in examples], np.int64)
        rows = np.array([e[0] for e in examples], np.int64)
        numbers = np.array([number for number, _ in questions], np.int64)
        hashes = np.frombuffer(b"".join(held for _, held in questions), np.uint8).reshape(-1, HASH_BYTES)
        return cls(np.concatenate(ids), np.concatenate(weights), lengths, rows, numbers, hashes)


class TokenStore:
    """A store, opened for reading. ``store[i]`` is example i; ``lengths`` and ``rows`` are one number for each.

    ``numbers`` and ``questions`` are one entry for each row that gave examples.
    """

    def __init__(self, folder: Path):
        try:
            self.meta: dict[str, Any] = json.loads((folder / "store.json").read_text(encoding="utf-8"))
            if self.meta.get("format") != FORMAT:
                raise DataError(f"{folder} is a store of another format; remove it")
            self._ids = _map(folder / "ids.bin", self.meta["ids"])
            self._weights = _map(folder / "weights.bin", self.meta["weights"])
            self._ends = _map(folder / "ends.bin", "int64")
            self.rows = _map(folder / "rows.bin", "int64")
            self.numbers = _map(folder / "numbers.bin", "int64")
            self.questions = _map(folder / "questions.bin", "uint8").reshape(-1, HASH_BYTES)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder} is no store of prepared tokens ({error}); remove it") from None
        pairs = (self._ids, self._weights), (self._ends, self.rows), (self.numbers, self.questions)
        ends = int(self._ends[-1]) if len(self._ends) else 0
        if any(len(one) != len(other) for one, other in pairs) or ends != len(self._ids):
            raise DataError(f"{folder} is a store whose files do not belong together; remove it")
        self.folder = folder

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, place: int) -> Document:
        start, end = int(self._ends[place - 1]) if place else 0, int(self._ends[place])
        return Document(self._ids[start:end], self._weights[start:end])

    @property
    def lengths(self) -> np.ndarray:
        """Ids of each example, int64."""
        return np.diff(self._ends, prepend=0)

    def used_ids(self) -> list[int]:
        """The ids that stand in it, in ascending order."""
        seen = np.zeros(1 + int(self._ids.max(initial=0)), bool)
        for start in range(0, len(self._ids), 1 << 20):
            seen[self._ids[start : start + (1 << 20)]] = True
        return np.flatnonzero(seen).tolist() if len(self._ids) else []


def write_store(
    folder: Path,
    pieces: Iterable[Piece],
    *,
    vocab_size: int,
    rest: Callable[[], dict[str, Any]],
) -> TokenStore:
    """Write the examples of ``pieces``, in order, into a new ``folder``, and open it.

    ``rest`` is called when the pieces are through: what else goes into store.json. Where another process has written
    the folder meanwhile, that one stays. Raises OSError where it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    half = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    half.mkdir()
    try:
        kinds = ("uint16" if vocab_size <= 1 << 16 else "uint32", "float32")
        total = 0
        with ExitStack() as stack:
            files = {name: stack.enter_context((half / f"{name}.bin").open("wb")) for name in _FILES}
            for piece in pieces:
                _put(files["ids"], piece.ids, kinds[0])
                _put(files["weights"], piece.weights, kinds[1])
                _put(files["ends"], total + np.cumsum(piece.lengths), "int64")
                _put(files["rows"], piece.rows, "int64")
                _put(files["numbers"], piece.numbers, "int64")
                _put(files["questions"], piece.questions, "uint8")
                total += int(piece.lengths.sum())
        text = json.dumps({**rest(), "format": FORMAT, "ids": kinds[0], "weights": kinds[1]}, ensure_ascii=False)
        (half / "store.json").write_text(text + "\n", encoding="utf-8")
        try:
            half.replace(folder)
        except OSError:
            if not (folder / "store.json").is_file():
                raise
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return TokenStore(folder)


def _put(file: BinaryIO, values: np.ndarray, kind: str) -> None:
    file.write(np.ascontiguousarray(values, np.dtype(kind).newbyteorder("<")).tobytes())


def _map(path: Path, kind: str) -> np.ndarray:
    dtype = np.dtype(kind).newbyteorder("<")
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")
