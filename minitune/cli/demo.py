"""``minitune demo``."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from minitune.cli.parse import parse
from minitune.plot import text_plot

if TYPE_CHECKING:
    from minitune.jobs.demo import Answered, DemoResult, Watcher
    from minitune.jobs.run import Run
    from minitune.train import StepReport

_PLAIN_EVERY_S = 10.0


def run(args: list[str]) -> int:
    """Show the main job from its start to its end."""
    from minitune.jobs.demo import DemoConfig, as_json, demo

    config = parse(DemoConfig, "demo", args)
    console = Console(stderr=config.json, highlight=False, soft_wrap=True)
    with _watching(console, quiet=config.quiet) as watch:
        result = demo(config, watch)
    _show(console, result)
    if config.json:
        print(json.dumps(as_json(result), ensure_ascii=False))
    return 0


@contextlib.contextmanager
def _watching(console: Console, *, quiet: bool) -> Iterator["Watcher"]:
    from minitune.jobs.demo import Watcher

    bar = Progress(
        TextColumn("  {task.fields[what]}"), BarColumn(), TextColumn("{task.fields[now]}"), TextColumn("left"),
        TimeRemainingColumn(), console=console, transient=True, disable=quiet or not console.is_terminal,
    )  # fmt: skip
    last = [0.0]

    def due(done: int, total: int) -> bool:
        now = time.perf_counter()
        if done < total and now - last[0] < _PLAIN_EVERY_S:
            return False
        last[0] = now
        return not quiet and not console.is_terminal

    def stage(text: str) -> None:
        console.print(f"\n{text}", markup=False)
        for known in bar.task_ids:
            bar.remove_task(known)
        bar.add_task("", total=None, what="", now="")

    def measured(what: str, done: int, total: int) -> None:
        bar.update(bar.task_ids[0], total=total, completed=done, what=what)
        if what == "answers" and due(done, total):
            console.print(f"  {done} of {total} answers")

    def ready(job: "Run") -> None:
        report = job.ready.data.report
        console.print(
            f"  {job.ready.data.train_rows:,} rows; {report.trained_tokens:,} of {report.tokens:,} tokens are trained "
            f"({100 * report.trained_tokens / report.tokens:.1f} %), the rest is prompt; {job.steps} steps of "
            f"{job.config.batch_size} rows"
        )

    def step(report: "StepReport", steps: int) -> None:
        now = f"loss {report.loss:.3f}  {report.trained_tokens / report.seconds:,.0f} trained tokens/s"
        bar.update(bar.task_ids[0], total=steps, completed=report.step, what="tuning", now=now)
        if due(report.step, steps):
            console.print(f"  step {report.step}/{steps}  {now}")

    with bar:
        yield Watcher(stage, measured, ready, step)


def _show(console: Console, result: "DemoResult") -> None:
    console.print("\nloss of every step (nats per trained token)")
    console.print(text_plot(result.losses), markup=False)
    for one in _telling(result.answers):
        console.print()
        for title, text in _told(one):
            console.print(f"{title:<8}{' '.join(text.split())[:150]}", markup=False)
    console.print("\nright answers by kind of question")
    kinds = [f"{kind:<10}{100 * share:>4.0f} %" for kind, share in result.by_kind.items()]
    for start in range(0, len(kinds), 6):
        console.print("  " + "   ".join(kinds[start : start + 6]), markup=False)
    console.print(
        f"\nexact answers {100 * result.exact_match_before:.1f} % -> {100 * result.exact_match_after:.1f} % of "
        f"{len(result.answers)} instructions about what it was not trained on, in {result.seconds:.0f} s "
        f"(tuning {result.tuning_seconds:.0f} s)"
    )
    from minitune.jobs.demo import command

    console.print(f"everything is in {result.run}, the rows beside it. Try next:", markup=False)
    console.print(f'  minitune generate {result.run} "What is the opposite of hot?" --chat', markup=False)
    data = Path(result.run).parent / "data" / "train.jsonl"
    console.print(f"  minitune inspect {result.run} {data} --row 2", markup=False)
    console.print(f"  {command(result)}", markup=False)


def _told(one: "Answered") -> list[tuple[str, str]]:
    asked = f"{one.task.instruction}  {one.task.input}"
    return [("asked", asked), ("before", one.before), ("after", one.after), ("right", one.task.output)]


def _telling(answers: list["Answered"]) -> list["Answered"]:
    """Two instructions of each language whose answer must be looked up in their text."""
    found: list[Answered] = []
    for language in ("en", "zh"):
        told = [one for one in answers if one.task.language == language and one.task.input]
        found += told[:1] + [one for one in told[1:] if told and one.task.kind != told[0].task.kind][:1]
    return found
