"""The folder of a run: refused where something would be lost, written as the run goes, read when it goes on."""

import json
import os
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from minitune.config import PretrainConfig, SFTConfig, TrainConfig, from_mapping, to_toml
from minitune.data.batch import Batch
from minitune.errors import ConfigError, TrainingError
from minitune.files import read_json, write_json, write_text
from minitune.ops import AttentionPlan

CONFIG, METRICS, MANIFEST, BAD_STEP = "config.toml", "metrics.jsonl", "manifest.json", "bad_step.json"
WRITTEN = (
    CONFIG, MANIFEST, METRICS, "inspect.json", "result.json", BAD_STEP, "loss.png", "adapter", "model", "best",
    "checkpoints", "tensorboard",
)  # fmt: skip
"""Everything that a run puts into its folder, and all that --force removes."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes what it is, what it does, and what came of it."""

    path: Path

    def refuse(self, inputs: Sequence[Path], *, force: bool) -> None:
        """Raise ConfigError for a folder that cannot be written, that is in use, or that something would be lost from.

        ``inputs``: what the run reads.
        """
        out = self.path
        if out.exists() and not out.is_dir():
            raise ConfigError(f"--out {out} is a file; it must be a new folder")
        for path in inputs:
            if out == path.resolve() or out in path.resolve().parents:
                raise ConfigError(f"--out {out} holds {path}, which this run reads; choose another folder")
        if out.is_dir() and any(out.iterdir()):
            resumed = f", or go on with minitune sft --resume {out}" if (out / "checkpoints").is_dir() else ""
            if not force:
                raise ConfigError(
                    f"--out {out} is not empty; choose a new folder, or pass --force to replace its run{resumed}"
                )
            if not self.is_run():
                raise ConfigError(f"--out {out} is not a run folder, so --force does not replace it; choose a new one")
        above = next(folder for folder in (out, *out.parents) if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise ConfigError(f"--out {out} cannot be made in {above}; choose another folder")

    def is_run(self) -> bool:
        """Whether a run was written here."""
        path = self.path / MANIFEST
        return path.is_file() and "minitune" in read_json(path, ConfigError)

    def begin(self, config: TrainConfig, manifest: dict[str, Any], inspected: dict[str, Any]) -> None:
        """Put down what the run is, in the place of an earlier run."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in WRITTEN:
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        kind = "pretrain" if isinstance(config, PretrainConfig) else "sft"
        write_text(self.path / CONFIG, to_toml(config))
        write_json(self.path / "inspect.json", inspected)
        write_json(self.path / MANIFEST, {"command": kind, **manifest})

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to the metrics."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def cut_log(self, step: int) -> None:
        """Take the lines of later steps than ``step`` out of the metrics, and a line that was half written."""
        kept = []
        for line in (self.path / METRICS).read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                break
        write_text(self.path / METRICS, "".join(kept))

    def first_line(self) -> dict[str, Any]:
        """What the metrics say of the model as it came."""
        with (self.path / METRICS).open(encoding="utf-8") as file:
            return json.loads(file.readline())

    def keep_bad_step(self, step: int, message: str, batches: Sequence[Batch]) -> Path:
        """Save the batches of a step that gave no finite number, so that it can be looked at and run again."""
        found = [
            {
                "ids": batch.ids.tolist(),
                "targets": batch.targets.tolist(),
                "documents": batch.documents,
                "packed": batch.plan.cu_seqlens_q is not None,
                "positions": batch.plan.positions.tolist(),
                "token_weight": None if batch.token_weight is None else batch.token_weight.tolist(),
                "tokens": batch.tokens,
            }
            for batch in batches
        ]
        write_json(self.path / BAD_STEP, {"step": step, "message": message, "batches": found})
        return self.path / BAD_STEP


def settings_of(run: Path) -> TrainConfig:
    """The settings that a run was started with; ConfigError where the folder holds no run."""
    manifest, path = run / MANIFEST, run / CONFIG
    if not manifest.is_file() or not path.is_file():
        raise ConfigError(f"--resume {run}: is not the folder of a run ({CONFIG} and {MANIFEST} are missing)")
    kinds = {"sft": SFTConfig, "pretrain": PretrainConfig}
    kind = read_json(manifest, ConfigError).get("command", "sft")
    if kind not in kinds:
        raise ConfigError(f"{manifest}: command is {kind!r}; it must be one of: {', '.join(kinds)}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    return cast(TrainConfig, from_mapping(kinds[kind], values, str(path)))


def bad_step_batches(path: Path, device: torch.device | str = "cpu") -> list[Batch]:
    """The batches of a saved ``bad_step.json``, as they were trained on."""
    found = read_json(path, TrainingError)
    batches = []
    for saved in found["batches"]:
        ids = torch.tensor(saved["ids"], device=device)
        documents = saved["documents"]
        cu = torch.tensor([0, *documents], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
        longest = max(documents)
        packed = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": longest, "max_seqlen_k": longest}
        weight = saved["token_weight"]
        batches.append(
            Batch(
                ids=ids,
                targets=torch.tensor(saved["targets"], device=device),
                plan=AttentionPlan(
                    positions=torch.tensor(saved["positions"], device=device), **(packed if saved["packed"] else {})
                ),
                token_weight=None if weight is None else torch.tensor(weight, device=device),
                tokens=saved["tokens"],
            )
        )
    return batches
