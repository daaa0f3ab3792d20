"""tiktoken's rank files: the same ids as the ``tokenizer.json`` of the vocabulary, and one line where damaged."""

import json
from base64 import b64encode
from pathlib import Path

import pytest
import tiktoken
from tokenizer_cases import published, random_texts

from minitune.errors import TokenizerError
from minitune.tokenizer import load_tokenizer
from minitune.tokenizer.byte_level import list_engine
from minitune.tokenizer.byte_level_spec import LLAMA3_PATTERN, bytes_of
from minitune.tokenizer.files import Companions
from minitune.tokenizer.rank_file import PUBLISHED, read_rank_file, read_ranks

BYTES = [bytes([b]) for b in range(256)]


def written(tokens: list[bytes]) -> bytes:
    return b"".join(b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens))


def from_vocab(path: Path, size: int) -> bytes:
    """The rank file that belongs to a vocab.json whose ids are ranks."""
    vocab = json.loads(path.read_text(encoding="utf-8"))
    names = {id: token for token, id in vocab.items()}
    return written([bytes_of(names[id]) or b"" for id in range(size)])


def test_llama3_ranks_equal_tiktoken_and_the_json(material: Path) -> None:
    path = material / "tokenizers" / "llama3" / "tokenizer.model"
    ours, by_json = published(path), published(path.with_name("tokenizer.json"))
    ranks = {token: i for i, token in enumerate(read_ranks(path, path.read_bytes()))}
    control = dict(zip(PUBLISHED["Llama 3"].control, range(128_000, 128_256), strict=True))
    theirs = tiktoken.Encoding("", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=control)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.adds_bos) == (128_000, 128_001, None, True)
    assert (ours.vocab_size, ours.control_ids) == (128_256, by_json.control_ids)
    names = [
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|reserved_special_token_0|>",
    ]
    assert [ours.token_id(name) for name in names] == [by_json.token_id(name) for name in names]
    for text in [*random_texts(41, 1000, names), " " * 100_001 + "x", "".join(names)]:
        ids = ours.encode(text)
        assert ids == by_json.encode(text), repr(text[:80])
        assert ours.decode(ids) == text
        assert not ours.control_ids & set(ids)
        if len(text) < 1000:
            assert ids == theirs.encode_ordinary(text)
            assert ours.encode(text, control=True) == theirs.encode(text, allowed_special="all")


@pytest.mark.parametrize(("kind", "folder"), [("Qwen", "qwen2"), ("GPT-2", "gpt2")])
def test_other_published_ranks_equal_their_json(material: Path, kind: str, folder: str, tmp_path: Path) -> None:
    source, known = material / "tokenizers" / folder, PUBLISHED[kind]
    path = tmp_path / "some.tiktoken"
    path.write_bytes(from_vocab(source / "vocab.json", known.size))
    ours, by_json = load_tokenizer(tmp_path), published(source / "tokenizer.json")
    assert ours.files == (path,)
    assert ours.vocab_size == known.size + len(known.control)
    assert ours.token_id("<|endoftext|>") == ours.eos_id == known.size
    for text in random_texts(42, 500):
        assert ours.encode(text) == by_json.encode(text), repr(text)
    assert ours.encode("a<|endoftext|>b", control=True) == by_json.encode("a<|endoftext|>b", control=True)


def test_the_list_that_ranks_say_is_equal(material: Path) -> None:
    """The way that very long runs of spaces go: all cuts of all tokens as one list of merges."""
    path = material / "tokenizers" / "llama3" / "tokenizer.model"
    ours, spec = published(path), read_rank_file(path, path.read_bytes(), Companions())
    by_list = list_engine(spec, [], frozenset(id for id, data in spec.token_bytes.items() if len(data) > 1))
    for text in random_texts(43, 1000, [" the", "They're", "1234567", " unbelievable", "!!!\n"]):
        assert ours.encode(text) == by_list(text), repr(text)


def test_small_files_name_the_control_tokens(material: Path, tmp_path: Path) -> None:
    source = material / "tokenizers" / "llama3"
    (tmp_path / "tokenizer.model").write_bytes((source / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((source / "hf_tokenizer_config.json").read_bytes())
    ours, by_json = load_tokenizer(tmp_path), published(source / "tokenizer.json")
    assert [ours.token(i) for i in range(128_000, 128_256)] == [by_json.token(i) for i in range(128_000, 128_256)]
    assert [path.name for path in ours.files] == ["tokenizer.model", "tokenizer_config.json"]


def test_a_json_beside_a_rank_file_decides(material: Path) -> None:
    folder = material / "tokenizers" / "llama3"
    ours = load_tokenizer(folder)
    assert ours.fingerprint == published(folder / "tokenizer.json").fingerprint
    assert [path.name for path in ours.files] == ["tokenizer.model", "tokenizer.json"]


DAMAGE: dict[str, tuple[bytes, str]] = {
    "another vocabulary": (written([*BYTES, b"ab"]), "257 ranks"),
    "no base64": (written(BYTES) + b"a*b= 256\n", "line 257"),
    "bad padding": (written(BYTES) + b"YWI 256\n", "line 257"),
    "a rank left out": (written(BYTES) + b"YWI= 257\n", "the rank 256"),
    "rank is a word": (written(BYTES) + b"YWI= x\n", "line 257"),
    "three fields": (written(BYTES) + b"YWI= 256 1\n", "line 257"),
    "an empty line": (written(BYTES) + b"\nYWI= 257\n", "line 257"),
    "twice": (written([*BYTES, b"a"]), "line 98"),
    "a byte left out": (written(BYTES[1:]), "0x00"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("file", ["tokenizer.model", "x.tiktoken"])
def test_damage_is_one_line(name: str, file: str, tmp_path: Path) -> None:
    data, word = DAMAGE[name]
    path = tmp_path / file
    path.write_bytes(data)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path)
    message = str(caught.value)
    assert str(path) in message
    assert word in message
    assert "\n" not in message


def test_an_empty_rank_file(tmp_path: Path) -> None:
    (tmp_path / "x.tiktoken").write_bytes(b"")
    with pytest.raises(TokenizerError, match="0x00"):
        load_tokenizer(tmp_path)


def test_two_rank_files_are_not_chosen_between(tmp_path: Path) -> None:
    for name in ("a.tiktoken", "b.tiktoken"):
        (tmp_path / name).write_bytes(written(BYTES))
    with pytest.raises(TokenizerError, match=r"one \.tiktoken file"):
        load_tokenizer(tmp_path)
