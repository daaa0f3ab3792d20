"""Chat templates as published are Jinja: rendered here in a sandbox, with the settings of the reference.

The clock stands still, so that a text does not depend on the day on which it is rendered.
"""

import json
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
from jinja2.exceptions import SecurityError

from minitune.errors import ConfigError, DataError

CLOCK = datetime(2024, 7, 26)
"""The only day that ``strftime_now`` knows: the date that Llama 3.1's template falls back to."""


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what the model writes; here it is read over, the mask comes from elsewhere."""

    tags = {"generation"}  # noqa: RUF012 (the base class has it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: jinja2.runtime.Macro) -> str:
        return caller()


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes for HTML that Jinja's own filter puts in."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Namespace(jinja2.utils.Namespace):
    """A namespace that takes no name which could reach into Python."""

    def __init__(*args: Any, **kwargs: Any):
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template may not set {name!r}")


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


@lru_cache(maxsize=1)
def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The sandbox of every template."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise_exception, "strftime_now": CLOCK.strftime}
    made.globals |= {"namespace": _Namespace, "dict": _dict}
    return made


@lru_cache(maxsize=64)
def compiled(source: str) -> jinja2.Template:
    """The template ready to render; ConfigError, with its line, where it is no Jinja."""
    try:
        return environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"the model's own chat template is no valid Jinja (line {error.lineno}: {error})") from None


def render_jinja(source: str, variables: dict[str, Any]) -> str:
    """The text of a template; DataError, in one line, where it refuses what it is given or fails on it."""
    try:
        return compiled(source).render(variables)
    except jinja2.TemplateError as error:
        raise DataError(f"the model's own chat template refuses this conversation: {_line(error)}") from None
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        kind = type(error).__name__
        raise DataError(f"the model's own chat template fails on this conversation ({kind}: {_line(error)})") from None


@lru_cache(maxsize=64)
def signals(source: str) -> tuple[str, ...]:
    """The texts that a template looks for in what it is given: strings in comparisons and arguments, longest first."""
    tree = environment().parse(source)
    asking = (jinja2.nodes.Compare, jinja2.nodes.Call, jinja2.nodes.Filter, jinja2.nodes.Test)
    found = {
        const.value
        for node in tree.find_all(asking)
        for const in node.find_all(jinja2.nodes.Const)
        if isinstance(const.value, str) and const.value.strip()
    }
    return tuple(sorted(found, key=lambda text: (-len(text), text)))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
