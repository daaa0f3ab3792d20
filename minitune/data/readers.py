"""Files to raw rows: JSON arrays, JSON Lines, CSV, Parquet and plain text, each row with the line it starts on.

Nothing here knows what a row means. Files are read as they stream: of a file of any size, one row (of a JSON array, one
row and a piece of about a mebibyte) is in memory at a time.
"""

import contextlib
import csv
import importlib
import io
import json
import re
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from minitune.data.json_array import ESCAPED_BYTE, array_rows, decode_row, invalid_utf8
from minitune.data.json_array import Found as Found
from minitune.errors import DataError

_BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 1 << 16
_EXPECTED = "expected a JSON array of objects, one JSON object a line, or a .csv, .tsv, .parquet or .txt file"
_JSON_START = re.compile(rb'\s*(\{\s*"|\[\s*[{"\[])')
_LARGEST_CELL = 2**31 - 1  # csv's own limit of 128 KiB is less than a long answer; beyond a C long it raises

# First bytes of files that people pass by mistake, and what to say about them.
_FOREIGN = (
    (b"PK\x03\x04", "is a zip archive"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (b"(\xb5/\xfd", "is compressed with zstd; unpack it first"),
    (b"ARROW1", "is an Arrow file; save it as Parquet"),
    (b"\xff\xfe", "is UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text; save it as UTF-8"),
    *((bytes([0x80, protocol]), "is a Python pickle, which is never loaded") for protocol in range(2, 6)),
)


class Head(NamedTuple):
    """What the first bytes of a file say: its format, and those bytes without mark and white space."""

    format: str  # "array", "strings" (an array of texts), "lines", "csv", "tsv", "parquet" or "txt"
    content: bytes


def read_file(name: str) -> tuple[Head, Iterator[Found]]:
    """Return what a file is and an iterator over its rows; the format is told by content first, then by name.

    Raises ``DataError`` where the file is missing, is no regular file or is nothing that rows can be read from.
    """
    head = _head(name)
    return head, _rows(name, head.format)


def no_rows(name: str, head: Head) -> str:
    """Return what to say about a file that has no row, or of which no row could be read as JSON."""
    if head.format == "lines" and head.content and not head.content.startswith((b"{", b"[")):
        start = head.content.splitlines()[0][:30].decode("utf-8", "replace")
        return f"{name} is neither JSON nor JSON Lines: it starts with {start!r}; {_EXPECTED}"
    if head.format == "lines" and head.content and head.content.splitlines()[0].strip() == b"{":
        return f"{name} holds a JSON object spread over several lines; {_EXPECTED}"
    return ""


def _head(name: str) -> Head:
    with _open(name) as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise DataError(f"{name} is empty; {_EXPECTED}")
    if head.startswith(b"PAR1"):
        return Head("parquet", b"")
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise DataError(f"{name} {what}; {_EXPECTED}")
    if b"\0" in head:
        raise DataError(f"{name} is a binary file; {_EXPECTED}")
    content = head.removeprefix(_BOM).lstrip()
    suffix = Path(name).suffix.lower()
    if suffix in (".csv", ".tsv", ".txt") and not _JSON_START.match(content):
        return Head(suffix[1:], content)
    if content.startswith(b"["):
        return Head("strings" if content[1:].lstrip().startswith(b'"') else "array", content)
    return Head("lines", content)


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
    raise DataError(f"{name} is {what}; expected a JSON, JSON Lines, CSV, Parquet or text file")


def _rows(name: str, form: str) -> Iterator[Found]:
    if form == "parquet":
        yield from _parquet_rows(name)
        return
    with _open(name) as file:
        start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        file.seek(start)
        if form == "array":
            yield from array_rows(file, start)
        elif form == "strings":
            # Only a file that starts so: among objects, a string is a fault.
            yield from (
                found._replace(value={"text": found.value}) if isinstance(found.value, str) else found
                for found in array_rows(file, start)
            )
        elif form == "lines":
            yield from _line_rows(file, start)
        elif form == "txt":
            yield from _text_row(file, start)
        else:
            yield from _csv_rows(name, file, "\t" if form == "tsv" else ",")


def _line_rows(file: BinaryIO, offset: int) -> Iterator[Found]:
    """Cut JSON Lines into rows; ``offset`` is the byte at which the file stands. Blank lines are no rows."""
    # Lines end at b"\n" only: U+2028 and its like may stand inside a JSON string, so text line iteration would not do.
    for line, data in enumerate(file, start=1):
        if data.strip(b" \t\r\n"):
            yield decode_row(line, data, offset)
        offset += len(data)


def _text_row(file: BinaryIO, offset: int) -> Iterator[Found]:
    """A plain text file is one row of the ``text`` layout."""
    data = file.read()
    try:
        yield Found(1, {"text": data.decode("utf-8")})
    except UnicodeDecodeError as error:
        yield Found(1, None, invalid_utf8(offset + error.start), unread=True)


def _csv_rows(name: str, file: BinaryIO, delimiter: str) -> Iterator[Found]:
    """Cut CSV as RFC 4180 has it into objects by its header; cells are text, but for a number under ``weight``."""
    csv.field_size_limit(_LARGEST_CELL)
    # Bad bytes travel on as lone surrogates, so that they spoil the row they stand in and no other.
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    try:
        yield from _table_rows(name, csv.reader(text, delimiter=delimiter, strict=True))
    finally:
        text.detach()  # the file is closed where it was opened


def _table_rows(name: str, reader: Any) -> Iterator[Found]:
    try:
        header = _csv_header(name, next(reader, []))
    except csv.Error as error:
        raise DataError(f"{name} line 1: the header is broken CSV ({error}); quote cells that hold quotes") from None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # A quote that is never closed has swallowed every row up to the end of the file.
            unread = "unexpected end" in str(error)
            lost = "a quote is opened and never closed; the rest of the file was not read" if unread else error
            yield Found(line, None, f"broken CSV: {lost}", unread)
            continue
        if cells is None:
            return
        if cells:  # a blank line gives none
            yield Found(line, *_csv_object(header, cells))


def _csv_header(name: str, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = next((cell for place, cell in enumerate(header) if cell in header[:place]), None)
    if twice is not None:
        raise DataError(f"{name} line 1: the column {twice!r} stands twice in the header; rename one")
    return header


def _csv_object(header: list[str], cells: list[str]) -> tuple[object, str]:
    """Return the object of one line, or None and why it is none."""
    if len(cells) != len(header):
        return None, f"has {len(cells)} cells, but the header names {len(header)} columns"
    row: dict[str, Any] = dict(zip(header, cells, strict=True))
    for column, cell in row.items():
        bad_byte = ESCAPED_BYTE.search(cell)
        if bad_byte:
            return None, f"invalid UTF-8 in column {column!r}: byte 0x{ord(bad_byte[0]) - 0xDC00:02x}"
    weight = row.get("weight")
    if weight is not None:
        with contextlib.suppress(ValueError):  # stays text, which the layout refuses by name
            row["weight"] = float(weight) if weight.strip() else None
    return row, ""


def _parquet_rows(name: str) -> Iterator[Found]:
    """Rows of a Parquet file, a batch at a time; they have no lines."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(f"{name} is a Parquet file, and pyarrow is missing; pip install 'minitune[parquet]'") from None
    try:
        with parquet.ParquetFile(name) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    yield Found(0, row)
    except (OSError, ValueError) as error:  # what pyarrow raises derives from these
        raise DataError(f"{name} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from None


def original(found: Found) -> str:
    """Return a row as one line of JSON: its own text where the file is JSON, keys and values unchanged where not."""
    return found.raw or json.dumps(found.value, ensure_ascii=False, default=str)
