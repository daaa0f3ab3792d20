"""Model folders as published, in and out: configuration and tensors, with every one of them accounted for.

Only safetensors are read: a pickle can run code, so it is never opened. A model is built without memory (on torch's
meta device) and filled tensor by tensor from the memory-mapped files.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minitune.config import ModelConfig
from minitune.errors import CheckpointError, nearest
from minitune.files import read_json, sha256, whole_folder, write_json, write_text
from minitune.models import LanguageModel, build
from minitune.models.families import FAMILIES
from minitune.models.published import (
    Stored,
    from_layout,
    model_config,
    published_module,
    raw_config,
    stored_shape,
    stored_tensors,
    to_layout,
)
from minitune.ops import BUILTIN, Ops
from minitune.storage import (
    DTYPES,
    MAX_SHARD_BYTES,
    TensorFolder,
    is_finite,
    open_folder,
    weight_files,
    write_tensors,
)

CONFIG, GENERATION = "config.json", "generation_config.json"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What became of every tensor of a folder: proof that nothing was ignored or guessed."""

    used: Mapping[str, tuple[str, ...]]
    """Stored name -> our parameters that it fills."""
    shared: Mapping[str, str]
    """Parameter that has no tensor of its own -> the stored tensor it shares, and why."""
    recomputed: tuple[str, ...]
    """Stored buffers that are not weights; they follow from the configuration."""
    dtypes: Mapping[str, int]
    """Stored type -> number of parameters in it."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that most parameters are stored in."""
        return DTYPES[max(self.dtypes, key=lambda name: self.dtypes[name])]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded model with where it came from."""

    model: LanguageModel
    folder: Path
    raw: Mapping[str, Any]
    """The parsed config.json."""
    certificate: Certificate


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
    if (compute_dtype or dtype) == torch.float16 and not FAMILIES[config.family].float16:
        raise CheckpointError(
            f"{folder}: activations of {config.family} models are known to overflow float16; use bfloat16 or float32"
        )
    with open_folder(folder) as tensors:
        _check_layers(config, tensors)
        model = _skeleton(config, ops, compute_dtype or dtype, folder)
        certificate = _Filling(model, tensors).fill(torch.device(device), dtype)
    model.stop_ids = stop_ids_of(folder, raw, config.vocab_size)
    return Checkpoint(model=model, folder=folder, raw=raw, certificate=certificate)


def vocabulary_rows(folder: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The embedding and, where it is stored apart, the head of a folder, as stored: (vocabulary, C), by those names.

    Nothing else is read. A table that the folder does not hold under its published name is left out.
    """
    found = {}
    with open_folder(folder) as tensors:
        for module in ("embed", "head"):
            name = published_module(config, module)[0] + ".weight"
            name = name if name in tensors.names else tensors.aliases.get(name, "")
            if name in tensors.names and name not in found:
                found[name] = tensors.read(name)
    return found


def published_tensors(model: LanguageModel, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Every tensor of the model under the family's name and in its layout, on the CPU, not necessarily copies.

    The one canonical list that every writer takes; ``dtype`` is the stored type, each parameter's own by itself.
    """
    ours = dict(model.named_parameters())
    return {stored.name: _published(stored, ours, model.config, dtype) for stored in stored_tensors(model.config, ours)}


def save_checkpoint(
    model: LanguageModel,
    folder: Path,
    *,
    source: Path | None = None,
    dtype: torch.dtype | None = None,
    tokenizer_files: tuple[Path, ...] = (),
    beside: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a plain folder, whole or not at all: with the names that ``source`` uses, or else the family's.

    ``dtype`` is the stored type; by itself that of each tensor in ``source``, or each parameter's own. config.json,
    generation_config.json and the tokenizer's files go along, and so do text files ``beside`` by name, which win.
    Raises CheckpointError where a weight is not finite.
    """
    tensors = published_tensors(model, dtype)
    metadata = {"format": "pt"}
    if source is not None:
        tensors, metadata = _as_in(source, tensors, model, dtype)
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise CheckpointError(f"{folder}: {name} has values that are not finite; nothing was written")
    with whole_folder(folder) as part:
        write_tensors(part, tensors, metadata, max_shard_bytes)
        if source is None:
            write_json(part / CONFIG, raw_config(model.config))
        else:
            for name in (CONFIG, GENERATION):
                if (source / name).is_file():
                    shutil.copyfile(source / name, part / name)
            shape, raw = read_config(source)
            if shape.vocab_size != model.config.vocab_size:  # it was made longer
                write_json(part / CONFIG, raw | {"vocab_size": model.config.vocab_size})
        for file in tokenizer_files:
            shutil.copyfile(file, part / file.name)
        for name, text in (beside or {}).items():
            write_text(part / name, text)


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 over the bytes of a folder's weights, whatever their files are called."""
    return fingerprint_of(sha256(file) for file in weight_files(folder)[0])


def fingerprint_of(hashes: Iterable[str]) -> str:
    """One fingerprint of the SHA-256 of several files, in their order."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _skeleton(config: ModelConfig, ops: Ops, compute_dtype: torch.dtype, folder: Path) -> LanguageModel:
    """The model without memory for its weights."""
    try:
        with torch.device("meta"):
            return build(config, ops, compute_dtype)
    except (RuntimeError, OverflowError) as error:  # sizes whose product no tensor can have
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder / CONFIG}: asks for a model that cannot be built ({reason})") from None


class _Filling:
    """Put every tensor of an open folder into a model on the meta device, and keep the account."""

    def __init__(self, model: LanguageModel, tensors: TensorFolder):
        self.model, self.tensors, self.config = model, tensors, model.config
        self.family = FAMILIES[model.config.family]
        self.shapes = {name: weight.shape for name, weight in model.named_parameters()}
        self.wanted = {stored.name: stored for stored in stored_tensors(self.config, self.shapes)}
        self.filled: dict[str, Tensor] = {}
        self.used: dict[str, tuple[str, ...]] = {}
        self.dtypes: dict[str, int] = {}

    def fill(self, device: torch.device, dtype: torch.dtype) -> Certificate:
        recomputed = []
        for name in self.tensors.names:
            if name.endswith(self.family.recomputed):
                recomputed.append(name)
                continue
            stored = self._place(name)
            if stored is None:
                hint = nearest(name, self.wanted)
                raise CheckpointError(f"{self.tensors.where(name)}: tensor {name!r} has no place in the model{hint}")
            self._take(name, stored, device, dtype)
        shared = self._share()
        missing = [stored.name for stored in self.wanted.values() if not set(stored.parts) <= set(self.filled)]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            hint = nearest(missing[0], self.tensors.names)
            raise CheckpointError(f"{self.tensors.where()}: tensor {missing[0]!r}{more} is missing{hint}")
        for name, tensor in self.filled.items():
            parent, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(parent), leaf, nn.Parameter(tensor))
        self.model.tie()
        return Certificate(used=self.used, shared=shared, recomputed=tuple(recomputed), dtypes=self.dtypes)

    def _place(self, name: str) -> Stored | None:
        """Where a stored tensor belongs: by its name, without the body's prefix, by an alias, or as the tied head."""
        return place(name, self.wanted, self.tensors.aliases, self.config)

    def _take(self, name: str, stored: Stored, device: torch.device, dtype: torch.dtype) -> None:
        kind, shape = self.tensors.kind(name)
        here = f"{self.tensors.where(name)}: tensor {name!r}"
        expected = stored_shape(stored, self.shapes, self.config)
        if shape != expected:
            raise CheckpointError(f"{here} has shape {shape}; config.json asks for {expected}")
        if kind not in DTYPES:
            raise CheckpointError(f"{here} is stored as {kind}; supported are {', '.join(DTYPES)}")
        tensor = from_layout(self.tensors.read(name), stored.layout, self.config)
        parts = tensor.split([self.shapes[part][0] for part in stored.parts])
        for part, piece in zip(stored.parts, parts, strict=True):
            value = piece.to(device=device, dtype=dtype, copy=True).contiguous()
            if part in self.filled and not torch.equal(self.filled[part], value):
                raise CheckpointError(
                    f"{here} holds other values, but the configuration ties the head to the embedding; "
                    'set "tie_word_embeddings": false in config.json if they are meant to differ'
                )
            self.filled.setdefault(part, value)
        self.used[name] = stored.parts
        self.dtypes[kind] = self.dtypes.get(kind, 0) + tensor.numel()

    def _share(self) -> dict[str, str]:
        """Fill what the file leaves out since another tensor holds the same values; say what shares with what."""
        shared: dict[str, str] = {}
        for stored in self.wanted.values():
            kept = self.tensors.aliases.get(stored.name)
            for part in stored.parts:
                if part not in self.filled and kept in self.used and len(self.used[kept]) == 1:
                    self.filled[part] = self.filled[self.used[kept][0]].clone()
                    shared[part] = f"{kept} (named in the file's metadata)"
                elif part in self.filled and stored.name not in self.used:
                    holder = next(name for name, parts in self.used.items() if part in parts)
                    if not stored.name.endswith(holder):
                        shared[part] = f"{holder} (tied)"
        if self.config.tie_embeddings:
            shared["head.weight"] = "embed.weight (tied)"
        return shared


def place(name: str, wanted: Mapping[str, Stored], aliases: Mapping[str, str], config: ModelConfig) -> Stored | None:
    """The published tensor that a stored ``name`` stands for, or None.

    A file of the body alone leaves out the body's prefix; a tied head's tensor is the embedding.
    """
    family = FAMILIES[config.family]
    for candidate in (name, family.body_prefix + name, *(other for other, kept in aliases.items() if kept == name)):
        if candidate in wanted:
            return wanted[candidate]
    if config.tie_embeddings and name == f"{family.outer['head']}.weight":
        return wanted[f"{family.outer['embed']}.weight"]
    return None


def _published(stored: Stored, ours: Mapping[str, Tensor], config: ModelConfig, dtype: torch.dtype | None) -> Tensor:
    parts = [ours[name].detach().to("cpu", dtype or ours[name].dtype) for name in stored.parts]
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    return to_layout(joined, stored.layout, config).contiguous()


def _as_in(
    source: Path, tensors: Mapping[str, Tensor], model: LanguageModel, dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same tensors under the names, and without ``dtype`` in the types, that ``source`` stores; its metadata."""
    wanted = {stored.name: stored for stored in stored_tensors(model.config, dict(model.named_parameters()))}
    with open_folder(source) as stored:
        named: dict[str, Tensor] = {}
        for name in stored.names:
            if name.endswith(FAMILIES[model.config.family].recomputed):
                continue
            found = place(name, wanted, stored.aliases, model.config)
            if found is None:
                raise CheckpointError(f"{source}: its tensors are not those of the model to be written")
            # Two stored names may share one parameter, and the format forbids shared memory.
            taken = any(place(other, wanted, stored.aliases, model.config) is found for other in named)
            named[name] = tensors[found.name].to(dtype or DTYPES[stored.kind(name)[0]], copy=taken)
        return named, dict(stored.metadata)


def _check_layers(config: ModelConfig, tensors: TensorFolder) -> None:
    """Before anything is built: a damaged number of layers is told from the names, not by building them."""
    prefix, suffix = FAMILIES[config.family].block_prefix.split("%d")
    prefixes = (prefix, prefix.removeprefix(FAMILIES[config.family].body_prefix))
    layers = set()
    for name in tensors.names:
        for start in prefixes:
            number, dot, _ = name.removeprefix(start).partition(suffix)
            if name.startswith(start) and dot and number.isdecimal() and len(number) < 6:
                layers.add(int(number))
    if len(layers) != config.num_layers:
        raise CheckpointError(
            f"{tensors.where()}: config.json asks for {config.num_layers} layers; the weights hold "
            f"{len(layers)} of them"
        )


def stop_ids_of(folder: Path, raw: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """All ids that end a generation: ``eos_token_id`` of both files, each a number, a list or nothing.

    generation_config.json has the whole list of a chat model, config.json often just the end of text.
    """
    sources = {CONFIG: raw}
    if (folder / GENERATION).is_file():
        sources[GENERATION] = read_json(folder / GENERATION, CheckpointError)
    ids: dict[int, None] = {}
    for name, values in sources.items():
        value = values.get("eos_token_id")
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            if type(item) is not int or item < 0:
                raise CheckpointError(f"{folder / name}: eos_token_id {json.dumps(item)} is not a token id")
            if item < vocab_size:  # an id that the model cannot produce ends nothing
                ids[item] = None
    return tuple(ids)
