"""Conversations and prompt files -> the ids that a generation goes on behind."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitune.chat import AnyTemplate, Message, render, template_for, terminator
from minitune.errors import ConfigError, DataError
from minitune.files import read_json
from minitune.models import LanguageModel
from minitune.sample.texts import prompt_ids
from minitune.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


def template_of(name: str, tokenizer: Tokenizer, source: str = "") -> tuple[AnyTemplate, str]:
    """The template to talk to a model by, and why: the named one, what a run was trained with, or the model's own.

    ``source`` is the MODEL as the user named it: the folder of a run says which template it was trained with.
    """
    trained_with = _trained_with(source) if source and not name else ""
    if trained_with:
        template, _ = template_for(tokenizer, trained_with)
        return template, "trained with"
    return template_for(tokenizer, name or None)


def _trained_with(source: str) -> str:
    """The name of the template in a run's manifest; "" where there is none, and for a template that has no name."""
    folder = Path(source).expanduser()
    path = next((p for p in (folder / "manifest.json", folder.parent / "manifest.json") if p.is_file()), None)
    named = read_json(path, ConfigError).get("template") if path is not None else None
    name = named.get("name") if isinstance(named, dict) else None
    return name if isinstance(name, str) and name != "own" else ""


def conversation_ids(messages: Sequence[Message], template: AnyTemplate, tokenizer: Tokenizer) -> list[int]:
    """The ids of a conversation as training would put them before the next answer."""
    return render(messages, template, tokenizer, terminator(template, tokenizer)).ids


def stop_on(template: AnyTemplate, model: LanguageModel, tokenizer: Tokenizer) -> int:
    """Let generations of ``model`` end with the id that ends an answer of the template; that id."""
    stop_id = terminator(template, tokenizer)
    if stop_id not in model.stop_ids:
        model.stop_ids = (*model.stop_ids, stop_id)
    return stop_id


@dataclass(frozen=True)
class PromptRow:
    """One row of a prompt file: a text to go on from, or a conversation to answer; ``where`` names its line."""

    where: str
    text: str = ""
    messages: tuple[Message, ...] = ()

    def ids(
        self, model: LanguageModel, tokenizer: Tokenizer, template: AnyTemplate, *, chat: bool, system: str = ""
    ) -> list[int]:
        """What the model reads: a text as it is, or as a user turn where ``chat`` says so; a conversation rendered.

        A ``system`` message is put before every conversation that has none of its own. Raises ConfigError, which
        names the row, for one that has no ids or leaves no position for an answer.
        """
        messages = self.messages or ((Message("user", self.text),) if chat else ())
        if messages and system and messages[0].role != "system":
            messages = (Message("system", system), *messages)
        try:
            ids = conversation_ids(messages, template, tokenizer) if messages else prompt_ids(tokenizer, self.text)
        except ConfigError as error:
            raise ConfigError(f"{self.where}: {error}") from None
        limit = model.config.max_positions
        if not 0 < len(ids) < limit:
            raise ConfigError(f"{self.where}: the prompt has {len(ids)} tokens; this model takes 1 to {limit - 1}")
        return ids


def read_prompts(path: Path) -> list[PromptRow]:
    """The prompts of a file: JSON or JSON Lines by its suffix, else one prompt a line, blank lines left out.

    A JSON row has ``prompt``, or ``messages`` that do not end with an answer, or ``instruction`` and perhaps ``input``;
    other keys are for others. Raises DataError, with the line, for a row that is none of these, and for no row at all.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
    if path.suffix.lower() in JSON_SUFFIXES:
        rows = [_row(where, value) for where, value in _json_rows(path, text)]
    else:
        lines = enumerate(text.split("\n"), 1)
        rows = [PromptRow(f"{path} line {number}", line.rstrip("\r")) for number, line in lines if line.strip()]
    if not rows:
        raise DataError(f"{path}: there is no prompt in it")
    return rows


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}: not valid JSON ({error})") from None
        yield from ((f"{path} row {number}", value) for number, value in enumerate(values, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path} line {number}", json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path} line {number}: not valid JSON ({error}); one object a line is expected") from None


def _row(where: str, value: Any) -> PromptRow:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object, got {type(value).__name__}")
    if "messages" in value:
        return PromptRow(where, messages=_messages(where, value["messages"]))
    if "prompt" in value:
        return PromptRow(where, _text(where, "prompt", value["prompt"]))
    if "instruction" in value:
        instruction = _text(where, "instruction", value["instruction"])
        context = _text(where, "input", value.get("input") or "")
        system = _text(where, "system", value.get("system") or "")
        turns = (Message("user", instruction, context),)
        return PromptRow(where, messages=(Message("system", system), *turns) if system else turns)
    has = ", ".join(map(str, value)) or "nothing"
    raise DataError(f"{where}: has {has}; expected 'prompt', 'messages', or 'instruction' with or without 'input'")


def _messages(where: str, value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: messages must be a list of objects with role and content, and not empty")
    found = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            role = turn.get("role") if isinstance(turn, dict) else turn
            raise DataError(f"{where}: message {number} has the role {role!r}; it must be one of: {', '.join(ROLES)}")
        found.append(Message(turn["role"], _text(where, f"content of message {number}", turn.get("content"))))
    if found[-1].role == "assistant":
        raise DataError(f"{where}: the last message is the assistant's, so there is nothing to answer; leave it out")
    return tuple(found)


def _text(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} is {value!r}; it must be text")
    return value
