"""The one interface that every kind of tokenizer has, and the way back from ids to text, which they share."""

import codecs
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minitune.errors import TokenizerError, nearest

SPACE_MARK = "\u2581"  # the lower one eighth block that sentencepiece writes for a space
REPLACEMENT = "\ufffd"


def without_surrogates(text: str) -> str:
    """Return the text with surrogate pairs joined and each lone surrogate, which UTF-8 cannot hold, as U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def byte_of(piece: str) -> int | None:
    """Return the byte that a byte-fallback piece such as ``<0x0A>`` stands for, or None for any other piece."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        digits = piece[3:5]
        if all(c in "0123456789abcdefABCDEF" for c in digits):
            return int(digits, 16)
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """What a tokenizer file says, all but the way it cuts text; ``pieces[i]`` is None where the id i is free."""

    pieces: Sequence[str | None]
    id_of: dict[str, int]
    contributions: Sequence[bytes]
    control_ids: frozenset[int]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
    adds_bos: bool
    strips_space: bool
    files: tuple[Path, ...]
    fingerprint: str


class Tokenizer(ABC):
    """Text to ids and back; ids are ``0 .. vocab_size - 1``.

    ``bos_id``, ``eos_id``, ``pad_id``, ``unk_id``: None where the checkpoint has no such token.
    ``control_ids``: ids that plain text never becomes, whatever is typed, unless ``encode`` is asked for them. The
    unknown token is one of them only where byte fallback covers every character; elsewhere text does become it, and
    it decodes as U+FFFD.
    ``adds_bos``: the checkpoint's own rule on whether a text starts with bos (``encode`` itself never adds it).
    ``files``: the tokenizer files that must go along when a model is written.
    ``fingerprint``: sha256 over what decides ids.

    ``decode(encode(s)) == s``, with ``continues`` on both sides too, for every text that the vocabulary covers and the
    file's normaliser leaves alone. What cannot come back: U+2581, which is the space mark itself, comes back as a
    space; a lone surrogate comes back as U+FFFD; and where the file asks for it, runs of spaces or compatibility
    characters come back normalised.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocab_size = len(vocabulary.pieces)
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.pad_id = vocabulary.pad_id
        self.unk_id = vocabulary.unk_id
        self.control_ids = vocabulary.control_ids
        self.adds_bos = vocabulary.adds_bos
        self.files = vocabulary.files
        self.fingerprint = vocabulary.fingerprint
        self._pieces = vocabulary.pieces
        self._contributions = vocabulary.contributions
        self._strips_space = vocabulary.strips_space
        self._id_of = vocabulary.id_of

    @abstractmethod
    def encode(self, text: str, *, continues: bool = False, control: bool = False) -> list[int]:
        """Return the ids of plain text: no special token is added, and a typed control string stays text.

        ``continues=True``: the text goes on after other tokens, so no dummy prefix is put before it.
        ``control=True``: the names of control tokens in the text become their ids, for text that an expert wrote;
        never for what a user typed or a file holds. A lone surrogate counts as U+FFFD.
        """

    def decode(self, ids: Iterable[int], *, continues: bool = False, skip_control: bool = False) -> str:
        """Return the text of ids; control ids appear by name unless ``skip_control``.

        ``continues=True`` keeps the leading space, which otherwise is the dummy prefix and goes.
        Bytes that are not UTF-8 become U+FFFD. Raises ``TokenizerError`` for an id out of range.
        """
        numbers = list(map(operator.index, ids))
        if numbers:
            self._checked(min(numbers))
            self._checked(max(numbers))
        parts = list(map(self._contributions.__getitem__, numbers))
        if not skip_control and not self.control_ids.isdisjoint(numbers):
            for place, i in enumerate(numbers):
                if i in self.control_ids:
                    parts[place] = (self._pieces[i] or "").encode("utf-8")
        text = b"".join(parts).decode("utf-8", "replace")
        return text[1:] if self._strips_space and not continues and text.startswith(" ") else text

    def token(self, id: int) -> str:
        """Return the token as the file writes it; the empty string where the file leaves this id free."""
        return self._pieces[self._checked(id)] or ""

    def token_id(self, token: str) -> int | None:
        """Return the id of the token of exactly this name, control tokens included, or None."""
        return self._id_of.get(token)

    def token_bytes(self, id: int) -> bytes:
        """Return what this id adds to a text in the middle of it, as UTF-8; nothing for a control id."""
        return self._contributions[self._checked(id)]

    def control_names(self) -> dict[str, int]:
        """Return name to id of the control tokens, and of the unknown token."""
        named = self.control_ids if self.unk_id is None else self.control_ids | {self.unk_id}
        return {piece: id for id in named if (piece := self._pieces[id])}

    def stream(self, *, continues: bool = False) -> "TextStream":
        """Return a decoder for ids that arrive one at a time."""
        return TextStream(self, continues=continues)

    def _checked(self, id: int) -> int:
        i = operator.index(id)
        if not 0 <= i < self.vocab_size:
            raise TokenizerError(f"id {i} is not in this tokenizer, which has ids 0 to {self.vocab_size - 1}")
        return i

    @property
    def strips_space(self) -> bool:
        """Whether one leading space of a whole text is the dummy prefix, and goes on decoding."""
        return self._strips_space


class TextStream:
    """Ids to text, one at a time; the pieces joined are ``decode(ids, continues=..., skip_control=True)``.

    Bytes of a character wait until the character is whole, so half a character never appears.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = tokenizer.strips_space and not continues

    def push(self, id: int) -> str:
        """Take one id and return the text that is certain now, which may be empty."""
        return self._emit(self._utf8.decode(self._tokenizer.token_bytes(id)))

    def finish(self) -> str:
        """Return what is left: U+FFFD for a character that never became whole, else nothing."""
        return self._emit(self._utf8.decode(b"", final=True))

    def _emit(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ")
        return text


def role_id(name: str | None, role: str, id_of: dict[str, int], where: Path) -> int | None:
    """Return the id of the token named for a role such as ``bos_token``; a name without an id is an error."""
    if name is None:
        return None
    if name not in id_of:
        raise TokenizerError(
            f"{where}: {role} is {name!r}, which is not in the vocabulary{nearest(name, id_of)}; "
            "name a token that exists, or set it to null"
        )
    return id_of[name]
