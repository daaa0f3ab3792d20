"""Chapter 1: byte-pair encoding by the obvious loop, the unigram model by listing every cut, and the library's own."""

import math
import random
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from math_cases import same

from minitune.tokenizer.learn import (
    best_cut,
    count_pairs,
    expected_counts,
    joined,
    learn_merges,
    log_probability,
    reestimated,
)
from minitune.tokenizer.merge import MergeTable

PIECES = {"a": 0.3, "b": 0.25, "c": 0.1, "ab": 0.15, "ba": 0.05, "abc": 0.1, "bb": 0.05}
LOGP = {piece: math.log(p) for piece, p in PIECES.items()}
TEXTS = ["aba", "abcabb", "bbbab", "cabab", "a"]


def cuts(text: str, pieces: dict[str, float]) -> list[list[str]]:
    """Every way to cut a text into pieces that are there."""
    found = []
    for n in range(len(text)):
        for inner in combinations(range(1, len(text)), n):
            ends = [0, *inner, len(text)]
            found.append([text[a:b] for a, b in pairwise(ends)])
    return [cut for cut in found if all(piece in pieces for piece in cut)]


def chance(cut: list[str]) -> float:
    return math.prod(PIECES[piece] for piece in cut)


def test_a_learned_pair_is_the_commonest_of_its_turn() -> None:
    """TOK-1: counted anew by looking at the joined text, with marks between the pieces."""
    rng = random.Random(3)
    words = {"".join(rng.choice("abcd") for _ in range(rng.randint(1, 9))): rng.randint(1, 5) for _ in range(40)}
    cut = {word: list(word) for word in words}
    merges = learn_merges(words, 12)
    assert len(merges) == len(set(merges)) == 12
    for a, b in merges:
        counts: Counter[tuple[str, str]] = Counter()
        for word, pieces in cut.items():
            for x, y in pairwise(pieces):
                counts[x, y] += words[word]
        assert counts == count_pairs(cut, words)
        most = max(counts.values())
        assert (a, b) == min(pair for pair, n in counts.items() if n == most)
        cut = {word: joined(pieces, (a, b)) for word, pieces in cut.items()}
    assert learn_merges({"ab": 1}, 5) == [("a", "b")]


def test_joins_go_by_rank_and_then_from_the_left() -> None:
    """TOK-2: against the loop that looks at every pair after each join."""
    rng = random.Random(5)
    for _ in range(50):
        words = {"".join(rng.choice("abc") for _ in range(rng.randint(2, 12))): 1 for _ in range(10)}
        merges = learn_merges(words, 8)
        pieces = sorted({c for word in words for c in word} | {a + b for a, b in merges})
        number = {piece: i for i, piece in enumerate(pieces)}
        table = MergeTable([(number[a], number[b], number[a + b]) for a, b in merges], len(pieces))
        text = [rng.choice("".join(words)) for _ in range(30)]
        got = [pieces[i] for i in table.apply([number[c] for c in text])]
        while places := [(merges.index(pair), at) for at, pair in enumerate(pairwise(text)) if pair in merges]:
            _, at = min(places)
            text[at : at + 2] = [text[at] + text[at + 1]]
        assert got == text


@pytest.mark.parametrize("text", TEXTS)
def test_best_cut_and_sum_over_cuts(text: str) -> None:
    """TOK-3, TOK-4: the largest and the sum over the cuts, listed one by one."""
    every = cuts(text, PIECES)
    same(math.log(chance(best_cut(text, LOGP))), math.log(max(map(chance, every))), 1e-12)
    same(log_probability(text, LOGP), math.log(sum(map(chance, every))), 1e-12)


@pytest.mark.parametrize("text", TEXTS)
def test_expected_counts_are_the_average_and_the_gradient(text: str) -> None:
    """TOK-5: over all cuts by their probability, and the slope of the log-probability by autograd."""
    every = cuts(text, PIECES)
    total = sum(map(chance, every))
    theta = torch.tensor(list(LOGP.values()), dtype=torch.float64, requires_grad=True)
    place = {piece: i for i, piece in enumerate(PIECES)}
    summed = torch.logsumexp(torch.stack([sum(theta[place[piece]] for piece in cut) for cut in every]), 0)  # pyright: ignore
    (slope,) = torch.autograd.grad(summed, theta)
    counts = expected_counts(text, LOGP)
    for piece in PIECES:
        average = sum(cut.count(piece) * chance(cut) for cut in every) / total
        assert counts[piece] == pytest.approx(average, abs=1e-12)
        assert counts[piece] == pytest.approx(float(slope[place[piece]]), abs=1e-12)


def test_a_step_of_em_never_makes_the_corpus_less_likely() -> None:
    """TOK-6: and its probabilities are the counts, normalised."""
    logp = LOGP
    counts: Counter[str] = Counter()
    for text in TEXTS:
        counts.update(expected_counts(text, LOGP))
    for piece, lp in reestimated(TEXTS, LOGP).items():
        same(math.exp(lp), counts[piece] / sum(counts.values()), 1e-12)
    before = -math.inf
    for _ in range(8):
        now = sum(log_probability(text, logp) for text in TEXTS)
        assert now >= before - 1e-12
        before, logp = now, reestimated(TEXTS, logp)
        same(sum(map(math.exp, logp.values())), 1.0, 1e-12)


def test_what_the_pieces_cannot_make_is_refused() -> None:
    for f in (best_cut, log_probability, expected_counts):
        with pytest.raises(ValueError, match="cannot make 'abx'"):
            f("abx", LOGP)


def test_the_library_cuts_alike(tmp_path: Path) -> None:
    """TOK-3: sentencepiece's own encoder, on a unigram model that it trained itself."""
    import sentencepiece

    rng = random.Random(1)
    parts = ["lo", "wer", "new", "est", "wid", "er", "low", "ing", "s"]
    lines = ["".join(rng.choice(parts) for _ in range(rng.randint(1, 4))) for _ in range(400)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "m"),
        model_type="unigram",
        vocab_size=40,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        minloglevel=2,
    )
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    logp = {library.id_to_piece(i): library.get_score(i) for i in range(3, library.get_piece_size())}
    for text in lines[:100]:
        theirs = library.encode(text, out_type=str)
        ours = best_cut(text, logp)
        assert "".join(ours) == text
        assert sum(logp[piece] for piece in ours) == pytest.approx(sum(logp[piece] for piece in theirs), abs=1e-4)
