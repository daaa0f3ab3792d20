"""What a template is made of: ordered segments for each kind of turn. Data only; ``script.py`` reads them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

FieldName = Literal["content", "context", "system"]
Condition = Literal["system", "context", "opens", "closes"]
Trim = Literal["", "both", "right"]


@dataclass(frozen=True, slots=True)
class Text:
    """Text that the template brings. A control token that it names becomes that token where the tokenizer has it."""

    text: str


@dataclass(frozen=True, slots=True)
class Field:
    """Text that a message brings: its content, its context, or the system text where it is merged into a user turn.

    ``trim``: white space that the template takes away; ``json``: written as a JSON string.
    """

    name: FieldName
    trim: Trim = ""
    json: bool = False


@dataclass(frozen=True, slots=True)
class Special:
    """A control token by its name; a tokenizer without it cannot serve the template."""

    token: str


@dataclass(frozen=True, slots=True)
class Start:
    """The tokenizer's start token; nothing where it has none."""


@dataclass(frozen=True, slots=True)
class End:
    """The tokenizer's end-of-text token; nothing where it has none."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The id on which the generator stops."""


@dataclass(frozen=True, slots=True)
class When:
    """Segments that depend on the message.

    ``system``: the conversation has a system message (``filled``: one that is not empty); ``context``: the message has
    a context; ``opens``, ``closes``: the message before, behind it has another role.
    """

    condition: Condition
    then: "Segments"
    otherwise: "Segments" = ()
    filled: bool = False


Segment = Text | Field | Special | Start | End | Stop | When
Segments = tuple[Segment, ...]


def _all(segments: Segments) -> Iterator[Segment]:
    """Every segment, those inside a condition too."""
    for segment in segments:
        yield segment
        if isinstance(segment, When):
            yield from _all(segment.then)
            yield from _all(segment.otherwise)


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """How a conversation is written.

    An assistant turn is ``header`` (read, never trained: a generation starts behind it), ``answer`` (text, trained as
    one with the stop id behind it) and ``after`` (never trained). ``opening`` stands before the first turn and
    ``closing`` behind the last answer. ``user_again`` is a user turn that is not the first; None: as the first.

    ``system_in``: where a system message at the start goes. "last user" makes earlier turns be written anew in every
    prompt, so such a conversation is trained one answer at a time. ``system`` is a system turn later on, ``tool`` a
    tool turn; None refuses it.

    ``start``: whether a text starts with the start token; None leaves it to the tokenizer's own rule.
    ``end``: the name of the token that ends an answer; None: the end-of-text token.
    ``alternates``: whether user and assistant must take turns, the user first.
    """

    name: str
    user: Segments
    user_again: Segments | None = None
    header: Segments
    answer: Segments
    after: Segments = ()
    opening: Segments = ()
    closing: Segments = ()
    system: Segments | None = None
    tool: Segments | None = None
    system_in: Literal["opening", "first user", "last user", "refused"] = "opening"
    start: bool | None = None
    end: str | None = None
    alternates: bool = False

    @property
    def tokens(self) -> tuple[str, ...]:
        """The names of the control tokens that it cannot be written without, in the order of its parts."""
        turns = self.system, self.user, self.user_again, self.header, self.after, self.tool
        parts = (self.opening, *turns, self.closing)
        found = [segment.token for part in parts for segment in _all(part or ()) if isinstance(segment, Special)]
        return tuple(dict.fromkeys([*found, *([self.end] if self.end else [])]))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the rendering."""
        return hashlib.sha256(repr(self).encode()).hexdigest()
