"""A checkpoint's own chat template, where it is none of those that are known by name.

Nothing is known of such a template but what it renders, so the mask is derived from renderings alone. The prompt of
an answer is the rendering of what stands before it, with ``add_generation_prompt``: what a generation reads. The answer
is what the rendering with it has behind that prompt, up to the first control token behind its text, which ends it.
Where the template writes an answer otherwise than it opens one (a prompt that opens with ``<think>``), the answer is
its text as it stands and what the template writes behind it.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from minitune.chat.encoded import Part
from minitune.chat.jinja_env import render_jinja
from minitune.chat.marks import Marks
from minitune.chat.message import Message
from minitune.chat.script import Kind, Piece
from minitune.errors import ConfigError, DataError
from minitune.tokenizer import Tokenizer

_ADVICE = "choose a --template by name"


@dataclass(frozen=True, kw_only=True, slots=True)
class JinjaTemplate:
    """The source of a template; ``name`` is for people."""

    name: str
    source: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the rendering."""
        return hashlib.sha256(f"jinja\n{self.source}".encode()).hexdigest()


class Answer(NamedTuple):
    """One answer, in marked text: the prompt that it has, its text, its control token, and what stands behind that."""

    turn: int
    prompt: str
    text: str
    token: str
    after: str

    @property
    def whole(self) -> str:
        """All that was read and made when the answer is over."""
        return self.prompt + self.text + self.token


def jinja_script(
    template: JinjaTemplate, messages: Sequence[Message], tokenizer: Tokenizer
) -> tuple[list[Piece], int, bool]:
    """The pieces of a conversation, the id that ends its answers (-1: it has none), and whether its prompts nest.

    Ends with the opening of an answer where the last message is none. Where the prompts do not nest, that is where a
    later prompt does not begin with an earlier one and its answer, only the last answer is told apart from the text.
    Raises DataError, in one line, for what the template refuses or what cannot be followed.
    """
    if not messages:
        raise DataError("the conversation has no messages; at least one is needed")
    for i, message in enumerate(messages):
        if message.train and message.role != "assistant":
            raise DataError(f"message {i + 1} is from {message.role!r} with train true; only answers are trained")
    marks = Marks(
        template.source, special_tokens(tokenizer), as_dicts(messages), tuple(sorted(tokenizer.control_names()))
    )
    names = re.compile("|".join(map(re.escape, sorted(tokenizer.control_names(), key=len, reverse=True))) or "(?!)")
    turns = [turn for turn, message in enumerate(messages) if message.role == "assistant"]
    answers = [_answer_of(marks, turn, names) for turn in turns]
    asks = not turns or turns[-1] != len(messages) - 1
    end = marks.render(len(messages), header=True) if asks else answers[-1].whole + answers[-1].after
    prompts = [*(answer.prompt for answer in answers[1:]), *([end] if asks else [])]
    nests = all(prompt.startswith(answer.whole) for answer, prompt in zip(answers, prompts, strict=False))
    if not nests:
        answers = [] if asks else answers[-1:]
    pieces: list[Piece] = []
    done = 0
    bos = marks.variables.get("bos_token", "")
    if bos and (answers[0].prompt if answers else end).startswith(bos):
        pieces.append(Piece(Kind.BOS, "", -1, "", "start"))
        done = len(bos)
    for answer in answers:
        pieces += _prompt_pieces(marks, answer.prompt[done:], answer.turn, names)
        pieces.append(Piece(Kind.ANSWER, marks.text(answer.text), answer.turn, "assistant", "content"))
        pieces.append(Piece(Kind.STOP, "", answer.turn, "assistant", "terminator"))
        done = len(answer.whole)
    if asks:
        pieces += _prompt_pieces(marks, end[done:], len(messages), names)
    else:
        pieces.append(Piece(Kind.LITERAL, answers[-1].after, answers[-1].turn, "assistant", "after"))
    ends = {answer.token for answer in answers}
    if len(ends) > 1:
        raise DataError(f"the model's own chat template ends its answers in several ways ({', '.join(sorted(ends))})")
    return pieces, tokenizer.control_names()[ends.pop()] if ends else -1, nests


def own_terminator(template: JinjaTemplate, tokenizer: Tokenizer) -> int:
    """The id that ends an answer in this template; ConfigError where it ends one with no control token."""
    try:
        _, token, _ = jinja_script(template, [Message("user", "Q"), Message("assistant", "A")], tokenizer)
    except DataError as error:
        raise ConfigError(f"{error}; {_ADVICE}") from None
    return token


def own_text(template: JinjaTemplate, messages: Sequence[Message], tokenizer: Tokenizer, *, header: bool) -> str:
    """The conversation as the template renders it; with ``header``, add_generation_prompt is true."""
    flags = {**special_tokens(tokenizer), "add_generation_prompt": header}
    return render_jinja(template.source, {"messages": as_dicts(messages), **flags})


def special_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the reference hands to a template beside the messages: names of the tokens that have a role, no tools."""
    roles = {
        "bos_token": tokenizer.bos_id,
        "eos_token": tokenizer.eos_id,
        "pad_token": tokenizer.pad_id,
        "unk_token": tokenizer.unk_id,
    }
    named = {role: tokenizer.token(id) for role, id in roles.items() if id is not None}
    return {**named, "tools": None, "documents": None}


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as a template reads them; a separate input follows the instruction on a line of its own."""
    return [
        {"role": m.role, "content": f"{m.content}\n{m.context}" if m.context.strip() else m.content} for m in messages
    ]


def _answer_of(marks: Marks, turn: int, names: re.Pattern[str]) -> Answer:
    prompt, whole = marks.render(turn, header=True) if turn else "", marks.render(turn + 1, header=False)
    if turn and whole.startswith(prompt):
        rest = whole[len(prompt) :]
    else:
        content = marks.marked[turn]["content"].strip()
        at = whole.rfind(content)
        if at < 0 or not any(c in marks.stands_for for c in content):
            raise DataError(
                f"message {turn + 1}: the model's own chat template writes this answer otherwise than it opens one, "
                f"so its mask would be a guess; {_ADVICE}"
            )
        # Without a prompt nothing opens the answer but what the template writes before it.
        prompt, rest = prompt if turn else whole[:at], whole[at:]
    last = max((place + 1 for place, c in enumerate(rest) if c in marks.stands_for), default=0)
    opened = names.search(rest, 0, last)
    end = names.search(rest, last)
    if opened is not None:
        raise DataError(
            f"the model's own chat template does not open an answer where it is asked to (add_generation_prompt): it "
            f"writes {opened[0]!r} with the answer; {_ADVICE}"
        )
    if end is None:
        raise DataError(
            f"the model's own chat template writes no control token behind an answer, so none would end; {_ADVICE}"
        )
    return Answer(turn, prompt, rest[: end.start()], end[0], rest[end.end() :])


def _prompt_pieces(marks: Marks, marked: str, answer: int, names: re.Pattern[str]) -> Iterator[Piece]:
    """A stretch of prompt: texts of messages, and between them what the template wrote.

    The first control token behind a message counts as its end, what follows opens the next one.
    """
    parts = re.split(f"([{''.join(marks.stands_for)}])", marked) if marks.stands_for else [marked]
    of = -1  # the message last written
    for i, part in enumerate(parts):
        if i % 2:
            stretch = marks.stands_for[part]
            of = stretch.turn
            yield Piece(Kind.TEXT, stretch.text, of, marks.messages[of]["role"], "content")
            continue
        following = next((marks.stands_for[mark].turn for mark in parts[i + 1 :: 2]), answer)
        role = marks.messages[following]["role"] if following < len(marks.messages) else "assistant"
        if of >= 0 and following != of and (end := names.search(part)):
            yield Piece(Kind.LITERAL, part[: end.start()], of, marks.messages[of]["role"], "after")
            yield Piece(Kind.LITERAL, end[0], of, marks.messages[of]["role"], "terminator")
            part = part[end.end() :]
        yield Piece(Kind.LITERAL, part, following, role, _part(of, following))


def _part(of: int, following: int) -> Part:
    return "after" if of == following else "header"
