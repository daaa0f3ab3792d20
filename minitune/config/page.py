"""The settings of every command as one page, from the dataclasses that the flags and the TOML files come from.

python -m minitune.config.page > docs/settings.md
"""

import ast
import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Any

from minitune.config import PretrainConfig, RunConfig, SFTConfig, flag


def described(cls: type[Any]) -> dict[str, str]:
    """The text under each field of a dataclass, those of its bases first."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        tree = ast.parse(inspect.getsource(base)).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def table(cls: type[Any], names: list[str]) -> list[str]:
    """A Markdown table of some fields: flag, what it takes, the value by itself, what it means."""
    texts, kinds = described(cls), typing.get_type_hints(cls)
    lines = ["| flag | takes | by itself | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        if field.name in names:
            value = field.default
            shown = "must be given" if value is dataclasses.MISSING else "" if value in (None, "") else f"`{value}`"
            meaning = texts[field.name].replace("|", "\\|")
            lines.append(f"| `{flag(field.name)}` | {_kind(kinds[field.name])} | {shown} | {meaning} |")
    return lines


def page() -> str:
    """The whole page."""
    common = [field.name for field in dataclasses.fields(RunConfig)]
    own = {cls: [f.name for f in dataclasses.fields(cls) if _differs(cls, f)] for cls in (SFTConfig, PretrainConfig)}
    shared = [name for name in common if not any(name in names for names in own.values())]
    out = ["# Settings of a run", "", "Made by `python -m minitune.config.page` from the dataclasses in"]
    out += ["[minitune/config/run.py](../minitune/config/run.py); the same names, with `_` for `-`, stand in a file."]
    out += ["A switch such as `--packing` has a `--no-packing`.", "", "## sft and pretrain", ""]
    out += table(RunConfig, shared)
    own[SFTConfig] += [name for name in common if name not in shared]
    for cls, title in ((SFTConfig, "sft"), (PretrainConfig, "pretrain")):
        out += ["", f"## {title} alone, or otherwise than the other", "", *table(cls, own[cls])]
    return "\n".join(out) + "\n"


def _differs(cls: type[Any], field: Any) -> bool:
    """Whether a field is not one of ``RunConfig``, or has another value by itself or another meaning there."""
    base = {f.name: f for f in dataclasses.fields(RunConfig)}
    if field.name not in base:
        return True
    return field.default != base[field.name].default or described(cls)[field.name] != described(RunConfig)[field.name]


def _kind(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " ".join(f"`{value}`" for value in typing.get_args(kind))
    names = {int: "whole number", float: "number", str: "text", bool: "switch"}
    return names.get(kind) or "number"


def main() -> None:
    """Print the page."""
    print(page(), end="")


SETTINGS_PAGE = Path("docs/settings.md")

if __name__ == "__main__":
    main()
