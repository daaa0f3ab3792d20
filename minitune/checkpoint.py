"""Model folders as published, in and out: ``config.json`` and ``model.safetensors``, every tensor accounted for.

Only safetensors are read: a pickle can run code, so it is never opened. A model is built without memory (on torch's
meta device) and filled tensor by tensor from the memory-mapped file.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minitune.config import ModelConfig
from minitune.errors import CheckpointError, nearest
from minitune.files import read_json, whole_folder, write_json
from minitune.models.decoder import Decoder
from minitune.models.families import model_config, raw_config, weight_names
from minitune.ops import BUILTIN, Ops

CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"
_PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What became of every tensor of a file: proof that nothing was ignored or guessed."""

    used: Mapping[str, str]
    """Stored name -> our parameter."""
    shared: Mapping[str, str]
    """Parameter that has no tensor of its own -> the stored tensor it shares, and why."""
    recomputed: tuple[str, ...]
    """Stored buffers that are not weights; they are computed from the configuration."""
    dtypes: Mapping[str, int]
    """Stored type -> number of parameters in it."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that most parameters are stored in."""
        return _TORCH_DTYPES[max(self.dtypes, key=lambda name: self.dtypes[name])]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded model with where it came from."""

    model: Decoder
    folder: Path
    raw: Mapping[str, Any]
    """The parsed config.json."""
    certificate: Certificate


_TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The model's shape from ``folder/config.json``, and the parsed file; raises CheckpointError with one line."""
    if not folder.is_dir():
        what = "is a file; expected a model folder" if folder.is_file() else "there is no such model folder"
        raise CheckpointError(f"{folder}: {what} (config.json, model.safetensors, tokenizer files)")
    raw = read_json(folder / CONFIG, CheckpointError)
    return model_config(raw, str(folder / CONFIG)), raw


def load_checkpoint(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    compute_dtype: torch.dtype | None = None,
    ops: Ops = BUILTIN,
) -> Checkpoint:
    """Load a folder; weights are kept in ``dtype``, computed with in ``compute_dtype`` (by itself the same).

    Raises CheckpointError, in one line, for anything but a complete, finite set of weights that fits config.json.
    """
    config, raw = read_config(folder)
    with torch.device("meta"):
        model = Decoder(config, ops, compute_dtype or dtype)
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(_no_weights(folder))
    try:
        with safe_open(path, framework="pt") as file:
            certificate = _fill(model, file, path, torch.device(device), dtype)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None
    model.stop_ids = _stop_ids(folder, raw, config.vocab_size)
    return Checkpoint(model=model, folder=folder, raw=raw, certificate=certificate)


def save_checkpoint(
    model: Decoder,
    folder: Path,
    *,
    source: Path | None = None,
    dtype: torch.dtype | None = None,
    tokenizer_files: tuple[Path, ...] = (),
) -> None:
    """Write a plain folder, whole or not at all: as ``source`` lays its tensors out, or as the family does.

    ``dtype`` is the stored type (each parameter's own by itself). config.json, generation_config.json and the
    tokenizer's files go along. Raises CheckpointError where a weight is not finite.
    """
    ours = dict(model.named_parameters())
    names = {theirs: name for name, theirs in weight_names(model.config, list(ours)).items()}
    metadata = {"format": "pt"}
    if source is not None:
        stored, aliases, metadata = _layout(source / WEIGHTS)
        owners = {theirs: _owner(theirs, names, aliases, model.config) for theirs in stored if not _recomputed(theirs)}
        if None in owners.values():
            raise CheckpointError(f"{source}: its tensors are not those of the model to be written")
        names = {theirs: name for theirs, name in owners.items() if name is not None}
    tensors = {}
    for theirs, name in names.items():
        # A copy, since two stored names may share one parameter and the format forbids shared memory.
        tensor = ours[name].detach().to("cpu", dtype or ours[name].dtype, copy=True).contiguous()
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{folder}: {theirs} has values that are not finite; nothing was written")
        tensors[theirs] = tensor
    with whole_folder(folder) as part:
        save_file(tensors, part / WEIGHTS, metadata=metadata)
        if source is None:
            write_json(part / CONFIG, raw_config(model.config))
        else:
            for name in (CONFIG, GENERATION):
                if (source / name).is_file():
                    shutil.copyfile(source / name, part / name)
        for file in tokenizer_files:
            shutil.copyfile(file, part / file.name)


def _fill(model: Decoder, file: Any, path: Path, device: torch.device, dtype: torch.dtype) -> Certificate:
    """Put every tensor of an open safetensors file into the model on the meta device."""
    stored = list(file.keys())
    aliases = _aliases(file.metadata() or {}, stored)
    wanted = weight_names(model.config, [name for name, _ in model.named_parameters()])
    owner = {theirs: name for name, theirs in wanted.items()}
    used: dict[str, str] = {}
    shared: dict[str, str] = {}
    recomputed: list[str] = []
    dtypes: dict[str, int] = {}
    filled: dict[str, Tensor] = {}
    for theirs in stored:
        if _recomputed(theirs):
            recomputed.append(theirs)
            continue
        name = _owner(theirs, owner, aliases, model.config)
        if name is None:
            raise CheckpointError(f"{path}: tensor {theirs!r} has no place in the model{nearest(theirs, owner)}")
        tensor = _read(file, path, theirs, model.get_parameter(name).shape, dtypes)
        tensor = tensor.to(device=device, dtype=dtype, copy=True)
        if name in filled and not torch.equal(filled[name], tensor):
            raise CheckpointError(
                f"{path}: the configuration ties the head to the embedding, but {theirs!r} holds other values; "
                'set "tie_word_embeddings": false in config.json if they are meant to differ'
            )
        used[theirs] = name
        filled.setdefault(name, tensor)
    for name, theirs in wanted.items():
        if name not in filled and aliases.get(theirs) in used:
            filled[name] = filled[used[aliases[theirs]]].clone()
            shared[name] = f"{aliases[theirs]} (named in the file's metadata)"
        elif name in filled and theirs not in used:
            shared[name] = f"{next(s for s, n in used.items() if n == name)} (tied)"
    missing = [theirs for name, theirs in wanted.items() if name not in filled]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{path}: tensor {missing[0]!r}{more} is missing{nearest(missing[0], stored)}")
    for name, tensor in filled.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Parameter(tensor))
    model.tie()
    if model.config.tie_embeddings:
        shared.setdefault("head.weight", "embed.weight (tied)")
    return Certificate(used=used, shared=shared, recomputed=tuple(recomputed), dtypes=dtypes)


def _read(file: Any, path: Path, name: str, shape: torch.Size, dtypes: dict[str, int]) -> Tensor:
    """One stored tensor, of the right shape, a supported type and finite."""
    view = file.get_slice(name)
    kind, got = view.get_dtype(), tuple(view.get_shape())
    if got != tuple(shape):
        raise CheckpointError(f"{path}: tensor {name!r} has shape {got}; config.json asks for {tuple(shape)}")
    if kind not in _TORCH_DTYPES:
        raise CheckpointError(f"{path}: tensor {name!r} is stored as {kind}; supported are {', '.join(_TORCH_DTYPES)}")
    tensor = file.get_tensor(name)
    if not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(f"{path}: tensor {name!r} has {bad} values that are not finite (NaN or infinite)")
    dtypes[kind] = dtypes.get(kind, 0) + tensor.numel()
    return tensor


def _owner(theirs: str, owner: Mapping[str, str], aliases: Mapping[str, str], config: ModelConfig) -> str | None:
    """Our parameter for a stored name; a tied head's tensor belongs to the embedding."""
    if theirs in owner:
        return owner[theirs]
    for other, kept in aliases.items():
        if kept == theirs and other in owner:
            return owner[other]
    head = weight_names(config, ["head.weight"])["head.weight"]
    return "embed.weight" if config.tie_embeddings and theirs == head else None


def _layout(path: Path) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Stored names, aliases and metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        stored, metadata = list(file.keys()), dict(file.metadata() or {})
    return stored, _aliases(metadata, stored), metadata


def _aliases(metadata: Mapping[str, str], stored: list[str]) -> dict[str, str]:
    """Tensors that were left out since another holds the same values: metadata ``{left out: kept}``."""
    return {name: kept for name, kept in metadata.items() if kept in stored and name not in stored}


def _recomputed(name: str) -> bool:
    """Older files carry the rotary frequencies, which follow from config.json."""
    return name.endswith("rotary_emb.inv_freq")


def _no_weights(folder: Path) -> str:
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        return (
            f"{folder}: its weights are a pickle ({pickles[0]}); a pickle can run code and is never opened; "
            "get the safetensors of this model, or convert it where you trust it"
        )
    if (folder / f"{WEIGHTS}.index.json").is_file():
        return f"{folder}: its weights are in several files, which this version does not read yet"
    return f"{folder}: {WEIGHTS} is missing"


def _stop_ids(folder: Path, raw: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """All ids that end a generation: ``eos_token_id`` of both files, each a number, a list or nothing."""
    sources = {CONFIG: raw}
    if (folder / GENERATION).is_file():
        sources[GENERATION] = read_json(folder / GENERATION, CheckpointError)
    ids: dict[int, None] = {}
    for name, values in sources.items():
        value = values.get("eos_token_id")
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            if type(item) is not int or not 0 <= item < vocab_size:
                where = folder / name
                raise CheckpointError(f"{where}: eos_token_id {json.dumps(item)} is not an id of the vocabulary")
            ids[item] = None
    return tuple(ids)
