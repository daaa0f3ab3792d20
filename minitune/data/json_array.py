"""JSON text to raw rows: the elements of an array as they stream, and single lines."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_JSON_SPACE = re.compile(r"[ \t\r\n]*")
_LINE_BREAK = re.compile(r"[ \t\r]*\n[ \t\r]*")
_PIECE_BYTES = 1 << 20
_NEAR_END = 16  # no token that is cut short is told of further from the end than this, but for a string
_UNREAD = "the rest of the file was not read"


class Found(NamedTuple):
    """One row as cut from a file: its value, or the fault that kept it from being read."""

    line: int  # 0 where the file has no lines
    value: object
    fault: str = ""
    unread: bool = False  # the file could not be read past this place
    raw: str = ""  # the row's own JSON text, on one line
    end: int = 0  # about how many bytes of the file have been read when the row is through; 0 where that is not known


class Repeated(dict[str, object]):
    """A JSON object in which a key stands more than once; the last value won, as in any ``dict``."""

    key: str  # the first key that stands again


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    keys = [key for key, _ in pairs]
    repeated = Repeated(found)
    repeated.key = next(key for place, key in enumerate(keys) if key in keys[:place])
    return repeated


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def decode_row(line: int, data: bytes, offset: int) -> Found:
    """Return the row on one line of JSON Lines; ``offset`` is the byte at which the line starts."""
    try:
        text = data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return Found(line, None, invalid_utf8(offset + error.start), raw=data.decode("utf-8", "replace").strip())
    try:
        return Found(line, _DECODER.decode(text), raw=text.strip(), end=offset + len(data))
    except json.JSONDecodeError as error:
        return Found(line, None, f"broken JSON: {error.msg} (column {error.pos + 1})", raw=text.strip())
    except (ValueError, RecursionError) as error:
        return Found(line, None, f"broken JSON: {_unusual(error)}", raw=text.strip())


class _Window:
    """The part of a file's text that is in memory, and where it stands in the file."""

    def __init__(self, file: BinaryIO, offset: int):
        self.file = file
        # Bad bytes travel on as lone surrogates, so that they spoil the row they stand in and no other.
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text = ""
        self.position = 0  # in text: all before it has been read
        self.byte, self.line, self.column = offset, 1, 1  # where text starts in the file
        self.ended = False
        self.more()

    def more(self) -> None:
        """Read on; the window doubles, so that a row longer than it is taken up in linear time."""
        data = self.file.read(max(_PIECE_BYTES, len(self.text)))
        self.ended = not data
        self.text += self.decoder.decode(data, final=self.ended)

    def forget(self) -> None:
        """Drop the text that has been read, once it is long."""
        if self.position < _PIECE_BYTES:
            return
        gone = self.text[: self.position]
        self.line, self.column = self.line_at(self.position), self.column_at(self.position)
        self.byte += len(gone.encode("utf-8", "surrogateescape"))
        self.text, self.position = self.text[self.position :], 0

    def line_at(self, position: int) -> int:
        return self.line + self.text.count("\n", 0, position)

    def column_at(self, position: int) -> int:
        start = self.text.rfind("\n", 0, position)
        return position - start if start >= 0 else self.column + position

    def skip(self) -> str:
        """Go past white space, reading on as needed; the character that follows, or nothing at the end."""
        while True:
            found = _JSON_SPACE.match(self.text, self.position)
            self.position = found.end() if found else self.position
            if self.position < len(self.text) or self.ended:
                return self.text[self.position : self.position + 1]
            self.more()

    def value(self) -> tuple[object, int]:
        """Decode the value that starts here, reading on while it may go on; the value and where it ends."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - _NEAR_END
                if self.ended or not cut:
                    raise
            else:
                if self.ended or end <= len(self.text) - _NEAR_END:  # a number may go on past the window
                    return value, end
            self.more()


def array_rows(file: BinaryIO, offset: int) -> Iterator[Found]:
    """Cut a JSON array into rows; ``offset`` is the byte at which the file stands.

    A syntax error ends the reading: one row with ``unread`` set stands for all that follows.
    """
    window = _Window(file, offset)
    window.skip()
    window.position += 1
    closed = window.skip() == "]"
    line, counted = window.line_at(window.position), window.position
    while not closed:
        line += window.text.count("\n", counted, window.position)
        try:
            value, end = window.value()
        except (ValueError, RecursionError) as error:
            yield _stopped(window, line, error)
            return
        yield _element(window, line, value, end)
        line += window.text.count("\n", window.position, end)
        counted = window.position = end
        follows = window.skip()
        closed = follows == "]"
        if not closed and follows != ",":
            line += window.text.count("\n", counted, window.position)
            yield _stopped(window, line, _error("expected ',' or ']' here", window))
            return
        window.position += 1
        if not closed:
            window.skip()
            line += window.text.count("\n", counted, window.position)
            window.forget()
            counted = window.position
    if not window.text.startswith("]", window.position - 1):  # an empty array: the bracket is still ahead
        window.position += 1
    if window.skip():
        yield _stopped(window, window.line_at(window.position), _error("text after the end of the array", window))


def _element(window: _Window, line: int, value: object, end: int) -> Found:
    bad_byte = ESCAPED_BYTE.search(window.text, window.position, end)
    # A line break cannot stand inside a JSON string, so those of a pretty-printed row part its tokens.
    raw = _LINE_BREAK.sub(" ", window.text[window.position : end])
    if bad_byte:
        before = len(window.text[: bad_byte.start()].encode("utf-8", "surrogateescape"))
        readable = raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return Found(line, None, invalid_utf8(window.byte + before), raw=readable)
    return Found(line, value, raw=raw, end=window.byte + end)


def _error(message: str, window: _Window) -> json.JSONDecodeError:
    return json.JSONDecodeError(message, window.text, window.position)


def _stopped(window: _Window, line: int, error: ValueError | RecursionError) -> Found:
    """Return the row that stands for all that follows a syntax error in an array; the row starts on ``line``."""
    if isinstance(error, json.JSONDecodeError):
        message = "the file ends inside the array" if error.pos >= len(window.text.rstrip()) else error.msg
        place = f"line {window.line_at(error.pos)} column {window.column_at(error.pos)}"
        fault = f"broken JSON at {place}: {message}"
    else:
        fault = f"broken JSON: {_unusual(error)}"
    return Found(line, None, f"{fault}; {_UNREAD}", unread=True)


def _unusual(error: ValueError | RecursionError) -> str:
    # Beside syntax errors, Python's decoder refuses only these two; its own words are about Python, not about the file.
    return "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"


def invalid_utf8(byte: int) -> str:
    """Return what to say of a byte that is no UTF-8, by its place in the file."""
    return f"invalid UTF-8 at byte {byte} of the file"
