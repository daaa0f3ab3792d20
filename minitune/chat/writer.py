"""A script becomes ids and spans.

* Text of a prompt that stands between two control tokens is encoded together, as one text at inference is.
* An answer is encoded by itself, going on behind what stands before it, as the model makes it after reading that.
* Control tokens are put in by id. Text never becomes one: ``encode`` yields none.

White space beside a control token goes where the tokenizer's flags for it say so (``lstrip``, ``rstrip``: the
line breaks of Phi-3); the text of an answer keeps all of it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from weakref import WeakKeyDictionary

from minitune.chat.encoded import AFTER, HEADER, PROMPT, START, UNPREDICTED, Encoded, Part, Span
from minitune.chat.script import Kind, Piece
from minitune.errors import ConfigError
from minitune.tokenizer import Tokenizer
from minitune.tokenizer.added import WHITE_SPACE


class Decision(NamedTuple):
    """What becomes of one answer, and why."""

    trained: bool
    weight: float
    rule: str


class Habits:
    """How a tokenizer reads a text that holds control tokens, found out by asking it, once for all texts.

    ``begins_anew``: text behind a control token is encoded as if it stood at the start (sentencepiece's prefix).
    """

    def __init__(self, tokenizer: Tokenizer):
        names = tokenizer.control_names()
        bare, anew = tokenizer.encode("a", continues=True), tokenizer.encode("a")
        found = (tokenizer.encode(f"{name}a", control=True)[1:] for name in names)
        self.begins_anew = bare != anew and next((ids for ids in found if ids in (bare, anew)), bare) == anew
        self.eats_before: dict[int, bool] = {}
        self.eats_behind: dict[int, bool] = {}
        self._names = names
        longest_first = sorted(names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._cut: dict[str, list[str | int]] = {}

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Habits":
        if tokenizer not in _HABITS:
            _HABITS[tokenizer] = cls(tokenizer)
        return _HABITS[tokenizer]

    def learn(self, tokenizer: Tokenizer, token: int) -> None:
        """Find out which white space beside this token goes with it."""
        name = tokenizer.token(token)
        self.eats_before[token] = tokenizer.encode(f"\n{name}", control=True) == [token]
        self.eats_behind[token] = tokenizer.encode(f"{name}\n", control=True) == [token]

    def cut(self, literal: str) -> list[str | int]:
        """A template's own text as stretches of text and the ids of the control tokens that it names."""
        if literal not in self._cut:
            if len(self._cut) >= _MOST_LITERALS:
                self._cut.clear()
            parts: list[str | int] = []
            done = 0
            for match in self._pattern.finditer(literal):
                parts += [literal[done : match.start()], self._names[match[0]]]
                done = match.end()
            self._cut[literal] = [part for part in (*parts, literal[done:]) if part != ""]
        return self._cut[literal]


_HABITS: WeakKeyDictionary[Tokenizer, Habits] = WeakKeyDictionary()
_MOST_LITERALS = 4096


class Writer:
    """Takes the pieces of one script in order; ``write`` gives the ids with their spans."""

    def __init__(self, template: str, tokenizer: Tokenizer, stop_id: int, answers: Mapping[int, Decision]):
        self.template, self.tokenizer, self.stop_id, self.answers = template, tokenizer, stop_id, answers
        self.habits = Habits.of(tokenizer)
        self.ids: list[int] = []
        self.spans: list[Span] = []
        self.continues = False  # whether the next text goes on behind other tokens
        self.eaten = False  # whether the last token takes the white space behind it along
        self.waiting: list[str] = []
        self.label: Piece | None = None

    def write(self, pieces: Iterable[Piece], *, start: bool) -> Encoded:
        """``start``: put the start token first, and let the text begin behind it as a text does by itself."""
        if start and self.tokenizer.bos_id is not None:
            self.ids.append(self.tokenizer.bos_id)
            self.spans.append(Span(0, 1, -1, "", "start", False, 0.0, START))
        for piece in pieces:
            kind = piece.kind
            if kind is Kind.TEXT:
                self._text(piece.text, piece)
            elif kind is Kind.LITERAL:
                for part in self.habits.cut(piece.text):
                    if isinstance(part, str):
                        self._text(part, piece)
                    else:
                        self._control(part, piece)
            elif kind is Kind.ANSWER:
                self._flush()
                self._answer(piece)
            else:
                token = self._token(piece)
                if token is not None:
                    self._control(token, piece)
        self._flush()
        return Encoded(self.ids, tuple(self.spans))

    def _text(self, text: str, piece: Piece) -> None:
        """Keep text for what stands together with it; the span is named for the message in it, if there is one."""
        if text:
            self.waiting.append(text)
            if self.label is None or piece.part == "content" or self.label.part != "content":
                self.label = piece

    def _token(self, piece: Piece) -> int | None:
        if piece.kind is Kind.STOP:
            return self.stop_id
        if piece.kind is Kind.TOKEN:
            token = self.tokenizer.token_id(piece.text)
            if token is None:
                raise ConfigError(
                    f"the tokenizer has no token {piece.text!r}, which the {self.template} template needs; "
                    "choose a --template that needs none, such as alpaca, or tune with --train-tokens, which adds it"
                )
            return token
        return self.tokenizer.bos_id if piece.kind is Kind.BOS else self.tokenizer.eos_id

    def _control(self, token: int, piece: Piece) -> None:
        if token not in self.habits.eats_behind:
            self.habits.learn(self.tokenizer, token)
        # Behind an answer nothing waits, so its own white space stays whatever the flags say.
        self._flush(eaten=self.habits.eats_before[token])
        self.ids.append(token)
        self._span(1, piece)
        self.continues = not self.habits.begins_anew
        self.eaten = self.habits.eats_behind[token]

    def _answer(self, piece: Piece) -> None:
        # Behind nothing but a start token the answer is the text itself, and begins as a text does.
        goes_on = bool(self.spans) and self.spans[-1].part != "start"
        ids = self.tokenizer.encode(piece.text, continues=goes_on)
        first = not self.ids
        self.ids += ids
        if first and ids:
            self._span(1, piece, unpredicted=True)
            ids = ids[1:]
        if ids:
            self._span(len(ids), piece)
            self.continues, self.eaten = True, False

    def _flush(self, eaten: bool = False) -> None:
        """Encode the prompt's text that waits; ``eaten``: the token behind it takes its last white space along."""
        if not self.waiting:
            return
        text = "".join(self.waiting)
        if self.eaten:
            text = text.lstrip(WHITE_SPACE)
        if eaten:
            text = text.rstrip(WHITE_SPACE)
        ids = self.tokenizer.encode(text, continues=self.continues) if text else []
        self.ids += ids
        assert self.label is not None
        if ids:
            self._span(len(ids), self.label)
            self.continues, self.eaten = True, False
        self.waiting.clear()
        self.label = None

    def _span(self, length: int, piece: Piece, *, unpredicted: bool = False) -> None:
        """A span over the last ``length`` ids, joined with the one before where nothing tells them apart."""
        part, text = piece.part, ""
        start = self.spans[-1].end if self.spans else 0
        trained, weight, rule = False, 0.0, _RULES[part]
        if piece.role == "assistant" and part in ("content", "terminator"):
            trained, weight, rule = self.answers[piece.turn]
            if unpredicted:
                trained, weight, rule = False, 0.0, UNPREDICTED
            text = piece.text
        elif piece.role != "assistant" and part != "start":
            rule = PROMPT if piece.turn >= 0 or part != "after" else AFTER
        span = Span(start, start + length, piece.turn, piece.role, part, trained, weight, rule, text)
        before = self.spans[-1] if self.spans else None
        if before is not None and not trained and before[2:] == span[2:] and not text:
            self.spans[-1] = before._replace(end=span.end)
        else:
            self.spans.append(span)


_RULES: dict[Part, str] = {
    "start": START,
    "header": HEADER,
    "content": PROMPT,
    "terminator": PROMPT,
    "after": AFTER,
}
