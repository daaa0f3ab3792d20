"""The sentencepiece kind of BPE kept in a ``tokenizer.json``: one long symbol sequence, merges across spaces."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minitune.errors import TokenizerError
from minitune.tokenizer.base import REPLACEMENT, SPACE_MARK, Tokenizer, Vocabulary, byte_of, role_id, without_surrogates
from minitune.tokenizer.files import ROLES, Companions, check_added
from minitune.tokenizer.json_spec import AddedToken, JsonSpec, read_spec
from minitune.tokenizer.merge import MergeTable

# White space as the reference's regular expressions have it: without U+001C..U+001F, which Python's str counts in.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


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
        merges = [(ids[a], ids[b], ids[a + b]) for a, b in spec.merges if a + b in self._vocab]
        self._merges = MergeTable(merges, self.vocab_size)
        self._byte_ids = [self._vocab.get(f"<0x{b:02X}>") for b in range(256)]
        passed_over = self.control_ids | {a.id for a in spec.added if a.special}  # an unknown token may be special too
        self._raw = AddedMatcher([(a.content, a) for a in spec.added if not a.normalized], passed_over)
        self._normal = AddedMatcher([(normalized(spec, a.content), a) for a in spec.added if a.normalized], passed_over)

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        ids: list[int] = []
        for start, stretch, added in self._raw.split(without_surrogates(text)):
            if added is not None:
                ids.append(added.id)
                continue
            bare = continues and start == 0
            normal = normalized(self._spec, stretch, bare=bare)
            for at, piece, found in self._normal.split(normal):
                if found is not None:
                    ids.append(found.id)
                else:
                    ids += self._pieces_of(self._marked(piece, first=start + at == 0, bare=bare and at == 0))
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
        return self._merges.apply(self._symbols(text))

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


class AddedMatcher:
    """Added tokens in a text: leftmost first, longest first; special ones are passed over and stay text."""

    def __init__(self, tokens: list[tuple[str, AddedToken]], passed_over: frozenset[int]):
        self._tokens = dict(tokens)
        self._passed_over = passed_over
        longest_first = sorted(self._tokens, key=len, reverse=True)
        # Where every added token is special nothing is ever matched, and texts need no scan.
        wanted = any(a.id not in passed_over for a in self._tokens.values())
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if wanted else None

    def split(self, text: str) -> Iterator[tuple[int, str, AddedToken | None]]:
        """Yield ``(start, text, None)`` for stretches of text and ``(start, text, token)`` for tokens found."""
        done = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            token = self._tokens[match[0]]
            if token.id in self._passed_over:
                continue
            start, stop = match.span()
            if token.lstrip:
                start = max(len(text[:start].rstrip(WHITE_SPACE)), done)
            if token.rstrip:
                stop = len(text) - len(text[stop:].lstrip(WHITE_SPACE))
            if done < start:
                yield done, text[done:start], None
            yield start, text[start:stop], token
            done = stop
        if done < len(text):
            yield done, text[done:], None


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
    pieces: list[str | None] = [None] * (max(id_of.values()) + 1)
    for token, id in id_of.items():
        pieces[id] = token
    roles = _roles(spec, companions, id_of)
    unk = spec.vocab.get(spec.unk_token) if spec.unk_token is not None and not covered else None
    control = _control_ids(spec, companions, pieces, unk)
    bos_id, eos_id, pad_id, unk_id = (role_id(roles.get(role), role, id_of, companions.config) for role in ROLES)
    by_processor = bool(spec.single) and spec.single[0] is not None and id_of.get(spec.single[0]) == bos_id
    adds_bos = bos_id is not None and (by_processor if companions.add_bos is None else companions.add_bos)
    written = list(pieces)
    for a in spec.added:
        if a.normalized:  # it was found in normalised text with its mark, so it brings back that space
            written[a.id] = normalized(spec, a.content)
    extra = json.dumps([sorted(control), bos_id, eos_id, pad_id, unk_id, adds_bos]).encode()
    vocabulary = Vocabulary(
        pieces=pieces,
        contributions=[_contribution(spec, i, piece, control, unk) for i, piece in enumerate(written)],
        control_ids=control,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        unk_id=unk_id,
        adds_bos=adds_bos,
        strips_space=spec.strips_space,
        files=companions.files,
        fingerprint=hashlib.sha256(spec.data + b"\0" + extra).hexdigest(),
    )
    return JsonBPE(spec, vocabulary)


def _roles(spec: JsonSpec, companions: Companions, id_of: dict[str, int]) -> dict[str, str | None]:
    """Role to name: the file's own word (its unk_token, its post-processor) where the small files say nothing."""
    own: dict[str, str | None] = {"unk_token": spec.unk_token}
    if spec.single and spec.single[0] in id_of:
        own["bos_token"] = spec.single[0]
    if len(spec.single) > 1 and spec.single[-1] in id_of:
        own["eos_token"] = spec.single[-1]
    return own | companions.roles


def _control_ids(spec: JsonSpec, companions: Companions, pieces: list[str | None], unk: int | None) -> frozenset[int]:
    """Ids that text must never become: special tokens, free ids, and pieces that the small files call special.

    A single character, and a byte piece, stays text even if a small file gives it a role (a line end as eos).
    """
    control = {a.id for a in spec.added if a.special}
    for id, piece in enumerate(pieces):
        if piece is None or (piece in companions.special and len(piece) > 1 and byte_of(piece) is None):
            control.add(id)
    control |= {a.id for a in spec.added if a.content in spec.single}
    return frozenset(control - {unk})


def _contribution(spec: JsonSpec, id: int, piece: str | None, control: frozenset[int], unk: int | None) -> bytes:
    if piece is None or id in control:
        return b""
    if id == unk:
        return REPLACEMENT.encode()
    byte = byte_of(piece) if spec.decodes_bytes else None
    if byte is not None:
        return bytes([byte])
    return (piece.replace(SPACE_MARK, " ") if spec.decodes_marks else piece).encode("utf-8")
