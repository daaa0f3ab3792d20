"""BPE over characters on tiktoken, which merges bytes: for the sentencepiece kind of ``tokenizer.json``.

Each character of the vocabulary gets ranks before all merges, one for every beginning of its UTF-8 bytes, so tiktoken
puts characters together first; a beginning starts with a leading byte and goes on with others, so it never reaches over
the edge of a character. From there on tiktoken does what ``ranks`` proves equal to the list of merges, on characters. A
character that the vocabulary lacks stays in bytes (and beginnings), which no merge touches; they are spelled out after.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minitune.tokenizer.base import SPACE_MARK
from minitune.tokenizer.ranks import Merge, live_merges, proved_order


@dataclass(frozen=True, kw_only=True, slots=True)
class CharVocabulary:
    """What text can spell (``tokens``, by name), and what stands for a character that is not among it.

    ``byte_ids``: the id of each byte, None where it has none. ``unknown``: the id of a character whose bytes are not
    all there, None where no such character can be; ``fuses``: a run of them is one.
    """

    tokens: dict[str, int]
    merges: list[Merge]
    byte_ids: Sequence[int | None]
    unknown: int | None
    fuses: bool


def char_engine(vocab: CharVocabulary, *, has_spaces: bool) -> Callable[[str], list[int]] | None:
    """Return text to ids by tiktoken, or None where it is not proved to equal the list of merges.

    ``has_spaces``: texts may hold a plain space beside the space mark.
    """
    bytes_there = sum(id is not None for id in vocab.byte_ids)
    fallbacks = {vocab.unknown, *vocab.byte_ids}
    if bytes_there not in (0, 256) or any(left in fallbacks or right in fallbacks for left, right, _ in vocab.merges):
        return None
    known = {id: token for token, id in vocab.tokens.items()}
    order = proved_order(live_merges(vocab.merges, known), known, frozenset(), takes_whole=False)
    if order is None:
        return None
    # A space is one byte and its mark three, and where no text holds both, one can stand for the other.
    plain = not has_spaces and not any(" " in token for token in vocab.tokens)
    written = {id: token.replace(SPACE_MARK, " ") if plain else token for id, token in known.items()}
    characters = {token: id for id, token in written.items() if len(token) == 1}
    space = " " if plain else SPACE_MARK
    encode, id_of, spelled = _ranked(characters, [(written[id], id) for id in order], vocab.byte_ids, space)
    lookup = id_of.__getitem__
    if bytes_there:

        def by_bytes(text: str) -> list[int]:
            ids = list(map(lookup, encode(text.replace(SPACE_MARK, " ") if plain else text)))
            if min(ids, default=0) >= 0:
                return ids
            return [part for id in ids for part in ((id,) if id >= 0 else spelled[id])]

        return by_bytes

    lone = next((chr(b) for b in range(1, 128) if chr(b) not in characters and b != 0x20), None)
    if lone is None or vocab.unknown is None:
        return None
    id_of[ord(lone)] = vocab.unknown
    outside = re.compile(f"[^{re.escape(''.join(characters))}]" + "+" * vocab.fuses) if characters else re.compile(".")
    replace = outside.sub

    def with_unknown(text: str) -> list[int]:
        return list(map(lookup, encode(replace(lone, text.replace(SPACE_MARK, " ") if plain else text))))

    return with_unknown


def _ranked(
    characters: dict[str, int], merged: list[tuple[str, int]], byte_ids: Sequence[int | None], space: str
) -> tuple[Callable[[str], list[int]], list[int], dict[int, tuple[int, ...]]]:
    """Return tiktoken's text to ranks, rank to id, and what an id below zero is spelled as."""
    import tiktoken  # here, so that importing minitune.tokenizer stays quick

    ranks = {bytes([b]): b for b in range(256)}
    id_of = [characters.get(chr(b), -1) if b < 128 else -1 for b in range(256)]
    id_of = [(byte_ids[b] or 0) if id < 0 and byte_ids[b] is not None else id for b, id in enumerate(id_of)]
    spelled: dict[int, tuple[int, ...]] = {}
    for char in characters:
        data = char.encode("utf-8")
        for length in range(2, len(data)):
            beginning = data[:length]
            if beginning not in ranks:
                ranks[beginning] = len(ranks)
                id_of.append(-len(ranks))
                spelled[-len(ranks)] = tuple(byte_ids[b] or 0 for b in beginning)
        if len(data) > 1:
            ranks[data] = len(ranks)
            id_of.append(characters[char])
    for token, id in merged:
        ranks[token.encode("utf-8")] = len(ranks)
        id_of.append(id)
    # Words that start with a space are cut apart where no merge reaches over the cut: short pieces merge faster.
    inside = re.compile(f"[^{space}]{space}").search
    pattern = r"[\s\S]+" if any(inside(token) for token, _ in merged) else f"{space}*[^{space}]+|{space}+"
    encoding = tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return encoding.encode_ordinary, id_of, spelled
