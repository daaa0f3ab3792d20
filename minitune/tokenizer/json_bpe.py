"""The sentencepiece kind of BPE kept in a ``tokenizer.json``: one long symbol sequence, merges across spaces."""

from functools import cached_property
from pathlib import Path
from typing import Any

from minitune.errors import TokenizerError
from minitune.tokenizer.added import AddedTokens
from minitune.tokenizer.base import REPLACEMENT, SPACE_MARK, Tokenizer, Vocabulary, byte_of, without_surrogates
from minitune.tokenizer.char_ranks import CharVocabulary, char_engine
from minitune.tokenizer.files import Companions, check_added
from minitune.tokenizer.json_spec import JsonSpec, read_spec
from minitune.tokenizer.merge import MergeTable
from minitune.tokenizer.vocabulary import control_of, make_vocabulary, names_by_id


class JsonBPE(Tokenizer):
    """BPE of a ``tokenizer.json`` with sentencepiece's space marks and byte fallback.

    Ids equal those of the ``tokenizers`` library with ``encode_special_tokens`` on, with one difference: a merge whose
    result is a control id, or the unknown token, is never taken, so no typed text becomes one. Added tokens that are
    not special are found in the text as there, white space flags included. With Metaspace a text that starts with a
    space gets no second mark, so decoding gives it back without that space, as there.
    """

    def __init__(self, spec: JsonSpec, vocabulary: Vocabulary):
        super().__init__(vocabulary)
        self._spec = spec
        ids = spec.vocab
        self._unk = ids.get(spec.unk_token) if spec.unk_token is not None else None
        # What text can spell. A merge that makes anything else is dropped, so a typed control token, and a typed name
        # of the unknown token, stay text; ranks keep their order, which is all that they are for.
        closed = self.control_ids | {i for token, i in ids.items() if i == self._unk and len(token) > 1}
        self._vocab = {token: i for token, i in ids.items() if i not in closed}
        self._listed = [(ids[a], ids[b], ids[a + b]) for a, b in spec.merges if a + b in self._vocab]
        self._byte_ids = [self._vocab.get(f"<0x{b:02X}>") for b in range(256)]
        passed_over = self.control_ids | {a.id for a in spec.added if a.special}  # an unknown token may be special too
        self._added = AddedTokens(spec.added, passed_over, self.control_names(), lambda name: normalized(spec, name))
        vocab = CharVocabulary(
            tokens=self._vocab,
            merges=self._listed,
            byte_ids=self._byte_ids if spec.byte_fallback else [None] * 256,
            unknown=self._unk,
            fuses=spec.fuse_unk,
        )
        by_ranks = char_engine(vocab, has_spaces=not (spec.normalizes_spaces or spec.has_metaspace))
        self.by_ranks = by_ranks is not None
        self._encode_plain = by_ranks or self.encode_by_list

    def encode(self, text: str, *, continues: bool = False, control: bool = False) -> list[int]:
        def normalize(stretch: str, start: int) -> str:
            return normalized(self._spec, stretch, bare=continues and start == 0)

        ids: list[int] = []
        for start, piece, found in self._added.split(without_surrogates(text), normalize, control=control):
            if found is not None:
                ids.append(found)
            else:
                ids += self._pieces_of(self._marked(piece, first=start == 0, bare=continues and start == 0))
        return ids

    def _marked(self, piece: str, *, first: bool, bare: bool) -> str:
        """What Metaspace does with a stretch of text: marks for spaces, and a mark in front where none is there."""
        if self._spec.has_metaspace:
            piece = piece.replace(" ", SPACE_MARK)
        wanted = self._spec.prefix == "always" or (self._spec.prefix == "first" and first)
        return SPACE_MARK + piece if wanted and not bare and not piece.startswith(SPACE_MARK) else piece

    def _pieces_of(self, text: str) -> list[int]:
        if self._spec.ignore_merges and text in self._vocab:
            return [self._vocab[text]]
        return self._encode_plain(text)

    def encode_by_list(self, text: str) -> list[int]:
        """Return the ids of text with its space marks by the list of merges itself, the slow and plain way."""
        return self._merges.apply(self._symbols(text))

    @cached_property
    def _merges(self) -> MergeTable:  # seldom wanted, so made only then
        return MergeTable(self._listed, self.vocab_size)

    def _symbols(self, text: str) -> list[int]:
        """One id a character; where the vocabulary lacks it, its bytes; where it lacks one of these, unknown.

        An unknown waits to be fused with the next one and is written before the next known character, so the bytes of
        a character in between come first: the reference does so, and ids must be its ids.
        """
        symbols: list[int] = []
        waiting = False
        for c in text:
            id = self._vocab.get(c)
            if id is not None:
                if waiting:
                    symbols.append(self._unknown)
                    waiting = False
                symbols.append(id)
                continue
            spelled = [self._byte_ids[b] for b in c.encode("utf-8")] if self._spec.byte_fallback else [None]
            if None not in spelled:
                symbols += [b for b in spelled if b is not None]
            else:
                if waiting and not self._spec.fuse_unk:
                    symbols.append(self._unknown)
                waiting = True
        if waiting:
            symbols.append(self._unknown)
        return symbols

    @property
    def _unknown(self) -> int:
        assert self._unk is not None, "read_spec lets no file through that needs an unknown token and has none"
        return self._unk


def normalized(spec: JsonSpec, text: str, *, bare: bool = False) -> str:
    """What the normalizer makes of a text, without the mark in front where ``bare``."""
    if spec.prefix == "prepend" and text and not bare:
        text = SPACE_MARK + text
    return text.replace(" ", SPACE_MARK) if spec.normalizes_spaces else text


def load_json_bpe(path: Path, root: dict[str, Any], data: bytes, companions: Companions) -> JsonBPE:
    """Load a ``tokenizer.json`` of the sentencepiece kind; raises ``TokenizerError`` for any other."""
    spec = read_spec(path, root, data)
    id_of = dict(spec.vocab) | {a.content: a.id for a in spec.added}
    special = {a.content for a in spec.added if a.special}
    covered = spec.byte_fallback and {f"<0x{b:02X}>" for b in range(256)} <= spec.vocab.keys() - special
    if spec.unk_token is None and not covered:
        raise TokenizerError(
            f"{path}: model.unk_token is null and bytes have no complete fallback, so characters would vanish; "
            "expected an unk_token, or byte_fallback with all of <0x00> to <0xFF>"
        )
    check_added(path, companions, id_of)
    pieces = names_by_id(spec.vocab, spec.added)
    unk = spec.vocab.get(spec.unk_token) if spec.unk_token is not None and not covered else None
    own, others = control_of(pieces, spec.added, spec.single, companions.special)
    # A single character, and a byte piece, stays text even if a small file gives it a role (a line end as eos).
    others = {id for id in others if len(pieces[id] or "") > 1 and byte_of(pieces[id] or "") is None}
    control = frozenset((own | others) - {unk})
    written = list(pieces)
    for a in spec.added:
        if a.normalized:  # it was found in normalised text with its mark, so it brings back that space
            written[a.id] = normalized(spec, a.content)
    vocabulary = make_vocabulary(
        companions,
        spec.data,
        pieces=pieces,
        contributions=[_contribution(spec, i, piece, unk) for i, piece in enumerate(written)],
        control_ids=control,
        roles={"unk_token": spec.unk_token},
        single=spec.single,
        strips_space=spec.strips_space,
    )
    return JsonBPE(spec, vocabulary)


def _contribution(spec: JsonSpec, id: int, piece: str | None, unk: int | None) -> bytes:
    if piece is None:
        return b""
    if id == unk:
        return REPLACEMENT.encode()
    byte = byte_of(piece) if spec.decodes_bytes else None
    if byte is not None:
        return bytes([byte])
    return (piece.replace(SPACE_MARK, " ") if spec.decodes_marks else piece).encode("utf-8")
