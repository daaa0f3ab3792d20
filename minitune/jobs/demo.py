"""The main job on what ships inside the package: a tiny base model learns to answer, and is measured before and after.

The rows are instructions about the small world (``data/world``); those of the test are about combinations of people,
things, places and numbers whose questions are never trained on (``data/world/scenes.py``).
Tuning is ``jobs/sft.py``, measuring is ``jobs/evaluate.py``; nothing here is known to either.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from minitune.checkpoint import read_config, save_checkpoint
from minitune.config import SFTConfig
from minitune.data.world import KINDS, Task, tasks
from minitune.errors import ConfigError
from minitune.eval_config import EvalConfig
from minitune.files import write_json, write_text
from minitune.jobs.evaluate import evaluate_model
from minitune.jobs.load import TINY, resolve
from minitune.jobs.run import Run
from minitune.models import build
from minitune.tokenizer import load_tokenizer
from minitune.train import StepReport

TRAIN_ROWS, TEST_ROWS = 3000, 12 * len(KINDS)
MAX_TOKENS = 40
"""More than the longest right answer has."""
SETTINGS: dict[str, object] = {
    "method": "full", "lr": 7e-4, "epochs": 1.2, "batch_size": 2, "max_length": 512, "warmup": 0.05,
    "weight_decay": 0.05, "dtype": "float32",
}  # fmt: skip
"""The settings of the tuning, as ``minitune sft`` takes them; in float32, so that all processors do the same."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The main job in about a minute: measure the tiny base model, fine-tune it, measure it again."""

    out: str = ""
    """Folder for rows, run and answers; by itself the first of runs/demo, runs/demo-2 ... that is not there."""
    model: str = "tiny"
    """The base model: one that knows the small world."""
    control: bool = False
    """The same tuning from random weights: what the rows teach without the base model."""
    seed: int = 0
    """Decides the rows, their order and (with --control) the random weights."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""
    json: bool = False
    """Print one JSON document as the last line of standard output; everything for people goes to standard error."""
    quiet: bool = False
    """Print no progress."""


@dataclass(frozen=True)
class Answered:
    """One instruction of the test with what the model said before and after."""

    task: Task
    before: str
    after: str

    @property
    def right(self) -> bool:
        """Whether the answer after tuning is the right one."""
        return self.after.strip() == self.task.output


@dataclass(frozen=True)
class DemoResult:
    """How it went: shares of right answers, overall and by kind of question, and where everything is."""

    exact_match_before: float
    exact_match_after: float
    seconds: float
    tuning_seconds: float
    run: str
    by_kind: dict[str, float]
    answers: list[Answered]
    losses: list[float]
    val_loss_before: float
    val_loss_after: float


@dataclass(frozen=True)
class Watcher:
    """What the demo tells while it works: where it is, and each step of the tuning."""

    stage: Callable[[str], None]
    measured: Callable[[str, int, int], None]
    ready: Callable[[Run], None]
    step: Callable[[StepReport, int], None]


def demo(config: DemoConfig, watch: Watcher) -> DemoResult:
    """Measure, tune, measure again; everything is written below ``config.out``."""
    started = time.perf_counter()
    out = _folder(config.out)
    data = out / "data"
    data.mkdir(parents=True)
    test = list(tasks(TEST_ROWS, seed=config.seed + 1, test=True))
    _write(data / "train.jsonl", list(tasks(TRAIN_ROWS, seed=config.seed)))
    _write(data / "test.jsonl", test)
    model = str(_random_weights(config, out)) if config.control else config.model
    watch.stage(f"measuring {model} on {len(test)} instructions that it will not be trained on")
    before = _measured(model, data / "test.jsonl", out / "before.jsonl", config, watch)
    watch.stage("tuning it: the very code of minitune sft")
    run = Run(
        SFTConfig(
            model=model,
            data=str(data / "train.jsonl"),
            out=str(out / "run"),
            val="0.02",
            seed=config.seed,
            device=config.device,
            **SETTINGS,  # pyright: ignore[reportArgumentType]
        )
    )
    watch.ready(run)
    losses = []
    for report in run:
        losses.append(report.loss)
        watch.step(report, run.steps)
    tuned = run.finish()
    assert tuned.val_loss_before is not None
    assert tuned.val_loss_after is not None
    watch.stage("measuring the tuned model on the same instructions")
    after = _measured(tuned.run, data / "test.jsonl", out / "after.jsonl", config, watch)
    answers = [Answered(*one) for one in zip(test, before, after, strict=True)]
    kinds: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for one in answers:
        kinds[one.task.kind].append(one.right)
    result = DemoResult(
        exact_match_before=sum(b.strip() == task.output for b, task in zip(before, test, strict=True)) / len(test),
        exact_match_after=sum(one.right for one in answers) / len(answers),
        seconds=round(time.perf_counter() - started, 1),
        tuning_seconds=tuned.seconds,
        run=tuned.run,
        by_kind={kind: sum(right) / len(right) for kind, right in kinds.items()},
        answers=answers,
        losses=losses,
        val_loss_before=tuned.val_loss_before,
        val_loss_after=tuned.val_loss_after,
    )
    write_json(out / "demo.json", as_json(result))
    return result


def as_json(result: DemoResult) -> dict[str, object]:
    """The numbers of a demo as one document."""
    names = ("exact_match_before", "exact_match_after", "seconds", "tuning_seconds", "run", "by_kind",
             "val_loss_before", "val_loss_after")  # fmt: skip
    return {name: getattr(result, name) for name in names}


def command(result: DemoResult) -> str:
    """The tuning of this demo as the command that does the same."""
    flags = [f"--{name.replace('_', '-')} {value}" for name, value in SETTINGS.items() if not isinstance(value, bool)]
    flags += [f"--no-{name.replace('_', '-')}" for name, value in SETTINGS.items() if value is False]
    data = Path(result.run).parent / "data" / "train.jsonl"
    return f"minitune sft --model tiny --data {data} {' '.join(flags)} --out runs/mine"


def _folder(name: str) -> Path:
    if name:
        out = Path(name).expanduser().resolve()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"--out {out} is not an empty folder; choose a new one")
        return out
    for number in range(1, 10_000):
        out = Path("runs", "demo" if number == 1 else f"demo-{number}").resolve()
        if not out.exists():
            return out
    raise ConfigError("runs/demo-9999 is there; name a folder with --out")


def _write(path: Path, rows: list[Task]) -> None:
    write_text(path, "".join(json.dumps(task.row, ensure_ascii=False) + "\n" for task in rows))


def _random_weights(config: DemoConfig, out: Path) -> Path:
    """A model of the same shape that has learned nothing."""
    folder = resolve(config.model).base
    shape, _ = read_config(folder)
    model = build(shape)
    with torch.no_grad():
        model.initialize(seed=config.seed)
    target = out / "random"
    save_checkpoint(model, target, source=TINY, tokenizer_files=load_tokenizer(folder).files)
    return target


def _measured(model: str, rows: Path, answers: Path, config: DemoConfig, watch: Watcher) -> list[str]:
    """What a model answers to the rows of a file, in their order."""
    evaluate_model(
        EvalConfig(
            model=model,
            data=str(rows),
            metrics="exact",
            max_tokens=MAX_TOKENS,
            batch_size=36,
            predictions=str(answers),
            device=config.device,
            dtype="float32",
        ),
        watch.measured,
    )
    return [json.loads(line)["answer"] for line in answers.read_text(encoding="utf-8").splitlines()]
