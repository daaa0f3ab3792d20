"""Near duplicates: every reported pair is one by exact counting, and hardly any that brute force finds is missed."""

import itertools
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitune.data import minhash
from minitune.data.formats import read_rows
from minitune.data.minhash import bands, grams, near_pairs, signatures, tokens
from minitune.data.normal import folded, turns_text


def sets_of(texts: Sequence[str], size: int) -> list[set[tuple[str, ...]]]:
    """The n-grams of each text, by another way than the code's: characters are told apart one at a time."""
    found = []
    for text in texts:
        spaced = re.sub(r"([\u3040-\u30ff\u4e00-\u9fff]|[-+*/=<>%^&|~$#@])", r" \1 ", text)
        words = re.sub(r"[^-+*/=<>%^&|~$#@\w]|_", " ", spaced).split()
        last = max(len(words) - size, 0)
        found.append({tuple(words[i : i + size]) for i in range(last + 1)} if words else set())
    return found


def brute_force(texts: Sequence[str], size: int, threshold: float) -> dict[tuple[int, int], Fraction]:
    """All pairs that are near, by counting the n-grams that each two texts share; no pair is left out of the count."""
    sets, holders = sets_of(texts, size), defaultdict(list)
    for place, one in enumerate(sets):
        for gram in one:
            holders[gram].append(place)
    shared = Counter(pair for places in holders.values() for pair in itertools.combinations(places, 2))
    found = {(i, j): Fraction(n, len(sets[i]) + len(sets[j]) - n) for (i, j), n in shared.items()}
    return {pair: near for pair, near in found.items() if float(near) >= threshold}  # 4/5 is below the float 0.8


def edited(text: str, rng: random.Random, times: int) -> str:
    """A text with some of its words (or characters) replaced, dropped or put in."""
    joiner = " " if " " in text else ""
    words = text.split() if joiner else list(text)
    for _ in range(times):
        place = rng.randrange(len(words))
        words[place : place + rng.randint(0, 1)] = rng.choice([[], [f"w{rng.randrange(99)}" if joiner else "新"]])
        words = words or ["x"]
    return joiner.join(words)


def corpus(count: int, seed: int) -> list[str]:
    """Texts in English and Chinese, half of them edits of others."""
    rng = random.Random(seed)
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
    texts: list[str] = []
    while len(texts) < count:
        length = rng.randint(1, 60)
        if rng.random() < 0.5:
            text = " ".join(rng.choices(words, k=length))
        else:
            text = "".join(chr(0x4E00 + rng.randrange(400)) for _ in range(length))
        texts += [text, edited(text, rng, rng.randint(0, 1 + length // 8))]
    return texts[:count]


@pytest.mark.parametrize(("threshold", "size"), [(0.8, 2), (0.5, 1), (0.9, 3)])
def test_recall_against_brute_force(threshold: float, size: int) -> None:
    texts = corpus(1000, seed=int(threshold * 10))
    expected = brute_force(texts, size, threshold)
    assert len(expected) > 80
    found = near_pairs(grams(texts, size), threshold)
    assert [(near.first, near.second) for near in found] == sorted({(near.first, near.second) for near in found})
    for near in found:
        assert near.jaccard == pytest.approx(float(expected[near.first, near.second]), abs=1e-12)
    assert len(found) >= 0.99 * len(expected)
    # The estimate has a standard deviation of at most 0.044; over hundreds of pairs its error is small on average.
    assert abs(np.mean([near.estimate - near.jaccard for near in found])) < 0.02
    assert max(abs(near.estimate - near.jaccard) for near in found) < 0.25


def test_recall_on_real_rows(material: Path) -> None:
    """2,000 real rows, of which half are real ones with seeded edits, so that pairs lie around the threshold."""
    rng, real = random.Random(6), []
    for name in ("en/alpaca.json", "zh/alpaca_zh.json"):
        real += [turns_text(row.messages) for row in read_rows(material / "data" / name, limit=500).good]
    texts = [one for text in real for one in (text, edited(text, rng, rng.randint(0, 1 + len(text) // 60)))]
    assert len(texts) == 2000
    expected = brute_force(texts, 2, 0.7)
    around = {pair for pair, near in expected.items() if near < 0.9}
    assert len(around) > 200
    found = {(near.first, near.second) for near in near_pairs(grams(texts), 0.7)}
    assert found <= expected.keys()
    assert len(found & around) >= 0.98 * len(around)
    assert len(found) >= 0.99 * len(expected)


def test_real_rows_as_they_are(material: Path) -> None:
    for name in ("en/instructions_1100.json", "zh/alpaca_zh.json"):
        texts = [turns_text(row.messages) for row in read_rows(material / "data" / name, limit=1000).good]
        sets, measured = sets_of(texts, 2), grams(texts)
        assert [len(measured.of(i)) for i in range(len(texts))] == [len(one) for one in sets]
        expected = brute_force(texts, 2, 0.6)
        found = {(near.first, near.second) for near in near_pairs(measured, 0.6)}
        assert found <= expected.keys()
        assert len(found) >= 0.97 * len(expected)


def test_signatures_agree_as_often_as_the_sets_are_near() -> None:
    common, apart = [f"c{i}" for i in range(600)], [f"a{i}" for i in range(200)]
    for shared in (0, 150, 300, 600):
        texts = [" ".join(common), " ".join([*common[:shared], *apart])]
        both = grams(texts, size=1)
        expected = shared / (600 + 200)
        sign = signatures(both, hashes=4096)
        assert (sign[0] == sign[1]).mean() == pytest.approx(expected, abs=4.5 * (0.25 / 4096) ** 0.5)
        assert both.jaccard(0, 1) == expected


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_what_lies_on_the_threshold(threshold: float) -> None:
    b, r = bands(threshold)
    assert b * r <= minhash.HASHES
    assert 1 - (1 - threshold**r) ** b >= 0.995
    assert r == minhash.HASHES or 1 - (1 - threshold ** (r + 1)) ** (minhash.HASHES // (r + 1)) < 0.995


def test_units_are_words_and_unspaced_characters() -> None:
    assert tokens("the cat's 3.5 kg, naïve_x") == ["the", "cat", "s", "3", "5", "kg", "naïve", "x"]
    assert tokens("用python写，三行。") == ["用", "python", "写", "三", "行"]
    assert tokens("ทำ한국어 слово") == ["ท", "ำ", "한국어", "слово"]
    assert tokens("2+2") != tokens("2-2")
    assert tokens("... !?") == []


def test_texts_without_words_are_near_to_nothing() -> None:
    texts = ["...", "", "a b c d", "!!", "a b c d!"]
    assert [(near.first, near.second, near.jaccard) for near in near_pairs(grams(texts), 0.5)] == [(2, 4, 1.0)]
    assert near_pairs(grams([]), 0.5) == []
    assert near_pairs(grams(["..."]), 0.5) == []


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = corpus(300, seed=3)
    whole = grams(texts), signatures(grams(texts)), near_pairs(grams(texts), 0.7)
    monkeypatch.setattr(minhash, "_CHUNK", 50)
    monkeypatch.setattr(minhash, "_PIECE", 7)
    monkeypatch.setattr(minhash, "_PAIRS", 5)
    cut = grams(texts), signatures(grams(texts)), near_pairs(grams(texts), 0.7)
    assert np.array_equal(whole[0].values, cut[0].values)
    assert np.array_equal(whole[0].starts, cut[0].starts)
    assert np.array_equal(whole[1], cut[1])
    assert whole[2] == cut[2]


def test_a_crowded_bucket_is_searched_in_bounded_time() -> None:
    # 1,500 texts that share nearly everything would be 1.1 million pairs.
    body = " ".join(f"w{i}" for i in range(60))
    texts = [f"{body} {i}" for i in range(1500)]
    found = near_pairs(grams(texts), 0.9)
    assert {near.first for near in found} | {near.second for near in found} == set(range(1500))
    assert len(found) < 1500 * minhash._CROWD * bands(0.9)[0]


@given(texts=st.lists(st.text(st.sampled_from("ab 中+"), max_size=12), max_size=12), size=st.integers(1, 3))
@settings(deadline=None)
def test_exact_similarity_of_any_texts(texts: list[str], size: int) -> None:
    texts = [folded(text) for text in texts]
    sets, measured = sets_of(texts, size), grams(texts, size)
    for i, j in itertools.combinations(range(len(texts)), 2):
        union = len(sets[i] | sets[j])
        expected = len(sets[i] & sets[j]) / union if sets[i] and sets[j] else 0
        assert measured.jaccard(i, j) == pytest.approx(expected, abs=1e-12)
