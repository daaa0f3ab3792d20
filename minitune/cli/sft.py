"""``minitune sft``."""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from minitune.cli.parse import parse, with_toml
from minitune.config import SFTConfig

if TYPE_CHECKING:
    from minitune.jobs.sft import Result, Run, Sample
    from minitune.train import StepReport

_PLAIN_EVERY_S = 10.0


def run(args: list[str]) -> int:
    """Train, showing what is trained on, how far it is, and what changed."""
    config = parse(SFTConfig, "sft", with_toml(SFTConfig, args))
    from minitune.jobs.sft import sft

    console = Console(stderr=config.json, highlight=False, soft_wrap=True)
    job = sft(config)
    _announce(console, job)
    before, _ = job.begin()
    for warning in job.warnings:
        console.print(f"warning: {warning}", markup=False)
    if before is not None:
        console.print(f"validation loss before: {before:.4f}")
    done = 0
    try:
        with _progress(console, job) as show:
            for report in job:
                done = report.step
                show(report)
    except KeyboardInterrupt:
        print(f"minitune: stopped after step {done}; no model was written; start again with --force", file=sys.stderr)
        return 130
    result = job.finish()
    _summary(console, job, result)
    if config.json:
        print(json.dumps(dataclasses.asdict(result), ensure_ascii=False))
    return 0


def _announce(console: Console, job: "Run") -> None:
    config, data = job.config, job.data
    for name, (value, why) in job.choices.items():
        console.print(f"{name:<10}{value}  ({why})", markup=False)
    parameters = sum(w.numel() for w in job.model.parameters())
    share = 100 * job.trainable_parameters / parameters
    console.print(
        f"model     {config.model}: {parameters:,} parameters, {job.trainable_parameters:,} trained ({share:.2f} %)",
        markup=False,
    )
    report = data.report
    left_out = [f"{n} {why}" for n, why in ((data.bad_rows, "bad"), (data.long_rows, "too long")) if n]
    console.print(
        f"data      {data.train_rows:,} rows to train on, {data.val_rows:,} to validate"
        + (f"; left out: {', '.join(left_out)}" if left_out else "")
    )
    console.print(
        f"mask      {report.trained_tokens:,} of {report.tokens:,} tokens are trained "
        f"({100 * report.trained_tokens / report.tokens:.1f} %); every row checked"
        + (f"; {report.altered_answers} answers have characters this tokenizer lacks" if report.altered_answers else "")
    )
    if data.leaked_rows:
        console.print(f"warning: {data.leaked_rows} validation rows are also in the training data")
    console.print(
        f"steps     {job.steps} of {config.batch_size} rows; learning rate {job.peak_lr:g} after {job.warmup} "
        f"steps of warm-up, then {config.schedule}"
    )


@contextlib.contextmanager
def _progress(console: Console, job: "Run") -> Iterator[Callable[["StepReport"], None]]:
    """A function to show a step with: a live bar on a terminal, a plain line now and then elsewhere."""
    if job.config.quiet:
        yield lambda report: None
    elif console.is_terminal:
        columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(), TextColumn("{task.fields[now]}"))
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("", total=job.steps, now="")
            yield lambda report: bar.update(task, completed=report.step, now=_now(report))
    else:
        yield _plain_lines(console, job.steps)


def _plain_lines(console: Console, steps: int) -> Callable[["StepReport"], None]:
    started = time.perf_counter()
    last = [0.0]

    def show(report: "StepReport") -> None:
        now = time.perf_counter()
        if report.step in (1, steps) or report.validation or now - last[0] >= _PLAIN_EVERY_S:
            last[0] = now
            left = (now - started) / report.step * (steps - report.step)
            console.print(f"step {report.step}/{steps}  {_now(report)}  left {left:.0f} s")

    return show


def _now(report: "StepReport") -> str:
    text = (
        f"loss {report.loss:.4f}  norm {report.grad_norm:.2f}  lr {report.lr:.2e}  "
        f"{report.trained_tokens / report.seconds:,.0f} trained tokens/s"
    )
    if report.peak_memory_bytes:
        text += f"  {report.peak_memory_bytes / 2**30:.2f} GiB"
    return text + (f"  val {report.validation.loss:.4f}" if report.validation else "")


def _summary(console: Console, job: "Run", result: "Result") -> None:
    for sample in result.samples:
        _print_sample(console, sample)
    if result.val_loss_before is not None and result.val_loss_after is not None:
        console.print(f"\nvalidation loss {result.val_loss_before:.4f} -> {result.val_loss_after:.4f}")
    peak = f", {result.peak_memory_bytes / 2**30:.2f} GiB at the peak" if result.peak_memory_bytes else ""
    console.print(f"{result.steps} steps in {result.seconds:.1f} s{peak}; written to {result.run}", markup=False)
    if sys.stdout.isatty():
        console.print(f'try: minitune generate {result.run} "YOUR QUESTION" --chat', markup=False)


def _print_sample(console: Console, sample: "Sample") -> None:
    console.print()
    for title in ("prompt", "expected", "before", "after"):
        text = " ".join(getattr(sample, title).split())
        console.print(f"{title:<10}{text[:200]}", markup=False)
