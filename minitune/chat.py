"""A conversation becomes ids and mask together, segment by segment, as inference will see them.

A template is data: for each role an ordered list of segments. Nothing is searched for in the finished ids, so a mask
can be neither lost nor shifted:

* text of the prompt that stands together is encoded together, since a prompt at inference is one text too;
* the answer is encoded by itself, going on after the prompt, since at inference it is generated after it;
* the end of the answer is the model's stop id, trained; nothing after it is.

Text of a row never becomes a control token: the tokenizer's ``encode`` yields none, and control tokens enter only as
``Stop`` and the start of the text.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from minitune.errors import ConfigError
from minitune.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    ``context`` is the separate input that some instructions work on. ``train`` says whether an assistant turn is
    trained, where the row itself decides; None leaves it to the run. ``weight`` multiplies the loss of its tokens.
    """

    role: Role
    content: str
    context: str = ""
    train: bool | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Text:
    """A segment that the template brings."""

    text: str


@dataclass(frozen=True, slots=True)
class Field:
    """A segment that the message brings."""

    name: Literal["content", "context"]


@dataclass(frozen=True, slots=True)
class Stop:
    """The id on which the generator stops."""


Segment = Text | Field | Stop


@dataclass(frozen=True, slots=True)
class Template:
    """How each role is written; the segments of an assistant turn are the trained ones."""

    name: str
    user: tuple[Segment, ...]
    user_with_context: tuple[Segment, ...]
    assistant: tuple[Segment, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the rendering."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


ALPACA = Template(
    name="alpaca",
    user=(
        Text(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n### Instruction:\n"
        ),
        Field("content"),
        Text("\n\n### Response:\n"),
    ),
    user_with_context=(
        Text(
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n### Instruction:\n"
        ),
        Field("content"),
        Text("\n\n### Input:\n"),
        Field("context"),
        Text("\n\n### Response:\n"),
    ),
    assistant=(Field("content"), Stop()),
)
"""The form of Stanford Alpaca, with a line break behind its last heading; for base models that bring no template."""

TEMPLATES = {template.name: template for template in (ALPACA,)}


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids with, for each, whether it is trained; both of length n."""

    ids: list[int]
    trained: list[bool]

    @property
    def trained_tokens(self) -> int:
        return sum(self.trained)


def render(messages: Sequence[Message], template: Template, tokenizer: Tokenizer, stop_id: int) -> Encoded:
    """Ids and mask of a conversation: one user turn, and the assistant's where there is one.

    Without an assistant turn it is the prompt of a generation, the very ids that training would put before an answer.
    Raises ConfigError for turns that the template has no form for.
    """
    roles = [message.role for message in messages]
    if roles not in (["user"], ["user", "assistant"]):
        raise ConfigError(
            f"the {template.name} template of this version writes one user turn and its answer, got: {', '.join(roles)}"
        )
    ids, trained = [], []
    if tokenizer.adds_bos and tokenizer.bos_id is not None:
        ids.append(tokenizer.bos_id)
        trained.append(False)
    for message in messages:
        train = message.role == "assistant"
        if train:
            segments = template.assistant
        else:
            segments = template.user_with_context if message.context.strip() else template.user
        turn = _encode(message, segments, tokenizer, stop_id, continues=train)
        ids += turn
        trained += [train] * len(turn)
    return Encoded(ids, trained)


def _encode(
    message: Message, segments: Sequence[Segment], tokenizer: Tokenizer, stop_id: int, *, continues: bool
) -> list[int]:
    """Ids of one turn: runs of text encoded together, control tokens put in between by id."""
    ids: list[int] = []
    text = ""
    for segment in segments:
        match segment:
            case Text(piece):
                text += piece
            case Field(name):
                text += getattr(message, name)
            case Stop():
                ids += tokenizer.encode(text, continues=continues or bool(ids))
                ids.append(stop_id)
                text = ""
    if text:
        ids += tokenizer.encode(text, continues=continues or bool(ids))
    return ids
