"""Flags from dataclasses, by tyro, with every mistake told in one line."""

import contextlib
import io
import os
import re
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from minitune.config import checked_types, flag
from minitune.errors import ConfigError

T = TypeVar("T")
_BOX = " " + "".join(map(chr, range(0x2500, 0x2580)))  # what tyro draws its boxes with
_RULE = re.compile(r"-{4,}|")  # a rule of box characters is empty by then


def parse(cls: type[T], command: str, args: Sequence[str]) -> T:
    """The dataclass ``cls`` from the words after ``minitune command``; ConfigError, in one line, for a wrong one."""
    if {"-h", "--help"} & set(args):
        return tyro.cli(cls, prog=f"minitune {command}", args=list(args))
    said = io.StringIO()
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "2000"  # so that tyro does not break its lines
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(cls, prog=f"minitune {command}", args=list(args))
    except SystemExit:
        raise ConfigError(_one_line(said.getvalue(), command)) from None
    finally:
        if width is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = width


def with_toml(cls: type[Any], args: Sequence[str]) -> list[str]:
    """Where the first word is a TOML file or a recipe, its settings as flags, before the others so that those win."""
    if not args or args[0].startswith("-"):
        return list(args)
    path = Path(args[0])
    if path.suffix != ".toml":
        from minitune.jobs.recipes import recipe_path

        path = recipe_path(args[0])
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from None
    # Types are checked here, since as flags every value is text; whether the whole makes sense is known with the flags.
    checked_types(cls, values, str(path))
    words = []
    for key, value in values.items():
        name = flag(key.replace("-", "_"))
        if isinstance(value, bool):
            words.append(name if value else "--no-" + name[2:])
        else:
            words += [name, str(value)]
    return words + list(args[1:])


def together(args: Sequence[str], name: str) -> list[str]:
    """The words behind the flag ``name``, up to the next flag, as one: ``--data a.json b.json`` is ``"a.json b.json"``.

    One word stays what it is; of several each is quoted, so that names with spaces stay whole.
    """
    words: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        flag_, equals, value = word.partition("=")
        if flag_ != name:
            words.append(word)
            continue
        values = [value] if equals else []
        while rest and not rest[0].startswith("-"):
            values.append(rest.pop(0))
        words += [name, *([values[0] if len(values) == 1 else shlex.join(values)] if values else [])]
    return words


def _one_line(text: str, command: str) -> str:
    """What tyro says in a box, as one line: the complaint, and the flag it thinks was meant.

    Under a title stand sections with a rule between them; an unknown flag is the better news than a missing one.
    """
    lines = [line.strip(_BOX).strip() for line in text.splitlines()][1:]
    sections: list[list[str]] = [[]]
    for line in lines:
        if _RULE.fullmatch(line):
            sections.append([])
        elif line:
            sections[-1].append(line)
    sections = [section for section in sections if section]
    said = next((s for s in sections if s[0].startswith("Unrecognized")), sections[0])
    if said[0].startswith("Missing from"):
        said = ["missing:", ", ".join(line.split()[0] for line in said if line.startswith("--") or line.isupper())]
    complaint = re.sub(r"^Error parsing (\w+: )?", "", " ".join(said)).rstrip(".")
    meant = [line.split()[0] for s in sections if s[0].startswith("Perhaps") for line in s if line.startswith("--")]
    if meant:
        complaint += f"; did you mean {meant[0]}?"
    return f"{complaint[:1].lower()}{complaint[1:]}; see minitune {command} --help"
