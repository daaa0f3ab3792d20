"""Texts and tiny tokenizer files that the tokenizer tests share."""

import io
import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.tokenizer import SPACE, random_texts
from minitune.tokenizer import load_tokenizer
from minitune.tokenizer.byte_level_spec import BYTE_CHARS

__all__ = ["SPACE", "random_texts"]  # and what follows; these two are shared with the benchmark

published = cache(load_tokenizer)  # of real files, which stay as they are; what a test writes it loads itself


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
