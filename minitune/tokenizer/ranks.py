"""When may merging by the rank of the merged bytes stand for a list of merges? Here that is proved for a vocabulary.

tiktoken merges any two neighbours whose joined bytes are a token, the token of the lowest rank first, the leftmost of
equals first. A list names the pairs. The two agree on every text if either of these holds, and both are cheap to check:

* *Complete*: for each token, every way of cutting it into two tokens is listed, and its merges stand together in the
  list. Then both know the same pairs. Two different pairs that make one token never meet in one text: what merged
  inside its bytes so far depends on these bytes alone, so the last pair does too. As tiktoken takes a whole piece that
  is a token without merges, the file must do so too, or the list run on the bytes of each token must give the token.
* *Reached*: every token has one merge, its parts rank before it, and the list run on its bytes gives the token. Take a
  shortest token that ranks make of another pair than the listed one. Up to that pair both ran alike, and there the list
  would stop, though it gives the token: so there is no such token.

Whether the list gives the token is read from the trees of its two parts: neighbours across the cut exist at the same
time, and no listed merge of two of them may come before one of them is used up.
"""

from collections.abc import Iterable, Mapping, Sequence
from operator import ne

from minitune.tokenizer.merge import MergeTable

Merge = tuple[int, int, int]  # left id, right id, merged id


def live_merges(
    merges: list[Merge], known: Mapping[int, Sequence[object]], closed: frozenset[int] = frozenset()
) -> list[Merge]:
    """Return the merges that text can reach: none makes a closed id, and the parts are symbols or made before or after.

    ``known``: the tokens that text can spell, by id, as bytes or as characters; one of length 1 is a symbol. A pair
    listed twice keeps its last place, as in the reference.
    """
    if not merges:
        return merges
    symbols = {id for id, data in known.items() if len(data) == 1}
    lefts, rights, made = map(set, zip(*merges, strict=True))
    if not (lefts | rights | made) <= (symbols | made) & known.keys() - closed:
        # Shorter tokens first, so that what can make a part is known before the part is asked for.
        candidates = [m for m in merges if m[2] in known and m[2] not in closed]
        reachable, made = symbols - closed, set[int]()
        for left, right, token in sorted(candidates, key=lambda m: len(known[m[2]])):
            if left in reachable and right in reachable:
                reachable.add(token)
                made.add(token)
        merges = [m for m in candidates if m[0] in reachable and m[1] in reachable]
    # Two merges of one pair are the same three ids, so where each token has one merge no pair stands twice.
    if len(made) < len(merges) and len(set(merges)) < len(merges):
        last = {(left, right): (rank, made) for rank, (left, right, made) in enumerate(merges)}
        merges = [(*pair, made) for pair, (_, made) in sorted(last.items(), key=lambda item: item[1][0])]
    return merges


def proved_order(
    merges: list[Merge], known: Mapping[int, Sequence[object]], whole: frozenset[int], *, takes_whole: bool
) -> list[int] | None:
    """Return the ids that merges make in the order of their ranks, or None where ranks are not proved to do.

    ``whole``: ids that no merge makes but that a whole piece may be; these may not be cut into two tokens at all.
    ``takes_whole``: a whole piece that is a token is one without merges, which tiktoken does in any case.
    """
    order = list(dict.fromkeys(made for _, _, made in merges))
    if len(order) == len(merges):
        parts = {data for id, data in known.items() if len(data) == 1}
        parts.update(known[id] for id in (*order, *whole))
        return order if _reached(merges) and not _cuts(map(known.__getitem__, whole), parts) else None
    if not _complete(merges, known, order, whole):
        return None
    return order if takes_whole or _all_made(merges, known, order) else None


def _all_made(merges: list[Merge], known: Mapping[int, Sequence[object]], order: list[int]) -> bool:
    """Whether the list, run on what each token spells, gives the token: the slow way, where tokens have many cuts."""
    symbol_of = {data: id for id, data in known.items() if len(data) == 1}
    table = MergeTable(merges, max(known) + 1)
    for id in order:
        data = known[id]
        if table.apply([symbol_of[data[i : i + 1]] for i in range(len(data))]) != [id]:
            return False
    return True


def all_cuts(known: Mapping[int, bytes], order: Sequence[int]) -> list[Merge]:
    """Return the list of merges that says what ranks say: every cut of each token into two, tokens by their order."""
    id_of = {data: id for id, data in known.items() if len(data) == 1}
    id_of |= {known[id]: id for id in order}
    merges = []
    for id in order:
        data = known[id]
        for i in range(1, len(data)):
            left, right = id_of.get(data[:i]), id_of.get(data[i:])
            if left is not None and right is not None:
                merges.append((left, right, id))
    return merges


def _cuts(tokens: Iterable[Sequence[object]], parts: set[Sequence[object]]) -> int:
    """In how many ways the tokens, all together, are two parts."""
    found = 0
    for data in tokens:
        for i in range(1, len(data)):
            if data[i:] in parts and data[:i] in parts:  # of the two, what stands behind is seldom a part
                found += 1
    return found


def _complete(
    merges: list[Merge], known: Mapping[int, Sequence[object]], order: list[int], whole: frozenset[int]
) -> bool:
    """Whether the merges of a token stand together, and every cut of a token is listed.

    Each merge is a cut of its token and no merge stands twice, so as many cuts as merges means that all are listed.
    """
    made = [id for _, _, id in merges]
    if sum(map(ne, made, made[1:])) + 1 != len(order):
        return False
    parts = {data for data in known.values() if len(data) == 1}
    parts.update(known[id] for id in order)
    parts.update(known[id] for id in whole)
    return _cuts(map(known.__getitem__, (*order, *whole)), parts) == len(merges)


def _reached(merges: list[Merge]) -> bool:
    """Whether the list, run on the bytes of each token it makes, gives that token; bytes have the ranks below 0."""
    rank = {made: i for i, (_, _, made) in enumerate(merges)}
    n = len(rank)
    byte_rank: dict[int, int] = {}
    for left, right, _ in merges:
        for part in (left, right):
            if part not in rank:
                byte_rank.setdefault(part, -1 - len(byte_rank))
    rank |= byte_rank
    width = n + len(byte_rank) + 1
    # Ranks are shifted by the number of bytes, so that all of them, bytes included, are 0 and up.
    shift = len(byte_rank)
    first, second = list(range(shift)), list(range(shift))  # a byte is its own part: it cannot be opened
    rank_of: dict[int, int] = {}
    for i, (left, right, _) in enumerate(merges):
        a, b = rank[left] + shift, rank[right] + shift
        if a >= i + shift or b >= i + shift:
            return False
        first.append(a)
        second.append(b)
        rank_of[a * width + b] = i + shift
    find = rank_of.get
    for made in range(shift, shift + n):
        a, b = first[made], second[made]
        while True:
            # Open the later of the two neighbours at the cut: ``limit`` is when the pair inside it ceases to exist.
            if a > b and a >= shift:
                limit, a = a, second[a]
            elif b >= shift:
                limit, b = b + 1, first[b]  # of equals the left one merges first, so here the pair at the cut does
            else:
                break
            if find(a * width + b, limit) < limit:
                return False
    return True
