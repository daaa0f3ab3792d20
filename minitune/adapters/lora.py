"""LoRA (Hu et al., arXiv 2106.09685): train a low-rank update beside each frozen matrix.

    y = x W^T + scale * (x A^T) B^T          A (R, in)     B (out, R)     scale = alpha / R

B starts at zero, so the model starts as the base, bit for bit; A starts random, so that B has a gradient. Read and
written in the layout of PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from minitune.errors import CheckpointError, ConfigError, nearest
from minitune.files import read_json, whole_folder, write_json
from minitune.models import LanguageModel
from minitune.models.linear import Linear
from minitune.models.published import from_layout, published_module, to_layout
from minitune.storage import is_finite

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRAConfig:
    """rank R, alpha (the update is scaled by alpha / R), dropout on the input, and the layers by their last name."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)


class LoRALinear(nn.Module):
    """A frozen ``Linear`` with its low-rank update; A and B are kept in float32."""

    def __init__(self, base: Linear, config: LoRAConfig):
        super().__init__()
        self.base = base.requires_grad_(False)
        device = base.dequantize().device
        kind = torch.promote_types(base.dequantize().dtype, torch.float32)
        self.lora_A = nn.Parameter(torch.empty(config.rank, base.in_features, device=device, dtype=kind))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device, dtype=kind))
        self.scale = config.alpha / config.rank
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        z = F.dropout(x, self.dropout, self.training) if self.dropout else x
        z = F.linear(F.linear(z, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))  # (..., R) -> (..., out)
        return self.base(x) + self.scale * z


def add_lora(model: LanguageModel, config: LoRAConfig, *, seed: int = 0) -> list[str]:
    """Freeze ``model``, put LoRA beside its target layers, and return their names.

    Every linear layer of the blocks is meant by ``all-linear``; the head is not. A depends on ``seed`` and the layer's
    name only. Raises ConfigError where a target names no layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    chosen = _targets(model, list(layers), config.targets)
    model.requires_grad_(False)
    for name in chosen:
        lora = LoRALinear(layers[name], config)
        generator = torch.Generator().manual_seed(seed * 2**32 + zlib.crc32(name.encode()))
        bound = 1 / math.sqrt(lora.base.in_features)  # Kaiming uniform with a = sqrt(5), as PEFT starts
        start = torch.rand(lora.lora_A.shape, generator=generator) * 2 * bound - bound
        with torch.no_grad():
            lora.lora_A.copy_(start)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, lora)
    return chosen


def save_adapter(model: LanguageModel, folder: Path, config: LoRAConfig, *, base: str) -> None:
    """Write the adapter in PEFT's layout, whole or not at all; ``base`` is the model it belongs to."""
    adapted = _adapters(model)
    published = {name: published_module(model.config, name) for name in adapted}
    tensors: dict[str, Tensor] = {}
    for name, lora in adapted.items():
        theirs, layout = published[name]
        # The rows of B are the rows of the base; the base's own transposition does not concern an adapter.
        rows = layout if layout == "by_head" else "plain"
        for leaf, weight in (("lora_A", lora.lora_A), ("lora_B", to_layout(lora.lora_B, rows, model.config))):
            if not is_finite(weight.detach()):
                raise CheckpointError(f"{folder}: {leaf} of {name} has values that are not finite; nothing was written")
            tensors[f"{_PREFIX}{theirs}.{leaf}.weight"] = weight.detach().to("cpu", copy=True).contiguous()
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
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    with whole_folder(folder) as part:
        save_file(tensors, part / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_json(part / ADAPTER_CONFIG, settings)


def load_adapter(model: LanguageModel, folder: Path) -> LoRAConfig:
    """Put the adapter in ``folder`` beside the layers of its base ``model``.

    Raises CheckpointError where a setting is not supported, a tensor has no layer, or a layer has no tensor.
    """
    config = _read_settings(folder)
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{folder}: {ADAPTER_WEIGHTS} is missing (a pickled adapter is never opened)")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None
    try:
        chosen = add_lora(model, config)
    except ConfigError as error:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG}: {error}") from None
    for name in chosen:
        lora = model.get_submodule(name)
        assert isinstance(lora, LoRALinear)
        theirs, layout = published_module(model.config, name)
        for leaf, weight in (("lora_A", lora.lora_A), ("lora_B", lora.lora_B)):
            stored = f"{_PREFIX}{theirs}.{leaf}.weight"
            tensor = tensors.pop(stored, None)
            if tensor is None:
                raise CheckpointError(f"{path}: tensor {stored!r} is missing{nearest(stored, tensors)}")
            if tensor.shape != weight.shape:
                got, want = tuple(tensor.shape), tuple(weight.shape)
                raise CheckpointError(f"{path}: {stored} has shape {got}, but this base asks for {want}")
            if not is_finite(tensor):
                raise CheckpointError(f"{path}: {stored} has values that are not finite")
            by_head = layout == "by_head" and leaf == "lora_B"
            with torch.no_grad():
                weight.copy_(from_layout(tensor, "by_head", model.config) if by_head else tensor)
    if tensors:
        raise CheckpointError(f"{path}: {len(tensors)} tensors have no layer in this base, such as {min(tensors)!r}")
    return config


def base_of(folder: Path) -> str:
    """The base model that an adapter folder names."""
    base = read_json(folder / ADAPTER_CONFIG, CheckpointError).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG}: base_model_name_or_path is missing")
    return base


def _adapters(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def _targets(model: LanguageModel, layers: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Names of the layers that ``targets`` mean, by our name or the published one, in the order of the data."""
    names = {name: (name, published_module(model.config, name)[0]) for name in layers}
    in_blocks = [name for name in layers if name.startswith("blocks.")]
    chosen: set[str] = set()
    for target in targets:
        match = in_blocks if target == ALL_LINEAR else [n for n in layers if _ends_with(target, *names[n])]
        if not match:
            known = sorted({name.rpartition(".")[2] for name in in_blocks})
            raise ConfigError(
                f"target {target!r} names no linear layer{nearest(target, known)}; there are: {', '.join(known)}"
            )
        chosen.update(match)
    if "head" in chosen:
        raise ConfigError("LoRA on the head is not built yet; the targets are the layers of the blocks")
    return [name for name in layers if name in chosen]


def _ends_with(target: str, *names: str) -> bool:
    return any(name == target or name.endswith("." + target) for name in names)


def _target_modules(model: LanguageModel) -> list[str]:
    """What PEFT must be told to find the same layers: their last names, or the last two where one alone means more."""
    adapted = {published_module(model.config, name)[0] for name in _adapters(model)}
    linear = [name for name, module in model.named_modules() if isinstance(module, Linear) and name != "head"]
    every = {published_module(model.config, name.removesuffix(".base"))[0] for name in linear}
    found = set()
    for name in adapted:
        last = name.rpartition(".")[2]
        alone = {other for other in every if other.endswith("." + last)} <= adapted
        found.add(last if alone else ".".join(name.split(".")[-2:]))
    return sorted(found)


def _read_settings(folder: Path) -> LoRAConfig:
    """The settings of a PEFT folder; anything that would change the mathematics and is not built is refused by name."""
    path = folder / ADAPTER_CONFIG
    raw = read_json(path, CheckpointError)
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {raw.get('peft_type')!r}; this version reads 'LORA'")
    harmless: dict[str, tuple[Any, ...]] = {"bias": ("none", None), "lora_bias": (False, None)}
    for key in ("use_rslora", "use_dora", "use_qalora", "modules_to_save", "layers_to_transform",
                "rank_pattern", "alpha_pattern", "layer_replication", "trainable_token_indices", "target_parameters",
                "exclude_modules", "layers_pattern", "alora_invocation_tokens", "megatron_config"):  # fmt: skip
        harmless[key] = (None, False, {}, [])
    for key, allowed in harmless.items():
        if raw.get(key, allowed[0]) not in allowed:
            raise CheckpointError(f"{path}: {key} is {raw[key]!r}, which is not supported yet")
    rank, alpha, targets = raw.get("r"), raw.get("lora_alpha"), raw.get("target_modules")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, (int, float)):
        raise CheckpointError(f"{path}: r is {rank!r} and lora_alpha is {alpha!r}; both must be positive numbers")
    if targets == ALL_LINEAR:
        targets = [ALL_LINEAR]
    if not isinstance(targets, list) or not targets or not all(isinstance(t, str) for t in targets):
        raise CheckpointError(f"{path}: target_modules is {targets!r}; this version reads a list of names")
    dropout = raw.get("lora_dropout") or 0.0
    return LoRAConfig(rank=rank, alpha=float(alpha), dropout=float(dropout), targets=tuple(targets))
