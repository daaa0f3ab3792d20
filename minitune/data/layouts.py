"""What a row means: its keys say in which layout it is, and its layout says how it becomes a conversation.

Text is taken exactly as it stands; what cannot be taken is refused with one reason. The layouts, in the order in which
they are asked for; keys that a layout does not know are left aside as somebody's notes:

* ``messages`` (or ``conversations``) - turns of ``role`` and ``content``, or of ``from`` and ``value`` (ShareGPT)
* ``instruction`` and ``instances`` (Self-Instruct's seeds) - one conversation an instance
* ``instruction``, ``input``, ``output`` with ``system`` and ``history`` (Alpaca)
* ``instruction``, ``context``, ``response`` (Dolly)
* ``prompt`` and ``completion`` - two texts, which no template stands around, or two lists of messages
* ``text`` - trained from its start to its end
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from minitune.chat import Message, Role
from minitune.data.json_array import Repeated
from minitune.errors import nearest

ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
SHAREGPT: Mapping[str, Role] = {
    "system": "system",
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}
"""Who speaks in a ShareGPT turn, by the names that are in use."""

COLUMNS = ("instruction", "input", "output", "system", "history", "messages", "conversations", "prompt", "completion")
COLUMNS += ("context", "response", "instances", "text", "weight")
"""What ``--columns`` may map to."""

_OPTIONAL = {"input", "system", "history", "context", "weight"}
_CALLS = ("tool_calls", "function_call")
_TURN_KEYS = {"role", "content", "from", "value", "train", "weight"}
_PAIRS = (
    ("question", "answer"), ("query", "response"), ("question", "response"), ("problem", "solution"),
    ("input", "output"), ("prompt", "response"), ("prompt", "output"), ("prompt", "answer"), ("title", "content"),
)  # fmt: skip
_EXPECTED = "instruction and output, messages, conversations, prompt and completion, or text"


class Fault(Exception):
    """Why a value is no row; never seen outside this package."""


class Example(NamedTuple):
    """One conversation of a row, the layout it stood in, and what its loss is multiplied by."""

    messages: tuple[Message, ...]
    layout: str  # "alpaca", "messages", "sharegpt", "completion" or "text"
    weight: float


class Columns(dict[str, str]):
    """``--columns``: for each of our keys, the key that stands in the file."""

    used = False  # whether any row had one of them


def examples(value: object, columns: Columns | None = None) -> list[Example]:
    """Return the conversations of one row, or raise ``Fault`` with the first reason found."""
    if not isinstance(value, dict):
        raise Fault(f"not an object (got {shown(value)})")
    if isinstance(value, Repeated):
        raise Fault(f"a key stands twice in one object: {value.key!r}")
    if columns:
        value = _renamed(value, columns)
    # A table gives every row all keys, so a key that holds nothing names a layout only where no other does.
    present = value.keys()
    filled = {key for key, held in value.items() if held is not None}
    for keys, read in _LAYOUTS:
        if filled.issuperset(keys):
            return read(value)
    for keys, read in _LAYOUTS:
        if present >= set(keys):
            return read(value)
    raise _no_layout(value, columns)


def _renamed(row: dict[str, object], columns: Columns) -> dict[str, object]:
    """Return a row under our keys; one that has none of the columns is in a layout of its own."""
    there = {ours: theirs for ours, theirs in columns.items() if theirs in row}
    if not there:
        return row
    columns.used = True
    missing = [theirs for ours, theirs in columns.items() if ours not in there and ours not in _OPTIONAL]
    if missing:
        raise Fault(f"missing key {missing[0]!r}, which --columns names (the row has: {_keys(row)})")
    taken = set(there.values())
    return {key: value for key, value in row.items() if key not in taken} | {
        ours: row[theirs] for ours, theirs in there.items()
    }


# ---- the layouts


def _alpaca(row: dict[str, object]) -> list[Example]:
    return [_instruction(row, "instruction", "input", "output")]


def _dolly(row: dict[str, object]) -> list[Example]:
    return [_instruction(row, "instruction", "context", "response")]


def _instruction(row: dict[str, object], ask: str, more: str, answer: str) -> Example:
    if more not in row:
        # Read as "no input", a misspelled key would silently cost every row a part of its question.
        close = [key for key in row if key.strip().lower().removesuffix("s") == more]
        if close:
            raise Fault(f"unknown key {close[0]!r}; did you mean {more!r}?")
    question, context = _text(row, ask), _text(row, more, optional=True)
    turns = [Message("user", question, context), Message("assistant", _text(row, answer))]
    return Example((*_system(row), *_history(row), *turns), "alpaca", _row_weight(row))


def _system(row: dict[str, object]) -> list[Message]:
    system = _text(row, "system", optional=True)
    return [Message("system", system)] if system.strip() else []


def _history(row: dict[str, object]) -> list[Message]:
    history = row.get("history") or []
    if not isinstance(history, list):
        raise Fault(f"'history' is not a list of pairs (got {shown(history)})")
    turns: list[Message] = []
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Fault(f"'history' turn {number} is not a pair of question and answer (got {shown(pair)})")
        question, answer = (_checked(text, f"'history' turn {number}") for text in pair)
        turns += [Message("user", question), Message("assistant", answer)]
    return turns


def _seeds(row: dict[str, object]) -> list[Example]:
    instances = row["instances"]
    if not isinstance(instances, list) or not instances:
        raise Fault(f"'instances' is {'empty' if instances == [] else f'not a list (got {shown(instances)})'}")
    found = []
    for number, instance in enumerate(instances, start=1):
        if not isinstance(instance, dict):
            raise Fault(f"instance {number} is not an object (got {shown(instance)})")
        try:
            whole = {**row, **{key: instance[key] for key in ("input", "output") if key in instance}}
            if "output" not in instance:
                raise Fault(f"missing key 'output' (it has: {_keys(instance)})")
            found += _alpaca(whole)
        except Fault as fault:
            raise Fault(f"instance {number}: {fault}") from None
    return found


def _completion(row: dict[str, object]) -> list[Example]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) != isinstance(completion, list):
        raise Fault(
            f"'prompt' and 'completion' must both be text or both be messages (got {shown(prompt)} and "
            f"{shown(completion)})"
        )
    if isinstance(prompt, list) and isinstance(completion, list):
        before, _ = _turns(prompt, "prompt")
        answers, layout = _turns(completion, "completion")
        # What stands in the prompt is read, not trained, unless it says so itself.
        read = [replace(turn, train=False) if _undecided(turn) else turn for turn in before]
        return [_conversation([*_system(row), *read, *answers], layout, row)]
    if prompt == "":
        raise Fault("'prompt' is empty; a row without a prompt has its text under 'text'")
    turns = Message("user", _text(row, "prompt", blank=True)), Message("assistant", _text(row, "completion"))
    return [Example(turns, "completion", _row_weight(row))]


def _undecided(turn: Message) -> bool:
    return turn.role == "assistant" and turn.train is None


def _plain(row: dict[str, object]) -> list[Example]:
    return [Example((Message("assistant", _text(row, "text")),), "text", _row_weight(row))]


def _messages(row: dict[str, object], key: str = "messages") -> list[Example]:
    turns, layout = _turns(row[key], key)
    if row.get("tools"):
        raise Fault("'tools' is not empty; conversations that call tools are not supported")
    system = _system(row)
    if system and turns[0].role == "system":
        raise Fault(f"a system text stands twice: under 'system' and in {key!r}")
    return [_conversation([*system, *turns], layout, row)]


def _conversations(row: dict[str, object]) -> list[Example]:
    return _messages(row, "conversations")


_LAYOUTS: tuple[tuple[tuple[str, ...], Callable[[dict[str, object]], list[Example]]], ...] = (
    (("messages",), _messages),
    (("conversations",), _conversations),
    (("instruction", "instances"), _seeds),
    (("instruction", "output"), _alpaca),
    (("instruction", "response"), _dolly),
    (("prompt", "completion"), _completion),
    (("text",), _plain),
)


# ---- turns


def _conversation(turns: Sequence[Message], layout: str, row: dict[str, object]) -> Example:
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not answers:
        raise Fault(f"no turn is the assistant's (got {', '.join(turn.role for turn in turns)})")
    if not any(turn.train is not False and turn.weight > 0 for turn in answers):
        raise Fault("no turn is trained: each of the assistant's has 'train': false or 'weight': 0")
    return Example(tuple(turns), layout, _row_weight(row))


def _turns(turns: object, key: str) -> tuple[list[Message], str]:
    """Return the messages of a list of turns, and their layout: "messages" or "sharegpt"."""
    if not isinstance(turns, list):
        raise Fault(f"{key!r} is not a list of messages (got {shown(turns)})")
    if not turns:
        raise Fault(f"{key!r} is empty")
    found, layout = [], "messages"
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise Fault(f"message {number} is not an object (got {shown(turn)})")
        if isinstance(turn, Repeated):
            raise Fault(f"a key stands twice in message {number}: {turn.key!r}")
        if "from" in turn and "role" not in turn:
            layout = "sharegpt"
        found.append(_turn(turn, number))
    return found, layout


def _turn(turn: dict[str, object], number: int) -> Message:
    calls = next((key for key in _CALLS if turn.get(key)), None)
    if calls:
        raise Fault(f"message {number} has {calls!r}; conversations that call tools are not supported")
    for key in ("reasoning_content", "thinking"):
        if turn.get(key):
            raise Fault(f"message {number} has {key!r}, which would be lost; put it into the text of the message")
    sharegpt = "from" in turn and "role" not in turn
    who, what = ("from", "value") if sharegpt else ("role", "content")
    for key in (who, what):
        if key not in turn:
            raise Fault(f"message {number} has no {key!r} (it has: {_keys(turn)})")
    role = _role(turn[who], number, sharegpt)
    content = _content(turn[what], f"message {number} ({role})", blank=role in ("system", "tool"))
    if not turn.keys() <= _TURN_KEYS:
        for key in turn.keys() - _TURN_KEYS:
            close = difflib.get_close_matches(key, ("train", "weight"), n=1, cutoff=0.75)
            if close:
                raise Fault(f"message {number} has the unknown key {key!r}; did you mean {close[0]!r}?")
    if "train" not in turn and "weight" not in turn:
        return Message(role, content)
    train = turn.get("train")
    if train is not None and not isinstance(train, bool):
        raise Fault(f"message {number}: 'train' is neither true nor false (got {shown(train)})")
    weight = _weight(turn.get("weight"), f"message {number}: 'weight'")
    if role != "assistant" and (train or weight not in (0, 1)):
        given = "'train': true" if train else f"'weight': {weight:g}"
        raise Fault(f"message {number} is the {role}'s and has {given}; only turns of the assistant are trained")
    return Message(role, content, train=train, weight=weight if role == "assistant" else 1.0)


def _role(name: object, number: int, sharegpt: bool) -> Role:
    if sharegpt and isinstance(name, str) and name.strip().lower() in SHAREGPT:
        return SHAREGPT[name.strip().lower()]
    for role in ROLES:
        if name == role:
            return role
    if name == "function_call":
        raise Fault(f"message {number} is a 'function_call'; conversations that call tools are not supported")
    if not isinstance(name, str):
        raise Fault(f"message {number}: the role is not text (got {shown(name)})")
    known = SHAREGPT if sharegpt else ROLES
    meant = f"; did you mean {SHAREGPT[name.lower()]!r}?" if name.lower() in SHAREGPT else nearest(name, known)
    kind = "speaker" if sharegpt else "role"
    raise Fault(f"message {number} has the unknown {kind} {printable(name)!r}; expected {', '.join(known)}{meant}")


def _content(content: object, where: str, *, blank: bool) -> str:
    """Return a message's text; a list of text parts is one text."""
    if not isinstance(content, list):
        return _checked(content, where, blank=blank)
    parts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if not isinstance(part, dict) or kind != "text" or "text" not in part:
            what = f"of type {printable(str(kind))!r}" if kind is not None else shown(part)
            raise Fault(f"{where} has a part that is not text ({what}); only parts of type 'text' are read")
        parts.append(_checked(part["text"], f"{where}, a part of it", blank=True))
    return _checked("".join(parts), where, blank=blank)


# ---- values


def _text(row: dict[str, object], key: str, *, optional: bool = False, blank: bool = False) -> str:
    """Return the text under a key; where it is optional, null says "none" as clearly as an absent key does."""
    text = row.get(key)
    if optional and text is None:
        return ""
    return _checked(text, repr(key), blank=blank or optional)


def _checked(text: object, what: str, *, blank: bool = False) -> str:
    if not isinstance(text, str):
        raise Fault(f"{what} is not text (got {shown(text)})")
    if not blank and not text.strip():
        raise Fault(f"{what} is blank (white space only)" if text else f"{what} is empty")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            place = f"\\u{ord(text[error.start]):04x} at character {error.start + 1}"
            raise Fault(f"{what} holds a lone surrogate, {place}") from None
    return text


def _row_weight(row: dict[str, object]) -> float:
    weight = _weight(row.get("weight"), "'weight'")
    if weight == 0:
        raise Fault("'weight' is 0, so the row trains nothing; leave it out")
    return weight


def _weight(value: object, what: str) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise Fault(f"{what} is {shown(value)}; expected a number of at least 0")
    return float(value)


# ---- words


def _no_layout(row: dict[str, object], columns: Columns | None) -> Fault:
    has = f"(the row has: {_keys(row)})"
    if columns:
        return Fault(f"has none of the columns that --columns names: {', '.join(columns.values())} {has}")
    for ask, answer in _PAIRS:
        if ask in row and answer in row:
            return Fault(f"has {ask!r} and {answer!r}; pass --columns instruction={ask},output={answer}")
    for known, partner in (("prompt", "completion"), ("completion", "prompt")):
        if known in row:
            return Fault(f"missing key {partner!r} {has}{nearest(partner, row)}")
    close = nearest("instruction", row)
    if "instruction" in row or "output" in row or close or not row:
        missing = "output" if "instruction" in row else "instruction"
        others = [key for key in row if key not in ("instruction", "input", "output")]
        return Fault(f"missing key {missing!r} {has}{nearest(missing, others)}")
    return Fault(f"is in no known layout {has}; expected {_EXPECTED}; --columns maps other names")


def _keys(row: dict[str, object]) -> str:
    return ", ".join(printable(str(key)) for key in list(row)[:8]) + (", ..." if len(row) > 8 else "") or "nothing"


def shown(value: object) -> str:
    """Return a JSON value in words: its kind, and the value itself where it is short."""
    if value is None:
        return "null"
    if isinstance(value, dict | list):
        return "object" if isinstance(value, dict) else "list"
    return f"{type(value).__name__} {printable(repr(value))}"


def printable(text: str) -> str:
    """Return a text on one line, cut where it is long."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 40 else text[:37] + "..."
