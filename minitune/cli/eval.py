"""``minitune eval MODEL --data DATA``."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from minitune.cli.parse import parse
from minitune.eval_config import EvalConfig

if TYPE_CHECKING:
    from minitune.jobs.evaluate import Evaluated


def run(args: list[str]) -> int:
    """Measure, and print every number with how it was counted."""
    words = ["--model", args[0], *args[1:]] if args and not args[0].startswith("-") else args
    config = parse(EvalConfig, "eval", words)
    from minitune.jobs.evaluate import evaluate_model

    with _progress(Console(stderr=True)) as show:
        found = evaluate_model(config, show)
    if config.json:
        print(json.dumps(dataclasses.asdict(found), ensure_ascii=False))
        return 0
    _print(found)
    return 0


def _print(found: "Evaluated") -> None:
    left_out = f", {found.left_out} left out" if found.left_out else ""
    print(f"rows        {found.rows:,}{left_out}; template {found.template}")
    print(
        f"loss        {found.loss:.4f} nats a token, perplexity {found.perplexity:.3f}  "
        f"({found.nll:.2f} nats over {found.tokens:,.0f} trained tokens)"
    )
    for one in found.scores:
        shown = f"{one.value:.2f}" if one.name == "bleu" else f"{one.value:.4f}"
        print(f"{one.name:<12}{shown}  [{one.signature}]")
        if one.name == "labels":
            _print_labels(one.parts)
        elif one.name == "rouge":
            print("            " + ", ".join(f"{name} {value:.4f}" for name, value in one.parts.items()))
    if found.generation:
        settings = ", ".join(f"{name} {value}" for name, value in found.generation.items())
        print(f"generation  {settings}" + (f"; answers in {found.predictions}" if found.predictions else ""))


def _print_labels(parts: dict) -> None:
    if parts["no_label"]:
        print(f"            {parts['no_label']} answers are no label")
    rows = [("micro", parts["micro"]), ("macro", parts["macro"]), *parts["labels"].items()]
    width = max(12, *(len(name) + 2 for name, _ in rows))
    print(" " * 12 + f"{'':<{width}}precision  recall      f1    rows")
    for name, one in rows:
        count = f"{one['rows']:>8,}" if "rows" in one else ""
        print(f"{'':<12}{name:<{width}}{one['precision']:>9.4f}{one['recall']:>8.4f}{one['f1']:>8.4f}{count}")


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    if not console.is_terminal:
        yield lambda what, done, of: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True) as bar:
        tasks = {}

        def show(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
            bar.update(tasks[what], completed=done)

        yield show
