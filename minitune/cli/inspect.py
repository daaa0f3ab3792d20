"""``minitune inspect MODEL DATA``."""

import json
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.cells import cell_len
from rich.console import Console

from minitune.cli.page import page_path, write_page
from minitune.cli.parse import parse
from minitune.cli.progress import preparing
from minitune.config import SFTConfig
from minitune.errors import ConfigError

if TYPE_CHECKING:
    from minitune.jobs.inspect import Inspection, Token

_EXIT_REFUSED = 1


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """The loss mask as proof: every token of a row, trained or not and why, and what must hold for all rows.

    Exit code 1 where sft with the same flags would not start, 2 where a model, a file or a flag is wrong.

    minitune inspect tiny alpaca.json --row 17 --html mask.html
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model folder as published, adapter folder, run folder, or `tiny`; of its weights only the vocabulary is read."""
    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Instruction files, as for sft --data."""
    row: int = 1
    """The row to show, counted from 1 over all files."""
    show: int = 1
    """How many rows to show from there on; 0 shows the report alone."""
    html: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """Write rows and report as a page too, which needs nothing but a browser."""
    rows: int = 0
    """Use only the first so many rows of the data; 0 uses all."""
    columns: str = ""
    """Names of columns that are not the usual ones: instruction=question,output=answer."""
    on_bad: Literal["error", "drop"] = "error"
    """As for sft: a row that cannot be used is an error, or is left out and counted."""
    max_length: int = 0
    """Tokens a row may have; 0 takes what the model was made for, at most 2048."""
    on_long: Literal["error", "drop", "truncate-history"] = "error"
    """As for sft: a row longer than that is an error, is left out, or loses its oldest turns."""
    train_on: Literal["all", "last"] = "all"
    """Train every answer of a conversation, or the last one; a row's own `train` and `weight` go before."""
    template: str = ""
    """How a conversation becomes text: by itself what a run was trained with, the model's own template, or alpaca."""
    train_tokens: bool = False
    """As for sft: add the control tokens of the template that the tokenizer lacks; their rows will be trained."""
    json: bool = False
    """Print one JSON document as the last line of standard output; everything for people goes to standard error."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        if self.row < 1 or self.show < 0:
            raise ConfigError(f"--row is {self.row} and --show {self.show}; they must be at least 1 and 0")
        if not self.data:
            raise ConfigError("missing: DATA, the instruction files; see minitune inspect --help")

    def settings(self) -> SFTConfig:
        """The run that these flags ask for."""
        same = ("model", "rows", "columns", "on_bad", "max_length", "on_long", "train_on", "template", "train_tokens")
        given = {name: getattr(self, name) for name in same}
        return SFTConfig(**given, data=shlex.join(self.data), out="-", val="0")


def run(args: list[str]) -> int:
    """Show some rows and the report; the exit code says whether a run would start."""
    options = parse(Inspect, "inspect", args)
    settings = options.settings()
    from minitune.jobs.inspect import inspect
    from minitune.jobs.inspect_page import MARK, page

    target = page_path(options.html, "--html", MARK) if options.html else None
    console = Console(stderr=options.json, highlight=False, soft_wrap=True)
    progress_to = Console(stderr=True, highlight=False, soft_wrap=True)
    with preparing(progress_to, quiet=options.quiet) as progress:
        found = inspect(settings, row=options.row, show=options.show, progress=progress)
    _rows(console, found)
    _report(console, found)
    if target is not None:
        write_page(target, "--html", page(found))
        console.print(f"page       {target}", markup=False)
    if options.json:
        print(json.dumps(found.as_json(), ensure_ascii=not _says_all(sys.stdout.encoding)))
    return _EXIT_REFUSED if found.refused else 0


def _says_all(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("-", "") == "utf8"


def _rows(console: Console, found: "Inspection") -> None:
    for row in found.shown:
        console.print(row.where, style="bold", markup=False)
        for note in row.notes:
            console.print(f"  {note}", markup=False)
        for number, example in enumerate(row.examples, 1):
            if len(row.examples) > 1:
                console.print(f"  example {number} of {len(row.examples)}", markup=False)
            _tokens(console, example)
        console.print()


def _tokens(console: Console, tokens: "list[Token]") -> None:
    texts = [repr(token.text) for token in tokens]
    roles = [token.role or "template" for token in tokens]
    wide = min(24, max(map(cell_len, texts)))
    width = max(map(len, roles), default=0)
    console.print(
        f"  {'pos':>5} {'id':>7}  {'token':<{wide}}  {'role':<{width}}  {'segment':<10}  trained  why", style="bold"
    )
    for token, text, role in zip(tokens, texts, roles, strict=True):
        trained = "no" if not token.trained else "yes" if token.weight == 1 else f"x{token.weight:g}"
        gap = " " * max(0, wide - cell_len(text))
        console.print(
            f"  {token.position:>5} {token.id:>7}  {text}{gap}  {role:<{width}}  {token.part:<10}  {trained:<7}  "
            f"{token.rule}",
            style="green" if token.trained else "dim",
            markup=False,
        )


def _report(console: Console, found: "Inspection") -> None:
    from minitune.jobs.inspect_page import assertions, summary

    for title, value in summary(found):
        console.print(f"{title:<11}{value}", markup=False)
    for check in assertions(found):
        style = "green" if check.holds else "bold red"
        console.print(f"{check.verdict:<11}", style=style, end="")
        console.print(check.text, markup=False)
    for where, rule, what in found.prepared.report.problems[:5]:
        console.print(f"           {where}: {rule}: {what}", markup=False)
    for where, reason in found.prepared.bad[:5]:
        console.print(f"           {where}: {reason}", markup=False)
    for warning in found.warnings:
        console.print(f"warning    {warning}", style="yellow", markup=False)
    if found.refused:
        for reason in found.refused:
            console.print(f"refused    {reason}", style="bold red", markup=False)
    else:
        console.print("sft would start on these rows", style="green")
