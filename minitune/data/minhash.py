"""Pairs of texts that are nearly the same, found by MinHash and LSH and proved by exact counting.

A text is the set of its n-grams. Their units are words, and single characters of the scripts that put no spaces between
words (Chinese, Japanese, Thai ...), so that one measure serves all. Two texts are as near as their sets are:

    J(A, B) = |A n B| / |A u B|

For a random hash function h, P(min h(A) = min h(B)) = J(A, B). A signature is K such minima, and the share in which two
signatures agree estimates J with standard deviation sqrt(J (1 - J) / K). Pairs to look at are those whose signatures
agree in all r places of one of b bands, which a pair at J does with probability 1 - (1 - J^r)^b.

Broder, On the resemblance and containment of documents (1997); Leskovec, Rajaraman and Ullman, Mining of Massive
Datasets, chapter 3.
"""

import hashlib
import math
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

NGRAM = 2
HASHES = 128  # K
_RECALL = 0.995  # of a pair that lies right on the threshold
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+|[-+*/=<>%^&|~$#@]")  # 2 + 2 is not 2 - 2
_PIECE = 1 << 16  # n-grams that are hashed at a time: what fits into a cache
_CHUNK = 1 << 20  # tokens that are made n-grams at a time
_PAIRS = 1 << 15  # pairs that are compared at a time
_CROWD = 32  # in a bucket with more rows than twice this, a row is compared with its so many nearest in order


class Near(NamedTuple):
    """Two texts by their places, how near their signatures say that they are, and how near they are."""

    first: int
    second: int
    estimate: float
    jaccard: float


@dataclass(frozen=True)
class Grams:
    """The n-grams of many texts, as 64-bit hashes: those of text i are ``values[starts[i] : starts[i + 1]]``."""

    values: "np.ndarray"  # uint64; of each text sorted, each once
    starts: "np.ndarray"  # int64; a text without a word has none

    def of(self, text: int) -> "np.ndarray":
        """The n-grams of one text."""
        return self.values[self.starts[text] : self.starts[text + 1]]

    def jaccard(self, first: int, second: int) -> float:
        """How near two texts are: exact, but for two n-grams of the same 64-bit hash."""
        import numpy as np

        one, other = self.of(first), self.of(second)
        if not len(one) or not len(other):
            return 0.0
        both = np.concatenate([one, other])
        both.sort()
        common = np.count_nonzero(both[1:] == both[:-1])
        return int(common) / (len(one) + len(other) - common)


def tokens(text: str) -> list[str]:
    """Return the units of a folded text: words, unspaced characters and the signs of arithmetic and code."""
    return _TOKEN.findall(text)


class _Hashes(dict[str, int]):
    """A 64-bit hash of each token, the same on every machine, made once a token."""

    def __missing__(self, token: str) -> int:
        value = int.from_bytes(
            hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
        )
        self[token] = value
        return value


def grams(texts: Iterable[str], size: int = NGRAM) -> Grams:
    """Return the n-grams of ``size`` units of folded texts; a text with fewer units has one, of all of them."""
    import numpy as np

    hashes, held, lengths = _Hashes(), array("Q"), array("q")
    parts, counts = [np.empty(0, np.uint64)], [np.zeros(1, np.int64)]

    def put_away() -> None:
        values, found = _grams(np.frombuffer(held, np.uint64), np.frombuffer(lengths, np.int64), size)
        parts.append(values)
        counts.append(found)

    for text in texts:
        units = [hashes[token] for token in _TOKEN.findall(text)]
        if units:
            units += [0] * (size - len(units))
        held.extend(units)
        lengths.append(len(units))
        if len(held) >= _CHUNK:
            put_away()
            held, lengths = array("Q"), array("q")
    put_away()
    return Grams(np.concatenate(parts), np.concatenate(counts).cumsum())


def _grams(units: "np.ndarray", lengths: "np.ndarray", size: int) -> tuple["np.ndarray", "np.ndarray"]:
    """Return the n-grams of texts of so many units, those of a text sorted and each once; and how many each has."""
    import numpy as np

    hashed = np.zeros(max(len(units) - size + 1, 0), np.uint64)
    for place in range(size):
        hashed = _mixed(hashed + units[place : place + len(hashed)])
    owner = np.repeat(np.arange(len(lengths)), lengths)[: len(hashed)]
    ends = lengths.cumsum()
    whole = np.arange(len(hashed)) + size <= ends[owner]
    hashed, owner = hashed[whole], owner[whole]
    order = np.lexsort((hashed, owner))
    hashed, owner = hashed[order], owner[order]
    fresh = np.ones(len(hashed), bool)
    fresh[1:] = (hashed[1:] != hashed[:-1]) | (owner[1:] != owner[:-1])
    return hashed[fresh], np.bincount(owner[fresh], minlength=len(lengths))


def _mixed(x: "np.ndarray") -> "np.ndarray":
    """The finaliser of SplitMix64: every bit of x moves every bit of the result; arithmetic modulo 2^64."""
    import numpy as np

    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def signatures(found: Grams, hashes: int = HASHES) -> "np.ndarray":
    """Return (texts, ``hashes``) uint32: of each text the minima of h_k(x) = upper half of a_k x + b_k mod 2^64.

    The row of a text without n-grams holds nothing that means anything.
    """
    import numpy as np

    digests = [hashlib.blake2b(b"minitune minhash %d" % k, digest_size=16).digest() for k in range(hashes)]
    a = [np.uint64(int.from_bytes(digest[:8], "little") | 1) for digest in digests]
    b = [np.uint64(int.from_bytes(digest[8:], "little")) for digest in digests]
    full = np.flatnonzero(np.diff(found.starts))
    signature = np.zeros((len(found.starts) - 1, hashes), np.uint32)
    first = 0
    while first < len(full):
        start = found.starts[full[first]]
        # At least one text, and as many more as fit.
        last = max(first + 1, int(np.searchsorted(found.starts[full], start + _PIECE)))
        rows = full[first:last]
        values = found.values[start : found.starts[rows[-1] + 1]]
        starts = found.starts[rows] - start
        for k in range(hashes):
            high = ((values * a[k] + b[k]) >> np.uint64(32)).astype(np.uint32)
            signature[rows, k] = np.minimum.reduceat(high, starts)
        first = last
    return signature


def bands(threshold: float, hashes: int = HASHES) -> tuple[int, int]:
    """Return (b, r): the longest bands that still find a pair at the threshold with probability 0.995."""
    for r in range(hashes, 1, -1):
        b = hashes // r
        if 1 - (1 - threshold**r) ** b >= _RECALL:
            return b, r
    return hashes, 1


def near_pairs(found: Grams, threshold: float) -> list[Near]:
    """Return the pairs of texts with a Jaccard similarity of at least ``threshold``, 0 < threshold <= 1, in order.

    Every pair is counted exactly before it is returned; one that lies on the threshold is missed with a probability of
    about 0.005, a nearer one with less. Where more than 64 texts share a band, each is compared with its 32
    neighbours in the order of the signatures only.
    """
    import numpy as np

    signature = signatures(found)
    full = np.flatnonzero(np.diff(found.starts))
    margin = 4 * math.sqrt(threshold * (1 - threshold) / HASHES)
    codes, fresh = np.empty(0, np.int64), []
    for first, second in _candidates(signature, full, threshold):
        agree = (signature[first] == signature[second]).mean(axis=1)
        keep = agree >= threshold - margin
        low, high = np.minimum(first, second)[keep], np.maximum(first, second)[keep]
        fresh.append(low * len(signature) + high)
        if sum(map(len, fresh)) > max(len(codes), _CHUNK):  # each pair is sorted a few times, not once a piece
            codes, fresh = np.unique(np.concatenate([codes, *fresh])), []
    near = []
    for code in np.unique(np.concatenate([codes, *fresh])).tolist():
        one, other = divmod(code, len(signature))
        jaccard = found.jaccard(one, other)
        if jaccard >= threshold:
            near.append(Near(one, other, float((signature[one] == signature[other]).mean()), jaccard))
    return near


def _candidates(
    signature: "np.ndarray", full: "np.ndarray", threshold: float
) -> Iterator[tuple["np.ndarray", "np.ndarray"]]:
    """Yield pairs that agree in a band, some at a time; one that agrees in several comes several times."""
    import numpy as np

    b, r = bands(threshold)
    for band in range(b):
        key = np.zeros(len(full), np.uint64)
        for place in range(band * r, (band + 1) * r):
            key = _mixed(key + signature[full, place])
        order = np.argsort(key, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(key[order]) != 0, True)) + 1
        sizes = np.diff(ends, prepend=0)
        members = full[order]
        for size in np.unique(sizes[(sizes > 1) & (sizes <= 2 * _CROWD)]).tolist():
            buckets = members[(ends[sizes == size] - size)[:, None] + np.arange(size)]
            left, right = np.triu_indices(size, 1)
            step = max(1, _PAIRS // len(left))
            for some in range(0, len(buckets), step):
                yield buckets[some : some + step, left].ravel(), buckets[some : some + step, right].ravel()
        for end, size in zip(ends, sizes, strict=True):
            if size > 2 * _CROWD:
                crowd = members[end - size : end]
                crowd = crowd[np.lexsort(signature[crowd].T)]
                for apart in range(1, _CROWD + 1):
                    for some in range(0, len(crowd) - apart, _PAIRS):
                        left = crowd[: len(crowd) - apart][some : some + _PAIRS]
                        yield left, crowd[apart:][some : some + _PAIRS]
