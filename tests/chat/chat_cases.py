"""A tokenizer whose ids can be written down by hand: a byte is its own id, control tokens follow from 256 on."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from minitune.tokenizer import Tokenizer, load_tokenizer
from minitune.tokenizer.byte_level_spec import BYTE_CHARS

BOS, EOS, PAD = 256, 257, 258
"""The start token, the end-of-text token, and one for padding."""
CONTROL: dict[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": ("[INST]", "[/INST]"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "phi3": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "text": (),
}
"""The control tokens of each family, in the order of their ids from 259 on."""
FAMILY = {
    "alpaca": "text", "chatml": "chatml", "qwen": "chatml", "qwen2": "chatml", "smollm2": "chatml", "llama2": "text",
    "llama3": "llama3", "llama3.1": "llama3", "mistral-v1": "text", "mistral-v2": "mistral", "mistral-v3": "mistral",
    "mistral-v3-tekken": "mistral", "gemma": "gemma", "gemma3": "gemma", "zephyr": "text", "phi3": "phi3",
    "plain": "text",
}  # fmt: skip
"""The family of each template."""


@cache
def byte_tokenizer(family: str, *, pad_is_eos: bool = False) -> Tokenizer:
    """The tokenizer of a family; the tokens of Phi-3 swallow the white space behind them, as the published ones do."""
    names = ("<s>", "</s>", "<pad>", *CONTROL[family])
    flags = {"special": True, "normalized": False, "single_word": False, "lstrip": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocab = {char: byte for byte, char in BYTE_CHARS.items()} | {name: 256 + i for i, name in enumerate(names)}
    spec: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [
            {"id": 256 + i, "content": name, "rstrip": family == "phi3" and i > 2} | flags
            for i, name in enumerate(names)
        ],
        "normalizer": None,
        "pre_tokenizer": dict(level),
        "post_processor": None,
        "decoder": dict(level),
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": False, "vocab": vocab, "merges": []},
    }  # fmt: skip
    pad = "</s>" if pad_is_eos else "<pad>"
    folder = Path(mkdtemp(prefix="minitune-tests-"))
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "pad_token": pad}), encoding="utf-8"
    )
    return load_tokenizer(folder)
