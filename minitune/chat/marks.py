"""Which characters of a rendered template come from the template, and which from a message: proved, not searched for.

Every message is rendered with its text replaced by marks: one private character for each stretch of it. What stands
between the marks in the rendering was written without knowledge of the text, so it is the template's. Putting the
stretches back must give, character for character, what the template renders from the true text; where it does not,
the template does something to the text that marks do not show, and the conversation is refused.

White space at both ends of a text, and words that the template looks for in it (``</think>``), are left standing
between the marks, so that trimming and splitting act as on the text itself; never where they could be a part of a
control token's name.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from minitune.chat.jinja_env import render_jinja, signals
from minitune.errors import DataError

_PLANES = ((0xF0000, 0xFFFFD), (0x100000, 0x10FFFD))  # the two private planes


class Stretch(NamedTuple):
    """Text of message number ``turn``."""

    text: str
    turn: int


@dataclass(slots=True)
class Marks:
    """The marks of one conversation: the messages with marks in place of their text, and what each mark stands for."""

    source: str
    variables: Mapping[str, Any]
    messages: Sequence[Mapping[str, str]]
    control: tuple[str, ...]
    marked: list[dict[str, str]] = field(default_factory=list)
    stands_for: dict[str, Stretch] = field(default_factory=dict)
    _again: dict[tuple[str, str], str] = field(default_factory=dict)
    _next: int = 0
    _last: int = 0

    def __post_init__(self) -> None:
        everything = self.source + "".join(message["content"] for message in self.messages)
        free = (plane for plane in _PLANES if not any(plane[0] <= ord(c) <= plane[1] for c in set(everything)))
        self._next, self._last = next(free, (1, 0))
        kept, space = left_standing(self.source, self.control)
        for turn, message in enumerate(self.messages):
            self.marked.append({**message, "content": self._mark(message["content"], turn, kept, space)})

    def _mark(self, text: str, turn: int, kept: re.Pattern[str], space: bool) -> str:
        before, core, behind = "", text, ""
        if space:
            core = text.strip()
            before, behind = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :] if core else ""
        out, done = [before], 0
        for match in kept.finditer(core):
            out += [self._stretch(core[done : match.start()], turn), match[0]]
            done = match.end()
        return "".join([*out, self._stretch(core[done:], turn), behind])

    def _stretch(self, text: str, turn: int) -> str:
        if not text:
            return ""
        if self._next > self._last:
            raise DataError(
                "the conversation has too many private characters (from U+F0000 on) for its texts to be marked"
            )
        mark = chr(self._next)
        self._next += 1
        self.stands_for[mark] = Stretch(text, turn)
        return mark

    def render(self, count: int, *, header: bool) -> str:
        """The marked rendering of the first ``count`` messages, proved against the true one; DataError where not."""
        flags = {**self.variables, "add_generation_prompt": header}
        marked = render_jinja(self.source, {"messages": self.marked[:count], **flags})
        true = render_jinja(self.source, {"messages": list(self.messages[:count]), **flags})
        if self.text(marked) == true:
            return marked
        escaped = self._escaped(marked, true)
        if escaped is None:
            raise DataError(
                "the model's own chat template rewrites the text of a message in a way that cannot be followed, so "
                "its mask would be a guess; take that text out, or choose a --template by name"
            )
        return escaped

    def text(self, marked: str) -> str:
        """A marked text with the stretches put back."""
        found = self.stands_for
        return "".join(found[c].text if c in found else c for c in marked) if found else marked

    def _escaped(self, marked: str, true: str) -> str | None:
        """The marked rendering where the template wrote some stretches as JSON: these get a mark of their own."""
        pattern, marks = [], []
        for c in marked:
            stretch = self.stands_for.get(c)
            if stretch is None:
                pattern.append(re.escape(c))
                continue
            forms = dict.fromkeys([stretch.text, *(_as_json(stretch.text, ascii) for ascii in (False, True))])
            pattern.append(f"({'|'.join(map(re.escape, forms))})")
            marks.append(stretch)
        match = re.fullmatch("".join(pattern), true, re.DOTALL)
        if match is None:
            return None
        written = iter(zip(match.groups(), marks, strict=True))
        out = []
        for c in marked:
            if c in self.stands_for:
                text, stretch = next(written)
                if text != stretch.text:
                    key = (c, text)
                    if key not in self._again:
                        self._again[key] = self._stretch(text, stretch.turn)
                    c = self._again[key]
            out.append(c)
        return "".join(out)


@lru_cache(maxsize=64)
def left_standing(source: str, control: tuple[str, ...]) -> tuple[re.Pattern[str], bool]:
    """The words of a text that stay between its marks, and whether white space at its ends does."""
    kept = [word for word in signals(source) if not touches(word, control)]
    return re.compile("|".join(map(re.escape, kept)) or "(?!)"), not any(re.search(r"\s", name) for name in control)


def touches(word: str, names: Sequence[str]) -> bool:
    """Whether a word could be a part of a control token's name, or hold or overlap one."""

    def overlaps(a: str, b: str) -> bool:
        return any(a.endswith(b[:n]) for n in range(1, min(len(a), len(b)) + 1))

    return any(word in name or name in word or overlaps(word, name) or overlaps(name, word) for name in names)


def _as_json(text: str, ascii: bool) -> str:
    return json.dumps(text, ensure_ascii=ascii)[1:-1]
