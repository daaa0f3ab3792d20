"""A conversation, whatever file it came from: a sequence of messages."""

from dataclasses import dataclass
from typing import Literal

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
