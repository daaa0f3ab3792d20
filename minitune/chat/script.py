"""A template and a conversation become a script: the pieces of text and the control tokens, in the order of writing.

The script is what is the same for every tokenizer and every kind of template. ``as_text`` reads it as the published
templates render it; ``writer.py`` makes ids of it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from minitune.chat.encoded import Part
from minitune.chat.message import Message
from minitune.chat.segments import End, Field, Segments, Special, Start, Stop, Template, Text, When
from minitune.errors import DataError


class Kind(Enum):
    """LITERAL text of the template, whose control tokens count, and TEXT of a message, where they do not; the whole
    text of an ANSWER; a control TOKEN by its name, or by its role: BOS, EOS, STOP."""

    LITERAL = 0
    TEXT = 1
    ANSWER = 2
    TOKEN = 3
    BOS = 4
    EOS = 5
    STOP = 6


class Piece(NamedTuple):
    """One step of a script; ``text`` is the text or the name; the rest says whose it is, as in ``Span``."""

    kind: Kind
    text: str
    turn: int
    role: str
    part: Part


@dataclass(slots=True)
class _Turn:
    """What the segments of one turn are filled from."""

    index: int
    role: str
    message: Message | None = None
    system: str | None = None
    opens: bool = True
    closes: bool = True

    def holds(self, when: When) -> bool:
        if when.condition == "system":
            return bool(self.system) if when.filled else self.system is not None
        if when.condition == "context":
            return self.message is not None and bool(self.message.context.strip())
        return self.opens if when.condition == "opens" else self.closes

    def text(self, field: Field) -> str:
        text: str = self.system if field.name == "system" else getattr(self.message, field.name)  # type: ignore
        if field.trim == "both":
            text = text.strip()
        elif field.trim == "right":
            text = text.rstrip()
        return json.dumps(text, ensure_ascii=False) if field.json else text


_ROLES = {Start: Kind.BOS, End: Kind.EOS, Stop: Kind.STOP}


def script(template: Template, messages: Sequence[Message], *, header: bool) -> list[Piece]:
    """The pieces of a conversation; with ``header`` the opening of a next answer at the end.

    Raises DataError, in one line, for turns that the template has no form for.
    """
    check_turns(template, messages)
    system = messages[0].content if messages[0].role == "system" else None
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    merged_at = users[-1 if template.system_in == "last user" else 0] if users else -1
    pieces = [Piece(Kind.BOS, "", -1, "", "start")] if template.start else []
    if template.opening:
        opening = _Turn(-1 if system is None else 0, "system", system=system)
        _fill(template.opening, opening, pieces)
    for i, message in enumerate(messages):
        if i == 0 and system is not None:
            continue  # in the opening, or in a user turn
        turn = _Turn(i, message.role, message)
        if message.role == "assistant":
            _answer(template, turn, pieces)
        elif message.role == "user":
            turn.system = system if i == merged_at and template.system_in != "opening" else None
            again = template.user_again if i != users[0] else None
            _fill(template.user if again is None else again, turn, pieces)
        elif message.role == "tool":
            turn.opens = i == 0 or messages[i - 1].role != "tool"
            turn.closes = i + 1 == len(messages) or messages[i + 1].role != "tool"
            _fill(template.tool or (), turn, pieces)
        else:
            _fill(template.system or (), turn, pieces)
    if header:
        _fill(template.header, _Turn(len(messages), "assistant"), pieces)
    elif template.closing:
        _fill(template.closing, _Turn(-1, ""), pieces, part="after")
    return pieces


def check_turns(template: Template, messages: Sequence[Message]) -> None:
    """Refuse, with one line, a conversation that the template cannot write."""
    name = template.name
    if not messages:
        raise DataError("the conversation has no messages; at least one is needed")
    start = 1 if messages[0].role == "system" else 0
    if start and template.system_in == "refused":
        raise DataError(f"the {name} template has no place for a system message; leave it out")
    if start and template.system_in in ("first user", "last user") and not any(m.role == "user" for m in messages):
        raise DataError(f"the {name} template writes a system message into a user turn, and there is none")
    for i, message in enumerate(messages[start:], start):
        if message.role == "system" and template.system is None:
            raise DataError(f"message {i + 1} is from 'system'; the {name} template knows it only as the first message")
        if message.role == "tool" and template.tool is None:
            raise DataError(f"message {i + 1} is from 'tool'; the {name} template has no form for it")
        if message.train and message.role != "assistant":
            raise DataError(f"message {i + 1} is from {message.role!r} with train true; only answers are trained")
        expected = "user" if (i - start) % 2 == 0 else "assistant"
        if template.alternates and message.role != expected:
            raise DataError(
                f"message {i + 1} is from {message.role!r}; in the {name} template it must be from {expected!r}, "
                "as user and assistant take turns"
            )


def as_text(pieces: Sequence[Piece], *, bos: str, eos: str, stop: str) -> str:
    """The script as one text, control tokens by their names: what a published template renders."""
    names = {Kind.BOS: bos, Kind.EOS: eos, Kind.STOP: stop}
    return "".join(names.get(piece.kind, piece.text) for piece in pieces)


def _answer(template: Template, turn: _Turn, pieces: list[Piece]) -> None:
    _fill(template.header, turn, pieces)
    texts = []
    for segment in template.answer:
        assert isinstance(segment, Text | Field), "an answer is text"
        texts.append(segment.text if isinstance(segment, Text) else turn.text(segment))
    text = texts[0] if len(texts) == 1 else "".join(texts)
    pieces.append(Piece(Kind.ANSWER, text, turn.index, turn.role, "content"))
    pieces.append(Piece(Kind.STOP, "", turn.index, turn.role, "terminator"))
    _fill(template.after, turn, pieces, part="after")


def _fill(segments: Segments, turn: _Turn, pieces: list[Piece], part: Part = "header") -> Part:
    """Add the pieces of segments; what stands before the content is the header of the turn, what follows, after it."""
    for segment in segments:
        if isinstance(segment, When):
            part = _fill(segment.then if turn.holds(segment) else segment.otherwise, turn, pieces, part)
        elif isinstance(segment, Text):
            pieces.append(Piece(Kind.LITERAL, segment.text, turn.index, turn.role, part))
        elif isinstance(segment, Field):
            pieces.append(Piece(Kind.TEXT, turn.text(segment), turn.index, turn.role, "content"))
            part = "after"
        else:
            kind, name = (Kind.TOKEN, segment.token) if isinstance(segment, Special) else (_ROLES[type(segment)], "")
            ends = part == "after" and bool(pieces) and pieces[-1].part == "content"
            pieces.append(Piece(kind, name, turn.index, turn.role, "terminator" if ends else part))
    return part
