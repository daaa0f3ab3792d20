"""What makes two texts the same: Unicode composition (NFC), case folding and folding of white space."""

import hashlib
import unicodedata
from collections.abc import Sequence

from minitune.chat import Message
from minitune.data.formats import Row


def folded(text: str) -> str:
    """Return a text as it is compared: composed, case-folded, each run of white space one space, none at the ends."""
    if text.isascii():
        return " ".join(text.lower().split())  # composition changes nothing here, and folding is lower case
    # Case folding can take a composed character apart (U+0390), hence the second composition.
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


def turns_text(turns: Sequence[Message]) -> str:
    """Return what turns say, folded."""
    # Folding leaves no line end in any part, so those between them are unmistakable.
    return "\n".join(f"{folded(turn.content)}\n{folded(turn.context)}" for turn in turns)


def question_text(row: Row) -> str:
    """Return what a row says before the assistant's first answer, folded; of plain text, all of it.

    An answer that comes before any question, as some ShareGPT rows start, belongs to it.
    """
    asked = [place for place, turn in enumerate(row.messages) if turn.role in ("user", "tool")]
    first = asked[0] if asked else len(row.messages)
    answers = [place for place, turn in enumerate(row.messages) if turn.role == "assistant" and place > first]
    return turns_text(row.messages[: answers[0]] if answers else row.messages)


def digest(text: str) -> bytes:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
