"""Every malformed or unknown file gets one clear line that names it, and never another kind of traceback."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_cases import SPACE, add_token, metaspace, tiny_spec, train_sentencepiece, write_json

from minitune.errors import TokenizerError
from minitune.tokenizer import Tokenizer, load_tokenizer


def fails(path: Path, *words: str, names: Path | None = None) -> None:
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(names or path) in message
    for word in words:
        assert word in message, message


def change(keys: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Return an edit that sets the entry at a path such as ``model.merges.0``."""

    def edit(spec: dict[str, Any]) -> None:
        target: Any = spec
        *before, last = keys.split(".")
        for key in before:
            target = target[int(key)] if isinstance(target, list) else target[key]
        if value is DROP:
            del target[last]
        else:
            target[int(last) if isinstance(target, list) else last] = value

    return edit


DROP = object()
LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no model": (change("model", DROP), "'model' is None"),
    "model is a list": (change("model", []), "'model' is []"),
    "no vocab": (change("model.vocab", DROP), "model.vocab"),
    "empty vocab": (change("model.vocab", {}), "model.vocab"),
    "no merges": (change("model.merges", DROP), "model.merges"),
    "no type": (change("model.type", DROP), "model.type"),
    "unigram": (change("model.type", "Unigram"), "'Unigram'"),
    "byte level pre-tokenizer": (change("pre_tokenizer", LEVEL), "ByteLevel"),
    "byte level decoder": (change("decoder", LEVEL), "ByteLevel"),
    "merge of an unknown token": (change("model.merges.0", "q z"), "merge 0 names 'q'"),
    "merge that makes nothing": (change("model.merges.0", "c c"), "merge 0 makes 'cc'"),
    "merge of bare spaces": (change("model.merges.0", "   "), "merge 0 is '   '"),
    "merge of one": (change("model.merges.0", "ab"), "merge 0"),
    "merge is a number": (change("model.merges.0", 3), "merge 0"),
    "merge of three": (change("model.merges.0", ["a", "b", "c"]), "merge 0"),
    "duplicate id": (change("model.vocab.a", 5), "the id 5"),
    "negative id": (change("model.vocab.a", -5), "-5"),
    "id is text": (change("model.vocab.a", "5"), "'5'"),
    "id is true": (change("model.vocab.a", True), "True"),
    "huge id": (change("model.vocab.a", 10**12), "1000000000000"),
    "surrogate": (change("model.vocab.\ud800", 900), "surrogate"),
    "dropout": (change("model.dropout", 0.1), "dropout"),
    "prefix": (change("model.continuing_subword_prefix", "##"), "continuing_subword_prefix"),
    "suffix": (change("model.end_of_word_suffix", "</w>"), "end_of_word_suffix"),
    "unknown model key": (change("model.magic", 1), "'magic'"),
    "unknown component": (change("magic", 1), "'magic'"),
    "unknown version": (change("version", "2.0"), "'2.0'"),
    "flag is text": (change("model.byte_fallback", "yes"), "model.byte_fallback"),
    "unk is absent": (change("model.unk_token", "<none>"), "<none>"),
    "unk is a number": (change("model.unk_token", 7), "unk_token"),
    "other normalizer": (change("normalizer", {"type": "NFKC"}), "NFKC"),
    "other prepend": (change("normalizer.normalizers.0.prepend", "_"), "normalizer"),
    "other replace": (change("normalizer.normalizers.1.pattern", {"Regex": " "}), "normalizer"),
    "two prepends": (change("normalizer.normalizers.1", {"type": "Prepend", "prepend": SPACE}), "normalizer"),
    "normalizer without a type": (change("normalizer", {}), "normalizer"),
    "normalizers is text": (change("normalizer.normalizers", "x"), "normalizer"),
    "other pre-tokenizer": (change("pre_tokenizer", {"type": "Whitespace"}), "Whitespace"),
    "no decoder": (change("decoder", None), "decoder"),
    "other decoder": (change("decoder", {"type": "WordPiece"}), "WordPiece"),
    "other strip": (change("decoder.decoders.3.start", 2), "decoder"),
    "decoder out of order": (lambda spec: spec["decoder"]["decoders"].reverse(), "decoder"),
    "post-processor": (change("post_processor", {"type": "BertProcessing"}), "BertProcessing"),
    "post-processor item": (change("post_processor.single.0", 1), "post_processor"),
    "added tokens is text": (change("added_tokens", "x"), "added_tokens"),
    "added token without content": (change("added_tokens.0", {"id": 0}), "added_tokens[0]"),
    "added token without id": (change("added_tokens.0", {"content": "<unk>"}), "added_tokens[0]"),
    "added token with another id": (change("added_tokens.1.id", 2), "added_tokens[1]"),
    "added token on a taken id": (change("added_tokens.1.content", "<new>"), "added_tokens[1]"),
    "single word": (lambda spec: add_token(spec, "[w]", single_word="yes"), "single_word"),
    "metaspace that splits": (lambda spec: metaspace(spec, "first")["pre_tokenizer"].update(split=True), "split"),
    "metaspace of another mark": (lambda spec: metaspace(spec, "first")["pre_tokenizer"].update(replacement="_"), "_"),
    "metaspace scheme": (lambda spec: metaspace(spec, "never")["pre_tokenizer"].update(prepend_scheme="x"), "'x'"),
    "characters would vanish": (
        lambda spec: spec["model"].update(unk_token=None, byte_fallback=False),
        "characters would vanish",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_malformed_json_is_named(name: str, tmp_path: Path) -> None:
    spec = tiny_spec()
    edit, word = EDITS[name]
    edit(spec)
    fails(write_json(tmp_path / "tokenizer.json", spec), word)
    fails(tmp_path, word)


NOT_OBJECTS = [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"a": 1, "a": 2}', b"[" * 100_000, b"1" * 9999]


@pytest.mark.parametrize("data", NOT_OBJECTS)
def test_bytes_that_are_no_object_are_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    fails(tmp_path / "tokenizer.json")


def test_a_pointer_instead_of_the_file(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        fails(tmp_path / name, "Git LFS")


def test_folders_and_names(tmp_path: Path) -> None:
    fails(tmp_path, "tokenizer.model", "tokenizer.json")
    fails(tmp_path / "absent", "no such file")
    (tmp_path / "vocab.json").write_text("{}", encoding="utf-8")
    fails(tmp_path, "vocab.json")
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    fails(tmp_path / "notes.txt")
    (tmp_path / "tokenizer.json").mkdir()
    fails(tmp_path, "cannot be read")


@pytest.mark.parametrize(
    ("file", "value", "word"),
    [
        ("tokenizer_config.json", {"bos_token": 3}, "bos_token"),
        ("tokenizer_config.json", {"bos_token": "<nope>"}, "<nope>"),
        ("tokenizer_config.json", {"add_bos_token": "yes"}, "add_bos_token"),
        ("tokenizer_config.json", {"additional_special_tokens": 3}, "additional_special_tokens"),
        ("tokenizer_config.json", {"additional_special_tokens": [3]}, "additional_special_tokens[0]"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": "a"}}, "'x'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": None}}, "[1]"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": "<other>"}}}, "<other>"),
        ("special_tokens_map.json", {"eos_token": {"text": "x"}}, "eos_token"),
        ("added_tokens.json", {"<s>": "1"}, "added_tokens.json"),
        ("added_tokens.json", {"<s>": 99999999}, "added_tokens.json"),
        ("added_tokens.json", [1], "added_tokens.json"),
    ],
)
def test_malformed_small_files_are_named(file: str, value: object, word: str, tmp_path: Path, sp_bpe: Path) -> None:
    write_json(tmp_path / file, value)
    write_json(tmp_path / "tokenizer.json", tiny_spec())
    fails(tmp_path, word)
    (tmp_path / "tokenizer.model").write_bytes((sp_bpe / "tokenizer.model").read_bytes())
    fails(tmp_path, word)


def test_damaged_sentencepiece_files_are_named(sp_bpe: Path, tmp_path: Path) -> None:
    good = (sp_bpe / "tokenizer.model").read_bytes()
    path = tmp_path / "tokenizer.model"
    for data in (b"", b"\x00", b"not a model", good[: len(good) // 2], b"\x0a\x05ab", b"\xff" * 50, good[1:]):
        path.write_bytes(data)
        fails(path)


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"), ({"model_type": "char"}, "char")],
)
def test_other_sentencepiece_kinds_are_named(settings: dict[str, object], word: str, tmp_path: Path) -> None:
    fails(train_sentencepiece(tmp_path, **({"vocab_size": 290} | settings)) / "tokenizer.model", word)


@pytest.mark.parametrize(
    ("folder", "word"),
    [
        ("tokenizers/llama2/hf", "merge 18917"),
        ("tokenizers/t5", "spiece.model"),
        ("templates", "tokenizer.model"),
    ],
)
def test_real_files_that_are_refused(material: Path, folder: str, word: str) -> None:
    fails(material / folder, word)


def loaded_or_named(path: Path) -> Tokenizer | None:
    """Load a damaged file, or check that the refusal is one line that names it."""
    try:
        return load_tokenizer(path)
    except TokenizerError as error:
        message = str(error)
    assert "\n" not in message
    assert str(path) in message
    return None


def test_damage_anywhere_in_a_json_is_one_line(tmp_path: Path) -> None:
    rng = random.Random(12)
    junk: list[Any] = [None, True, 0, -1, 2**70, 1.5, "", "x", "\n", [], {}, [[]], {"a": None}, ["a", "b"], "\ud800"]
    path = tmp_path / "tokenizer.json"
    base = tiny_spec(bytes_covered=False)
    for _ in range(1500):
        spec = copy.deepcopy(base)
        for _ in range(rng.randint(1, 3)):
            damage(spec, rng, junk)
        write_json(path, spec)
        ours = loaded_or_named(path)
        if ours is not None:
            assert isinstance(ours.decode(ours.encode("ab c<s>\u00e9")), str)


def damage(spec: Any, rng: random.Random, junk: list[Any]) -> None:
    """Drop or replace one entry, at any depth."""
    while True:
        keys = list(spec) if isinstance(spec, dict) else list(range(len(spec)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(spec[key], dict | list) and spec[key] and rng.random() < 0.8:
            spec = spec[key]
        elif rng.random() < 0.3:
            del spec[key]
            return
        else:
            spec[key] = copy.deepcopy(rng.choice(junk))
            return


def test_damage_anywhere_in_a_model_file_is_one_line(sp_bpe: Path, tmp_path: Path) -> None:
    rng = random.Random(13)
    good = (sp_bpe / "tokenizer.model").read_bytes()
    path = tmp_path / "tokenizer.model"
    for _ in range(150):
        cut = rng.randrange(1, len(good))
        path.write_bytes(good[:cut])
        loaded_or_named(path)


def test_a_config_name_with_a_line_end_stays_on_one_line(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", tiny_spec())
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "a\nb"})
    fails(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"] == "a\nb"
