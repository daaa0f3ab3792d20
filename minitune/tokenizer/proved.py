"""Remember a proof: vocabularies whose list of merges says just what ranks say, known by a hash of all that decides it.

``ranks.proved_order`` finds this out for any file, which takes half a second for the 280,000 merges of Llama 3. The
hash covers every token and every merge in their order, so a file that differs anywhere is proved or refused anew. A
test runs the proof for what is listed here.

A file may declare some of the tokens control tokens, which merges then never make. What was proved stays true: of the
other tokens every cut into two of them is still listed, and a token that only such a cut makes is made by neither side.
"""

import hashlib
from itertools import repeat

# Of these lists every cut of every token is a merge, and ids are ranks; the file must take whole pieces as tokens.
PROVED = {"c48a204f5b340ffcd0d5b16a0de8748f3ac5c377d4f292d474c567eb78f25eb6": "Llama 3"}


def fingerprint(vocab: dict[str, int], merges: object) -> str | None:
    """Return the hash of a vocabulary whose ids are 0, 1, 2, ... and of its merges; None for any other form.

    No two vocabularies share the hashed text: how many lines each half has stands in front, and a token or a merge that
    holds a line end is another form. A merge is the line ``left right``, whether the file has it in one string or two.
    """
    if not isinstance(merges, list) or list(vocab.values()) != list(range(len(vocab))):
        return None
    try:
        if set(map(type, merges)) == {str}:
            lines = merges
        elif set(map(type, merges)) == {list} and set(map(len, merges)) == {2}:
            lines = list(map(" ".join, merges))
        else:
            return None
    except TypeError:  # a part that is no string
        return None
    # One space in each line, so that a line is one pair however it is written.
    if set(map(str.count, lines, repeat(" "))) != {1}:
        return None
    text = "\n".join((f"{len(vocab)} {len(lines)}", *vocab, *lines))
    if text.count("\n") != len(vocab) + len(lines):
        return None
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def ids_are_ranks(vocab: dict[str, int], merges: object) -> bool:
    """Whether this very list was proved to merge as ids do, taken as ranks, where whole pieces are taken as tokens."""
    return fingerprint(vocab, merges) in PROVED
