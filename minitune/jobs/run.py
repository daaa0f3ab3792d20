"""One run of training: made ready on construction, trained by iterating, written as it goes."""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import minitune
from minitune.adapters import save_adapter
from minitune.chat import render
from minitune.checkpoint import save_checkpoint
from minitune.config import TrainConfig
from minitune.data.batch import Batch, pack_rows, pad_rows
from minitune.data.formats import Row
from minitune.data.sources import parse_source
from minitune.device import peak_memory_bytes, pick_device
from minitune.errors import TrainingError
from minitune.files import whole_folder, write_json
from minitune.jobs.compiled import compile_blocks
from minitune.jobs.dataset import data_specs
from minitune.jobs.load import resolve
from minitune.jobs.outfit import outfit
from minitune.jobs.prepared import Progress
from minitune.jobs.ready import Ready
from minitune.jobs.run_folder import METRICS, RunFolder, settings_of
from minitune.jobs.tensorboard import Board
from minitune.memory_plan import total
from minitune.plot import draw_loss
from minitune.resume import differences, newest, restore, save, saved_steps
from minitune.sample import generate
from minitune.train import NonFinite, StepReport, Validation, evaluate, next_token_loss, train

SAMPLE_TOKENS = 64
SAVES = 10
"""Checkpoints over a run, where the settings do not say how often."""
STEEP = 1e-2
"""An update of more than this share of the weights a step is worth a warning."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt, what it should give, and what the model gave before and after."""

    prompt: str
    expected: str
    before: str
    after: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended; losses are in nats per trained token, None where there is no validation.

    ``steps`` are the optimizer steps taken in all, ``seconds`` the time of this process alone.
    """

    run: str
    steps: int
    seconds: float
    peak_memory_bytes: int
    train_loss: float
    val_loss_before: float | None
    val_loss_after: float | None
    best_step: int | None
    best_val_loss: float | None
    stopped_early: bool
    samples: tuple[Sample, ...]


@dataclass
class _State:
    """What a run carries from step to step beside weights and moments; goes into every checkpoint."""

    best_step: int = 0
    best_loss: float = math.inf
    worse: int = 0
    val_loss: float | None = None
    recent: list[tuple[float, float]] = dataclasses.field(default_factory=list)


class Run:
    """A run of fine-tuning or pre-training.

    ``for report in run`` gives a StepReport a step; ``run.finish()`` trains what is left and returns the Result;
    ``run.stop()``, from a signal handler, ends it behind the step under way with a checkpoint to go on from.
    Raises MinituneError, in one line, before anything is trained where the settings, the model or the data are wrong.
    """

    def __init__(
        self, config: TrainConfig, progress: Progress | None = None, *, resume: bool = False, force: bool = False
    ):
        started = time.perf_counter()
        device, _ = pick_device(config.device)
        self.bytes_before = peak_memory_bytes(device)
        """What this process held at its peak before a run was made ready; 0 on a GPU, whose allocator starts empty."""
        self.folder = RunFolder(Path(config.out).expanduser().resolve())
        self.out = self.folder.path
        self._saved = newest(self.out) if resume else None
        if not resume:
            base = _inputs(config)
            self.folder.refuse(base, force=config.force)
        self.ready = ready = Ready(config, progress)
        self.config, self.model, self.tokenizer = config, ready.model, ready.tokenizer
        self.steps, self.warnings = ready.steps, ready.warnings
        self.state = _State()
        self.start = 0
        self.stopped = False
        self.result: Result | None = None
        self._before: tuple[float | None, list[str]] | None = None
        self._reports: Iterator[StepReport] | None = None
        self._made_of = ready.made_of()
        if self._saved is None:
            self._write_start()
        else:
            self._go_on(force=force)
        if config.compile:
            compile_blocks(self.model)
        self._board = Board(self.out / "tensorboard") if config.tensorboard else None
        self._setup_seconds = time.perf_counter() - started

    # ---- before the first step

    def begin(self) -> tuple[float | None, list[Sample]]:
        """Validation loss and sample answers of the model as it came; done once, before the first step."""
        if self._before is None:
            validation = self._validate()
            loss = validation.loss if validation else None
            guess = math.log(self.model.config.vocab_size)
            if loss is not None and loss > guess and self.ready.base.folder is not None:
                self.warnings.append(
                    f"the validation loss before training is {loss:.2f}, worse than guessing (ln V = {guess:.2f}); is "
                    "this model trained at all?"
                )
            answers = self._answers()
            self._before = loss, answers
            self._log(_line(0, None, validation, answers))
        loss, answers = self._before
        pairs = zip(self.ready.data.shown, answers, strict=True)
        return loss, [Sample(prompt=prompt_of(row), expected=row.answer, before=text) for row, text in pairs]

    def _write_start(self) -> None:
        ready, config = self.ready, self.config
        manifest = {
            "minitune": minitune.__version__,
            "python": sys.version.split()[0],
            **self._made_of,
            "template": {"name": ready.template.name, "sha256": ready.template.fingerprint},
            "choices": {name: {"value": value, "why": why} for name, (value, why) in ready.choices.items()},
            "trainable_parameters": ready.trainable_parameters,
            "memory_plan": {term.name: term.bytes for term in ready.memory()},
        }
        mask = {"template": ready.template.name, "terminator": [ready.stop_id, self.tokenizer.token(ready.stop_id)]}
        mask |= {"stop_ids": list(self.model.stop_ids), "warnings": self.warnings}
        resolved = dataclasses.replace(config, force=False, lr=ready.peak_lr)
        self.folder.begin(resolved, manifest, ready.data.summary() | mask)

    def _go_on(self, *, force: bool) -> None:
        """Put everything back as the newest checkpoint has it."""
        assert self._saved is not None
        saved = self._saved
        changed = differences(saved.facts["made_of"], _plain(self._made_of))
        if changed and not force:
            raise TrainingError(
                f"--resume {self.out}: this would not be the same run: {'; '.join(changed)}; pass --force to go on "
                "all the same"
            )
        if changed:
            self.warnings.append(f"goes on although {'; '.join(changed)}")
        restore(saved, self.ready.optimizer)
        self.start = saved.step
        self.state = _State(**saved.facts["state"])
        self.folder.cut_log(saved.step)
        first = self.folder.first_line()
        self._before = first.get("val_loss"), first.get("samples", [])

    # ---- the steps

    def __iter__(self) -> Iterator[StepReport]:
        if self._reports is None:
            self._reports = self._train()
        return self._reports

    def stop(self) -> None:
        """End behind the step under way; ``finish`` then raises, and a checkpoint is there to go on from."""
        self.stopped = True

    def finish(self) -> Result:
        """Train the steps that are left, write the tuned model, and return how it went."""
        for _ in self:
            pass
        if self.result is None:
            command = f"minitune {self.config.COMMAND} --resume {self.out}"
            raise TrainingError(f"this run was stopped before its end; go on with {command}")
        return self.result

    def _train(self) -> Iterator[StepReport]:
        self.begin()
        started, config, state = time.perf_counter(), self.config, self.state
        done, early = self.start, False
        every = config.save_every or max(1, math.ceil(self.steps / SAVES))
        try:
            for report in train(
                self.model,
                self.ready.optimizer,
                self._batches(),
                lr=self.ready.rate,
                clip=config.clip,
                objective=partial(next_token_loss, smoothing=config.label_smoothing),
                validate=self._validate_when_due,
                start=self.start,
            ):
                done = report.step
                state.recent = [*state.recent[-9:], (report.loss, report.trained_tokens)]
                early = self._judge(report)
                self._log_step(report)
                if not early and (done % every == 0 or self.stopped) and done < self.steps:
                    self._save()
                yield report
                if early or (self.stopped and done < self.steps):
                    if not early and done % every:
                        self._save()  # stopped by what took the report
                    break
        except NonFinite as error:
            path = self.folder.keep_bad_step(error.step, str(error), error.batches)
            raise TrainingError(f"{error}; its batch is in {path}; try a lower --lr") from None
        if done == self.steps or early:
            self.stopped = False
            self._end(done, early, self._setup_seconds + time.perf_counter() - started)

    def _judge(self, report: StepReport) -> bool:
        """Keep the best model so far; True where patience is at its end."""
        state, validation = self.state, report.validation
        if validation is None:
            return False
        state.val_loss = validation.loss
        if validation.loss < state.best_loss:
            state.best_step, state.best_loss, state.worse = report.step, validation.loss, 0
            if self.config.eval_every:
                self._write_best()
            return False
        state.worse += 1
        return bool(self.config.patience) and state.worse >= self.config.patience

    def _log_step(self, report: StepReport) -> None:
        line = _line(report.step, report, report.validation, self._answers() if report.validation else None)
        if report.step == 1:
            line["update_ratios"] = ratios = update_ratios(self.ready)
            steep = [name for name, ratio in ratios.items() if ratio > STEEP]
            if steep:
                self.warnings.append(
                    f"at its peak the learning rate moves {steep[0]} by {ratios[steep[0]]:.1%} of its size a step; "
                    "1 % is much; a lower --lr is safer"
                )
            line["planned_memory_bytes"] = total(self.ready.memory())
        self._log(line)

    def _log(self, line: dict[str, Any]) -> None:
        self.folder.log(line)
        if self._board is not None:
            self._board.add(line)

    def _save(self) -> None:
        facts = {"made_of": _plain(self._made_of), "state": dataclasses.asdict(self.state)}
        try:
            save(self.out, self.ready.optimizer, facts=facts, keep=self.config.keep)
        except OSError as error:
            known = f"the checkpoint of step {max(saved_steps(self.out), default=0)} is whole"
            raise TrainingError(
                f"{self.out}: step {self.ready.optimizer.steps} could not be saved ({error.strerror or error}); {known}"
            ) from None

    def _batches(self) -> Iterator[Sequence[Batch]]:
        """The micro-batches of each optimizer step that is left."""
        data, config = self.ready.data, self.config
        examples, micro, device = data.train, self.ready.micro_rows, self.ready.device
        fill = device.type != "cpu" or config.compile  # a GPU and a compiler like one shape; a CPU likes less work
        for rows in islice(self.ready.feed.steps(self.start), self.steps - self.start):
            parts = [rows[i : i + micro] for i in range(0, len(rows), micro)]
            documents = [[[examples[i] for i in row] for row in part] for part in parts]
            if config.packing:
                yield [pack_rows(part, data.max_length, device, fill=fill) for part in documents]
            else:
                yield [pad_rows([row[0] for row in part], device) for part in documents]

    def _validate_when_due(self, done: int) -> Validation | None:
        every = self.config.eval_every
        return self._validate() if done == self.steps or (every and done % every == 0) else None

    def _validate(self) -> Validation | None:
        rows = self.ready.data.val
        if not len(rows):
            return None
        size = self.ready.micro_rows
        # Rows of a length together: less padding, the same sum.
        order = rows.lengths.argsort(kind="stable").tolist()
        parts = [[rows[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
        return evaluate(self.model, (pad_rows(part, self.ready.device) for part in parts))

    def _answers(self) -> list[str]:
        return [self._answer(row) for row in self.ready.data.shown]

    def _answer(self, row: Row) -> str:
        encoder = self.ready.encoder
        template = encoder.recipe.template_of(row)
        stop_id, _ = encoder.stop_and_checks(template)
        if not row.prompt:
            prompt = [token for token in (self.tokenizer.bos_id,) if token is not None] or [stop_id]
        else:
            prompt = render(row.prompt, template, self.tokenizer, stop_id).ids
        room = self.model.config.max_positions - len(prompt)
        if room < 1:
            return ""
        pieces = generate(self.model, self.tokenizer, prompt, max_tokens=min(SAMPLE_TOKENS, room))
        return "".join(piece.text for piece in pieces)

    # ---- what is written

    def _end(self, done: int, early: bool, seconds: float) -> None:
        before, samples = self.begin()
        after = self._answers()
        state = self.state
        self._write_model(self.out)
        draw_loss(self.out / METRICS, self.out / "loss.png")
        trained = sum(tokens for _, tokens in state.recent)
        self.result = Result(
            run=str(self.out),
            steps=done,
            seconds=round(seconds, 2),
            peak_memory_bytes=peak_memory_bytes(self.ready.device),
            train_loss=sum(loss * tokens for loss, tokens in state.recent) / trained,
            val_loss_before=before,
            val_loss_after=state.val_loss,
            best_step=state.best_step or None,
            best_val_loss=state.best_loss if state.best_step else None,
            stopped_early=early,
            samples=tuple(dataclasses.replace(s, after=text) for s, text in zip(samples, after, strict=True)),
        )
        write_json(self.out / "result.json", dataclasses.asdict(self.result))

    def _write_best(self) -> None:
        """The best model so far, in a folder of its own that every command takes as a MODEL."""
        with whole_folder(self.out / "best") as part:
            self._write_model(part)
            write_json(part / "best.json", {"step": self.state.best_step, "val_loss": self.state.best_loss})

    def _write_model(self, where: Path) -> None:
        ready = self.ready
        folder = ready.base.folder or ready.base.tokenizer_path
        template = ready.template if self.config.CHATS else None
        beside = outfit(folder, self.model, self.tokenizer, template)
        if self.config.method == "lora":
            base = self.config.model if self.config.model == "tiny" else str(folder.resolve())
            save_adapter(
                self.model,
                where / "adapter",
                ready.lora,
                base=base,
                base_weights=ready.base.fingerprint,
                beside=beside,
                tokenizer_files=self.tokenizer.files if self.config.train_tokens else (),
            )
        else:
            save_checkpoint(
                self.model,
                where / "model",
                source=ready.base.folder,  # in its layout and its types
                tokenizer_files=self.tokenizer.files,
                beside=beside,
            )


def resumed(run: str | Path, *, force: bool = False, progress: Progress | None = None) -> Run:
    """The run in a folder, going on behind its newest checkpoint, bit for bit on the same device and versions.

    Raises ConfigError where there is no run, TrainingError where it cannot go on: without a checkpoint, or with other
    data, code or settings and without ``force``.
    """
    folder = Path(run).expanduser()
    config = dataclasses.replace(settings_of(folder), out=str(folder))
    if (folder / "result.json").is_file():
        raise TrainingError(f"--resume {folder}: this run has come to its end; there is nothing to go on with")
    return Run(config, progress, resume=True, force=force)


def update_ratios(ready: Ready) -> dict[str, float]:
    """How far one step at the peak rate moves the weights of each part of the model, as a share of their size.

    ``|update| / |weight|`` over the trained weights of a block (or of what stands outside the blocks), from the moments
    of AdamW as they are. About 1e-3 is usual (Karpathy, "A recipe for training neural networks").
    """
    sums: dict[str, tuple[float, float]] = {}
    for name, weight, update in ready.optimizer.updates(ready.peak_lr):
        parts = name.split(".")
        part = ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]
        moved, size = sums.get(part, (0.0, 0.0))
        sums[part] = moved + float(update.square().sum()), size + float(weight.detach().square().sum())
    return {part: math.sqrt(moved / size) for part, (moved, size) in sums.items() if size > 0}


def prompt_of(row: Row) -> str:
    """What a row asks, as text."""
    if not row.prompt:
        return ""
    question = row.prompt[-1]
    return question.content + (f"\n{question.context}" if question.context.strip() else "")


def _inputs(config: TrainConfig) -> list[Path]:
    """What a run reads: its model and its files."""
    names = [parse_source(spec).name for spec in data_specs(config.data)]
    files = [Path(name) for name in (*names, config.val) if Path(name).is_file()]
    return [resolve(config.model).base, *files] if config.model else files


def _line(
    step: int, report: StepReport | None, validation: Validation | None, samples: list[str] | None
) -> dict[str, Any]:
    line: dict[str, Any] = {"step": step}
    if report is not None:
        line |= {
            "loss": report.loss,
            "grad_norm": report.grad_norm,
            "lr": report.lr,
            "trained_tokens": report.trained_tokens,
            "trained_tokens_per_s": round(report.trained_tokens / report.seconds, 1),
            "tokens_per_s": round(report.tokens / report.seconds, 1),
            "peak_memory_bytes": report.peak_memory_bytes,
        }
    if validation is not None:
        line |= {"val_loss": validation.loss, "val_tokens": validation.tokens}
    if samples is not None:
        line["samples"] = samples
    return line


def _plain(facts: dict[str, object]) -> dict[str, object]:
    """The facts as a checkpoint gives them back: JSON knows no tuples."""
    return json.loads(json.dumps(facts))
