"""The JSON kind against the ``tokenizers`` library and against the obvious merge loop."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_cases import SPACE, add_token, metaspace, random_texts, slow_merge, tiny_spec, write_json

from minitune.tokenizer import Tokenizer, load_tokenizer
from minitune.tokenizer.merge import MergeTable


def reference(path: Path) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_file(str(path))
    made.no_padding()
    made.no_truncation()
    made.encode_special_tokens = True  # special tokens typed in a text stay text
    return made


def assert_same(ours: Tokenizer, theirs: tokenizers.Tokenizer, texts: list[str]) -> None:
    for text in texts:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, repr(text)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_heap_equals_the_obvious_loop(data: st.DataObject) -> None:
    letters = data.draw(st.integers(1, 4))
    size, merges = letters, []
    for _ in range(data.draw(st.integers(0, 12))):
        merges.append((data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1)), size))
        size += 1
    order = data.draw(st.permutations(merges))
    ranks = {(left, right): (rank, made) for rank, (left, right, made) in enumerate(order)}
    symbols = data.draw(st.lists(st.integers(0, letters - 1), max_size=40))
    assert MergeTable(order, size).apply(symbols) == slow_merge(symbols, ranks)


def test_tinystories_equals_the_reference(material: Path) -> None:
    folder = material / "weights" / "TinyStories-656K"
    ours, theirs = load_tokenizer(folder), reference(folder / "tokenizer.json")
    assert ours.encode("Once upon a time") == [80, 147, 201, 282, 57]
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id, ours.adds_bos) == (1, 2, 0, 0, True)
    assert ours.control_ids == {1, 2}
    assert_same(ours, theirs, random_texts(1, 2000, list(theirs.get_vocab())))
    stories = json.loads((material / "data" / "text" / "tinystories_1000.json").read_text(encoding="utf-8"))
    covered = {piece for piece in theirs.get_vocab() if len(piece) == 1} | {" "}
    texts = [text for text in map(str, stories if isinstance(stories, list) else stories.values()) if text][:100]
    assert_same(ours, theirs, texts)
    for text in texts:
        if set(text) <= covered:
            assert ours.decode(ours.encode(text)) == text


def test_llama2_json_equals_sentencepiece_and_the_reference(material: Path, tmp_path: Path) -> None:
    source = material / "tokenizers" / "llama2"
    spec = json.loads((source / "hf" / "tokenizer.json").read_text(encoding="utf-8"))
    # Upstream turned the no-break spaces of three merges and of their tokens into plain ones; put them back.
    vocab = spec["model"]["vocab"]
    for broken in (" ", "  ", "    ", SPACE + " "):
        vocab[broken.replace(" ", "\xa0")] = vocab.pop(broken)
    merges = spec["model"]["merges"]
    damaged = {"   ": "\xa0 \xa0", "     ": "\xa0\xa0 \xa0\xa0", f"{SPACE}  ": f"{SPACE} \xa0"}
    assert sum(merge in damaged for merge in merges) == 3
    spec["model"]["merges"] = [damaged.get(merge, merge) for merge in merges]
    path = write_json(tmp_path / "tokenizer.json", spec)
    ours, theirs = load_tokenizer(tmp_path), reference(path)
    by_library = load_tokenizer(source / "tokenizer.model")
    texts = random_texts(2, 2000, list(theirs.get_vocab())[259:])
    assert_same(ours, theirs, texts)
    for text in texts:
        assert ours.encode(text) == by_library.encode(text), repr(text)
        assert ours.encode(text, continues=True) == by_library.encode(text, continues=True), repr(text)


def variants() -> dict[str, dict[str, Any]]:
    found = {"plain": tiny_spec(), "ignore_merges": tiny_spec(ignore_merges=True)}
    for fuse in (True, False):
        found[f"no_bytes fuse={fuse}"] = tiny_spec(bytes_covered=False, fuse_unk=fuse)
        part = tiny_spec(bytes_covered=False, fuse_unk=fuse)
        for b in "\u00e9\u4f60".encode():
            part["model"]["vocab"][f"<0x{b:02X}>"] = len(part["model"]["vocab"])
        found[f"some_bytes fuse={fuse}"] = part
    for scheme in ("first", "always", "never"):
        found[f"metaspace {scheme}"] = metaspace(tiny_spec(), scheme)
        found[f"metaspace {scheme} added"] = with_added(metaspace(tiny_spec(), scheme))
    found["added"] = with_added(tiny_spec())
    gemma = tiny_spec()
    gemma["normalizer"] = gemma["normalizer"]["normalizers"][1]
    gemma["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
    gemma["pre_tokenizer"]["invert"] = False
    gemma["decoder"]["decoders"].pop()
    found["gemma"] = gemma
    pairs = tiny_spec()
    pairs["model"]["merges"] = [merge.split(" ") for merge in pairs["model"]["merges"]]
    found["merges as pairs"] = pairs
    return found


def with_added(spec: dict[str, Any]) -> dict[str, Any]:
    add_token(spec, "[T]")
    add_token(spec, "[R]", rstrip=True)
    add_token(spec, "[L]", lstrip=True)
    add_token(spec, "[N]", normalized=True)
    add_token(spec, "[T][R]", special=True)
    add_token(spec, "ab", normalized=True, lstrip=True, rstrip=True)
    return spec


PIECES = ["a", "b", "c", "ab", "abc", " ", "  ", SPACE, "<s>", "</s>", "<unk>", "[T]", "[R]", "[L]", "[N]", "\n"]
PIECES += ["\x1c", "\xa0", "\u3000", "\u00e9", "\u4f60", "\u9f98", "\U0001f44d", "[T][R]", "x", "<0x41>"]


@pytest.mark.parametrize("name", variants())
def test_variants_equal_the_reference(name: str, tmp_path: Path) -> None:
    spec = variants()[name]
    # Merges that make a control id are ours to drop; the reference is asked without them.
    theirs = json.loads(json.dumps(spec))
    made = {"".join(m.split(" ") if isinstance(m, str) else m): m for m in theirs["model"]["merges"]}
    theirs["model"]["merges"] = [m for text, m in made.items() if text not in ("<s>", "</s>")]
    ours = load_tokenizer(write_json(tmp_path / "tokenizer.json", spec))
    asked = reference(write_json(tmp_path / "asked.json", theirs))
    texts = ["".join(parts) for parts in _mixed(sum(name.encode()))]
    assert_same(ours, asked, texts)
    for text in texts:
        ids = ours.encode(text)
        if ours.unk_id not in ids:  # an unknown decodes as U+FFFD here and by its name there
            assert ours.decode(ids) == asked.decode(ids, skip_special_tokens=False)


def _mixed(seed: int) -> list[list[str]]:
    rng = random.Random(seed)
    return [[rng.choice(PIECES) for _ in range(rng.randint(0, 10))] for _ in range(600)]


def test_continues_puts_no_prefix(tmp_path: Path) -> None:
    for scheme in ("prepend", "first", "always"):
        spec = tiny_spec() if scheme == "prepend" else metaspace(tiny_spec(), scheme)
        ours = load_tokenizer(write_json(tmp_path / "tokenizer.json", spec))
        assert [ours.token(i) for i in ours.encode("abc")] == [SPACE + "ab", "c"]
        assert [ours.token(i) for i in ours.encode("abc", continues=True)] == ["abc"]
        assert [ours.token(i) for i in ours.encode(" abc", continues=True)] == [SPACE + "ab", "c"]
        assert ours.encode("") == ours.encode("", continues=True) == []


def test_unknown_decodes_as_the_replacement_character(tmp_path: Path) -> None:
    ours = load_tokenizer(write_json(tmp_path / "tokenizer.json", tiny_spec(bytes_covered=False)))
    assert ours.unk_id == 0
    assert ours.control_ids == {1, 2}
    assert ours.decode(ours.encode("a\u4f60b")) == "a\ufffdb"


def test_free_ids_add_nothing(tmp_path: Path) -> None:
    spec = tiny_spec()
    spec["added_tokens"].append({"id": 400, "content": "<late>", "special": True})
    ours = load_tokenizer(write_json(tmp_path / "tokenizer.json", spec))
    assert ours.vocab_size == 401
    assert ours.token(399) == ""
    assert 399 in ours.control_ids
    assert ours.decode([399, 400]) == "<late>"


def test_a_long_text_is_quick(material: Path) -> None:
    ours = load_tokenizer(material / "weights" / "TinyStories-656K")
    text = (material / "data" / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:100_000]
    for case in (text, "a" * 100_000, "Once upon a time " * 6000):
        start = time.perf_counter()
        ours.encode(case)
        assert time.perf_counter() - start < 3


def test_a_long_text_of_a_small_vocabulary_is_quick(tmp_path: Path) -> None:
    ours = load_tokenizer(write_json(tmp_path / "tokenizer.json", tiny_spec()))
    for case in ("abc " * 25_000, " " * 100_000, "\u4f60" * 33_000):
        start = time.perf_counter()
        ids = ours.encode(case)
        assert time.perf_counter() - start < 3
        assert ours.decode(ids) == case


def test_the_library_is_imported_late() -> None:
    code = "import sys, minitune.tokenizer; assert not {'sentencepiece', 'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
