"""Remember a proof: vocabularies whose list of merges says just what ranks say, known by a hash of all that decides it.

``ranks.proved_order`` finds this out for any file, which takes half a second for the 280,000 merges of Llama 3. The
hash covers every token and every merge in their order, so a file that differs anywhere is proved or refused anew. A
test runs the proof for what is listed here.
"""

import hashlib

# Of these lists every cut of every token is a merge, and ids are ranks; the file must take whole pieces as tokens.
PROVED = {"3242f61949925c26749895804297217519a1a97a2f26fa957f8447658015564e": "Llama 3"}


def fingerprint(vocab: dict[str, int], merges: object) -> str | None:
    """Return the hash of a vocabulary whose ids are 0, 1, 2, ... and of its merges; None for any other form."""
    if not isinstance(merges, list) or list(vocab.values()) != list(range(len(vocab))):
        return None
    try:
        lines = merges if type(merges[0]) is str else list(map(" ".join, merges))
        text = "\n".join(("\n".join(vocab), "", *lines))
    except (IndexError, TypeError):
        return None
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def ids_are_ranks(vocab: dict[str, int], merges: object) -> bool:
    """Whether this very list was proved to merge as ids do, taken as ranks, where whole pieces are taken as tokens."""
    return fingerprint(vocab, merges) in PROVED
