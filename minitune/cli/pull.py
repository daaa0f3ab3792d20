"""``minitune pull``."""

import contextlib
import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from minitune.cli.parse import parse

if TYPE_CHECKING:
    from minitune import hub

_PLAIN_EVERY_S = 10.0


@dataclass(frozen=True)
class Pull:
    """Fetch an open model's safetensors, configuration and tokenizer: resumable, every byte checked, no pickles.

    A model that needs a licence accepted also needs a token: set HF_TOKEN. It goes to the endpoint and to no other
    host. Run the same command again after a break; it goes on where it stopped.
    """

    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")]
    """Model on the hub, as owner/name."""
    out: str = ""
    """Folder for the model; models/NAME if empty. A file of yours that is there is never overwritten."""
    endpoint: str = ""
    """Address of the hub or of a mirror; HF_ENDPOINT, or the usual hub, if empty."""
    revision: str = "main"
    """Branch, tag or commit."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print one JSON document as the last line; everything else goes to standard error."""


def run(args: list[str]) -> int:
    """Fetch the model, showing how far it is, and say what lies where."""
    options = parse(Pull, "pull", args)
    from minitune.hub import pull

    console = Console(stderr=options.json, highlight=False, soft_wrap=True)
    out = Path(options.out or Path("models", options.repo.rpartition("/")[2]))
    with _progress(console, options.quiet) as show:
        report = pull(options.repo, out, endpoint=options.endpoint or None, revision=options.revision, progress=show)
    _summary(console, report)
    if options.json:
        print(json.dumps(dataclasses.asdict(report)))
    return 0


@contextlib.contextmanager
def _progress(console: Console, quiet: bool) -> Iterator[Callable[["hub.Progress"], None]]:
    """A function to show an event with: a live bar on a terminal, a plain line now and then elsewhere."""
    if quiet:
        yield lambda event: None
    elif console.is_terminal:
        columns = (DownloadColumn(), BarColumn(), TransferSpeedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.description}", markup=False), console=console) as bar:
            task = bar.add_task("", total=None, start=False)

            def show(event: "hub.Progress") -> None:
                if event.note:
                    console.print(event.note, markup=False)
                elif not bar.tasks[task].started:
                    # What was there before this pull is no speed of this pull.
                    bar.reset(task, total=event.size_bytes, completed=event.done_bytes, description=event.file)
                else:
                    bar.update(task, completed=event.done_bytes, description=event.file)

            yield show
    else:
        yield _plain_lines(console)


def _plain_lines(console: Console) -> Callable[["hub.Progress"], None]:
    started = time.perf_counter()
    last, first, ended = [started], [-1], [""]

    def show(event: "hub.Progress") -> None:
        if event.note:
            console.print(event.note, markup=False)
            return
        now = time.perf_counter()
        if first[0] < 0:
            first[0] = event.done_bytes
        complete = event.file_bytes == event.file_size_bytes and ended[0] != event.file
        if not complete and now - last[0] < _PLAIN_EVERY_S:
            return
        last[0] = now
        if complete:
            ended[0] = event.file
        rate = (event.done_bytes - first[0]) / max(now - started, 1e-9)
        left = f"  left {(event.size_bytes - event.done_bytes) / rate:.0f} s" if rate else ""
        console.print(
            f"{_size(event.done_bytes)} of {_size(event.size_bytes)}  {_size(rate)}/s{left}  {event.file}", markup=False
        )

    return show


def _summary(console: Console, report: "hub.PullReport") -> None:
    for file in report.files:
        console.print(f"{file.name:<36}{_size(file.size_bytes):>10}  {file.status}, {file.digest[:20]}", markup=False)
    if report.left_out:
        console.print(f"left out, since not needed: {', '.join(map(ascii, report.left_out))}", markup=False)
    console.print(f"{report.repo} at commit {report.commit[:12]}, every file checked, in {report.folder}", markup=False)
    console.print(f"try: minitune info {shlex.quote(report.folder)}", markup=False)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
