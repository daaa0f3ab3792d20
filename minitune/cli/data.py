"""``minitune data check``, ``clean`` and ``split``."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeRemainingColumn

from minitune.cli.parse import parse
from minitune.data.clean import RULES
from minitune.errors import ConfigError, nearest
from minitune.jobs.data_check import CheckConfig, CheckReport, check_files, write_findings
from minitune.jobs.data_clean import CleanConfig, clean_files
from minitune.jobs.data_files import Progress
from minitune.jobs.data_split import SplitConfig, SplitReport, split_files

T = TypeVar("T")
_PLAIN_EVERY_S = 10.0
_SHOWN = 5

Files = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]


@dataclass(frozen=True, kw_only=True)
class Check(CheckConfig):
    """Find what is wrong with instruction files, rule by rule and line by line; exit code 1 where anything is.

    Rules are heuristics that are silent where they are not sure; minitune data lists them. Near duplicates are found by
    words and, where words have no spaces between them (Chinese), by characters, and shown in pairs with how near.

    minitune data check alpaca.json --rules duplicate,near-duplicate,contradiction --examples 10
    """

    files: Files
    """Instruction files: JSON, JSON Lines, CSV, TSV, Parquet or text, in any layout."""
    examples: int = 3
    """Examples of each rule to show."""
    report: str = ""
    """A JSON file to write every finding to."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print one JSON document as the last line; everything else goes to standard error."""


@dataclass(frozen=True, kw_only=True)
class Clean(CleanConfig):
    """Take out the rows that break a rule: clean.jsonl holds the others as they stand, removed.jsonl says why not.

    By default the rules that hardly need a judge: unreadable, empty, duplicate, near-duplicate, mojibake, refusal and
    repetition. Of rows that are copies of each other the first stays. Look at `minitune data check` first.

    minitune data clean alpaca.json --out data/clean --rules default,contradiction,-near-duplicate
    """

    files: Files
    """Instruction files: JSON, JSON Lines, CSV, TSV, Parquet or text, in any layout."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print one JSON document as the last line; everything else goes to standard error."""


@dataclass(frozen=True, kw_only=True)
class Split(SplitConfig):
    """Split instruction files into train, validation and test parts that share no question.

    Rows with the same instruction and input (case and spaces aside) are always in one part, and so are questions that
    are nearly the same; --near report lets those stand where they fall and lists them. Rows are written as they stand,
    in the order of the files, one JSON object a line.

    minitune data split alpaca.json --out data/alpaca --val 0.02 --test 500
    """

    files: Files
    """Instruction files: JSON, JSON Lines, CSV, TSV, Parquet or text, in any layout."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print one JSON document as the last line; everything else goes to standard error."""


_COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {}


def run(args: list[str]) -> int:
    """Run one of the commands on instruction files."""
    if not args or args[0] in ("-h", "--help", "help"):
        listing = "\n".join(f"  {name:<8}{what}" for name, (what, _) in _COMMANDS.items())
        print(f"usage: minitune data COMMAND FILE ...\n\nInstruction files.\n\n{listing}\n")
        print("minitune data COMMAND --help explains every flag; each takes --json. Start with:")
        print("  minitune data check alpaca.json")
        print("  minitune data clean alpaca.json --out data/clean")
        print("  minitune data split data/clean/clean.jsonl --out data/parts --val 0.02 --test 500\n")
        print("The rules of check and clean (*: clean follows it by default):\n")
        print("\n".join(f"  {name:<16}{'*' if rule.removes else ' '} {rule.says}" for name, rule in RULES.items()))
        return 0
    if args[0] not in _COMMANDS:
        raise ConfigError(
            f"there is no command 'data {args[0]}'{nearest(args[0], _COMMANDS)}; see minitune data --help"
        )
    return _COMMANDS[args[0]][1](args[1:])


def _check(args: list[str]) -> int:
    options = parse(Check, "data check", args)
    if options.examples < 0:
        raise ConfigError(f"--examples is {options.examples}; it must be at least 0")
    console = Console(stderr=options.json, highlight=False, soft_wrap=True)
    with _progress(console, options.quiet) as show:
        checked = check_files(_config(CheckConfig, options), show)
    if options.report:
        write_findings(Path(options.report), checked)
    report = checked.report(options.examples)
    _check_summary(console, report)
    if options.report:
        console.print(f"every finding is in {options.report}", markup=False)
    if options.json:
        print(json.dumps(dataclasses.asdict(report), ensure_ascii=False))
    return 1 if report.flagged else 0


def _check_summary(console: Console, report: CheckReport) -> None:
    for name, found in report.rules.items():
        if not found.count:
            continue
        console.print(f"{name}: {_rows(found.count)}  ({found.says})", markup=False)
        for example in found.examples:
            console.print(f"  {example.where}: {example.detail}", markup=False)
            console.print(f"    {example.text}", markup=False)
            if example.of:
                console.print(f"    of {example.of}: {example.of_text}", markup=False)
        if 0 < len(found.examples) < found.count:
            console.print(f"  and {found.count - len(found.examples):,} more", markup=False)
    quiet = [name for name, found in report.rules.items() if not found.count]
    if quiet:
        console.print(f"nothing found by: {', '.join(quiet)}", markup=False)
    console.print(f"{report.flagged:,} of {_rows(report.rows)} broke a rule", markup=False)


def _clean(args: list[str]) -> int:
    options = parse(Clean, "data clean", args)
    console = Console(stderr=options.json, highlight=False, soft_wrap=True)
    with _progress(console, options.quiet) as show:
        report = clean_files(_config(CleanConfig, options), show)
    for rule, count in report.by_first_rule.items():
        console.print(f"{rule:<16}{count:>9,} removed", markup=False)
    console.print(f"{report.kept:,} of {_rows(report.rows)} kept, {report.removed:,} removed; written to {report.out}")
    if options.json:
        print(json.dumps(dataclasses.asdict(report), ensure_ascii=False))
    return 0


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _config(cls: type[T], options: Any) -> T:
    """The job's part of what the command was told."""
    return cls(**{field.name: getattr(options, field.name) for field in dataclasses.fields(cls)})  # pyright: ignore[reportArgumentType]


def _split(args: list[str]) -> int:
    options = parse(Split, "data split", args)
    console = Console(stderr=options.json, highlight=False, soft_wrap=True)
    with _progress(console, options.quiet) as show:
        report = split_files(_config(SplitConfig, options), show)
    _split_summary(console, report)
    if options.json:
        short = dataclasses.replace(report, leaks=report.leaks[:_SHOWN])  # all of them are in split.json
        print(json.dumps(dataclasses.asdict(short), ensure_ascii=False))
    return 0


def _split_summary(console: Console, report: SplitReport) -> None:
    for part, count in report.parts.items():
        console.print(f"{part:<8}{count:>10,} rows", markup=False)
    if report.left_out:
        console.print(f"{report.left_out:,} rows were asked for by no part", markup=False)
    if report.bad:
        first = report.bad[0]
        console.print(
            f"{len(report.bad):,} rows cannot be used and are in no part, the first: {first.where}: {first.reason}",
            markup=False,
        )
    console.print(f"{report.rows:,} rows ask {report.groups:,} different questions; none stands in two parts")
    if report.kept_together:
        console.print(f"{report.kept_together:,} questions joined the part of another that is nearly the same")
    if report.leaks:
        console.print(
            f"warning: {len(report.leaks):,} pairs of questions across the parts are nearly the same (Jaccard of "
            f"{report.threshold:g} and more); --near together keeps such rows in one part",
            markup=False,
        )
        for leak in report.leaks[:_SHOWN]:
            console.print(f"  {leak.jaccard:.2f}  {leak.first_part:<6}{leak.first}: {leak.first_text}", markup=False)
            console.print(f"        {leak.second_part:<6}{leak.second}: {leak.second_text}", markup=False)
    console.print(f"written to {report.out}", markup=False)


@contextlib.contextmanager
def _progress(console: Console, quiet: bool) -> Iterator[Progress]:
    """A function to show how far the work is: a live line on a terminal, a plain line now and then elsewhere."""
    if quiet:
        yield lambda stage, done, total: None
    elif console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.fields[rows]}"))
        with Bar(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task, started = bar.add_task("", total=None, rows=""), [time.perf_counter()]

            def show(stage: str, done: int, total: int) -> None:
                if bar.tasks[0].description != stage:
                    bar.reset(task, description=stage)
                    started[0] = time.perf_counter()
                rate = done / max(time.perf_counter() - started[0], 1e-9)
                rows = f"{done:,}{f' of {total:,}' if total else ''} rows, {rate:,.0f}/s" if done else ""
                bar.update(task, completed=done, total=total or None, rows=rows)

            yield show
    else:
        last = [time.perf_counter()]

        def line(stage: str, done: int, total: int) -> None:
            if time.perf_counter() - last[0] >= _PLAIN_EVERY_S:
                last[0] = time.perf_counter()
                console.print(f"{stage}{f' {done:,}' if done else ''}{f' of {total:,}' if total else ''}", markup=False)

        yield line


_COMMANDS |= {
    "check": ("what is wrong, rule by rule, with file and line; exit code 1 where anything is", _check),
    "clean": ("the rows that stay, and those that do not with the reason", _clean),
    "split": ("train, validation and test parts that share no question, nor nearly one", _split),
}
