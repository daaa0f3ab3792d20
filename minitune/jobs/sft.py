"""The main job: a model folder and an instruction file in, a run folder with a tuned model out."""

import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import minitune
from minitune.adapters import LoRAConfig, add_lora, save_adapter
from minitune.chat import render
from minitune.checkpoint import fingerprint_of, load_checkpoint, save_checkpoint
from minitune.config import SFTConfig, to_toml
from minitune.data.batch import Batch, pack_rows, pad_rows
from minitune.data.formats import Row
from minitune.data.sources import parse_source
from minitune.device import peak_memory_bytes, pick_device, pick_dtype, pick_ops
from minitune.errors import ConfigError, TrainingError
from minitune.files import code_fingerprint, read_json, sha256, write_json, write_text
from minitune.jobs.conversation import stop_on, template_of
from minitune.jobs.dataset import Dataset, data_specs, prepare, recipe_of
from minitune.jobs.encode import Encoder
from minitune.jobs.feed import Feed
from minitune.jobs.inspect import stop_warnings, untrained_rows
from minitune.jobs.load import Source, resolve, tokenizer_of
from minitune.jobs.outfit import outfit
from minitune.jobs.prepared import Progress
from minitune.jobs.train_tokens import train_template_rows, with_template_tokens
from minitune.optim import AdamW, learning_rate, warmup_steps
from minitune.plot import draw_loss
from minitune.sample import generate
from minitune.storage import weight_files
from minitune.train import NonFinite, StepReport, Validation, evaluate, next_token_loss, train

SAMPLE_TOKENS = 64
_RATES = {"lora": 2e-4, "full": 2e-5}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt, what it should give, and what the model gave before and after."""

    prompt: str
    expected: str
    before: str
    after: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended; losses are in nats per trained token, None where there is no validation."""

    run: str
    steps: int
    seconds: float
    peak_memory_bytes: int
    train_loss: float
    val_loss_before: float | None
    val_loss_after: float | None
    samples: tuple[Sample, ...]


class Run:
    """One run of fine-tuning: made ready on construction, trained by iterating, written at the end.

    ``for report in run`` gives a StepReport a step; ``run.finish()`` trains what is left and returns the Result.
    Raises MinituneError, in one line, before anything is trained where the settings, the model or the data are wrong.
    """

    def __init__(self, config: SFTConfig, progress: Progress | None = None):
        started = time.perf_counter()
        self.config = config
        self.out = Path(config.out).expanduser().resolve()
        source = resolve(config.model)
        named = [parse_source(spec).name for spec in data_specs(config.data)]
        self.files = [Path(name) for name in (*named, config.val) if Path(name).is_file()]
        _check_out(self.out, config.force, [source.base, *self.files])
        if source.adapter is not None:
            raise ConfigError(f"{config.model} is an adapter; tuning one further is not built yet, name its base model")
        self.device, why_device = pick_device(config.device)
        compute, why_dtype = pick_dtype(config.dtype, self.device)
        ops, why_ops = pick_ops(config.ops, self.device)
        self.choices = {"device": (str(self.device), why_device), "dtype": (_short(compute), why_dtype)}
        self.choices["ops"] = (ops.name, why_ops)
        # Trainable weights are kept in float32 whatever the products are computed in; a frozen base need not be.
        kept = torch.float32 if config.method == "full" else compute
        self.checkpoint = load_checkpoint(source.base, device=self.device, dtype=kept, compute_dtype=compute, ops=ops)
        self.model = self.checkpoint.model
        self.tokenizer = tokenizer_of(self.checkpoint)
        self.template, why_template = template_of(config.template, self.tokenizer, config.model)
        self.choices["template"] = (self.template.name, why_template)
        place = source.base
        if config.train_tokens:
            self.tokenizer, place = with_template_tokens(self.tokenizer, self.template, place, self.model)
        known = self.model.stop_ids
        self.stop_id = stop_on(self.template, self.model, self.tokenizer)
        positions = self.model.config.max_positions
        recipe = recipe_of(config, self.template, self.model.stop_ids, positions, named=bool(config.template))
        self.data: Dataset = prepare(config, self.tokenizer, place, recipe, positions, progress)
        self.encoder = Encoder(self.tokenizer, recipe)
        self.feed = Feed(config, self.data)
        self.lora = LoRAConfig(
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            targets=tuple(config.targets.split(",")),
            rslora=config.rslora,
            dora=config.dora,
        )
        if config.method == "lora":
            add_lora(self.model, self.lora, seed=config.seed)
            if config.train_tokens:
                args = (self.model, self.tokenizer, self.template, self.data.prepared)
                self.choices["tokens"] = train_template_rows(*args)
        self.model.checkpointing = config.checkpointing
        torch.manual_seed(config.seed)  # dropout draws from it
        trainable = {name: w for name, w in self.model.named_parameters() if w.requires_grad}
        self.trainable_parameters = sum(w.numel() for w in trainable.values())
        self.optimizer = AdamW(trainable, weight_decay=config.weight_decay)
        self.steps = config.max_steps or self.feed.steps_of(config.epochs)
        self.warmup = warmup_steps(config.warmup, self.steps)
        self.peak_lr = config.lr if config.lr is not None else _RATES[config.method]
        self.warnings = stop_warnings(self.stop_id, known, self.tokenizer)
        if config.method == "lora" and not config.train_tokens:
            self.warnings += untrained_rows(source.base, self.tokenizer, self.data.prepared)
        self.result: Result | None = None
        self._before: tuple[float | None, list[Sample]] | None = None
        self._reports: Iterator[StepReport] | None = None
        self._write_start(source)
        self._setup_seconds = time.perf_counter() - started

    def begin(self) -> tuple[float | None, list[Sample]]:
        """Validation loss and sample answers of the model as it came; done once, before the first step."""
        if self._before is None:
            validation = self._validate(0)
            loss = validation.loss if validation else None
            if loss is not None and loss > math.log(self.model.config.vocab_size):
                self.warnings.append(
                    f"the validation loss before training is {loss:.2f}, worse than guessing "
                    f"(ln V = {math.log(self.model.config.vocab_size):.2f}); is this model trained at all?"
                )
            samples = [
                Sample(prompt=_prompt(row), expected=row.answer, before=self._answer(row)) for row in self.data.shown
            ]
            self._before = loss, samples
            first = {"step": 0} if validation is None else {"step": 0, **_validation_line(validation)}
            self._log(first)
        return self._before

    def __iter__(self) -> Iterator[StepReport]:
        if self._reports is None:
            self._reports = self._train()
        return self._reports

    def finish(self) -> Result:
        """Train the steps that are left, write the tuned model, and return how it went."""
        for _ in self:
            pass
        if self.result is None:
            raise TrainingError("this run was stopped before its end; start it again")
        return self.result

    def _train(self) -> Iterator[StepReport]:
        before, samples = self.begin()
        started = time.perf_counter()
        rate = partial(
            learning_rate, steps=self.steps, peak=self.peak_lr, warmup=self.warmup, schedule=self.config.schedule
        )
        recent: list[StepReport] = []
        validation = None
        try:
            for report in train(
                self.model,
                self.optimizer,
                self._batches(),
                lr=rate,
                clip=self.config.clip,
                objective=partial(next_token_loss, smoothing=self.config.label_smoothing),
                validate=self._validate_when_due,
            ):
                recent = [*recent[-9:], report]
                validation = report.validation or validation
                self._log(_line(report))
                yield report
        except NonFinite as error:
            raise self._keep(error) from None
        after = tuple(
            dataclasses.replace(sample, after=self._answer(row))
            for sample, row in zip(samples, self.data.shown, strict=True)
        )
        self._write_model()
        self.result = Result(
            run=str(self.out),
            steps=self.steps,
            seconds=round(self._setup_seconds + time.perf_counter() - started, 2),
            peak_memory_bytes=peak_memory_bytes(self.device),
            train_loss=sum(r.loss * r.trained_tokens for r in recent) / sum(r.trained_tokens for r in recent),
            val_loss_before=before,
            val_loss_after=validation.loss if validation else None,
            samples=after,
        )
        write_json(self.out / "result.json", dataclasses.asdict(self.result))

    def _batches(self) -> Iterator[Sequence[Batch]]:
        """The micro-batches of each optimizer step."""
        examples, config = self.data.train, self.config
        micro = config.micro_batch or config.batch_size
        for rows in islice(self.feed.steps(), self.steps):
            parts = [rows[i : i + micro] for i in range(0, len(rows), micro)]
            documents = [[[examples[i] for i in row] for row in part] for part in parts]
            if config.packing:
                yield [pack_rows(part, self.data.max_length, self.device) for part in documents]
            else:
                yield [pad_rows([row[0] for row in part], self.device) for part in documents]

    def _validate_when_due(self, done: int) -> Validation | None:
        every = self.config.eval_every
        return self._validate(done) if done == self.steps or (every and done % every == 0) else None

    def _validate(self, done: int) -> Validation | None:
        rows = self.data.val
        if not len(rows):
            return None
        size = self.config.micro_batch or self.config.batch_size
        # Rows of a length together: less padding, the same sum.
        order = rows.lengths.argsort(kind="stable").tolist()
        parts = [[rows[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
        return evaluate(self.model, (pad_rows(part, self.device) for part in parts))

    def _answer(self, row: Row) -> str:
        template = self.encoder.recipe.template_of(row)
        stop_id, _ = self.encoder.stop_and_checks(template)
        if not row.prompt:
            prompt = [token for token in (self.tokenizer.bos_id,) if token is not None]
        else:
            prompt = render(row.prompt, template, self.tokenizer, stop_id).ids
        room = self.model.config.max_positions - len(prompt)
        if room < 1:
            return ""
        pieces = generate(self.model, self.tokenizer, prompt, max_tokens=min(SAMPLE_TOKENS, room))
        return "".join(piece.text for piece in pieces)

    def _log(self, line: dict[str, Any]) -> None:
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _write_start(self, source: Source) -> None:
        """Put down what the run is, before it starts."""
        self._weights = {file.name: sha256(file) for file in weight_files(source.base)[0]}
        manifest = {
            "minitune": minitune.__version__,
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "data": {str(file): sha256(file) for file in self.files},
            "weights": self._weights,
            "tokenizer": self.tokenizer.fingerprint,
            "template": {"name": self.template.name, "sha256": self.template.fingerprint},
            "code": code_fingerprint(),
            "choices": {name: {"value": value, "why": why} for name, (value, why) in self.choices.items()},
            "threads": torch.get_num_threads(),
            "seed": self.config.seed,
            "steps": self.steps,
            "peak_lr": self.peak_lr,
            "trainable_parameters": self.trainable_parameters,
        }
        self.out.mkdir(parents=True, exist_ok=True)
        for name in _WRITTEN:  # only now that everything was read and checked
            path = self.out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        resolved = dataclasses.replace(self.config, force=False, lr=self.peak_lr)
        write_text(self.out / "config.toml", to_toml(resolved))
        mask = {"template": self.template.name, "terminator": [self.stop_id, self.tokenizer.token(self.stop_id)]}
        mask |= {"stop_ids": list(self.model.stop_ids), "warnings": self.warnings}
        write_json(self.out / "inspect.json", self.data.summary() | mask)
        write_json(self.out / "manifest.json", manifest)

    def _write_model(self) -> None:
        beside = outfit(self.checkpoint.folder, self.model, self.tokenizer, self.template)
        if self.config.method == "lora":
            base = self.config.model if self.config.model == "tiny" else str(self.checkpoint.folder.resolve())
            save_adapter(
                self.model,
                self.out / "adapter",
                self.lora,
                base=base,
                base_weights=fingerprint_of(self._weights.values()),
                beside=beside,
                tokenizer_files=self.tokenizer.files if self.config.train_tokens else (),
            )
        else:
            save_checkpoint(
                self.model,
                self.out / "model",
                source=self.checkpoint.folder,  # in its layout and its types
                tokenizer_files=self.tokenizer.files,
                beside=beside,
            )
        draw_loss(self.out / "metrics.jsonl", self.out / "loss.png")

    def _keep(self, error: NonFinite) -> TrainingError:
        """Save the rows of a step that gave no finite number, so that it can be looked at and run again."""
        batches = [
            {"ids": b.ids.tolist(), "targets": b.targets.tolist(), "documents": b.documents} for b in error.batches
        ]
        path = self.out / "bad_step.json"
        write_json(path, {"step": error.step, "message": str(error), "batches": batches})
        return TrainingError(f"{error}; its batch is in {path}; try a lower --lr")


def sft(config: SFTConfig, progress: Progress | None = None) -> Run:
    """Make a run of masked supervised fine-tuning ready; iterate over it for step reports, or call ``finish()``."""
    return Run(config, progress)


_WRITTEN = (
    "config.toml", "manifest.json", "metrics.jsonl", "inspect.json", "result.json", "bad_step.json", "loss.png",
    "adapter", "model",
)  # fmt: skip
"""Everything that a run puts into its folder, and all that --force removes."""


def _check_out(out: Path, force: bool, inputs: Sequence[Path]) -> None:
    """Refuse a run folder that cannot be written, that is in use, or that something else would be lost from."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; it must be a new folder")
    for path in inputs:
        if out == path.resolve() or out in path.resolve().parents:
            raise ConfigError(f"--out {out} holds {path}, which this run reads; choose another folder")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise ConfigError(f"--out {out} is not empty; choose a new folder, or pass --force to replace its run")
        if "minitune" not in (_manifest(out) or {}):
            raise ConfigError(f"--out {out} is not a run folder, so --force does not replace it; choose a new folder")
    above = next(folder for folder in (out, *out.parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"--out {out} cannot be made in {above}; choose another folder")


def _manifest(out: Path) -> dict[str, Any] | None:
    path = out / "manifest.json"
    return read_json(path, ConfigError) if path.is_file() else None


def _prompt(row: Row) -> str:
    question = row.prompt[-1]
    return question.content + (f"\n{question.context}" if question.context.strip() else "")


def _line(report: StepReport) -> dict[str, Any]:
    line: dict[str, Any] = {
        "step": report.step,
        "loss": report.loss,
        "grad_norm": report.grad_norm,
        "lr": report.lr,
        "trained_tokens": report.trained_tokens,
        "trained_tokens_per_s": round(report.trained_tokens / report.seconds, 1),
        "tokens_per_s": round(report.tokens / report.seconds, 1),
        "peak_memory_bytes": report.peak_memory_bytes,
    }
    return line | (_validation_line(report.validation) if report.validation else {})


def _validation_line(validation: Validation) -> dict[str, float]:
    return {"val_loss": validation.loss, "val_tokens": validation.tokens}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
