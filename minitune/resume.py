"""All that going on with a run needs, written whole or not at all, and read back bit for bit.

    RUN/checkpoints/step-N/state.safetensors     weights, both moments of AdamW, the states of the random numbers
    RUN/checkpoints/step-N/state.json            the step, what the run is made of, the hash of the other file

A checkpoint falls between two optimizer steps, so there is no gradient to keep. Where in the data a run is follows from
its step (``jobs/feed.py``), and so does its learning rate.
"""

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minitune.errors import TrainingError
from minitune.files import read_json, sha256, whole_folder, write_json
from minitune.optim import AdamW
from minitune.storage import write_file

FOLDER = "checkpoints"
_STATE, _TENSORS = "state.json", "state.safetensors"
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """One checkpoint on disk: the optimizer steps done, and what its writer put down (plain values)."""

    folder: Path
    step: int
    facts: dict[str, Any] = field(default_factory=dict)


def save(run: Path, optimizer: AdamW, *, facts: dict[str, Any], keep: int = 1) -> Saved:
    """Write a checkpoint behind the last step of ``optimizer``, then remove all but the newest ``keep``.

    The older ones go only when the new one is whole. Raises OSError where the disk is full, and leaves them then.
    """
    step = optimizer.steps
    tensors: dict[str, Tensor] = {}
    for kind, named in (("weight", optimizer.parameters), ("m", optimizer.m), ("v", optimizer.v)):
        tensors |= {f"{kind}.{name}": tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    device = next(iter(optimizer.parameters.values())).device
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    target = run / FOLDER / f"step-{step}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(target) as part:
        write_file(part / _TENSORS, tensors, {})
        write_json(part / _STATE, {"step": step, "sha256": sha256(part / _TENSORS), **facts})
    for old in saved_steps(run)[:-keep]:
        shutil.rmtree(run / FOLDER / f"step-{old}")
    return Saved(folder=target, step=step, facts=facts)


def saved_steps(run: Path) -> list[int]:
    """The steps that there are checkpoints of, in ascending order; half-written ones have another name."""
    folder = run / FOLDER
    names = (_STEP.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in names if match)


def newest(run: Path) -> Saved:
    """The newest checkpoint of a run; TrainingError where there is none, or where a file of it was changed."""
    steps = saved_steps(run)
    if not steps:
        raise TrainingError(f"{run}: has no checkpoint to go on from; start the run again")
    folder = run / FOLDER / f"step-{steps[-1]}"
    facts = read_json(folder / _STATE, TrainingError)
    if not (folder / _TENSORS).is_file() or sha256(folder / _TENSORS) != facts.pop("sha256", None):
        raise TrainingError(
            f"{folder}: {_TENSORS} is not the file that was saved; remove the folder to use an older one"
        )
    step = facts.pop("step", None)
    if step != steps[-1]:
        raise TrainingError(f"{folder / _STATE}: is of step {step}; the folder was renamed")
    return Saved(folder=folder, step=step, facts=facts)


def restore(saved: Saved, optimizer: AdamW) -> None:
    """Put weights, moments, step and random numbers back as they were.

    Raises TrainingError, and changes nothing, where the checkpoint holds other tensors than ``optimizer`` trains.
    """
    kinds = {"weight": optimizer.parameters, "m": optimizer.m, "v": optimizer.v}
    wanted = {f"{kind}.{name}": tensor for kind, named in kinds.items() for name, tensor in named.items()}
    path = saved.folder / _TENSORS
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"{path}: cannot be read ({error})") from None
    random = {name: stored.pop(name) for name in [*stored] if name.startswith("random.")}
    if stored.keys() != wanted.keys():
        odd = min(stored.keys() ^ wanted.keys())
        raise TrainingError(f"{path}: {odd} is trained by the checkpoint or by this run, but not by both")
    for name, tensor in wanted.items():
        if stored[name].shape != tensor.shape or stored[name].dtype != tensor.dtype:
            got, here = (f"{tuple(t.shape)} {t.dtype}" for t in (stored[name], tensor))
            raise TrainingError(f"{path}: {name} is {got}; this run has {here}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])
    optimizer.steps = saved.step
    torch.set_rng_state(random["random.cpu"])
    if "random.cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["random.cuda"], next(iter(optimizer.parameters.values())).device)


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a run was made of when it was saved, and is made of now, where the two differ: one text a difference."""
    names = [*then, *(name for name in now if name not in then)]
    return [
        f"{name} was {_short(then.get(name))}, now {_short(now.get(name))}"
        for name in names
        if then.get(name) != now.get(name)
    ]


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
