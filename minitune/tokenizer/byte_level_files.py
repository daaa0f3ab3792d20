"""Byte-level BPE kept in ``vocab.json`` and ``merges.txt``, as GPT-2 and Qwen2 publish it."""

from pathlib import Path

from minitune.errors import TokenizerError
from minitune.tokenizer.byte_level import ByteLevelBPE, byte_level_tokenizer
from minitune.tokenizer.byte_level_spec import (
    GPT2_PATTERN,
    QWEN2_PATTERN,
    ByteLevelSpec,
    check_bytes,
    read_merges,
    spelled,
)
from minitune.tokenizer.files import Companions, read_bytes, read_json
from minitune.tokenizer.json_spec import flag, read_added, read_vocab, refuse

# tokenizer_class, with or without Fast: the pattern that cuts text, and whether text becomes NFC first.
CLASSES = {"GPT2Tokenizer": (GPT2_PATTERN, False), "Qwen2Tokenizer": (QWEN2_PATTERN, True)}


def load_vocab_and_merges(path: Path, companions: Companions) -> ByteLevelBPE:
    """Load a ``vocab.json`` with the ``merges.txt`` beside it; raises ``TokenizerError`` with one line."""
    config = read_json(companions.config)[0] if companions.config.is_file() else {}
    name = companions.tokenizer_class or "GPT2Tokenizer"
    if name.removesuffix("Fast") not in CLASSES:
        refuse(companions.config, "tokenizer_class", name, "GPT2Tokenizer or Qwen2Tokenizer for a vocab.json")
    pattern, nfc = CLASSES[name.removesuffix("Fast")]
    root, data = read_json(path)
    vocab = read_vocab(path, root)
    check_bytes(path, vocab)
    merges_path = path.with_name("merges.txt")
    merges_data = read_bytes(merges_path)
    try:
        lines = merges_data.decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{merges_path}: byte {error.start} is not UTF-8; the file is damaged") from None
    merges = [line for line in lines[lines[0].startswith("#version") :] if line]
    entries = [
        {"special": token in companions.special} | companions.flags.get(token, {}) | {"id": id, "content": token}
        for token, id in companions.added.items()
    ]
    spec = ByteLevelSpec(
        path=path,
        fingerprint_data=b"\0".join((data, merges_data, repr((pattern, nfc, entries)).encode())),
        vocab=vocab,
        token_bytes=spelled(vocab),
        merges=read_merges(merges_path, merges, vocab),
        ignore_merges=False,
        added=read_added(companions.config.parent, entries, vocab),
        nfc=nfc,
        pattern=pattern,
        prefix_space=flag(companions.config, config, "add_prefix_space", False),
    )
    return byte_level_tokenizer(spec, companions)
