"""Byte-level BPE, the kind of GPT-2: text is cut into pieces, and each is merged from bytes, by tiktoken if it can."""

import re
import sys
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from minitune.errors import TokenizerError
from minitune.tokenizer.added import WHITE_SPACE, AddedTokens
from minitune.tokenizer.base import Tokenizer, Vocabulary, without_surrogates
from minitune.tokenizer.byte_level_spec import IN_UTF8, ByteLevelSpec, read_byte_level
from minitune.tokenizer.files import Companions, check_added
from minitune.tokenizer.merge import MergeTable
from minitune.tokenizer.ranks import all_cuts, live_merges, proved_order
from minitune.tokenizer.vocabulary import control_of, make_vocabulary, names_by_id

LONGEST_BLANK = 100_000  # a run of a million white space characters overflows the stack of tiktoken's engine


class ByteLevelBPE(Tokenizer):
    """BPE over bytes; ids equal those of the ``tokenizers`` library with ``encode_special_tokens`` on.

    Special tokens are never found in a text; other added tokens are, as there, white space flags included. A merge
    whose result is a control id is never taken, so no typed text becomes one. ``continues`` matters only where the
    file puts a space in front; it does so where none is, and a text that starts with one comes back without it. With
    NFC in the file, a text that is not NFC comes back normalised. A vocabulary may lack bytes of control characters
    and of rare planes (SmolLM2's does): they are passed over, as in the library.
    """

    def __init__(self, spec: ByteLevelSpec, vocabulary: Vocabulary):
        super().__init__(vocabulary)
        self._nfc = spec.nfc
        self._prefix_space = spec.prefix_space
        self._added = AddedTokens(spec.added, self.control_ids, self.control_names(), self._normalized)
        merges = live_merges(spec.merges, spec.token_bytes, self.control_ids)
        made = {id for _, _, id in merges}
        whole = frozenset[int]()
        if spec.ignore_merges:
            spelled = {id for id, data in spec.token_bytes.items() if len(data) > 1}
            whole = frozenset(spelled - made - self.control_ids)
        if spec.ranked:
            order, whole, made = sorted(whole), frozenset[int](), whole
        else:
            order = proved_order(merges, spec.token_bytes, whole, takes_whole=spec.ignore_merges)
        self.by_ranks = order is not None
        by_list = list_engine(spec, merges, whole | made if spec.ignore_merges else whole)
        self._encode_plain = by_list if order is None else rank_engine(spec, order, whole)
        if order is not None:
            known = {data[0] for data in spec.token_bytes.values() if len(data) == 1}
            absent = bytes(b for b in IN_UTF8 if b not in known)
            self._encode_plain = with_care(self._encode_plain, by_list, absent)

    def encode(self, text: str, *, continues: bool = False, control: bool = False) -> list[int]:
        ids: list[int] = []
        for start, piece, found in self._added.split(without_surrogates(text), self._normalized, control=control):
            if found is not None:
                ids.append(found)
                continue
            if self._prefix_space and not (continues and start == 0) and not piece.startswith(" "):
                piece = " " + piece
            ids += self._encode_plain(piece)
        return ids

    def _normalized(self, text: str, start: int = 0) -> str:
        return unicodedata.normalize("NFC", text) if self._nfc else text


def rank_engine(spec: ByteLevelSpec, order: list[int], whole: frozenset[int]) -> Callable[[str], list[int]]:
    """Return text to ids by tiktoken; ``order`` are the merged ids in the order of their ranks."""
    import tiktoken  # here, so that importing minitune.tokenizer stays quick

    token_bytes = spec.token_bytes
    single = [id for id, data in token_bytes.items() if len(data) == 1]
    id_of: list[int] | None = None
    if all(map(int.__lt__, order, order[1:])):
        ranks = {token_bytes[id]: id for id in (*single, *order, *whole)}  # ids are ranks, so they are the answer
    else:
        id_of = [*single, *order, *whole]
        ranks = {token_bytes[id]: rank for rank, id in enumerate(id_of)}
    try:
        encoding = tiktoken.Encoding("", pat_str=spec.pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise TokenizerError(f"{spec.path}: tiktoken cannot read its pre_tokenizer pattern ({reason})") from None
    encode = encoding.encode_ordinary
    if id_of is None:
        return encode
    ids = id_of
    return lambda text: [ids[rank] for rank in encode(text)]


def list_engine(
    spec: ByteLevelSpec, merges: list[tuple[int, int, int]], whole: frozenset[int]
) -> Callable[[str], list[int]]:
    """Return text to ids by the list of merges itself, for vocabularies where ranks are not proved to give the same."""
    byte_ids = {data[0]: id for id, data in spec.token_bytes.items() if len(data) == 1}

    @cache
    def prepared() -> tuple[re.Pattern[str], MergeTable, dict[bytes, int]]:  # seldom wanted, so made only then
        listed = all_cuts(spec.token_bytes, sorted(whole)) if spec.ranked else merges
        table = MergeTable(listed, max(spec.vocab.values()) + 1)
        return python_pattern(spec.pattern), table, {spec.token_bytes[id]: id for id in whole}

    @lru_cache(maxsize=1 << 16)
    def ids_of(piece: bytes) -> tuple[int, ...]:
        _, table, taken_whole = prepared()
        if piece in taken_whole:
            return (taken_whole[piece],)
        return tuple(table.apply([byte_ids[b] for b in piece if b in byte_ids]))

    return lambda text: [id for match in prepared()[0].finditer(text) for id in ids_of(match[0].encode("utf-8"))]


def with_care(
    by_ranks: Callable[[str], list[int]], by_list: Callable[[str], list[int]], absent: bytes
) -> Callable[[str], list[int]]:
    """Return text to ids that leaves to the list what ranks cannot do: a byte to pass over, a very long blank run."""
    has_absent = re.compile(b"[" + re.escape(absent) + b"]").search if absent else None
    has_long_blank = re.compile(f"[{WHITE_SPACE}]{{{LONGEST_BLANK}}}").search

    def encode(text: str) -> list[int]:
        rare = (len(text) >= LONGEST_BLANK and has_long_blank(text)) or (has_absent and has_absent(text.encode()))
        return by_list(text) if rare else by_ranks(text)

    return encode


def python_pattern(pattern: str) -> re.Pattern[str]:
    r"""Return a pattern for Python's own engine, which knows no ``\p{...}`` and another ``\s``."""
    out = []
    inside = False
    for part in re.findall(r"\\[pP]\{\w+\}|\\.|.", pattern, re.DOTALL):
        if part[0] == "\\" and part[1] in "pPsS":
            body = _category(part[3:-1]) if part[1] in "pP" else re.escape(WHITE_SPACE)
            negated = part[1] in "PS"
            if inside and negated:
                body, negated = _complement(body), False
            part = body if inside else f"[{'^' if negated else ''}{body}]"
        elif part in "[]":
            inside = part == "["
        out.append(part)
    return re.compile("".join(out))


@cache
def _category(name: str) -> str:
    """The inside of a character class that holds the characters of a Unicode general category."""
    return _ranges([c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)).startswith(name)])


@cache
def _complement(body: str) -> str:
    matches = re.compile(f"[{body}]").match
    return _ranges([c for c in range(sys.maxunicode + 1) if not matches(chr(c))])


def _ranges(codes: list[int]) -> str:
    starts = [c for i, c in enumerate(codes) if i == 0 or codes[i - 1] != c - 1]
    stops = [c for i, c in enumerate(codes) if i + 1 == len(codes) or codes[i + 1] != c + 1]
    return "".join(f"\\U{a:08x}-\\U{b:08x}" for a, b in zip(starts, stops, strict=True))


def load_byte_level(path: Path, root: dict[str, Any], data: bytes, companions: Companions) -> ByteLevelBPE:
    """Load a ``tokenizer.json`` of the byte-level kind; raises ``TokenizerError`` with one line."""
    return byte_level_tokenizer(read_byte_level(path, root, data), companions)


def byte_level_tokenizer(spec: ByteLevelSpec, companions: Companions) -> ByteLevelBPE:
    """Put a byte-level vocabulary and the small files beside it together."""
    pieces = names_by_id(spec.vocab, spec.added)
    check_added(spec.path, companions, spec.vocab | {a.content: a.id for a in spec.added})
    own, others = control_of(pieces, spec.added, spec.single, companions.special | {spec.unk_token or ""})
    find = spec.token_bytes.get
    contributions = [find(id) or (piece or "").encode("utf-8") for id, piece in enumerate(pieces)]
    for a in spec.added:
        contributions[a.id] = a.content.encode("utf-8")
    vocabulary = make_vocabulary(
        companions,
        spec.fingerprint_data,
        pieces=pieces,
        contributions=contributions,
        # A byte stays text even if a file gives it a role (a line end as eos).
        control_ids=frozenset(id for id in own | others if len(spec.token_bytes.get(id, b"")) != 1),
        roles={"unk_token": spec.unk_token} | spec.roles,
        single=spec.single,
        strips_space=spec.prefix_space,
    )
    return ByteLevelBPE(spec, vocabulary)
