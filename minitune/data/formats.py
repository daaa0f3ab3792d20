"""Instruction files to rows: Alpaca objects in a JSON array or in JSON Lines, each with the line it starts on.

Nothing is repaired and nothing is dropped here: every row is either good, with its text exactly as it stands in the
file, or bad, with its line and one reason. What to do about bad rows is the caller's choice (``rows_or_error``).
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from minitune.errors import DataError, nearest

_BOM = b"\xef\xbb\xbf"
_JSON_SPACE = re.compile(r"[ \t\r\n]*")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_HEAD_BYTES = 1 << 16
_UNREAD = "the rest of the file was not read"
_EXPECTED = "expected a JSON array of objects, or one JSON object a line"

# First bytes of files that people pass by mistake, and what to say about them.
_FOREIGN = (
    (b"PK\x03\x04", "is a zip archive"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (b"(\xb5/\xfd", "is compressed with zstd; unpack it first"),
    (b"PAR1", "is a Parquet file, which this version does not read"),
    (b"ARROW1", "is an Arrow file, which this version does not read"),
    (b"\xff\xfe", "is UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text; save it as UTF-8"),
    *((bytes([0x80, protocol]), "is a Python pickle, which is never loaded") for protocol in range(2, 6)),
)

# Keys that mark a row of another known layout, asked only of rows that lack 'instruction' or 'output'.
_OTHER_LAYOUTS = (
    ("messages",),
    ("conversations",),
    ("instruction", "instances"),
    ("instruction", "context", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("text",),
)


def _where(file: str, line: int, index: int) -> str:
    return f"{file} line {line} (row {index + 1})"


@dataclass(frozen=True, slots=True)
class Row:
    """One instruction as it stands in a file: its text unchanged, and the place it came from."""

    instruction: str
    input: str  # "" where there is none
    output: str
    file: str  # the name as the user gave it
    line: int  # the line on which the row starts, counted from 1
    index: int  # the row's index in the file, counted from 0, bad rows included

    @property
    def where(self) -> str:
        """The place in words, line and row counted from 1: ``alpaca.json line 17 (row 4)``."""
        return _where(self.file, self.line, self.index)


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


class _Found(NamedTuple):
    """One row as cut from a file: its JSON value, or the fault that kept it from being read."""

    line: int
    value: object
    fault: str = ""
    unread: bool = False


class _Repeated(dict[str, object]):
    """A JSON object in which a key stands more than once; the last value won, as in any ``dict``."""

    key: str  # the first key that stands again


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    keys = [key for key, _ in pairs]
    repeated = _Repeated(found)
    repeated.key = next(key for place, key in enumerate(keys) if key in keys[:place])
    return repeated


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def read_rows(path: str | os.PathLike[str], *, limit: int | None = None) -> Rows:
    """Read the Alpaca rows (``instruction``, optional ``input``, ``output``) of one JSON or JSON Lines file.

    The format is told by the content, not by the name; the text is UTF-8, a byte order mark and CR LF line ends are
    accepted. A missing or null ``input`` is ``""``; keys that Alpaca does not know are left aside. JSON Lines are read
    a line at a time; an array is read whole and taken apart element by element, and a syntax error in it ends the
    reading: one bad row with ``unread`` set stands for all that follows. ``limit``: stop after this many good rows.

    Raises ``DataError`` where the file is missing, is no regular file, is not text or has no good row.
    """
    name = os.fspath(path)
    if limit is not None and limit < 1:
        raise DataError(f"cannot read {limit} rows of {name}; expected a limit of at least 1")
    good: list[Row] = []
    bad: list[BadRow] = []
    with _open(name) as file:
        head = file.read(_HEAD_BYTES)
        _refuse_other_files(name, head)
        start = len(_BOM) if head.startswith(_BOM) else 0
        file.seek(start)
        found_rows = _array_rows(file, start) if head[start:].lstrip().startswith(b"[") else _line_rows(file, start)
        for index, found in enumerate(found_rows):
            reason = found.fault or _fault(found.value)
            if reason:
                bad.append(BadRow(name, found.line, index, reason, found.unread))
                continue
            assert isinstance(found.value, dict)
            row = found.value
            good.append(Row(row["instruction"], row.get("input") or "", row["output"], name, found.line, index))
            if len(good) == limit:
                break
    if not good:
        raise DataError(_no_good_row(name, bad, head[start:].lstrip()))
    return Rows(good, bad)


def rows_or_error(rows: Rows, *, on_bad: Literal["error", "drop"]) -> list[Row]:
    """Return the good rows, after the bad ones have been refused (``"error"``) or left out (``"drop"``).

    The caller tells the user how many were left out. Raises ``DataError`` that names the count, the first three bad
    rows and what to do; also with ``"drop"`` where a file could not be read to its end, because dropping rows that
    were seen is a choice and losing an unknown number of unseen ones is not.
    """
    unread = [row for row in rows.bad if row.unread]
    if unread:
        raise DataError(f"{unread[0].where}: {unread[0].reason}; mend the file")
    if rows.bad and on_bad != "drop":
        count, total = len(rows.bad), len(rows.bad) + len(rows.good)
        named = "; ".join(f"{row.where}: {row.reason}" for row in rows.bad[:3])
        more = f"; and {count - 3:,} more" if count > 3 else ""
        verb = "is" if count == 1 else "are"
        raise DataError(f"{count:,} of {total:,} rows {verb} bad: {named}{more}; fix them, or pass --on-bad drop")
    return rows.good


def _open(name: str) -> BufferedReader:
    try:
        mode = Path(name).stat().st_mode
        # A pipe would block in open(), and could not be hashed after it was read.
        what = "" if stat.S_ISREG(mode) else "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        if not what:
            return Path(name).open("rb")
    except FileNotFoundError:
        what = "not there: no such file"
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        what = f"not readable: {getattr(error, 'strerror', None) or error}"
    raise DataError(f"{name} is {what}; expected a JSON or JSON Lines file")


def _refuse_other_files(name: str, head: bytes) -> None:
    if not head:
        raise DataError(f"{name} is empty; {_EXPECTED}")
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise DataError(f"{name} {what}; {_EXPECTED}")
    if b"\0" in head:
        raise DataError(f"{name} is a binary file; {_EXPECTED}")


def _no_good_row(name: str, bad: list[BadRow], content: bytes) -> str:
    if not bad:
        return f"{name} has no rows; {_EXPECTED}"
    if not content.startswith((b"{", b"[")):
        start = content.splitlines()[0][:30].decode("utf-8", "replace")
        return f"{name} is neither JSON nor JSON Lines: it starts with {start!r}; {_EXPECTED}"
    if content.splitlines()[0].strip() == b"{":
        return f"{name} holds a JSON object spread over several lines; {_EXPECTED}"
    count = f"all {len(bad):,} rows are bad, the first is" if len(bad) > 1 else "its one row is bad,"
    return f"{name} has no row to train on: {count} line {bad[0].line} (row {bad[0].index + 1}): {bad[0].reason}"


def _line_rows(file: BinaryIO, offset: int) -> Iterator[_Found]:
    """Cut JSON Lines into rows; ``offset`` is the byte at which the file stands. Blank lines are no rows."""
    # Lines end at b"\n" only: U+2028 and its like may stand inside a JSON string, so text line iteration would not do.
    for line, data in enumerate(file, start=1):
        if data.strip(b" \t\r\n"):
            yield _line_row(line, data, offset)
        offset += len(data)


def _line_row(line: int, data: bytes, offset: int) -> _Found:
    try:
        return _Found(line, _DECODER.decode(data.decode("utf-8").rstrip("\r\n")))
    except UnicodeDecodeError as error:
        return _Found(line, None, _invalid_utf8(offset + error.start))
    except json.JSONDecodeError as error:
        return _Found(line, None, f"broken JSON: {error.msg} (column {error.pos + 1})")
    except (ValueError, RecursionError) as error:
        return _Found(line, None, f"broken JSON: {_unusual(error)}")


def _array_rows(file: BinaryIO, offset: int) -> Iterator[_Found]:
    """Cut a JSON array into rows; ``offset`` is the byte at which the file stands."""
    data = file.read()
    try:
        text, damaged = data.decode("utf-8"), False
    except UnicodeDecodeError:
        # Bad bytes travel on as lone surrogates, so that they spoil the row they stand in and no other.
        text, damaged = data.decode("utf-8", "surrogateescape"), True
    position = _skip(text, _skip(text, 0) + 1)
    line, counted = 1, 0
    closed = text.startswith("]", position)
    while not closed:
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield _stopped(text, line, error)
            return
        bad_byte = _ESCAPED_BYTE.search(text, position, end) if damaged else None
        if bad_byte:
            before = len(text[: bad_byte.start()].encode("utf-8", "surrogateescape"))
            yield _Found(line, None, _invalid_utf8(offset + before))
        else:
            yield _Found(line, value)
        position = _skip(text, end)
        closed = text.startswith("]", position)
        if not closed and not text.startswith(",", position):
            line += text.count("\n", counted, position)
            yield _stopped(text, line, json.JSONDecodeError("expected ',' or ']' here", text, position))
            return
        if not closed:
            position = _skip(text, position + 1)
    position = _skip(text, position + 1)
    if position < len(text):
        line += text.count("\n", counted, position)
        yield _stopped(text, line, json.JSONDecodeError("text after the end of the array", text, position))


def _skip(text: str, position: int) -> int:
    """Return the first position from ``position`` on that is not JSON white space."""
    found = _JSON_SPACE.match(text, position)
    return found.end() if found else position


def _stopped(text: str, line: int, error: ValueError | RecursionError) -> _Found:
    """Return the row that stands for all that follows a syntax error in an array; the row starts on ``line``."""
    if isinstance(error, json.JSONDecodeError):
        message = "the file ends inside the array" if error.pos >= len(text.rstrip()) else error.msg
        fault = f"broken JSON at line {error.lineno} column {error.colno}: {message}"
    else:
        fault = f"broken JSON: {_unusual(error)}"
    return _Found(line, None, f"{fault}; {_UNREAD}", unread=True)


def _unusual(error: ValueError | RecursionError) -> str:
    # Beside syntax errors, Python's decoder refuses only these two; its own words are about Python, not about the file.
    return "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"


def _invalid_utf8(byte: int) -> str:
    return f"invalid UTF-8 at byte {byte} of the file"


def _fault(value: object) -> str:
    """Return why a JSON value is no Alpaca row, or ``""`` where it is one."""
    if not isinstance(value, dict):
        return f"not an object (got {_shown(value)})"
    if isinstance(value, _Repeated):
        return f"a key stands twice in one object: {value.key!r}"
    if "instruction" not in value or "output" not in value:
        return _layout_fault(value)
    if "input" not in value:
        # Read as "no input", a misspelled key would silently cost every row a part of its question.
        close = [key for key in value if key.strip().lower().removesuffix("s") == "input"]
        if close:
            return f"unknown key {close[0]!r}; did you mean 'input'?"
    for key in ("instruction", "input", "output"):
        fault = _text_fault(key, value.get(key, ""))
        if fault:
            return fault
    for key in ("system", "history"):
        if value.get(key):
            return f"{key!r} is not empty; this version does not read {key!r} yet"
    return ""


def _text_fault(key: str, text: object) -> str:
    if key == "input" and text is None:  # null says "none" as clearly as an absent key does
        return ""
    if not isinstance(text, str):
        return f"{key!r} is not text (got {_shown(text)})"
    if key != "input" and not text.strip():
        return f"{key!r} is blank (white space only)" if text else f"{key!r} is empty"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"{key!r} holds a lone surrogate, \\u{ord(text[error.start]):04x} at character {error.start + 1}"
    return ""


def _layout_fault(row: dict[str, object]) -> str:
    for keys in _OTHER_LAYOUTS:
        if all(key in row for key in keys):
            return f"is in the '{'/'.join(keys)}' format; this version reads Alpaca rows (instruction, input, output)"
    missing = "output" if "instruction" in row else "instruction"
    others = [key for key in row if key not in ("instruction", "input", "output")]
    has = ", ".join(_printable(key) for key in list(row)[:8]) + (", ..." if len(row) > 8 else "")
    return f"missing key {missing!r} (the row has: {has or 'nothing'}){nearest(missing, others)}"


def _shown(value: object) -> str:
    """Return a JSON value in words: its kind, and the value itself where it is short."""
    if value is None:
        return "null"
    if isinstance(value, dict | list):
        return "object" if isinstance(value, dict) else "list"
    return f"{type(value).__name__} {_printable(repr(value))}"


def _printable(text: str) -> str:
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 40 else text[:37] + "..."
