"""Texts and tiny tokenizer files that the tokenizer tests share."""

import io
import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from minitune.tokenizer.byte_level_spec import BYTE_CHARS

SPACE = "\u2581"
STRETCHES = [
    "the cat", "Once upon a time", "\u4f60\u597d\uff0c\u4e16\u754c", "\u9f98", "\u3053\u3093\u306b\u3061\u306f",
    "\uc548\ub155", "\u041f\u0440\u0438\u0432\u0435\u0442", "\u0645\u0631\u062d\u0628\u0627",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\uff11\uff12\uff13", "e\u0301", "n\u0303o", "\ufb01n", "\u00bd", "\u00b2", "\u2163",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f44d\U0001f3fd",
    "\r\n", "\n", "\n\n\n", "\t", "\x1c", "\xa0", "\xa0\xa0", "\u3000", " ", "  ", "     ", "\u200b", "\x00", "\x7f",
    SPACE, "\ufffd", "\ufeff", "123", "4.5e-6", "def f(x):\n\treturn x", "don't", "I'll", "http://a.b/?c=d&e",
    "<0x0A>", "<|", "|>", "[/", "</", "aaaaaaaa", "========", "\U0010fffd",
]  # fmt: skip


def random_texts(seed: int, count: int, words: Sequence[str] = ()) -> list[str]:
    """Return seeded texts: stretches of many scripts, words of a vocabulary, and characters from anywhere."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(0, 8)):
            kind = rng.random()
            if kind < 0.45:
                parts.append(rng.choice(STRETCHES))
            elif kind < 0.85 and words:
                parts.append(rng.choice(words).replace(SPACE, " "))
            else:
                top = rng.choice([0x7F, 0x24F, 0x9FFF, 0x10FFFF])
                parts.append("".join(map(_character, (rng.randint(1, top) for _ in range(rng.randint(1, 3))))))
        texts.append(rng.choice(["", " "]).join(parts))
    return texts


def _character(code: int) -> str:
    return "?" if 0xD800 <= code < 0xE000 else chr(code)


def tiny_spec(*, bytes_covered: bool = True, **model: Any) -> dict[str, Any]:
    """Return a small ``tokenizer.json`` of the Llama kind, as an object to change; ``model`` overrides model keys."""
    tokens = ["<unk>", "<s>", "</s>"]
    tokens += [f"<0x{b:02X}>" for b in range(256)] if bytes_covered else []
    merges = [(SPACE, "a"), ("a", "b"), (SPACE + "a", "b"), ("b", "c"), ("ab", "c"), (SPACE, SPACE), ("c", SPACE)]
    merges += [("<", "s"), ("<s", ">"), ("/", "s"), ("<", "/s"), ("</s", ">"), ("c" + SPACE, "a")]
    tokens += list(SPACE + "abcs<>/")
    tokens += [left + right for left, right in merges if left + right not in tokens]
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    special = [{"id": i, "content": token, "special": True, "normalized": False} for i, token in enumerate(tokens[:3])]
    for entry in special:
        entry |= {"single_word": False, "lstrip": False, "rstrip": False}
    one = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": one,
            "pair": [*one, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [f"{left} {right}" for left, right in merges],
        }
        | model,
    }


def byte_spec(**model: Any) -> dict[str, Any]:
    """Return a small ``tokenizer.json`` of the byte-level kind, as an object to change; ``model`` overrides keys."""
    merges = [
        "\u0120 a",
        "a b",
        "\u0120a b",
        "b c",
        "ab c",
        "\u0120 \u0120",
        "\u00c3 \u00a9",
        "1 2",
        "12 3",
        "' s",
        "\u010a \u010a",
    ]
    merges += ["e \u00cc", "e\u00cc \u0123", "< s", "<s >", "\u0120\u0120 \u0120\u0120"]
    tokens = ["<s>", "</s>", *BYTE_CHARS.values()]
    tokens += [made for made in (merge.replace(" ", "") for merge in merges) if made not in tokens]
    special = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    chosen = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    chosen |= {"ignore_merges": False, "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": token} | special for i, token in enumerate(tokens[:2])],
        "normalizer": None,
        "pre_tokenizer": dict(level),
        "post_processor": None,
        "decoder": dict(level),
        "model": chosen | model,
    }


def add_token(spec: dict[str, Any], content: str, **flags: Any) -> int:
    """Add an added token to a spec and return its id."""
    vocab = spec["model"]["vocab"]
    taken = [*vocab.values(), *(entry["id"] for entry in spec["added_tokens"])]
    id = vocab.get(content, max(taken) + 1)
    entry = {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False}
    spec["added_tokens"].append(entry | {"normalized": False, "special": False} | flags)
    return id


def metaspace(spec: dict[str, Any], scheme: str) -> dict[str, Any]:
    """Turn a spec into the newer form: no normalizer, Metaspace without a split."""
    spec["normalizer"] = None
    spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
    return spec


def write_json(path: Path, value: object) -> Path:
    """Write a value as JSON and return the path."""
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def train_sentencepiece(folder: Path, **settings: Any) -> Path:
    """Train a small sentencepiece model into ``folder/tokenizer.model`` and return the folder."""
    import sentencepiece

    lines = ["once upon a time there was a little cat", "the cat sat on the mat", "hello world, hello there <t> x"]
    out = io.BytesIO()
    chosen: dict[str, Any] = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 330, "minloglevel": 2}
    chosen |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20),
        model_writer=out,
        user_defined_symbols=["<turn>", "[U]"],
        control_symbols=["<ctl>"],
        **(chosen | settings),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(out.getvalue())
    return folder


def slow_merge(symbols: list[int], ranks: dict[tuple[int, int], tuple[int, int]]) -> list[int]:
    """The obvious loop: find the pair of the best rank, leftmost of equals, merge it, begin again."""
    while True:
        found = [(ranks[pair][0], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]
        if not found:
            return symbols
        _, i = min(found)
        symbols = [*symbols[:i], ranks[symbols[i], symbols[i + 1]][1], *symbols[i + 2 :]]
