"""Read what is needed of a sentencepiece ``ModelProto`` without protobuf's own library, and write small changes to it.

The field numbers are those of ``sentencepiece_model.proto``. A protobuf message is a row of (field number, value), and
where a single field stands twice the last value holds; nested messages merge. So a setting is changed by appending it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2

_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_MODEL_TYPE, _WHITESPACE_AS_SUFFIX, _BYTE_FALLBACK = 3, 24, 35
_CHARSMAP, _DUMMY_PREFIX, _REMOVE_EXTRA, _ESCAPE, _TSV = 2, 3, 4, 5, 6


class ProtoError(ValueError):
    """The bytes are not a sentencepiece model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """The settings of a model file and its pieces: ``(text, type)`` by id; ``charsmap`` is its normaliser, compiled."""

    pieces: list[tuple[str, int]]
    model_type: int
    byte_fallback: bool
    whitespace_as_suffix: bool
    dummy_prefix: bool
    removes_extra_spaces: bool
    escapes_spaces: bool
    denormalizes: bool
    charsmap: bytes


def read_model(data: bytes) -> ModelInfo:
    """Return pieces and settings of a serialised model; raises ``ProtoError``."""
    pieces = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    denormalizer: dict[int, int | bytes] = {}
    nested = {_TRAINER: trainer, _NORMALIZER: normalizer, _DENORMALIZER: denormalizer}
    for number, value, _ in _fields(data):
        if number == _PIECES and isinstance(value, bytes):
            pieces.append(_read_piece(value, len(pieces)))
        elif number in nested and isinstance(value, bytes):
            nested[number].update((n, v) for n, v, _ in _fields(value))
    if not pieces:
        raise ProtoError("it has no pieces")
    charsmap = normalizer.get(_CHARSMAP, b"")
    return ModelInfo(
        pieces=pieces,
        model_type=_integer(trainer, _MODEL_TYPE, UNIGRAM),
        byte_fallback=bool(_integer(trainer, _BYTE_FALLBACK, 0)),
        whitespace_as_suffix=bool(_integer(trainer, _WHITESPACE_AS_SUFFIX, 0)),
        dummy_prefix=bool(_integer(normalizer, _DUMMY_PREFIX, 1)),
        removes_extra_spaces=bool(_integer(normalizer, _REMOVE_EXTRA, 1)),
        escapes_spaces=bool(_integer(normalizer, _ESCAPE, 1)),
        denormalizes=bool(denormalizer.get(_CHARSMAP) or denormalizer.get(_TSV)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
    )


def with_spaces(data: bytes, *, dummy_prefix: bool, removes_extra: bool) -> bytes:
    """Return the model with another treatment of leading and repeated spaces."""
    settings = bytes([_DUMMY_PREFIX << 3, dummy_prefix, _REMOVE_EXTRA << 3, removes_extra])
    return data + bytes([_NORMALIZER << 3 | 2, len(settings)]) + settings


def with_control(data: bytes, ids: frozenset[int]) -> bytes:
    """Return the model with the pieces of these ids as CONTROL, which text never becomes."""
    if not ids:
        return data
    out = bytearray()
    at = index = 0
    for number, value, end in _fields(data):
        if number == _PIECES and isinstance(value, bytes):
            if index in ids:
                value += bytes([3 << 3, CONTROL])
                out += bytes([_PIECES << 3 | 2]) + _varint(len(value)) + value
                at = end
            index += 1
        out += data[at:end]
        at = end
    return bytes(out)


def _read_piece(message: bytes, id: int) -> tuple[str, int]:
    found = {number: value for number, value, _ in _fields(message)}
    text = found.get(1, b"")
    if not isinstance(text, bytes):
        raise ProtoError(f"piece {id} has no text")
    try:
        return text.decode("utf-8"), _integer(found, 3, NORMAL)
    except UnicodeDecodeError:
        raise ProtoError(f"piece {id} is not UTF-8") from None


def _integer(message: dict[int, int | bytes], number: int, default: int) -> int:
    value = message.get(number, default)
    if not isinstance(value, int):
        raise ProtoError(f"field {number} is not a number")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes, int]]:
    """Yield ``(field number, value, end)`` of a message; 32- and 64-bit values come as their bytes."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0 or wire not in (0, 1, 2, 5):
            raise ProtoError(f"byte {at - 1} is not the start of a field")
        if wire == 0:
            value, at = _read_varint(data, at)
            yield number, value, at
            continue
        if wire == 2:
            size, at = _read_varint(data, at)
        else:
            size = 8 if wire == 1 else 4
        if at + size > len(data):
            raise ProtoError(f"it ends at byte {len(data)} in the middle of a field")
        yield number, data[at : at + size], at + size
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ProtoError(f"it ends at byte {len(data)} in the middle of a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ProtoError(f"byte {at} is not part of a number")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
