"""Byte-pair encoding of one symbol sequence: the best-ranked pair merges first, the leftmost of equals first.

Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units", arXiv 1508.07909. The
sentencepiece kind has no pre-tokenizer, so a whole text is one sequence: a heap of candidate pairs over a linked list
makes it O(n log n) where the obvious loop is O(n^2).
"""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush


class MergeTable:
    """The merges of a vocabulary in order of rank: ``(left id, right id, merged id)``, best first.

    A pair listed twice has the rank of its last listing, as in the reference.
    """

    def __init__(self, merges: Iterable[tuple[int, int, int]], vocab_size: int):
        # A pair is one integer here, and so is a heap entry below: integers compare faster than tuples.
        self._width = vocab_size
        self._merged: list[int] = []
        self._rank_of: dict[int, int] = {}
        for rank, (left, right, merged) in enumerate(merges):
            self._rank_of[left * vocab_size + right] = rank
            self._merged.append(merged)

    def apply(self, symbols: list[int]) -> list[int]:
        """Return the symbols after every merge that applies, in order of rank and then of position."""
        rank_of, merged, width, n = self._rank_of.get, self._merged, self._width, len(symbols)
        symbol = list(symbols)
        after = list(range(1, n + 1))  # the next living position; n is the end
        before = list(range(-1, n - 1))
        heap = []
        for i in range(n - 1):
            rank = rank_of(symbol[i] * width + symbol[i + 1])
            if rank is not None:
                heap.append(rank * n + i)
        heapify(heap)

        while heap:
            rank, i = divmod(heappop(heap), n)  # TOK-2
            j = after[i]
            # An entry is stale when a neighbour has merged since: then this pair is no longer the pair of this rank.
            if symbol[i] < 0 or j >= n or rank_of(symbol[i] * width + symbol[j]) != rank:
                continue
            symbol[i], symbol[j] = merged[rank], -1  # TOK-2
            k = after[i] = after[j]
            if k < n:
                before[k] = i
                rank = rank_of(symbol[i] * width + symbol[k])
                if rank is not None:
                    heappush(heap, rank * n + i)
            h = before[i]
            if h >= 0:
                rank = rank_of(symbol[h] * width + symbol[i])
                if rank is not None:
                    heappush(heap, rank * n + h)
        return [s for s in symbol if s >= 0]
