"""Which template a model is written to by: the one that the user names, its own, or Alpaca where it brings none.

Its own is recognised as one that is known by name where the two write the same text, byte for byte, for every
conversation of a battery, and refuse the same ones. Neither the source of a template nor the name of a folder counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import eq
from pathlib import Path
from typing import Any

from minitune.chat.jinja import JinjaTemplate
from minitune.chat.jinja_env import signals
from minitune.chat.message import Message, Role
from minitune.chat.render import AnyTemplate, rendered_text
from minitune.chat.segments import Template
from minitune.chat.templates import TEMPLATES
from minitune.errors import ConfigError, DataError, nearest
from minitune.files import read_json
from minitune.tokenizer import Tokenizer

DEFAULT = "default"

_S: Role = "system"
_U: Role = "user"
_A: Role = "assistant"
_T: Role = "tool"
_BATTERY: tuple[tuple[Role, ...], ...] = (
    (_U,), (_U, _A), (_U, _A, _U), (_U, _A, _U, _A), (_S, _U), (_S, _U, _A), (_S, _U, _A, _U, _A), (_S, _U, _A, _U),
    (_U, _U), (_A,), (_A, _U), (_U, _A, _A), (_S,), (_U, _S, _U), (_S, _S, _U, _A),
    (_U, _A, _T), (_U, _A, _T, _T, _A), (_S, _U, _A, _T, _A, _U),
)  # fmt: skip
_TEXTS = ("one", " \n two \n\n", "'3\"  <b>\u4e94", "", "\n")


def battery(words: Sequence[str] = ()) -> list[list[Message]]:
    """Conversations that tell templates apart: who speaks, in which order, and white space where trimming shows.

    ``words`` are what a template looks for in a text: each also opens, stands in and closes the texts of some.
    """
    rows = []
    for roles in _BATTERY:
        for shift in range(len(_TEXTS)):
            texts = (_TEXTS[(place + shift) % len(_TEXTS)] for place in range(len(roles)))
            rows.append([Message(role, text) for role, text in zip(roles, texts, strict=True)])
    for word in words:
        rows += [[Message(role, f"{word} a{word}b {word}") for role in roles] for roles in _BATTERY[:4]]
    return rows


def template_for(tokenizer: Tokenizer, name: str | None = None) -> tuple[AnyTemplate, str]:
    """The template for a model, by its tokenizer's files, and why that one.

    ``name``: one of ``TEMPLATES``, or of the model's own named ones (``tool_use``), or nothing for the model's own.
    Raises ConfigError for a name that is neither, and for a template file that cannot be read.
    """
    own = own_templates(tokenizer.files)
    if name and name not in TEMPLATES and name not in own:
        there = ", ".join([*TEMPLATES, *own])
        raise ConfigError(f"--template is {name!r}{nearest(name, [*TEMPLATES, *own])}; there are: {there}")
    if name and name in TEMPLATES:
        found = recognise(own[DEFAULT], tokenizer) if DEFAULT in own else None
        if found is not None and found.name == name:
            return found, "named, and the model's own"
        return TEMPLATES[name], "named"
    if not own:
        return TEMPLATES["alpaca"], "the model brings no template of its own"
    if not name and DEFAULT not in own:
        raise ConfigError(f"the model brings several chat templates and no default; name one: {', '.join(own)}")
    source = own[name or DEFAULT]
    found = recognise(source, tokenizer)
    if found is not None:
        return found, "the model's own, recognised by what it writes"
    title = "the model's own" if not name or name == DEFAULT else f"the model's own {name!r}"
    return JinjaTemplate(name=name or "own", source=source), f"{title}, rendered by jinja2"


def recognise(source: str, tokenizer: Tokenizer) -> Template | None:
    """The known template that writes what this source writes, with its rule on the start token; None for none."""
    own = JinjaTemplate(name="own", source=source)
    asked = [(row, header) for row in battery(signals(source)) for header in (True, False)]
    wanted = [_written(row, own, tokenizer, header) for row, header in asked]
    for template in TEMPLATES.values():
        for candidate in _with_starts(template):
            written = (_written(row, candidate, tokenizer, header) for row, header in asked)
            if all(map(eq, written, wanted)):
                return candidate
    return None


def own_templates(files: tuple[Path, ...]) -> dict[str, str]:
    """Name to source of the chat templates in a model's files; ``chat_template.jinja`` goes before the others."""
    by_name = {file.name: file for file in files}
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "chat_template.json"):
        if name in by_name and not found:
            raw = read_json(by_name[name], ConfigError)
            found = _named(raw.get("chat_template"), by_name[name])
    if "chat_template.jinja" in by_name:
        path = by_name["chat_template.jinja"]
        try:
            found[DEFAULT] = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    return found


def _named(value: Any, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    entries = [{"name": DEFAULT, "template": value}] if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        raise ConfigError(f"{path}: chat_template must be text, or a list of objects with name and template")
    return {entry["name"]: entry["template"] for entry in entries}


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)


def _with_starts(template: Template) -> list[Template]:
    """A template that leaves the start to the tokenizer, with either rule: its text shows which one is meant."""
    if template.start is not None:
        return [template]
    return [replace(template, start=start) for start in (False, True)]


def _written(messages: list[Message], template: AnyTemplate, tokenizer: Tokenizer, header: bool) -> str | None:
    """The text of a conversation; None where the template refuses it."""
    try:
        return rendered_text(messages, template, tokenizer, header=header)
    except DataError:
        return None
    except ConfigError:
        if isinstance(template, Template):  # a tokenizer without its terminator
            return "\0"
        raise
