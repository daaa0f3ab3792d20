"""How a vocabulary is learned, small enough to read; the vocabularies that models ship with were made by faster code.

Byte-pair encoding (Sennrich et al., arXiv 1508.07909) joins the commonest pair of neighbours, again and again. The
unigram model (Kudo, arXiv 1804.10959) gives each piece a probability; a text's probability is the sum over all ways to
cut it, and the probabilities are those under which the texts are likeliest, found by expectation and maximisation.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

Pair = tuple[str, str]


def learn_merges(words: Mapping[str, int], merges: int) -> list[Pair]:
    """The first ``merges`` pairs that byte-pair encoding joins in ``words`` (word -> how often), best first.

    Of pairs that are equally common the first in the order of their text is taken. Fewer where no pair is left.
    """
    cut = {word: list(word) for word in words}
    learned: list[Pair] = []
    while len(learned) < merges:
        counts = count_pairs(cut, words)
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))  # TOK-1
        learned.append(best)
        cut = {word: joined(pieces, best) for word, pieces in cut.items()}
    return learned


def count_pairs(cut: Mapping[str, list[str]], words: Mapping[str, int]) -> Counter[Pair]:
    """How often each two pieces stand beside each other in the words as they are ``cut`` now."""
    counts: Counter[Pair] = Counter()
    for word, pieces in cut.items():
        for pair in pairwise(pieces):
            counts[pair] += words[word]
    return counts


def joined(pieces: list[str], pair: Pair) -> list[str]:
    """The pieces with every occurrence of ``pair`` made one, from left to right."""
    out: list[str] = []
    at = 0
    while at < len(pieces):
        if tuple(pieces[at : at + 2]) == pair:
            out.append(pieces[at] + pieces[at + 1])
            at += 2
        else:
            out.append(pieces[at])
            at += 1
    return out


def best_cut(text: str, logp: Mapping[str, float]) -> list[str]:
    """The likeliest way to cut ``text`` into pieces of log-probability ``logp`` (Viterbi); of equal ones the one whose
    last piece is longest.

    Raises ValueError where the pieces cannot make the text.
    """
    best = [0.0] + [-math.inf] * len(text)  # log-probability of the likeliest cut of text[:j]
    start = [0] * (len(text) + 1)  # where its last piece begins
    for i, j, lp in _spans(text, logp):
        if best[i] + lp > best[j]:  # TOK-3
            best[j], start[j] = best[i] + lp, i
    _check(text, best[-1])
    pieces: list[str] = []
    j = len(text)
    while j:
        pieces.append(text[start[j] : j])
        j = start[j]
    return pieces[::-1]


def log_probability(text: str, logp: Mapping[str, float]) -> float:
    """Log of the summed probability of all ways to cut ``text``; ValueError where there is none."""
    return _forward(text, logp)[-1]  # TOK-4


def expected_counts(text: str, logp: Mapping[str, float]) -> dict[str, float]:
    """How often each piece stands in ``text``, on average over all cuts by their probability.

    That is the gradient of ``log_probability`` for the log-probabilities.
    """
    ahead = _forward(text, logp)
    behind = [-math.inf] * len(text) + [0.0]  # log-probability of text[i:]
    spans = list(_spans(text, logp))
    for i, j, lp in reversed(spans):
        behind[i] = _log_add(behind[i], lp + behind[j])
    counts: dict[str, float] = defaultdict(float)  # 0 for a piece that no cut has
    for i, j, lp in spans:
        counts[text[i:j]] += math.exp(ahead[i] + lp + behind[j] - ahead[-1])  # TOK-5
    return counts


def reestimated(texts: Iterable[str], logp: Mapping[str, float]) -> dict[str, float]:
    """Log-probabilities after one step of expectation and maximisation; pieces that no cut uses are gone."""
    counts: dict[str, float] = defaultdict(float)
    for text in texts:
        for piece, count in expected_counts(text, logp).items():
            counts[piece] += count
    total = sum(counts.values())
    return {piece: math.log(count / total) for piece, count in counts.items() if count > 0}  # TOK-6


def _forward(text: str, logp: Mapping[str, float]) -> list[float]:
    """Log-probability of each beginning ``text[:j]``, over all cuts."""
    ahead = [0.0] + [-math.inf] * len(text)
    for i, j, lp in _spans(text, logp):
        ahead[j] = _log_add(ahead[j], ahead[i] + lp)
    _check(text, ahead[-1])
    return ahead


def _spans(text: str, logp: Mapping[str, float]) -> Iterable[tuple[int, int, float]]:
    """Every place ``(i, j)`` where a piece stands, by its end and then its beginning, and the piece's ``logp``."""
    longest = max(map(len, logp), default=0)
    for j in range(1, len(text) + 1):
        for i in range(max(0, j - longest), j):
            if (lp := logp.get(text[i:j])) is not None:
                yield i, j, lp


def _log_add(a: float, b: float) -> float:
    """``log(e^a + e^b)``, the larger taken out first."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def _check(text: str, total: float) -> None:
    if total == -math.inf:
        raise ValueError(f"the pieces cannot make {text!r}; give every character a piece")
