"""What holds for every tokenizer: round trips, streaming, typed control tokens, the small files beside it."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_cases import SPACE, add_token, published, random_texts, tiny_spec, write_json

from minitune.errors import TokenizerError
from minitune.tokenizer import Tokenizer, load_tokenizer

REAL = {
    "TinyStories-656K": "weights/TinyStories-656K",
    "stories260K": "weights/stories260K/hf",
    "llama2": "tokenizers/llama2",
    "llama2-zh": "tokenizers/llama2-zh",
    "meng": "tokenizers/llama2-zh/meng.model",
    "t5": "tokenizers/t5/spiece.model",
    "gpt2": "tokenizers/gpt2/tokenizer.json",
    "llama3 ranks": "tokenizers/llama3/tokenizer.model",
}


@pytest.fixture(scope="session")
def tiny_json(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_json(tmp_path_factory.mktemp("tiny") / "tokenizer.json", tiny_spec()))


@pytest.fixture(scope="session")
def identity_tokenizers(tiny_json: Tokenizer, sp_bpe: Path, sp_no_prefix: Path) -> dict[str, Tokenizer]:
    return {"json": tiny_json, "bpe": load_tokenizer(sp_bpe), "no_prefix": load_tokenizer(sp_no_prefix)}


@pytest.fixture(scope="session", params=["json", "bpe", "no_prefix", "unigram", *REAL])
def any_tokenizer(request: pytest.FixtureRequest, tiny_json: Tokenizer) -> Tokenizer:
    if request.param in REAL:
        return published(request.getfixturevalue("material") / REAL[request.param])
    if request.param == "json":
        return tiny_json
    return load_tokenizer(request.getfixturevalue(f"sp_{request.param}"))


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.one_of(st.sampled_from(" abc<s>/\n\t"), st.characters(exclude_categories=["Cs"]))))
@pytest.mark.parametrize("kind", ["json", "bpe", "no_prefix"])
def test_round_trip(text: str, kind: str, identity_tokenizers: dict[str, Tokenizer]) -> None:
    ours = identity_tokenizers[kind]
    for continues in (False, True):
        ids = ours.encode(text, continues=continues)
        assert ours.decode(ids, continues=continues) == text.replace(SPACE, " ")
        assert not ours.control_ids & set(ids)


@pytest.mark.parametrize("text", ["", " ", "  a", "\n", "a ", " \n ", "<s>", "</s> a", "<unk>", "\ufeffa", "\x00"])
def test_round_trip_of_awkward_texts(text: str, tiny_json: Tokenizer, sp_bpe: Path) -> None:
    for ours in (tiny_json, load_tokenizer(sp_bpe)):
        for continues in (False, True):
            assert ours.decode(ours.encode(text, continues=continues), continues=continues) == text


def test_streaming_equals_decoding(any_tokenizer: Tokenizer) -> None:
    ours, rng = any_tokenizer, random.Random(8)
    bytes_ = [i for i in range(ours.vocab_size) if len(ours.token_bytes(i)) == 1 and ours.token_bytes(i)[0] > 127]
    for _ in range(400):
        ids = [rng.randrange(ours.vocab_size) for _ in range(rng.randint(0, 12))]
        if bytes_:
            ids = [rng.choice(bytes_) if rng.random() < 0.5 else i for i in ids]
        for continues in (False, True):
            stream = ours.stream(continues=continues)
            pieces = [stream.push(i) for i in ids] + [stream.finish()]
            assert "".join(pieces) == ours.decode(ids, continues=continues, skip_control=True)


def test_streaming_never_shows_half_a_character(any_tokenizer: Tokenizer) -> None:
    ours = any_tokenizer
    for text in random_texts(9, 200):
        ids = ours.encode(text)
        stream = ours.stream()
        whole = ours.decode(ids, skip_control=True)
        shown = ""
        for i in ids:
            shown += stream.push(i)
            assert whole.startswith(shown)
        assert shown + stream.finish() == whole


def test_middle_bytes_join_to_the_text(any_tokenizer: Tokenizer) -> None:
    ours = any_tokenizer
    for text in random_texts(10, 200):
        ids = ours.encode(text, continues=True)
        joined = b"".join(map(ours.token_bytes, ids)).decode("utf-8")
        assert joined == ours.decode(ids, continues=True)


def test_typed_control_tokens_stay_text(any_tokenizer: Tokenizer) -> None:
    ours, rng = any_tokenizer, random.Random(11)
    names = [ours.token(i) for i in sorted(ours.control_ids)]
    names += ["<s>", "</s>", "<unk>", "<pad>", "<|end_story|>", "<0x0A>", "<ctl>"]
    for name in names:
        for text in (name, f" {name} ", f"a{name}b{name}", f"\n{name}\n", name * 3, f"{SPACE}{name}"):
            for continues in (False, True):
                assert not ours.control_ids & set(ours.encode(text, continues=continues)), text
    for _ in range(200):
        text = "".join(rng.choice([*names, " ", "a", "\n", "<", ">"]) for _ in range(8))
        assert not ours.control_ids & set(ours.encode(text)), text


def test_names_and_ids(any_tokenizer: Tokenizer) -> None:
    ours = any_tokenizer
    for i in range(0, ours.vocab_size, max(1, ours.vocab_size // 997)):
        assert ours.token_id(ours.token(i)) == i
    assert ours.token_id("no such token at all") is None
    for i in ours.control_ids:
        assert ours.token_bytes(i) == b""
    roles = {ours.bos_id, ours.eos_id} - {None}
    assert roles <= ours.control_ids


@pytest.mark.parametrize("bad", [-1, 10**9])
def test_an_id_out_of_range_is_named(any_tokenizer: Tokenizer, bad: int) -> None:
    for use in (any_tokenizer.token, any_tokenizer.token_bytes, any_tokenizer.stream().push):
        with pytest.raises(TokenizerError, match=str(bad)):
            use(bad)
    with pytest.raises(TokenizerError, match=str(bad)):
        any_tokenizer.decode([bad])


def test_lone_surrogates_become_replacement_characters(any_tokenizer: Tokenizer) -> None:
    ours = any_tokenizer
    assert ours.encode("a\ud800b\udc00") == ours.encode("a\ufffdb\ufffd")
    assert ours.encode("\ud83d\udc4d") == ours.encode("\U0001f44d")


def test_decoding_control_ids(sp_bpe: Path, tiny_json: Tokenizer) -> None:
    for ours in (load_tokenizer(sp_bpe), tiny_json):
        assert ours.bos_id == 1
        ids = [1, *ours.encode("cat"), 2]
        assert ours.decode(ids) == "<s> cat</s>"
        assert ours.decode(ids, skip_control=True) == "cat"
        assert ours.decode(ids, skip_control=True, continues=True) == " cat"


def test_broken_bytes_become_replacement_characters(tiny_json: Tokenizer) -> None:
    def byte(b: int) -> int:
        found = tiny_json.token_id(f"<0x{b:02X}>")
        assert found is not None
        return found

    a = tiny_json.token_id("a")
    assert a is not None
    assert tiny_json.decode([byte(0xE4), byte(0xBD), a, byte(0xA0)]) == "\ufffda\ufffd"
    assert tiny_json.decode([byte(0xE4), byte(0xBD), byte(0xA0), a]) == "\u4f60a"


def test_roles_come_from_the_small_files(tmp_path: Path) -> None:
    spec = tiny_spec()
    pad = add_token(spec, "<pad>", special=True)
    write_json(tmp_path / "tokenizer.json", spec)
    bare = load_tokenizer(tmp_path)
    assert (bare.bos_id, bare.eos_id, bare.pad_id, bare.unk_id, bare.adds_bos) == (1, None, None, 0, True)
    write_json(tmp_path / "special_tokens_map.json", {"pad_token": {"content": "<pad>"}, "eos_token": "<s>"})
    mapped = load_tokenizer(tmp_path)
    assert (mapped.bos_id, mapped.eos_id, mapped.pad_id, mapped.adds_bos) == (1, 1, pad, True)
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "</s>", "pad_token": None, "add_bos_token": False})
    chosen = load_tokenizer(tmp_path)
    assert (chosen.bos_id, chosen.eos_id, chosen.pad_id, chosen.adds_bos) == (1, 2, pad, False)
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": None})
    none = load_tokenizer(tmp_path)
    assert (none.bos_id, none.adds_bos) == (None, False)
    (tmp_path / "chat_template.jinja").write_text("x", encoding="utf-8")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert [path.name for path in load_tokenizer(tmp_path).files] == [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ]


def test_a_name_called_special_is_never_made_by_merges(tmp_path: Path) -> None:
    spec = tiny_spec()
    write_json(tmp_path / "tokenizer.json", spec)
    abc = load_tokenizer(tmp_path).token_id("abc")
    assert abc in load_tokenizer(tmp_path).encode("abc", continues=True)
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "abc", "pad_token": "c"})
    ours = load_tokenizer(tmp_path)
    assert ours.eos_id == abc
    assert abc not in ours.encode("abc", continues=True)
    assert ours.decode(ours.encode("abc")) == "abc"
    assert ours.pad_id not in ours.control_ids  # a single character stays text


def test_fingerprint_follows_what_decides_ids(tmp_path: Path, sp_bpe: Path) -> None:
    one = load_tokenizer(write_json(tmp_path / "tokenizer.json", tiny_spec()))
    again = load_tokenizer(write_json(tmp_path / "other.json", tiny_spec()))
    unfused = load_tokenizer(write_json(tmp_path / "third.json", tiny_spec(fuse_unk=False)))
    prints = {one.fingerprint, again.fingerprint, unfused.fingerprint, load_tokenizer(sp_bpe).fingerprint}
    assert one.fingerprint == again.fingerprint
    assert len(prints) == 3
    assert all(len(print_) == 64 for print_ in prints)


def test_sentencepiece_goes_before_json(tmp_path: Path, sp_bpe: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((sp_bpe / "tokenizer.model").read_bytes())
    write_json(tmp_path / "tokenizer.json", tiny_spec())
    ours = load_tokenizer(str(tmp_path))
    assert ours.encode("cat") == load_tokenizer(sp_bpe).encode("cat")
    assert [path.name for path in ours.files] == ["tokenizer.model", "tokenizer.json"]
    alone = load_tokenizer(tmp_path / "tokenizer.json")
    assert [path.name for path in alone.files] == ["tokenizer.json"]
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["type"] == "BPE"


def test_an_empty_role_says_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", tiny_spec())
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "", "eos_token": ""})
    assert load_tokenizer(tmp_path).bos_id == 1


def test_a_typed_unknown_token_stays_text(tmp_path: Path) -> None:
    spec = tiny_spec(bytes_covered=False, unk_token="abc", ignore_merges=True)
    spec["normalizer"] = spec["normalizer"]["normalizers"][1]  # no prefix, so that the whole text could be the token
    ours = load_tokenizer(write_json(tmp_path / "tokenizer.json", spec))
    assert [ours.token(i) for i in ours.encode("abc")] == ["ab", "c"]
    assert [ours.token(i) for i in ours.encode("\u4f60")] == ["abc"]
