"""What a byte-level BPE vocabulary says, and how a ``tokenizer.json`` says it; what is not known is refused by name.

GPT-2 writes every byte as one printable character (``"\\u0120"`` for a space), so tokens of any bytes are JSON text.
"""

import re
from dataclasses import dataclass, field
from itertools import repeat
from operator import add
from pathlib import Path
from typing import Any

from minitune.errors import TokenizerError
from minitune.tokenizer.files import shown
from minitune.tokenizer.json_spec import AddedToken, flag, parts_of, read_added, read_template, read_vocab, refuse
from minitune.tokenizer.proved import ids_are_ranks

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [b for b in range(256) if b not in _PRINTABLE]
BYTE_CHARS = {b: chr(b) for b in _PRINTABLE} | {b: chr(256 + n) for n, b in enumerate(_OTHERS)}
_TO_LATIN = {ord(char): b for b, char in BYTE_CHARS.items()}
# Latin letters that stand for no byte would pass through the table as themselves; this one has no byte to become.
_TO_LATIN |= dict.fromkeys(_OTHERS, 0xFFFD)
IN_UTF8 = [b for b in range(256) if b not in (0xC0, 0xC1) and b < 0xF5]  # no other byte occurs in a text
_NEEDED = [b for b in IN_UTF8 if b in b"\t\n\r" or 0x20 <= b < 0x7F or 0x7F < b < 0xF1]

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = _CASELESS + r"\p{N}{1,3}" + _REST
QWEN2_PATTERN = _CASELESS + r"\p{N}" + _REST
# Digits first, then GPT-2's pattern on what lies between: white space before a digit ends its stretch, as at the end.
DIGITS_PATTERN = r"%s|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
WHOLE_PATTERN = r"[\s\S]+"
_COVERING = (GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN)

# What the regular expression engines read alike. Escapes and groups beyond these differ from engine to engine.
_SAFE_REGEX = re.compile(
    r"(?:\\[pP]\{(?:L|N|M|P|S|Z|Lu|Lt|Lm|Ll|Lo|Nd|Nl|No)\}|\\[sSrnt]|\\[.*+?()\[\]{}|/^$\\-]"
    r"|\(\?(?:i:|:|!)|\((?!\?)|\{\d{1,3}(?:,\d{0,3})?\}(?![+?])|[)|?*+\[\]^\-]|[^\\\[\](){}|?*+^$.&#~\-])*"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteLevelSpec:
    """A byte-level BPE vocabulary. ``merges`` are ``(left id, right id, merged id)``, best first.

    ``ranked``: there are no merges, as ids are ranks: two neighbours merge where their bytes make a token, and a whole
    piece that is a token is one.
    ``token_bytes``: the tokens that text can spell, by id; other names are reached by name only.
    ``pattern``: the regular expression whose matches are the pieces that merges stay inside of.
    """

    path: Path
    fingerprint_data: bytes
    vocab: dict[str, int]
    token_bytes: dict[int, bytes]
    merges: list[tuple[int, int, int]]
    ignore_merges: bool
    added: list[AddedToken]
    nfc: bool
    pattern: str
    prefix_space: bool
    ranked: bool = False
    unk_token: str | None = None
    roles: dict[str, str | None] = field(default_factory=dict)
    single: tuple[str | None, ...] = (None,)


def bytes_of(token: str) -> bytes | None:
    """Return the bytes that a token in GPT-2's alphabet stands for, or None where it is not written in it."""
    try:
        return token.translate(_TO_LATIN).encode("latin-1")
    except UnicodeEncodeError:
        return None


def spelled(vocab: dict[str, int]) -> dict[int, bytes]:
    """Return id to bytes for every token of a vocabulary that is written in GPT-2's alphabet."""
    found = ((id, bytes_of(token)) for token, id in vocab.items())
    return {id: data for id, data in found if data}


def check_bytes(path: Path, vocab: dict[str, int]) -> None:
    """Raise ``TokenizerError`` where a byte of printable text has no token."""
    for b in _NEEDED:
        if BYTE_CHARS[b] not in vocab:
            raise TokenizerError(
                f"{path}: the vocabulary has no token {BYTE_CHARS[b]!r} for the byte 0x{b:02X}, so characters would "
                "vanish; expected one for every byte of a printable character"
            )


def read_byte_level(path: Path, root: dict[str, Any], data: bytes) -> ByteLevelSpec:
    """Read and check a ``tokenizer.json`` whose kind is byte-level BPE; raises ``TokenizerError`` with one line."""
    model = root["model"]
    pattern, prefix_space = _read_pre_tokenizer(path, root.get("pre_tokenizer"))
    decoder = parts_of(path, root.get("decoder"), "decoder", "decoders")
    if [part["type"] for part in decoder] != ["ByteLevel"]:
        refuse(path, "decoder", [part["type"] for part in decoder] or None, "ByteLevel, as its pre-tokenizer has")
    nfc = _read_normalizer(path, root.get("normalizer"))
    if flag(path, model, "model.byte_fallback", False):
        refuse(path, "model.byte_fallback", True, "false, as every byte has its token in byte-level BPE")
    vocab = read_vocab(path, model.get("vocab"))
    unk_token = model.get("unk_token")
    if unk_token is not None and unk_token not in vocab:
        raise TokenizerError(f"{path}: model.unk_token is {shown(unk_token)}; expected a token of the vocabulary")
    check_bytes(path, vocab)
    ignore_merges = flag(path, model, "model.ignore_merges", False)
    ranked = ignore_merges and ids_are_ranks(vocab, model.get("merges"))
    return ByteLevelSpec(
        path=path,
        fingerprint_data=data,
        vocab=vocab,
        token_bytes=spelled(vocab),
        merges=[] if ranked else read_merges(path, model.get("merges"), vocab),
        ignore_merges=ignore_merges,
        ranked=ranked,
        added=read_added(path, root.get("added_tokens"), vocab),
        nfc=nfc,
        pattern=pattern,
        prefix_space=prefix_space,
        unk_token=unk_token,
        single=_read_post_processor(path, root.get("post_processor")),
    )


def read_merges(path: Path, merges: object, vocab: dict[str, int], what: str = "merge") -> list[tuple[int, int, int]]:
    """Return merges as ids; each is ``"left right"`` or a list of two."""
    if not isinstance(merges, list):
        raise TokenizerError(f"{path}: model.merges is {shown(merges)}; expected a list of pairs")
    if not merges:
        return []
    find = vocab.__getitem__
    try:  # all at once, as the largest vocabularies have 300,000
        if type(merges[0]) is str:
            if set(map(str.count, merges, repeat(" "))) != {1}:
                raise ValueError
            tokens = " ".join(merges).split(" ")
            lefts, rights = tokens[::2], tokens[1::2]
        else:
            if set(map(type, merges)) != {list}:
                raise TypeError
            lefts, rights = zip(*merges, strict=True)
        return list(zip(map(find, lefts), map(find, rights), map(find, map(add, lefts, rights)), strict=True))
    except (KeyError, TypeError, ValueError):
        return [_read_merge(path, f"{what} {i}", merge, vocab) for i, merge in enumerate(merges)]


def _read_merge(path: Path, where: str, merge: object, vocab: dict[str, int]) -> tuple[int, int, int]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)):
        raise TokenizerError(
            f"{path}: {where} is {shown(merge)}; expected two tokens with one space between them, or a list of two"
        )
    for token in (*parts, "".join(parts)):
        if token not in vocab:
            raise TokenizerError(
                f"{path}: {where} {'names' if token in parts else 'makes'} {shown(token)}, which is not in the "
                "vocabulary; vocabulary and merges must belong together"
            )
    left, right = parts
    return vocab[left], vocab[right], vocab[left + right]


def _read_normalizer(path: Path, component: object) -> bool:
    types = [part["type"] for part in parts_of(path, component, "normalizer", "normalizers")]
    for kind in types:
        if kind != "NFC":
            refuse(path, "normalizer", kind, "null or NFC")
    return bool(types)


def _read_post_processor(path: Path, component: object) -> tuple[str | None, ...]:
    parts = parts_of(path, component, "post_processor", "processors")
    rest = [part for part in parts if part["type"] != "ByteLevel"]  # that one moves offsets only
    if len(rest) > 1:
        refuse(path, "post_processor", [part["type"] for part in parts], "ByteLevel and one TemplateProcessing")
    return tuple(read_template(path, rest[0] if rest else None))


def _read_pre_tokenizer(path: Path, component: object) -> tuple[str, bool]:
    """The one pattern that cuts a text just as the file's parts do, and whether a space is put in front."""
    parts = parts_of(path, component, "pre_tokenizer", "pretokenizers")
    types = [part["type"] for part in parts]
    expected = "ByteLevel, Digits and ByteLevel, or Split and ByteLevel with use_regex false"
    if types not in (["ByteLevel"], ["Digits", "ByteLevel"], ["Split", "ByteLevel"]):
        refuse(path, "pre_tokenizer", types or None, expected)
    use_regex = flag(path, parts[-1], "pre_tokenizer.use_regex", True)
    prefix_space = flag(path, parts[-1], "pre_tokenizer.add_prefix_space", True)
    if len(parts) == 1:
        return (GPT2_PATTERN if use_regex else WHOLE_PATTERN), prefix_space
    if prefix_space:
        refuse(path, "pre_tokenizer.add_prefix_space", True, f"false after a {types[0]}")
    if use_regex == (types[0] == "Split"):
        refuse(path, "pre_tokenizer.use_regex", use_regex, expected)
    if types[0] == "Split":
        return _read_split(path, parts[0]), False
    alone = flag(path, parts[0], "pre_tokenizer.individual_digits", False)
    return DIGITS_PATTERN % (r"\p{N}" if alone else r"\p{N}+"), False


def _read_split(path: Path, part: dict[str, Any]) -> str:
    given = part.get("pattern")
    pattern = given.get("Regex") if isinstance(given, dict) else None
    if not isinstance(pattern, str) or not pattern:
        refuse(path, "pre_tokenizer.pattern", given, "an object with Regex")
    form = (part.get("behavior"), flag(path, part, "pre_tokenizer.invert", False))
    if form not in (("Isolated", False), ("Isolated", True), ("Removed", True)):
        refuse(path, "pre_tokenizer.behavior, invert", form, "'Isolated', or 'Removed' with invert true")
    if pattern in _COVERING:  # every character is in some match, so nothing lies between and nothing is removed
        return pattern
    if form[0] == "Removed":
        refuse(path, "pre_tokenizer.pattern", pattern, "one that covers every text, as what it misses would vanish")
    _check_pattern(path, pattern)
    return rf"(?:{pattern})|(?:(?!{pattern})[\s\S])+"  # what lies between two matches is a piece as well


def _check_pattern(path: Path, pattern: str) -> None:
    """Refuse a pattern that engines may read differently, or that matches the empty text."""
    expected = "plain characters, \\p{L} and the like, \\s, \\r, \\n, classes, (?:...), (?i:...), (?!...) and repeats"
    if not _SAFE_REGEX.fullmatch(pattern):
        refuse(path, "pre_tokenizer.pattern", pattern, expected)
    try:
        empty = re.compile(re.sub(r"\\[pP]\{\w+\}", r"\\w", pattern)).match("")
    except (re.error, RecursionError, OverflowError):
        refuse(path, "pre_tokenizer.pattern", pattern, expected)
    if empty:
        refuse(path, "pre_tokenizer.pattern", pattern, "one that does not match the empty text")
