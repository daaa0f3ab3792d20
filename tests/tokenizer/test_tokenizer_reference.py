"""Every published vocabulary against its reference library and against published ids.

Texts are compared on characters that are assigned in Unicode as old as Python's table: the engines carry tables of
different ages, and what one of them does not know it puts in another class.
"""

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizer_cases import published

from bench.tokenizer import (
    PUBLISHED,
    VECTORS,
    all_equal,
    compare,
    corpus,
    found,
    random_texts,
    reference_of,
    without_special_merges,
)

JSON = [name for name, place in PUBLISHED.items() if place.endswith(".json") and "|" not in place]


@pytest.fixture(scope="module")
def places(material: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return dict(found(material, tmp_path_factory.mktemp("alone"), []))


def compared(name: str, path: Path, material: Path, documents: list[str], texts: int) -> dict[str, Any]:
    return compare(name, published(path), reference_of(path), material, documents, texts)


@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_equal_the_reference(material: Path, places: dict[str, Path], name: str) -> None:
    row = compared(name, places[name], material, [], 1000)
    assert row["random"] == (1000, 1000), row["random_first_difference"]
    assert all_equal(row)
    assert row["vectors"][1] >= 25 or name not in VECTORS


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_equal_the_reference_at_length(material: Path, places: dict[str, Path], name: str) -> None:
    row = compared(name, places[name], material, corpus(1_000_000, material), 10_000)
    assert all_equal(row), (row["random_first_difference"], row["corpus_first_difference"])
    assert row["random_ties"] + row["corpus_ties"] <= (2 if name == "T5" else 0)  # "____" and "___", in both orders


@pytest.mark.parametrize("name", JSON)
def test_control_tokens_asked_for_equal_the_reference(places: dict[str, Path], name: str) -> None:
    path = places[name]
    ours, theirs = published(path), without_special_merges(path)
    theirs.no_padding()
    theirs.no_truncation()
    names = [ours.token(i) for i in sorted(ours.control_ids) if ours.token(i)][:20]
    rng = random.Random(72)
    between = random_texts(73, 300, names, assigned=True)
    for _ in range(300):
        text = "".join(rng.choice([rng.choice(names), rng.choice(between), " ", "\n"]) for _ in range(6))
        assert ours.encode(text, control=True) == theirs.encode(text, add_special_tokens=False).ids, repr(text)
        assert not ours.control_ids & set(ours.encode(text))


def test_a_made_corpus_has_both_languages_and_the_size_asked_for() -> None:
    documents = corpus(100_000, None)
    assert 100_000 <= sum(len(text.encode("utf-8")) for text in documents) < 110_000
    assert sum("\u4e00" <= text[0] < "\ua000" for text in documents) == len(documents) // 2
    assert corpus(100_000, None) == documents


def test_a_difference_is_seen(material: Path, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    row = compared("GPT-2", places["GPT-2"], material, ["a b"], 1)
    assert all_equal(row)
    assert not all_equal(row | {"vectors": (25, 26)})
    monkeypatch.setattr("minitune.tokenizer.byte_level.ByteLevelBPE.encode", lambda *_, **__: [0])
    row = compared("GPT-2", places["GPT-2"], material, ["a b"], 1)
    assert row["corpus"] == (0, 1)
    assert row["corpus_first_difference"] == "a b"
    assert not all_equal(row)


def test_the_reference_is_asked_to_leave_typed_names_as_text(places: dict[str, Path]) -> None:
    made = without_special_merges(places["GPT-2"])
    made.encode_special_tokens = True
    assert 50_256 not in made.encode("<|endoftext|>").ids
