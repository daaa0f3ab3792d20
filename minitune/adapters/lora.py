"""LoRA (Hu et al., arXiv 2106.09685): train a low-rank update beside each frozen matrix.

    y = x W^T + scale * (x A^T) B^T          A (R, in)     B (out, R)     scale = alpha / R

B starts at zero, so the model starts as the base, bit for bit; A starts random, so that B has a gradient.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minitune.adapters.lora_linear import lora_linear
from minitune.errors import ConfigError, nearest
from minitune.models import LanguageModel
from minitune.models.linear import Linear
from minitune.models.published import published_module

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRAConfig:
    """rank R, alpha (the update is scaled by alpha / R), dropout on the input, and the layers by name.

    A layer's name is its last part (``q_proj``), or as much of it as is needed, ours or the published one.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ConfigError(f"rank is {self.rank!r}; it must be a whole number of at least 1")
        if type(self.alpha) not in (int, float) or not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"alpha is {self.alpha!r}; it must be a number above 0")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r}; it must lie in [0, 1)")


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
        if not (self.dropout and self.training):
            return lora_linear(x, self.base.dequantize(), self.base.bias, self.lora_A, self.lora_B, self.scale)
        z = F.dropout(x, self.dropout)
        z = F.linear(F.linear(z, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))  # (..., R) -> (..., out)
        return self.base(x) + self.scale * z


def add_lora(model: LanguageModel, config: LoRAConfig, *, seed: int = 0) -> list[str]:
    """Freeze ``model``, put LoRA beside its target layers, and return their names.

    Every linear layer of the blocks is meant by ``all-linear``; the head is not. A depends on ``seed`` and the layer's
    name only. Raises ConfigError where a target names no layer.
    """
    chosen = chosen_layers(model, config.targets)
    model.requires_grad_(False)
    for name in chosen:
        base = model.get_submodule(name)
        assert isinstance(base, Linear)
        lora = LoRALinear(base, config)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        bound = 1 / math.sqrt(lora.base.in_features)  # Kaiming uniform with a = sqrt(5), as PEFT starts
        start = torch.rand(lora.lora_A.shape, generator=generator) * 2 * bound - bound
        with torch.no_grad():
            lora.lora_A.copy_(start)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, lora)
    return chosen


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers with LoRA, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def chosen_layers(model: LanguageModel, targets: Sequence[str]) -> list[str]:
    """Names of the layers that ``targets`` mean, by our name or the published one, in the order of the data.

    Raises ConfigError where a target names no layer.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, Linear)]
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
