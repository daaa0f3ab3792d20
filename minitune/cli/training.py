"""What ``minitune sft`` and ``minitune pretrain`` show of a run: the plan, how far it is, and what changed."""

import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from minitune.cli.parse import parse
from minitune.cli.progress import preparing
from minitune.config import TrainConfig

if TYPE_CHECKING:
    from minitune.jobs.ready import Ready
    from minitune.jobs.run import Result, Run, Sample
    from minitune.train import StepReport

_PLAIN_EVERY_S = 10.0
STOPPED = 130


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeConfig:
    """Go on with a run behind its newest checkpoint; all its settings are those of RUN/config.toml."""

    resume: str
    """The run folder."""
    force: bool = False
    """Go on although data, code or settings have changed."""
    json: bool = False
    """Print one JSON document as the last line of standard output."""
    quiet: bool = False
    """Print no progress."""


def resume(command: str, args: list[str]) -> int:
    """``minitune sft --resume RUN``: go on where a run was stopped."""
    config = parse(ResumeConfig, command, args)
    from minitune.jobs.run import resumed

    console = Console(stderr=config.json, highlight=False, soft_wrap=True)
    with preparing(console, quiet=config.quiet) as progress:
        job = resumed(config.resume, force=config.force, progress=progress)
    console.print(f"goes on   behind step {job.start} of {job.steps}", markup=False)
    return follow(console, job, as_json=config.json, quiet=config.quiet)


def start(config: TrainConfig) -> int:
    """Train, or with ``--dry-run`` only say what would be done."""
    from minitune.jobs.ready import Ready
    from minitune.jobs.run import Run

    console = Console(stderr=config.json, highlight=False, soft_wrap=True)
    if config.dry_run:
        with preparing(console, quiet=config.quiet) as progress:
            ready = Ready(config, progress)
        announce(console, ready)
        plan = show_plan(console, ready)
        if config.json:
            print(json.dumps(plan, ensure_ascii=False))
        return 0
    with preparing(console, quiet=config.quiet) as progress:
        job = Run(config, progress)
    announce(console, job.ready)
    return follow(console, job, as_json=config.json, quiet=config.quiet)


def follow(console: Console, job: "Run", *, as_json: bool, quiet: bool) -> int:
    """Train to the end, or to a Ctrl-C: the first ends behind the step under way, the second at once."""
    before, _ = job.begin()
    told = 0
    if before is not None:
        console.print(f"validation loss before: {before:.4f}")
    with _progress(console, job, quiet=quiet) as show, _first_interrupt(job, console):
        for report in job:
            show(report)
            for warning in job.warnings[told:]:
                console.print(f"warning: {warning}", markup=False)
            told = len(job.warnings)
            if report.step == 1:
                _memory(console, job, report)
    if job.stopped:
        print(f"minitune: stopped; go on with: minitune {job.config.COMMAND} --resume {job.out}", file=sys.stderr)
        return STOPPED
    result = job.finish()
    _summary(console, job, result)
    if as_json:
        print(json.dumps(dataclasses.asdict(result), ensure_ascii=False))
    return 0


@contextlib.contextmanager
def _first_interrupt(job: "Run", console: Console) -> Iterator[None]:
    """The first Ctrl-C lets the step under way end and saves; the second is an ordinary one."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        console.print("stopping behind this step; again to stop at once")
        job.stop()

    try:
        before = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def announce(console: Console, ready: "Ready") -> None:
    """What is trained, on what, and how."""
    config, data = ready.config, ready.data
    for name, (value, why) in ready.choices.items():
        console.print(f"{name:<10}{value}  ({why})", markup=False)
    parameters = sum(w.numel() for w in ready.model.parameters())
    share = 100 * ready.trainable_parameters / parameters
    console.print(
        f"model     {config.model or 'new'}: {parameters:,} parameters, {ready.trainable_parameters:,} trained "
        f"({share:.2f} %)",
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
    examples, rows, full = ready.feed.first()
    packed = f"packed    {examples:,} examples in {rows:,} rows of {data.max_length:,} tokens, {100 * full:.1f} % full"
    console.print(packed if config.packing else "packed    no: one example a row")
    console.print(
        f"steps     {ready.steps} of {config.batch_size} rows; learning rate {ready.peak_lr:g} after {ready.warmup} "
        f"steps of warm-up, then {config.schedule}"
    )


def show_plan(console: Console, ready: "Ready") -> dict[str, Any]:
    """The learning rates and the memory of a run that is not started; the same as one document."""
    from minitune.memory_plan import total

    terms = ready.memory()
    console.print("rates     " + ", ".join(f"step {step}: {rate:.3g}" for step, rate in ready.rate_table()))
    console.print("memory    of one step")
    for term in terms:
        console.print(f"  {term.name:<18}{_size(term.bytes):>12}   {term.why}", markup=False)
    console.print(f"  {'together':<18}{_size(total(terms)):>12}   what Python and torch hold themselves comes on top")
    for warning in ready.warnings:
        console.print(f"warning: {warning}", markup=False)
    console.print("nothing was trained or written; leave out --dry-run to start")
    report = ready.data.report
    return {
        "rows": ready.data.train_rows,
        "val_rows": ready.data.val_rows,
        "tokens": report.tokens,
        "trained_tokens": report.trained_tokens,
        "steps": ready.steps,
        "rates": ready.rate_table(),
        "memory": {term.name: term.bytes for term in terms},
        "warnings": ready.warnings,
    }


def _memory(console: Console, job: "Run", report: "StepReport") -> None:
    from minitune.memory_plan import total

    if report.peak_memory_bytes and not job.config.quiet:
        planned, own = total(job.ready.memory()), job.bytes_before
        console.print(
            f"memory    {_size(report.peak_memory_bytes - own)} at the peak of the first step "
            f"({_size(planned)} planned); Python and torch held {_size(own)} before"
        )


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


@contextlib.contextmanager
def _progress(console: Console, job: "Run", *, quiet: bool) -> Iterator[Callable[["StepReport"], None]]:
    """A function to show a step with: a live bar on a terminal, a plain line now and then elsewhere."""
    if quiet:
        yield lambda report: None
    elif console.is_terminal:
        columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(), TextColumn("{task.fields[now]}"))
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("", total=job.steps, completed=job.start, now="")
            yield lambda report: bar.update(task, completed=report.step, now=_now(report))
    else:
        yield _plain_lines(console, job.steps, job.start)


def _plain_lines(console: Console, steps: int, first: int) -> Callable[["StepReport"], None]:
    started = time.perf_counter()
    last = [0.0]

    def show(report: "StepReport") -> None:
        now = time.perf_counter()
        if report.step in (first + 1, steps) or report.validation or now - last[0] >= _PLAIN_EVERY_S:
            last[0] = now
            left = (now - started) / (report.step - first) * (steps - report.step)
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
    if result.stopped_early:
        console.print(f"stopped early: no better than at step {result.best_step} for {job.config.patience} validations")
    if job.config.eval_every and result.best_step:
        console.print(f"best      step {result.best_step}, validation loss {result.best_val_loss:.4f}: {job.out}/best")
    peak = f", {result.peak_memory_bytes / 2**30:.2f} GiB at the peak" if result.peak_memory_bytes else ""
    console.print(f"{result.steps} steps in {result.seconds:.1f} s{peak}; written to {result.run}", markup=False)
    if sys.stdout.isatty():
        console.print(f'try: minitune generate {result.run} "YOUR QUESTION" --chat', markup=False)


def _print_sample(console: Console, sample: "Sample") -> None:
    console.print()
    for title in ("prompt", "expected", "before", "after"):
        text = " ".join(getattr(sample, title).split())
        console.print(f"{title:<10}{text[:200]}", markup=False)
