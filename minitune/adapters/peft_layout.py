"""Adapters as PEFT lays them out: ``adapter_config.json`` and ``adapter_model.safetensors``, read and written.

A setting that would change the mathematics and is not built is refused by name, and so is one that nobody knows and
that is set: an adapter that loads is the adapter that was trained.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minitune.adapters.lora import ALL_LINEAR, LoRAConfig, adapted_layers, add_lora, chosen_layers
from minitune.adapters.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, read_tensors, take
from minitune.adapters.peft_rows import KEY, put_rows, read_rows, rows_to_write
from minitune.errors import CheckpointError, ConfigError
from minitune.files import read_json, whole_folder, write_json, write_text
from minitune.models import LanguageModel
from minitune.models.linear import Linear
from minitune.models.published import from_layout, published_module, to_layout
from minitune.storage import is_finite, write_file

# What PEFT writes beside what is read here, and means nothing for a trained LoRA.
_SILENT = frozenset({
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "inference_mode",
    "loftq_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "task_type",
})  # fmt: skip
_READ = frozenset({
    "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "fan_in_fan_out", "use_rslora", "use_dora", KEY,
})  # fmt: skip
_LEAVES = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "lora_m": "lora_magnitude_vector"}
"""Our name of a layer's parameter -> PEFT's."""
_UNSET = (None, False, {}, [])
# Starts of A and B that leave the base as it is; others (pissa, olora, corda, loftq) change its weights as well.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva")


def save_adapter(
    model: LanguageModel,
    folder: Path,
    config: LoRAConfig,
    *,
    base: str,
    base_weights: str = "",
    beside: Mapping[str, str] | None = None,
    tokenizer_files: Sequence[Path] = (),
) -> None:
    """Write the adapter, whole or not at all; ``base`` is the model it belongs to, ``base_weights`` its fingerprint.

    ``tokenizer_files`` go along, and so do text files ``beside`` by name, which win. Raises CheckpointError where a
    weight is not finite.
    """
    adapted = adapted_layers(model)
    published = {name: published_module(model.config, name) for name in adapted}
    tensors: dict[str, Tensor] = {}
    for name, lora in adapted.items():
        theirs, layout = published[name]
        # The rows of B and of m are the rows of the base; the base's own transposition does not concern an adapter.
        for leaf, their_leaf in _LEAVES.items():
            weight = getattr(lora, leaf)
            if weight is None:
                continue
            if layout == "by_head" and leaf != "lora_A":
                weight = to_layout(weight, "by_head", model.config)
            if not is_finite(weight):
                raise CheckpointError(f"{folder}: {leaf} of {name} has values that are not finite; nothing was written")
            tensors[f"{PREFIX}{theirs}.{their_leaf}"] = weight
    ids, rows = rows_to_write(model)
    if not all(map(is_finite, rows.values())):
        raise CheckpointError(f"{folder}: a trained row has values that are not finite; nothing was written")
    tensors = {name: w.detach().to("cpu", copy=True).contiguous() for name, w in (tensors | rows).items()}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": _target_modules(model),
        "bias": "none",
        "fan_in_fan_out": any(layout == "transposed" for _, layout in published.values()),
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "modules_to_save": None,
        **({KEY: ids} if ids else {}),
    }
    with whole_folder(folder) as part:
        named = {"base_weights": base_weights} if base_weights else {}
        write_file(part / ADAPTER_WEIGHTS, tensors, {"format": "pt", **named})
        write_json(part / ADAPTER_CONFIG, settings)
        for file in tokenizer_files:
            shutil.copyfile(file, part / file.name)
        for name, text in (beside or {}).items():
            write_text(part / name, text)


def load_adapter(model: LanguageModel, folder: Path) -> LoRAConfig:
    """Put the adapter in ``folder`` beside the layers of its base ``model``; the model is untouched where it fails.

    Where it trains rows of tokens beyond the base's vocabulary, embedding and head are made longer first. Raises
    CheckpointError where a setting is not supported, a tensor has no layer, or a layer has no tensor.
    """
    raw = read_json(folder / ADAPTER_CONFIG, CheckpointError)
    config, transposed = _read_settings(raw, folder / ADAPTER_CONFIG, model)
    path = folder / ADAPTER_WEIGHTS
    tensors = read_tensors(folder)
    try:
        chosen = chosen_layers(model, config.targets)
    except ConfigError as error:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG}: {error}") from None
    layouts = {name: published_module(model.config, name) for name in chosen}
    if transposed and "transposed" not in {layout for _, layout in layouts.values()}:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG}: fan_in_fan_out is True, which is not supported yet here")
    weights: dict[str, Tensor] = {}
    for name, (theirs, layout) in layouts.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Linear)
        shapes: dict[str, tuple[int, ...]] = {
            "lora_A": (config.rank, layer.in_features),
            "lora_B": (layer.out_features, config.rank),
        }
        if config.dora:
            shapes["lora_m"] = (layer.out_features,)
        for leaf, shape in shapes.items():
            tensor = take(tensors, f"{PREFIX}{theirs}.{_LEAVES[leaf]}", shape, path)
            by_head = layout == "by_head" and leaf != "lora_A"
            weights[f"{name}.{leaf}"] = from_layout(tensor, "by_head", model.config) if by_head else tensor
    rows = read_rows(raw.get(KEY), model, tensors, folder)
    if tensors:
        raise CheckpointError(f"{path}: {len(tensors)} tensors have no layer in this base, such as {min(tensors)!r}")
    add_lora(model, config)
    with torch.no_grad():
        for name, tensor in weights.items():
            model.get_parameter(name).copy_(tensor)
    put_rows(model, rows)
    return config


def base_of(folder: Path) -> str:
    """The base model that an adapter folder names."""
    base = read_json(folder / ADAPTER_CONFIG, CheckpointError).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG}: base_model_name_or_path is missing")
    return base


def trained_tokens_of(folder: Path) -> set[int]:
    """The ids whose rows an adapter trains, in the embedding or the head."""
    setting = read_json(folder / ADAPTER_CONFIG, CheckpointError).get(KEY) or []
    lists = setting.values() if isinstance(setting, dict) else [setting]
    return {id for one in lists if isinstance(one, list) for id in one if type(id) is int}


def base_weights_of(folder: Path) -> str:
    """The fingerprint of the weights that an adapter was trained on; "" where it names none, as PEFT's do."""
    path = folder / ADAPTER_WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("base_weights", "")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def _target_modules(model: LanguageModel) -> list[str]:
    """What PEFT must be told to find the same layers: their last name where it means no others, else the whole."""
    adapted = {published_module(model.config, name)[0] for name in adapted_layers(model)}
    linear = [name for name, module in model.named_modules() if isinstance(module, Linear) and name != "head"]
    every = {published_module(model.config, name.removesuffix(".base"))[0] for name in linear}
    found = set()
    for name in adapted:
        last = name.rpartition(".")[2]
        alone = {other for other in every if other.endswith("." + last)} <= adapted
        found.add(last if alone else name)
    return sorted(found)


def _read_settings(raw: Mapping[str, Any], path: Path, model: LanguageModel) -> tuple[LoRAConfig, bool]:
    """The settings ``raw`` of a PEFT folder, and whether its base stores matrices as (in, out).

    PEFT reads a target that is one text as a regular expression for whole names; here it becomes the names it means.
    """
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {raw.get('peft_type')!r}; this version reads 'LORA'")
    for key, value in raw.items():
        harmless = {"bias": ("none", None), "init_lora_weights": _PLAIN_STARTS}.get(key, _UNSET)
        if key not in _SILENT and (key == "bias" or key not in _READ) and value not in harmless:
            raise CheckpointError(f"{path}: {key} is {value!r}, which is not supported yet")
    for key in ("use_rslora", "use_dora"):
        if raw.get(key) not in (None, True, False):
            raise CheckpointError(f"{path}: {key} is {raw[key]!r}; it must be true or false")
    targets = raw.get("target_modules")
    if targets == ALL_LINEAR:
        targets = [ALL_LINEAR]
    elif isinstance(targets, str):
        targets = _matching(targets, model, path)
    if not isinstance(targets, list) or not targets or not all(isinstance(t, str) for t in targets):
        raise CheckpointError(f"{path}: target_modules is {targets!r}; this version reads a list of names")
    rank, alpha, dropout = raw.get("r", 8), raw.get("lora_alpha", 8), raw.get("lora_dropout", 0.0)
    variants = {"rslora": raw.get("use_rslora") is True, "dora": raw.get("use_dora") is True}
    try:
        config = LoRAConfig(rank=rank, alpha=alpha, dropout=dropout, targets=tuple(targets), **variants)
    except ConfigError as error:
        got = f"r is {rank!r}, lora_alpha is {alpha!r}, lora_dropout is {dropout!r}"
        raise CheckpointError(f"{path}: {got}: {error}") from None
    return config, raw.get("fan_in_fan_out") is True


def _matching(pattern: str, model: LanguageModel, path: Path) -> list[str]:
    """Published names of the linear layers that the regular expression ``pattern`` matches as a whole."""
    linear = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    try:
        return [name for name in (published_module(model.config, n)[0] for n in linear) if re.fullmatch(pattern, name)]
    except re.error as error:
        raise CheckpointError(f"{path}: target_modules {pattern!r} is no regular expression ({error})") from None
