"""Added tokens: names beside the vocabulary that are found in a text before it is cut, as the file's flags say."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

_CIRCLED = ("\u24b6\u24e9", "\U0001f130\U0001f149", "\U0001f150\U0001f169", "\U0001f170\U0001f189")  # letters too
# White space as the reference's regular expressions have it: without U+001C..U+001F, which Python's str counts in.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


@dataclass(frozen=True, kw_only=True, slots=True)
class AddedToken:
    """A token beside the vocabulary; the flags say how the reference finds it in a text.

    ``normalized``: looked for after the normaliser; ``lstrip``, ``rstrip``: takes the white space on that side along;
    ``single_word``: only where no letter touches it.
    """

    id: int
    content: str
    special: bool = False
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class AddedTokens:
    """The added tokens of a vocabulary, to be found in plain text, or with control tokens as well.

    ``passed_over``: ids that plain text never becomes; ``names``: their names, for those that are no added token but
    that an expert may type where control tokens are asked for.
    """

    def __init__(
        self,
        added: Sequence[AddedToken],
        passed_over: frozenset[int],
        names: Mapping[str, int],
        normalize: Callable[[str], str],
    ):
        listed = {a.content for a in added}
        by_name = [AddedToken(id=id, content=name) for name, id in names.items() if name not in listed]
        raw = [(a.content, a) for a in added if not a.normalized]
        normal = [(normalize(a.content), a) for a in added if a.normalized]
        self._plain = (AddedMatcher(raw, passed_over), AddedMatcher(normal, passed_over))
        raw += [(a.content, a) for a in by_name]
        self._control = (AddedMatcher(raw, frozenset()), AddedMatcher(normal, frozenset()))

    def split(
        self, text: str, normalize: Callable[[str, int], str], *, control: bool = False
    ) -> Iterator[tuple[int, str, int | None]]:
        """Yield ``(start, normal text, None)`` for stretches of text and ``(start, text, id)`` for tokens found.

        ``normalize`` is given a stretch and where it starts; behind one that grew, starts count in normal text.
        """
        raw, normal = self._control if control else self._plain
        for start, stretch, token in raw.split(text):
            if token is not None:
                yield start, stretch, token.id
                continue
            for at, piece, found in normal.split(normalize(stretch, start)):
                yield start + at, piece, None if found is None else found.id


class AddedMatcher:
    """Added tokens in a text: leftmost first, longest first; those passed over stay text, with all that they hold."""

    def __init__(self, tokens: Sequence[tuple[str, AddedToken]], passed_over: frozenset[int]):
        self._tokens = dict(tokens)
        self._passed_over = passed_over
        # Where every token is passed over nothing is ever matched, and texts need no scan.
        self._wanted = any(a.id not in passed_over for a in self._tokens.values())
        self._pattern: re.Pattern[str] | None = None

    def split(self, text: str) -> Iterator[tuple[int, str, AddedToken | None]]:
        """Yield ``(start, text, None)`` for stretches of text and ``(start, text, token)`` for tokens found."""
        done = 0
        for match in self._matches(text) if self._wanted else ():
            token = self._tokens[match[0]]
            start, stop = match.span()
            if token.id in self._passed_over or (token.single_word and _touches_a_word(text, start, stop)):
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip(WHITE_SPACE))
            while token.rstrip and stop < len(text) and text[stop] in WHITE_SPACE:
                stop += 1
            if done < start:
                yield done, text[done:start], None
            yield start, text[start:stop], token
            done = stop
        if done < len(text):
            yield done, text[done:], None

    def _matches(self, text: str) -> Iterator[re.Match[str]]:
        if self._pattern is None:  # made when first wanted, as few texts ever ask for control tokens
            longest_first = sorted(self._tokens, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        return self._pattern.finditer(text)


def _touches_a_word(text: str, start: int, stop: int) -> bool:
    return (start > 0 and is_word(text[start - 1])) or (stop < len(text) and is_word(text[stop]))


def is_word(char: str) -> bool:
    r"""Whether a character is in the ``\w`` of Unicode (UTS 18): letters, marks, decimal digits, connectors, joiners.

    Python's own ``\w`` leaves out marks and joiners and takes in superscripts and fractions.
    """
    kind = unicodedata.category(char)
    if kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or char in "\u200c\u200d":
        return True
    return any(first <= char <= last for first, last in _CIRCLED)
