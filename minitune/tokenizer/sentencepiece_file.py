"""A sentencepiece ``tokenizer.model``: BPE and unigram, cut by the ``sentencepiece`` library (arXiv 1808.06226)."""

import re
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from minitune.errors import TokenizerError
from minitune.tokenizer.added import AddedToken, AddedTokens
from minitune.tokenizer.base import REPLACEMENT, SPACE_MARK, Tokenizer, Vocabulary, byte_of, without_surrogates
from minitune.tokenizer.files import Companions, shown
from minitune.tokenizer.sentencepiece_proto import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    ModelInfo,
    ProtoError,
    read_model,
    with_control,
    with_spaces,
)
from minitune.tokenizer.vocabulary import make_vocabulary

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_words = re.compile(f"[ {SPACE_MARK}]*[^ {SPACE_MARK}]+|[ {SPACE_MARK}]+").findall
LONGEST_KEPT = 24  # characters of a word that is worth remembering; text without spaces is one long word


class SentencePiece(Tokenizer):
    """A sentencepiece model file; ids equal those of the ``sentencepiece`` library.

    CONTROL pieces and the unknown piece never come from their names typed in a text. A USER_DEFINED piece is found in
    any text by definition, unless the folder's small files call it special (Gemma's turn markers): then it is control.
    Tokens that the small files add beside the model file are control ids too, reached by name only.

    ``continues=True`` puts no dummy prefix. In a file that removes extra spaces, a leading run of them then stands
    for one space instead of none, since a word goes on after other tokens. ``control=True``: text behind a control
    token starts anew, with a dummy prefix, as in the reference; not where the folder says ``legacy`` is false.
    """

    def __init__(self, path: Path, proto: bytes, info: ModelInfo, vocabulary: Vocabulary, companions: Companions):
        super().__init__(vocabulary)
        self._path = path
        self._proto = proto
        self._info = info
        self._by_words = words_stand_alone(info)
        self._whole = processor(path, proto)  # made now, so that a damaged file is found now
        self._prefix_again = companions.legacy is not False
        # All of them are looked for in the text as it is, as the reference does with a model file.
        flags = {name: companions.flags.get(name, {}) | {"normalized": False} for name in self.control_names()}
        named = [AddedToken(id=id, content=name, **flags[name]) for name, id in self.control_names().items()]
        self._added = AddedTokens(named, self.control_ids, {}, str)

    @cached_property
    def _bare(self) -> "SentencePieceProcessor":
        removes = self._info.removes_extra_spaces
        return processor(self._path, with_spaces(self._proto, dummy_prefix=False, removes_extra=removes))

    @cached_property
    def _prefixed(self) -> "SentencePieceProcessor":
        return processor(self._path, with_spaces(self._proto, dummy_prefix=True, removes_extra=True))

    @cached_property
    def _exact(self) -> "SentencePieceProcessor":
        return processor(self._path, with_spaces(self._proto, dummy_prefix=False, removes_extra=False))

    @cached_property
    def _word(self) -> Callable[[str], list[int]]:
        return lru_cache(maxsize=1 << 16)(self._bare.encode)

    def encode(self, text: str, *, continues: bool = False, control: bool = False) -> list[int]:
        text = without_surrogates(text)
        if not control:
            return self._encode_plain(text, continues)
        ids: list[int] = []
        for start, stretch, found in self._added.split(text, lambda part, _: part, control=True):
            if found is not None:
                ids.append(found)
            else:
                ids += self._encode_plain(stretch, continues if start == 0 else not self._prefix_again)
        return ids

    def _encode_plain(self, text: str, continues: bool) -> list[int]:
        if self._by_words:
            return self._encode_words(text, continues)
        if not continues:
            return self._whole.encode(text)
        if self._info.removes_extra_spaces:
            # What counts as a space is the file's own affair (its map may turn a line end into one), so ask it.
            normal = self._exact.normalize(text)
            if normal and not normal.strip(SPACE_MARK):
                return self._exact.encode(" ")
            if normal.startswith(SPACE_MARK):
                return self._prefixed.encode(text)
        return self._bare.encode(text)

    def _encode_words(self, text: str, continues: bool) -> list[int]:
        words = _words(text)
        if not words:
            return []
        ids: list[int] = (self._bare if continues else self._whole).encode(words[0])
        short, long = self._word, self._bare.encode
        for word in words[1:]:
            ids += short(word) if len(word) <= LONGEST_KEPT else long(word)
        return ids


def words_stand_alone(info: ModelInfo) -> bool:
    """Whether the ids of a text are those of its words in a row, a word with the spaces before it, as of Llama 2.

    BPE joins two neighbours only if they make a piece, so nothing is joined across the start of a word if in no piece
    a space follows another character. The text must go in as it is, and no two unknown characters become one.
    """
    return (
        info.model_type == BPE
        and info.byte_fallback
        and not (info.charsmap or info.removes_extra_spaces)
        and all(kind in (NORMAL, BYTE, CONTROL, UNKNOWN) for _, kind in info.pieces)
        and not any(SPACE_MARK in piece.lstrip(SPACE_MARK) for piece, _ in info.pieces)
    )


def processor(path: Path, proto: bytes) -> "SentencePieceProcessor":
    """Return the library's processor of a serialised model; raises ``TokenizerError`` where it refuses the file."""
    import sentencepiece  # here, so that importing minitune.tokenizer stays quick

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=proto)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise TokenizerError(f"{path}: sentencepiece cannot load it ({reason}); fetch the file again") from None


def load_sentencepiece(path: Path, data: bytes, companions: Companions) -> SentencePiece:
    """Load a serialised sentencepiece model; raises ``TokenizerError`` where it is damaged or of another kind."""
    try:
        info = read_model(data)
    except ProtoError as error:
        raise TokenizerError(f"{path}: not a sentencepiece model ({error}); fetch the file again") from None
    _check(path, info)
    pieces = _names(path, info, companions)
    promoted = frozenset(
        id
        for id, (piece, kind) in enumerate(info.pieces)
        # A single character stays text even if a small file gives it a role (a line end as eos).
        if kind in (NORMAL, USER_DEFINED) and piece in companions.special and len(piece) > 1
    )
    added = frozenset(range(len(info.pieces), len(pieces)))
    fixed = frozenset(id for id, (_, kind) in enumerate(info.pieces) if kind == CONTROL)
    unk = next((id for id, (_, kind) in enumerate(info.pieces) if kind == UNKNOWN), None)
    control = fixed | promoted | added
    if unk is not None and info.byte_fallback:
        control |= {unk}
    roles = _roles(path, data, pieces)
    vocabulary = make_vocabulary(
        companions,
        data + repr(sorted(companions.added.items())).encode(),
        pieces=pieces,
        contributions=[_contribution(info, i) for i in range(len(info.pieces))] + [b""] * len(added),
        control_ids=control,
        roles=roles,
        single=[(roles | companions.roles)["bos_token"], None],
        strips_space=info.dummy_prefix,
    )
    return SentencePiece(path, with_control(data, promoted), info, vocabulary, companions)


def _check(path: Path, info: ModelInfo) -> None:
    if info.model_type not in (UNIGRAM, BPE):
        kind = {3: "word", 4: "char"}.get(info.model_type, info.model_type)
        raise TokenizerError(f"{path}: the model type is {kind}, which is not supported; expected BPE or unigram")
    for on, what in (
        (info.whitespace_as_suffix, "treat_whitespace_as_suffix"),
        (not info.escapes_spaces, "escape_whitespaces = false"),
        (info.denormalizes, "a denormalizer"),
    ):
        if on:
            raise TokenizerError(f"{path}: has {what}, which is not supported; expected the usual space marks")
    seen: dict[str, int] = {}
    for id, (piece, _) in enumerate(info.pieces):
        if seen.setdefault(piece, id) != id:
            raise TokenizerError(f"{path}: the piece {shown(piece)} has the ids {seen[piece]} and {id}; expected one")


def _names(path: Path, info: ModelInfo, companions: Companions) -> list[str | None]:
    """Names by id: the model's pieces, then what the small files add behind them."""
    pieces: list[str | None] = [piece for piece, _ in info.pieces]
    id_of = {piece: id for id, (piece, _) in enumerate(info.pieces)}
    for name, id in sorted(companions.added.items(), key=lambda item: item[1]):
        pieces += [None] * (id + 1 - len(pieces))
        if id_of.setdefault(name, id) != id or pieces[id] not in (None, name):
            raise TokenizerError(
                f"{companions.config.parent}: the token {shown(name)} is added with the id {id}, but {path.name} has "
                f"{shown(pieces[id])} there; the files must come from the same checkpoint"
            )
        pieces[id] = name
    return pieces


def _roles(path: Path, data: bytes, pieces: list[str | None]) -> dict[str, str | None]:
    """Role to name: the model file's own ids."""
    model = processor(path, data)
    own = {"bos_token": model.bos_id(), "eos_token": model.eos_id(), "pad_token": model.pad_id()}
    own["unk_token"] = model.unk_id()
    return {role: pieces[id] if id >= 0 else None for role, id in own.items()}


def _contribution(info: ModelInfo, id: int) -> bytes:
    piece, kind = info.pieces[id]
    if kind == UNKNOWN:
        return REPLACEMENT.encode()
    byte = byte_of(piece) if kind == BYTE else None
    return piece.replace(SPACE_MARK, " ").encode("utf-8") if byte is None else bytes([byte])
