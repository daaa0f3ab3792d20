"""Every published vocabulary against its reference library and against published ids.

Texts are compared on characters that are assigned in Unicode as old as Python's table: the engines carry tables of
different ages, and what one of them does not know it puts in another class.
"""

import random
from pathlib import Path

import pytest

from bench.tokenizer import PUBLISHED, VECTORS, compare, corpus, found, random_texts, without_special_merges
from minitune.tokenizer import load_tokenizer

JSON = [name for name, place in PUBLISHED.items() if place.endswith(".json") and "|" not in place]


@pytest.fixture(scope="module")
def places(material: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return dict(found(material, tmp_path_factory.mktemp("alone"), []))


@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_equal_the_reference(material: Path, places: dict[str, Path], name: str) -> None:
    row = compare(name, places[name], material, [], 1000)
    assert row["random"] == (1000, 1000), row["random_first_difference"]
    equal, n = row["vectors"]
    assert equal == n
    assert n >= 25 or name not in VECTORS


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_equal_the_reference_at_length(material: Path, places: dict[str, Path], name: str) -> None:
    row = compare(name, places[name], material, corpus(1_000_000, material), 10_000)
    for key in ("random", "corpus"):
        assert row[key][0] == row[key][1], row[f"{key}_first_difference"]


@pytest.mark.parametrize("name", JSON)
def test_control_tokens_asked_for_equal_the_reference(places: dict[str, Path], name: str) -> None:
    path = places[name]
    ours, theirs = load_tokenizer(path), without_special_merges(path)
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


def test_the_reference_is_asked_to_leave_typed_names_as_text(places: dict[str, Path]) -> None:
    made = without_special_merges(places["GPT-2"])
    made.encode_special_tokens = True
    assert 50_256 not in made.encode("<|endoftext|>").ids
