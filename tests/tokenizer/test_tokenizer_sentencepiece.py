"""The sentencepiece kind against slow, obvious BPE and Viterbi, a JSON conversion, and published ids."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece
from tokenizer_cases import SPACE, published, random_texts, slow_merge

from minitune.tokenizer import load_tokenizer
from minitune.tokenizer.sentencepiece_file import SentencePiece, words_stand_alone
from minitune.tokenizer.sentencepiece_proto import BYTE, NORMAL, UNIGRAM, USER_DEFINED, read_model, with_spaces

MODELS = {
    "stories260K": "weights/stories260K/hf/tokenizer.model",
    "llama2": "tokenizers/llama2/tokenizer.model",
    "llama2-zh": "tokenizers/llama2-zh/tokenizer.model",
    "meng": "tokenizers/llama2-zh/meng.model",
    "t5": "tokenizers/t5/spiece.model",
}


class SlowBPE:
    """Greedy BPE by score, straight from the pieces of the file: no heap, no list, no library."""

    def __init__(self, path: Path):
        self.library = sentencepiece.SentencePieceProcessor(model_file=str(path))
        info = read_model(path.read_bytes())
        self.id_of = {piece: i for i, (piece, kind) in enumerate(info.pieces) if kind == NORMAL}
        self.user = {piece: i for i, (piece, kind) in enumerate(info.pieces) if kind == USER_DEFINED}
        self.bytes = {piece: i for i, (piece, kind) in enumerate(info.pieces) if kind == BYTE}
        self.score = [self.library.get_score(i) for i in range(len(info.pieces))]

    def encode(self, normal: str) -> list[int]:
        symbols = list(normal)
        while True:
            found = [
                (-self.score[self.id_of[a + b]], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in self.id_of
            ]
            if not found:
                break
            _, i = min(found)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        ids: list[int] = []
        for symbol in symbols:
            if symbol in self.id_of:
                ids.append(self.id_of[symbol])
            elif self.bytes:
                ids += [self.bytes[f"<0x{b:02X}>"] for b in symbol.encode()]
            elif ids[-1:] != [self.library.unk_id()]:
                ids.append(self.library.unk_id())
        return ids


def marked(text: str, *, prefix: bool) -> str:
    return (SPACE if prefix and text else "") + text.replace(" ", SPACE)


@pytest.mark.parametrize("name", ["llama2", "llama2-zh"])
def test_identity_models_equal_slow_bpe(material: Path, name: str) -> None:
    path = material / MODELS[name]
    ours, slow = published(path), SlowBPE(path)
    for text in random_texts(3, 2000, list(slow.id_of)):
        assert ours.encode(text) == slow.encode(marked(text, prefix=True)), repr(text)
        assert ours.encode(text, continues=True) == slow.encode(marked(text, prefix=False)), repr(text)
        assert ours.decode(ours.encode(text)) == text.replace(SPACE, " ")
        assert ours.decode(ours.encode(text, continues=True), continues=True) == text.replace(SPACE, " ")


@pytest.mark.parametrize("name", ["stories260K", "meng"])
def test_normalising_models_equal_slow_bpe(material: Path, name: str) -> None:
    path = material / MODELS[name]
    ours, slow = published(path), SlowBPE(path)
    for text in random_texts(4, 2000, list(slow.id_of)):
        normal = slow.library.normalize(text)  # only the character map comes from the library
        assert ours.encode(text) == slow.encode(normal), repr(text)


def viterbi(normal: str, score_of: dict[str, float], unknown: float) -> float:
    """The best total score of a cut, by the plain recurrence."""
    best = [0.0] + [float("-inf")] * len(normal)
    longest = max(map(len, score_of))
    for end in range(1, len(normal) + 1):
        for start in range(max(0, end - longest), end):
            piece = normal[start:end]
            score = score_of.get(piece, unknown if end - start == 1 else None)
            if score is not None:
                best[end] = max(best[end], best[start] + score)
    return best[-1]


def test_unigram_finds_the_best_cut(material: Path) -> None:
    path = material / MODELS["t5"]
    ours = published(path)
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    kinds = read_model(path.read_bytes()).pieces
    score_of = {piece: library.get_score(i) for i, (piece, kind) in enumerate(kinds) if kind == NORMAL}
    unknown = min(score_of.values()) - 10  # the library's own penalty
    for text in random_texts(5, 2000, list(score_of)):
        normal = library.normalize(text)
        if any(c not in score_of for c in normal):  # runs of unknowns are fused: their score does not add up
            continue
        ids = ours.encode(text)
        assert "".join(ours.token(i) for i in ids) == normal
        assert sum(library.get_score(i) for i in ids) == pytest.approx(viterbi(normal, score_of, unknown), abs=1e-3)


@pytest.mark.parametrize(("name", "by_words"), [("llama2", True), ("llama2-zh", True), ("meng", False), ("t5", False)])
def test_words_one_by_one_equal_the_library_on_the_whole_text(material: Path, name: str, by_words: bool) -> None:
    path = material / MODELS[name]
    ours = published(path)
    assert isinstance(ours, SentencePiece)
    assert words_stand_alone(read_model(path.read_bytes())) == by_words
    whole = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert ours.encode("") == ours.encode("", continues=True) == []
    words = ["a", " the", SPACE, "  ", " " * 40, "x" * 30, "\u4f60\u597d", "\n", "\x00", "\t ", "\xa0", "\U0001f44d"]
    for text in [*words, *random_texts(5, 1000, [*words, SPACE + "a" + SPACE])]:
        assert ours.encode(text) == whole.encode(text), repr(text)
    if by_words:
        bare = sentencepiece.SentencePieceProcessor(
            model_proto=with_spaces(path.read_bytes(), dummy_prefix=False, removes_extra=False)
        )
        for text in random_texts(6, 1000, words):
            assert ours.encode(text, continues=True) == bare.encode(text), repr(text)


def test_where_words_do_not_stand_alone(material: Path) -> None:
    info = read_model((material / MODELS["llama2"]).read_bytes())
    assert words_stand_alone(replace(info, pieces=[*info.pieces, (SPACE * 3 + "by", NORMAL)]))
    for change in (
        {"pieces": [*info.pieces, ("by" + SPACE, NORMAL)]},
        {"pieces": [*info.pieces, (SPACE + "by" + SPACE + "the", NORMAL)]},
        {"pieces": [*info.pieces, ("<turn>", USER_DEFINED)]},
        {"model_type": UNIGRAM},
        {"byte_fallback": False},
        {"removes_extra_spaces": True},
        {"charsmap": b"x"},
    ):
        assert not words_stand_alone(replace(info, **change)), change


@pytest.mark.parametrize("name", ["llama2", "t5"])
def test_published_ids(material: Path, name: str) -> None:
    ours = published(material / MODELS[name])
    vectors = json.loads((material / "vectors" / "tokenization.json").read_text(encoding="utf-8"))[name]["cases"]
    checked = 0
    for case in vectors.values():
        if any(ours.token(i) in case["text"] for i in ours.control_ids):
            continue  # there the typed token becomes a control id, here it must not
        ids = case["ids"]
        plain = ids[1:] if name == "llama2" else ids[:-1]
        assert ours.encode(case["text"]) == plain, case["text"]
        checked += 1
        if name == "llama2":
            assert ours.decode(ids) == case["decoded"]
            assert ours.decode(ids, skip_control=True) == case["decoded"].removeprefix("<s>").removeprefix(" ")
    assert checked >= 24


def test_stories260k_ids(material: Path) -> None:
    ours = load_tokenizer(material / "weights/stories260K/hf")
    assert ours.encode("Once upon a time") == [403, 407, 261, 378]
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id, ours.adds_bos) == (1, 2, None, 0, True)
    assert [path.name for path in ours.files] == ["tokenizer.model"]


def test_tiny_bpe_equals_slow_bpe_around_user_pieces(sp_bpe: Path) -> None:
    ours, slow = load_tokenizer(sp_bpe), SlowBPE(sp_bpe / "tokenizer.model")
    assert [ours.token(i) for i in ours.encode("cat[U]cat")].count("[U]") == 1
    for text in random_texts(6, 500, ["the", " cat", "hello", "once", "sat"]):
        if not any(piece in text for piece in slow.user):
            assert ours.encode(text) == slow.encode(marked(text, prefix=True))
            assert ours.encode(text, continues=True) == slow.encode(marked(text, prefix=False))


def test_extra_spaces_of_a_continued_text_stand_for_one(sp_unigram: Path) -> None:
    ours = load_tokenizer(sp_unigram)
    for text, expected in (("cat", "cat"), (" cat", " cat"), ("\n\n  the  cat ", " the cat"), ("   ", " "), ("", "")):
        ids = ours.encode(text, continues=True)
        assert ours.decode(ids, continues=True) == expected
    assert ours.decode(ours.encode("  the   cat ")) == "the cat"


def test_no_prefix_model_keeps_leading_spaces(sp_no_prefix: Path) -> None:
    ours = load_tokenizer(sp_no_prefix)
    for text in ("cat", " cat", "  cat ", ""):
        assert ours.encode(text) == ours.encode(text, continues=True)
        assert ours.decode(ours.encode(text)) == text


def test_user_pieces_called_special_are_control(sp_bpe: Path, tmp_path: Path) -> None:
    data = (sp_bpe / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(data)
    config = {"additional_special_tokens": ["<turn>"], "added_tokens_decoder": {"400": {"content": "<|x|>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    plain, ours = load_tokenizer(sp_bpe), load_tokenizer(tmp_path)
    turn = ours.token_id("<turn>")
    assert turn is not None
    assert turn in plain.encode("a<turn>b")
    assert turn not in ours.encode("a<turn>b")
    assert turn in ours.control_ids
    assert ours.decode(ours.encode("a<turn>b")) == "a<turn>b"
    assert ours.decode([turn]) == "<turn>"
    assert ours.token_id("<|x|>") == 400
    assert 400 in ours.control_ids
    assert ours.vocab_size == 401
    assert 400 not in ours.encode("<|x|>")
    assert ours.token_id("[U]") in ours.encode("a[U]b")
    assert plain.fingerprint != ours.fingerprint
    for text in random_texts(7, 300, ["the cat", "hello"]):  # the rest of the vocabulary is as before
        if "<turn>" not in text:
            assert plain.encode(text) == ours.encode(text)


def test_proto_settings_are_read(sp_bpe: Path, sp_unigram: Path) -> None:
    one = read_model((sp_bpe / "tokenizer.model").read_bytes())
    other = read_model((sp_unigram / "tokenizer.model").read_bytes())
    assert (one.model_type, one.byte_fallback, one.removes_extra_spaces, one.dummy_prefix) == (2, True, False, True)
    assert (other.model_type, other.byte_fallback, other.removes_extra_spaces) == (1, False, True)
    library = sentencepiece.SentencePieceProcessor(model_file=str(sp_bpe / "tokenizer.model"))
    assert [piece for piece, _ in one.pieces] == [library.id_to_piece(i) for i in range(library.get_piece_size())]


def test_obvious_loops_agree() -> None:
    ranks = {(0, 1): (0, 2), (2, 2): (1, 3)}
    assert slow_merge([0, 1, 0, 1, 1], ranks) == [3, 1]
