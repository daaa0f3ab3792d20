"""How far the preparing of rows is: a bar on a terminal, a plain line now and then elsewhere."""

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from minitune.jobs.prepared import Progress as Show

AFTER_S = 1.0
_PLAIN_EVERY_S = 10.0


@contextlib.contextmanager
def preparing(console: Console, *, quiet: bool = False) -> Iterator["Show | None"]:
    """What a job calls with the rows that are encoded; nothing is shown where all takes less than a second."""
    if quiet:
        yield None
        return
    started = last = time.perf_counter()
    with contextlib.ExitStack() as stack:
        bar: Progress | None = None
        total = 1000  # steps of the bar

        def show(rows: int, share: float) -> None:
            nonlocal bar, last
            now = time.perf_counter()
            said = f"{rows:,} rows, {rows / max(now - started, 1e-9):,.0f}/s"
            if not console.is_terminal:
                if now - last >= _PLAIN_EVERY_S and share < 1:
                    last = now
                    left = f", left {(now - started) * (1 - share) / share:.0f} s" if share else ""
                    console.print(f"preparing {said}{left}", markup=False)
                return
            if bar is None and now - started >= AFTER_S and share < 1:
                columns = (TextColumn("preparing"), BarColumn(), TextColumn("{task.fields[said]}"))
                bar = stack.enter_context(
                    Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True)
                )
                bar.add_task("", total=total, said="")
            if bar is not None:
                bar.update(bar.task_ids[0], completed=total * share, said=said)

        yield show
