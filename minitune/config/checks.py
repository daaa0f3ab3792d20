"""Settings out of mappings and into TOML, with every wrong name, type and value told in one line."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from minitune.errors import ConfigError, nearest


def flag(name: str) -> str:
    """The command-line spelling of a field: ``max_length`` is ``--max-length``."""
    return "--" + name.replace("_", "-")


T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build the settings ``cls`` from a parsed TOML or JSON table, checking names and types.

    ``where`` is put before every message. Raises ConfigError for an unknown key (with the nearest name), a missing
    one, or a value of another type; a whole number is accepted where a float is expected, text never is (so that
    ``lr = "1e-5"`` cannot pass for a number).
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    given = checked_types(cls, values, where)
    missing = [n for n, f in fields.items() if n not in given and f.default is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} must be given")
    try:
        return cls(**given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def checked_types(cls: type[Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values by field name, each of the type of its field of ``cls``; ConfigError for one that is not."""
    kinds = typing.get_type_hints(cls)
    given: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in kinds:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(name, kinds)}")
        given[name] = checked(value, kinds[name], f"{where}: {key}")
    return given


def checked(value: Any, kind: Any, where: str) -> Any:
    """``value`` if it is of the annotated ``kind`` (int, float, str, bool, Literal, or a union of these)."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        if value not in typing.get_args(kind):
            allowed = ", ".join(map(str, typing.get_args(kind)))
            raise ConfigError(f"{where} is {value!r}; it must be one of: {allowed}")
        return value
    if origin is types.UnionType:
        kinds = typing.get_args(kind)
    else:
        kinds = (kind,)
    if type(value) in kinds:
        return value
    if float in kinds and type(value) is int:
        return float(value)
    names = " or ".join("nothing" if k is types.NoneType else k.__name__ for k in kinds)
    raise ConfigError(f"{where} is {value!r} ({type(value).__name__}); it must be {names}")


def to_toml(settings: Any) -> str:
    """The settings as a TOML document that ``from_mapping`` reads back to an equal value (None is left out)."""
    lines = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value is None:
            continue
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, str):
            text = _toml_string(value)
        else:
            text = repr(value)
        lines.append(f"{field.name} = {text}\n")
    return "".join(lines)


def _toml_string(text: str) -> str:
    """A basic TOML string: backslash, quote and control characters escaped."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(f"\\u{ord(c):04X}" if ord(c) < 32 or ord(c) == 127 else c for c in escaped) + '"'
