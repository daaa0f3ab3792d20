"""Byte-level BPE against the ``tokenizers`` library, published ids, and the list of merges itself.

Texts are compared on characters that are assigned in Unicode as old as Python's table: the engines carry tables of
different ages, and what one of them does not know it puts in another class.
"""

import json
import random
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_cases import add_token, byte_spec, published, random_texts, slow_merge, write_json

from minitune.errors import TokenizerError
from minitune.tokenizer import load_tokenizer
from minitune.tokenizer.byte_level import ByteLevelBPE, list_engine, python_pattern
from minitune.tokenizer.byte_level_spec import LLAMA3_PATTERN, read_byte_level, read_merges
from minitune.tokenizer.json_spec import read_root
from minitune.tokenizer.proved import fingerprint, ids_are_ranks
from minitune.tokenizer.ranks import live_merges, proved_order

REAL = {
    "gpt2": "gpt2/tokenizer.json",
    "smollm2": "smollm2/tokenizer_clean.json",
    "minimind": "minimind/tokenizer.json",
    "gpt-neox": "gpt-neox/20B_tokenizer.json",
    "qwen2": "qwen2/tokenizer.json",
    "llama3": "llama3/tokenizer.json",
}
WORDS = [
    " the",
    "They're",
    "I'LL",
    "'\u017f",
    " 12",
    "3456",
    " \u4f60\u597d",
    "\n\n",
    "\r\n ",
    " \t ",
    "   x",
    "!?\n",
    "'",
    "\u00e9",
]
WORDS += [
    " \uff11\uff12",
    "\u0301",
    "_",
    "...",
    "\u00a0 a",
    "    \n  b",
    "\u2028",
    "\x85",
    "\x1f1",
    "\u00bd",
    "\U0001d7ce",
    " " * 23,
]


def texts_for(seed: int, count: int) -> list[str]:
    return ["".join(c for c in text if unicodedata.category(c) != "Cn") for text in random_texts(seed, count, WORDS)]


def reference(path: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer; a merge that makes a special token is ours to drop, so it is asked without it."""
    spec = json.loads(path.read_text(encoding="utf-8"))
    special = {entry["content"] for entry in spec["added_tokens"] if entry["special"]}
    model = spec["model"]
    model["merges"] = [m for m in model["merges"] if "".join(m).replace(" ", "") not in special]
    made = tokenizers.Tokenizer.from_str(json.dumps(spec))
    made.encode_special_tokens = True  # special tokens typed in a text stay text
    return made


def loaded(path: Path) -> ByteLevelBPE:
    made = load_tokenizer(path)
    assert isinstance(made, ByteLevelBPE)
    return made


@pytest.mark.parametrize("name", REAL)
def test_ranks_equal_the_list(material: Path, name: str) -> None:
    path = material / "tokenizers" / REAL[name]
    root, data = read_root(path)
    ours, spec = published(path), read_byte_level(path, root, data)
    assert isinstance(ours, ByteLevelBPE)
    assert ours.by_ranks
    merges = read_merges(path, root["model"]["merges"], spec.vocab)
    merges = live_merges(merges, spec.token_bytes, ours.control_ids)
    whole = frozenset(spec.token_bytes) - ours.control_ids if spec.ignore_merges else frozenset[int]()
    by_list = list_engine(replace(spec, ranked=False), merges, whole)
    for text in texts_for(23, 300):
        assert ours._encode_plain(text) == by_list(text), repr(text)


def test_a_remembered_proof_is_a_proof(material: Path) -> None:
    path = material / "tokenizers" / "llama3" / "tokenizer.json"
    root, data = read_root(path)
    spec, model = read_byte_level(path, root, data), root["model"]
    assert spec.ranked
    merges = read_merges(path, model["merges"], spec.vocab)
    order = proved_order(live_merges(merges, spec.token_bytes), spec.token_bytes, frozenset(), takes_whole=True)
    assert order == sorted(id for id, spelled in spec.token_bytes.items() if len(spelled) > 1)
    vocab, lines = model["vocab"], model["merges"]
    pairs = [merge.split(" ") for merge in lines]
    assert ids_are_ranks(vocab, pairs)
    for changed in (pairs[1:], [*pairs[:5], pairs[6], pairs[5], *pairs[7:]], [*pairs, ["a", "b"]], [], None, [3]):
        assert not ids_are_ranks(vocab, changed)
    assert not ids_are_ranks(dict(reversed(vocab.items())), pairs)
    assert not ids_are_ranks(vocab | {"more": len(vocab)}, pairs)


def test_no_other_file_has_the_hash_of_a_remembered_proof() -> None:
    """Files that spell the same lines, or the same pairs in a form that is refused elsewhere, are not taken for it."""
    vocab = {"a": 0, "b": 1, "ab": 2, "abb": 3}
    one = fingerprint(vocab, ["a b", "ab b"])
    assert one == fingerprint(vocab, [["a", "b"], ["ab", "b"]])
    forms: list[tuple[dict[str, int], Any]] = [
        ({"a\nb": 0, "ab": 1, "abb": 2}, ["a b", "ab b"]),
        ({"a": 0, "b": 1, "ab": 2}, ["abb", "a b", "ab b"]),
        (vocab | {"a b": 4}, ["ab b"]),
        (vocab, ["a b\nab b"]),
        (vocab, [["a b"], ["ab", "b"]]),
        (vocab, ["ab", ["ab", "b"]]),
        (vocab, [["a", "b"], "ab b"]),
        (vocab, [{"a": 0, "b": 0}, ["ab", "b"]]),
        (vocab, [["a", 3], ["ab", "b"]]),
        (vocab | {"a": 1, "b": 0}, ["a b", "ab b"]),
    ]
    for tokens, merges in forms:
        assert fingerprint(tokens, merges) != one, merges


def test_a_remembered_proof_holds_where_tokens_are_control(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control tokens from the middle of the list: the merges themselves, without them, give the same."""
    source = material / "tokenizers" / "llama3" / "tokenizer.json"
    spec = json.loads(source.read_text(encoding="utf-8"))
    names = ("\u0120the", "in", "\u0120t", "\u0120\u0120", "er")
    for name in names:
        add_token(spec, name, special=True)
    path = write_json(tmp_path / "tokenizer.json", spec)
    assert read_byte_level(path, *read_root(path)).ranked
    ours = loaded(path)
    monkeypatch.setattr("minitune.tokenizer.proved.PROVED", {})
    listed = read_byte_level(path, *read_root(path))
    assert not listed.ranked
    closed = ours.control_ids
    assert closed == published(source).control_ids | {spec["model"]["vocab"][name] for name in names}
    merges = live_merges(listed.merges, listed.token_bytes, closed)
    by_list = list_engine(listed, merges, frozenset(listed.token_bytes) - closed)
    for text in [*texts_for(26, 300), "   the interim     there other"]:
        assert ours.encode(text) == by_list(text), repr(text)
        assert not closed & set(ours.encode(text))


@pytest.mark.parametrize("name", REAL)
def test_round_trip_and_stream(material: Path, name: str) -> None:
    ours = published(material / "tokenizers" / REAL[name])
    for text in texts_for(24, 300):
        if name == "smollm2" and any(c in text for c in "\x04\x06\x13\x14\x16\x1d"):
            continue  # this vocabulary has no token for these bytes
        normal = unicodedata.normalize("NFC", text) if name in ("qwen2", "gpt-neox") else text
        for continues in (False, True):
            ids = ours.encode(text, continues=continues)
            assert ours.decode(ids, continues=continues) == normal
            stream = ours.stream(continues=continues)
            parts = [stream.push(i) for i in ids] + [stream.finish()]
            assert "".join(parts) == normal
    for i in sorted(ours.control_ids)[:50]:
        name_ = ours.token(i)
        for text in (name_, f"a {name_}\n", name_ * 2):
            assert not ours.control_ids & set(ours.encode(text))
            assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("name", ["gpt2", "smollm2", "qwen2"])
def test_two_files_equal_the_reference(material: Path, name: str, tmp_path: Path) -> None:
    folder = material / "tokenizers" / name
    for file in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"):
        if (folder / file).exists() and (name, file[0]) not in (("smollm2", "a"), ("smollm2", "t")):
            (tmp_path / file).write_bytes((folder / file).read_bytes())
    ours, theirs = load_tokenizer(tmp_path), published(material / "tokenizers" / REAL[name])
    if name == "smollm2":  # the two files say nothing of digits, so text is cut as GPT-2's
        assert ours.decode(ours.encode("a 12 b")) == "a 12 b"
        return
    for text in [*texts_for(25, 300), "<tool_call>a<|im_start|>"]:
        assert ours.encode(text) == theirs.encode(text), repr(text)


def test_two_files_are_checked(tmp_path: Path) -> None:
    model = byte_spec()["model"]
    write_json(tmp_path / "vocab.json", model["vocab"])
    for merges, word in ((b"#version: 0.2\nq zz\n", "merges.txt: merge 0 names 'zz'"), (b"\xff", "not UTF-8")):
        (tmp_path / "merges.txt").write_bytes(merges)
        with pytest.raises(TokenizerError, match=word):
            load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *model["merges"], ""]), encoding="utf-8")
    whole = loaded(write_json(tmp_path / "other.json", byte_spec()))
    for text in ("ab abc <b", "a  b123's", "\u00e9\n\n"):
        assert load_tokenizer(tmp_path).encode(text) == whole.encode(text)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"})
    with pytest.raises(TokenizerError, match="RobertaTokenizer"):
        load_tokenizer(tmp_path)


def level(**flags: Any) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True} | flags


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def after(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [*parts, level(use_regex=parts[0]["type"] == "Digits")]}


def variants() -> dict[str, dict[str, Any]]:
    found = {"plain": byte_spec(), "ignore_merges": byte_spec(ignore_merges=True), "nfc": byte_spec()}
    found["nfc"]["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    cuts = {
        "prefix": level(add_prefix_space=True),
        "whole": level(use_regex=False),
        "digits": after({"type": "Digits", "individual_digits": True}),
        "digit runs": after({"type": "Digits", "individual_digits": False}),
        "llama 3": after(split(LLAMA3_PATTERN)),
        "removed": after(split(LLAMA3_PATTERN, "Removed", True)),
        "gaps": after(split(r" ?\p{L}+|\d{1,2}".replace(r"\d", r"\p{N}"))),
        "gaps inverted": after(split(r"[^\s\p{P}]+(?!\n)", "Isolated", True)),
    }
    for name, cut in cuts.items():
        found[name] = byte_spec() | {"pre_tokenizer": cut}
    found["by id map"] = byte_spec()
    vocab = found["by id map"]["model"]["vocab"]
    vocab["abc"], vocab["\u0120a"] = vocab["\u0120a"], vocab["abc"]
    found["by list"] = byte_spec()  # "bc" now goes before "ab", so "abc" is never made as listed
    found["by list"]["model"]["merges"].remove("b c")
    found["by list"]["model"]["merges"].insert(0, "b c")
    found["pairs"] = byte_spec(merges=[merge.split(" ") for merge in byte_spec()["model"]["merges"]])
    for name in ("plain", "prefix", "nfc"):
        spec = json.loads(json.dumps(found[name]))
        add_token(spec, "[T]")
        add_token(spec, "[R]", rstrip=True)
        add_token(spec, "[L]", lstrip=True)
        add_token(spec, "e\u0301e", normalized=True)
        add_token(spec, "   ", normalized=True)
        add_token(spec, "[T][R]", special=True)
        found[f"{name} added"] = spec
    return found


PIECES = [
    "a",
    "b",
    "c",
    "ab",
    "abc",
    " ",
    "  ",
    "    ",
    "<s>",
    "</s>",
    "[T]",
    "[R]",
    "[L]",
    "[T][R]",
    "\n",
    "\n\n",
    "\t",
]
PIECES += [
    "1",
    "23",
    "123",
    "\uff11",
    "\u00bd",
    "'s",
    "'S",
    "\u00e9",
    "e\u0301",
    "e\u0301e",
    "\u4f60",
    "\x1c",
    "\xa0",
    "!",
    "\r\n",
]


@pytest.mark.parametrize("name", variants())
def test_variants_equal_the_reference(name: str, tmp_path: Path) -> None:
    spec = variants()[name]
    path = write_json(tmp_path / "tokenizer.json", spec)
    ours, asked = loaded(path), reference(path)
    assert ours.by_ranks == (name != "by list")
    rng = random.Random(sum(name.encode()))
    for _ in range(1500):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 10)))
        ids = ours.encode(text)
        assert ids == asked.encode(text, add_special_tokens=False).ids, repr(text)
        assert not ours.control_ids & set(ids)


CHARACTERS = st.one_of(st.sampled_from(" abc<s>/'1\n\t\x1c\u00e9"), st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize("name", ["plain", "digits", "llama 3", "by list", "by id map", "prefix", "plain added"])
@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=CHARACTERS))
def test_any_text_comes_back(name: str, text: str, made: dict[str, ByteLevelBPE]) -> None:
    ours = made[name]
    for continues in (False, True):
        if name == "prefix" and not continues and text.startswith(" "):
            continue  # the file puts no second space before it, so this one goes with the prefix
        ids = ours.encode(text, continues=continues)
        assert ours.decode(ids, continues=continues) == text
        assert not ours.control_ids & set(ids)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ByteLevelBPE]:
    folder = tmp_path_factory.mktemp("variants")
    return {name: loaded(write_json(folder / f"{name}.json", spec)) for name, spec in variants().items()}


def test_continues_puts_no_prefix_space(tmp_path: Path) -> None:
    ours = loaded(write_json(tmp_path / "tokenizer.json", variants()["prefix"]))
    assert [ours.token(i) for i in ours.encode("ab")] == ["\u0120ab"]
    assert [ours.token(i) for i in ours.encode("ab", continues=True)] == ["ab"]
    assert ours.decode(ours.encode("ab")) == ours.decode(ours.encode("ab", continues=True), continues=True) == "ab"


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_proof_is_right(data: st.DataObject) -> None:
    """Random lists of merges: where ranks are said to do, the obvious loops by list and by rank agree on every text."""
    tokens = [b"a", b"b", b"c"]
    merges: list[tuple[int, int, int]] = []
    for _ in range(data.draw(st.integers(1, 9))):
        left, right = (data.draw(st.integers(0, len(tokens) - 1)) for _ in range(2))
        made = tokens[left] + tokens[right]
        if made not in tokens:
            tokens.append(made)
        merges.append((left, right, tokens.index(made)))
    merges = list(
        {(left, right): (left, right, made) for left, right, made in data.draw(st.permutations(merges))}.values()
    )
    order = proved_order(merges, dict(enumerate(tokens)), frozenset(), takes_whole=False)
    if order is None:
        return
    rank = {tokens[id]: (i, id) for i, id in enumerate(order)}
    pairs = {
        (x, y): rank[tokens[x] + tokens[y]]
        for x in range(len(tokens))
        for y in range(len(tokens))
        if tokens[x] + tokens[y] in rank
    }
    listed = {(left, right): (i, made) for i, (left, right, made) in enumerate(merges)}
    for id in order:  # a whole piece that is a token is one, by rank, so the list must come to it as well
        assert slow_merge([b"abc".index(b) for b in tokens[id]], listed) == [id]
    for symbols in data.draw(st.lists(st.lists(st.integers(0, 2), max_size=14), min_size=8, max_size=8)):
        assert slow_merge(symbols, listed) == slow_merge(symbols, pairs)


def test_a_token_that_merges_do_not_reach_is_taken_whole_only_where_the_file_says_so(tmp_path: Path) -> None:
    """Every cut of ``abcd`` is listed, but ``bc`` comes first, so merges alone stop at three pieces."""
    merges = ["b c", "a b", "c d", "ab cd", "\u0120 a", "\u0120a b", "\u0120 ab"]
    for takes_whole, count in ((False, 3), (True, 1)):
        spec = byte_spec(merges=merges, ignore_merges=takes_whole)
        for token in ("cd", "abcd"):
            spec["model"]["vocab"][token] = len(spec["model"]["vocab"])
        path = write_json(tmp_path / "tokenizer.json", spec)
        ids = loaded(path).encode("abcd")
        assert len(ids) == count
        assert ids == reference(path).encode("abcd").ids


def test_a_very_long_run_of_spaces(tmp_path: Path) -> None:
    ours = loaded(write_json(tmp_path / "tokenizer.json", byte_spec()))
    text = "ab" + " " * 1_500_001 + "c"
    assert ours.decode(ours.encode(text)) == text
    assert ours.encode(" " * 99_999 + "c") == ours.encode(" " * 100_003 + "c")[1:]


def test_the_pattern_for_python() -> None:
    found = python_pattern(r"(?i:'s)|[^\s\P{L}x]+|\S").findall("a'Sx\u4f60 \x1c")
    assert found == ["a", "'S", "x", "\u4f60", "\x1c"]


LEVEL = level()
ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "normalizer": ({"normalizer": {"type": "NFKC"}}, "NFKC"),
    "no pre-tokenizer": ({"pre_tokenizer": None}, "pre_tokenizer"),
    "other pre-tokenizer": ({"pre_tokenizer": after({"type": "Whitespace"})}, "Whitespace"),
    "string split": ({"pre_tokenizer": after({"type": "Split", "pattern": {"String": "a"}})}, "pattern"),
    "behaviour": ({"pre_tokenizer": after(split(LLAMA3_PATTERN, "MergedWithNext"))}, "MergedWithNext"),
    "removed": ({"pre_tokenizer": after(split(r"\p{L}+", "Removed", True))}, "vanish"),
    "matches nothing": ({"pre_tokenizer": after(split(r"\p{L}*"))}, "empty"),
    "look behind": ({"pre_tokenizer": after(split(r"(?<=a)b"))}, "(?<=a)b"),
    "broken pattern": ({"pre_tokenizer": after(split(r"(a"))}, "(a"),
    "prefix after a split": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split("a"), level(add_prefix_space=True)]}},
        "add_prefix_space",
    ),
    "decoder": ({"decoder": {"type": "Fuse"}}, "decoder"),
    "post-processor": ({"post_processor": {"type": "RobertaProcessing"}}, "RobertaProcessing"),
    "byte fallback": ({"model": byte_spec(byte_fallback=True)["model"]}, "byte_fallback"),
    "merge of an unknown token": ({"model": byte_spec(merges=["q zz"])["model"]}, "merge 0 names 'zz'"),
    "merge that makes nothing": ({"model": byte_spec(merges=["c c"])["model"]}, "merge 0 makes 'cc'"),
    "merge of one": ({"model": byte_spec(merges=[3])["model"]}, "merge 0 is 3"),
    "no byte": ({"model": byte_spec(merges=[], vocab={"a": 0})["model"]}, "0x09"),
    "vocab": ({"model": byte_spec(vocab=[])["model"]}, "model.vocab"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_not_known_is_named(name: str, tmp_path: Path) -> None:
    changes, word = ERRORS[name]
    path = write_json(tmp_path / "tokenizer.json", byte_spec() | changes)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
