"""tiktoken's rank files: a line for each token, its bytes in base64 and its rank, as Llama 3, Qwen and GPT-2 have them.

Such a file says neither how text is cut nor which ids are control tokens: its publisher's program does. So only the
vocabularies named here are read, known by their size and their last token; any other is refused, not guessed.
"""

from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from minitune.errors import TokenizerError
from minitune.tokenizer.added import AddedToken
from minitune.tokenizer.byte_level import ByteLevelBPE, byte_level_tokenizer
from minitune.tokenizer.byte_level_spec import (
    BYTE_CHARS,
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    QWEN2_PATTERN,
    ByteLevelSpec,
)
from minitune.tokenizer.files import Companions, shown

_ALPHABET = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What the publisher's program knows of a vocabulary. The control tokens have the ids behind the ranks."""

    size: int
    last: bytes
    pattern: str
    control: Sequence[str]
    nfc: bool = False
    roles: dict[str, str | None] = field(default_factory=dict)
    adds_bos: bool = False


def _llama3_control() -> list[str]:
    """The 256 control tokens by the names of Llama 3.1; 3.0 has the same ids, three of them reserved there."""
    names = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id"}
    names |= {7: "end_header_id", 8: "eom_id", 9: "eot_id", 10: "python_tag"}
    reserved = iter(range(256))
    return [f"<|{names[i] if i in names else f'reserved_special_token_{next(reserved)}'}|>" for i in range(256)]


PUBLISHED = {
    "Llama 3": Published(
        size=128_000,
        last="\u9526".encode(),
        pattern=LLAMA3_PATTERN,
        control=_llama3_control(),
        roles={"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        adds_bos=True,
    ),
    "Qwen": Published(
        size=151_643,
        last="\u2f57".encode(),
        pattern=QWEN2_PATTERN,
        nfc=True,
        control=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))],
        roles={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    ),
    "GPT-2": Published(
        size=50_256,
        last=b" gazed",
        pattern=GPT2_PATTERN,
        control=["<|endoftext|>"],
        roles={"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    ),
}


def is_rank_file(data: bytes) -> bool:
    """Whether the first line is base64, a space and a rank, as in the files that tiktoken reads."""
    fields = data[:4096].split(b"\n", 1)[0].split()
    return len(fields) == 2 and fields[1].isdigit() and set(fields[0]) <= _ALPHABET


def load_rank_file(path: Path, data: bytes, companions: Companions) -> ByteLevelBPE:
    """Load a rank file; raises ``TokenizerError`` with one line where it is damaged or of an unknown vocabulary."""
    spec = read_rank_file(path, data, companions)
    if path not in companions.files:
        companions = replace(companions, files=(path, *companions.files))
    return byte_level_tokenizer(spec, companions)


def read_rank_file(path: Path, data: bytes, companions: Companions) -> ByteLevelSpec:
    """Read and check a rank file of a vocabulary known here.

    Names of control tokens in ``tokenizer_config.json`` or ``added_tokens.json`` go before the publisher's.
    """
    tokens = read_ranks(path, data)
    known = next((p for p in PUBLISHED.values() if (p.size, p.last) == (len(tokens), tokens[-1])), None)
    if known is None:
        sizes = ", ".join(f"{name} ({p.size})" for name, p in PUBLISHED.items())
        raise TokenizerError(
            f"{path}: its {len(tokens)} ranks are no vocabulary known here ({sizes}), and a rank file does not say how "
            "text is cut; name the tokenizer.json of this model instead"
        )
    table = str.maketrans({chr(b): char for b, char in BYTE_CHARS.items()})
    names = [token.decode("latin-1").translate(table) for token in tokens]
    control = {known.size + i: name for i, name in enumerate(known.control)}
    control |= {id: name for name, id in companions.added.items() if id >= known.size}
    flags = {name: companions.flags.get(name, {}) | {"special": True} for name in control.values()}
    return ByteLevelSpec(
        path=path,
        fingerprint_data=b"\0".join((data, repr((known.pattern, known.nfc, control)).encode())),
        vocab={name: id for id, name in enumerate(names)},
        token_bytes=dict(enumerate(tokens)),
        merges=[],
        ignore_merges=True,
        ranked=True,
        added=[AddedToken(id=id, content=name, **flags[name]) for id, name in control.items()],
        nfc=known.nfc,
        pattern=known.pattern,
        prefix_space=False,
        roles=known.roles,
        single=(known.roles["bos_token"], None) if known.adds_bos else (None,),
    )


def read_ranks(path: Path, data: bytes) -> list[bytes]:
    """Return the tokens in the order of their ranks, which are ``0, 1, 2, ...``; every single byte is among them."""
    lines = data.splitlines()
    try:  # all at once, as there are up to 200,000
        encoded, ranks = zip(*map(bytes.split, lines), strict=True)
        tokens = list(map(_decoded, encoded))
        if list(map(int, ranks)) != list(range(len(tokens))):
            raise ValueError
    except (ValueError, Base64Error):
        tokens = [_read_line(path, i, line) for i, line in enumerate(lines)]
    rank_of = {token: rank for rank, token in enumerate(tokens)}
    if len(rank_of) < len(tokens):
        rank = next(i for i, token in enumerate(tokens) if rank_of[token] != i)
        raise TokenizerError(
            f"{path}: line {rank + 1} has the token {shown(tokens[rank])}, and so has line "
            f"{rank_of[tokens[rank]] + 1}; expected every token once"
        )
    absent = next((b for b in range(256) if bytes([b]) not in rank_of), None)
    if absent is not None:
        raise TokenizerError(
            f"{path}: has no token for the byte 0x{absent:02X}; expected one for each of the 256 bytes"
        )
    return tokens


def _decoded(text: bytes) -> bytes:
    return a2b_base64(text, strict_mode=True)


def _read_line(path: Path, rank: int, line: bytes) -> bytes:
    try:
        encoded, number = line.split()
        token = _decoded(encoded)
        if token and int(number) == rank:
            return token
    except (ValueError, Base64Error):
        pass
    raise TokenizerError(
        f"{path}: line {rank + 1} is {shown(line)}; expected a token in base64, a space and the rank {rank}"
    )
