"""LoRA (Hu et al., arXiv 2106.09685): train a low-rank update beside each frozen matrix.

    y = x W^T + s (x A^T) B^T          A (R, in)     B (out, R)     s = alpha / R

B starts at zero, so the model starts as the base, bit for bit; A starts random, so that B has a gradient.
Rank-stabilised LoRA (arXiv 2312.03732) has s = alpha / sqrt(R): the update keeps its size whatever the rank. DoRA
(arXiv 2402.09353) learns the length m of each row of the matrix apart from its direction:

    y = g * (x W^T + s (x A^T) B^T)          g = m / |W + s B A| (out,)          m starts as |W|

with the norms |.| of rows taken as constants in the backward, as in section 4.3 of that paper.
"""

import fnmatch
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
from minitune.ops.product import linear

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRAConfig:
    """rank R, alpha, dropout on the input, the layers by name, and the two variants above.

    A layer's name is its last part (``q_proj``), or as much of it as is needed, ours or the published one; a name with
    ``*``, ``?`` or ``[`` in it is a pattern for the whole name of a block's layer, as in a shell (``blocks.[01].*``).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    rslora: bool = False
    dora: bool = False

    @property
    def scale(self) -> float:
        """s: what the product of B and A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)  # LORA-2

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ConfigError(f"rank is {self.rank!r}; it must be a whole number of at least 1")
        if type(self.alpha) not in (int, float) or not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"alpha is {self.alpha!r}; it must be a number above 0")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r}; it must lie in [0, 1)")


class LoRALinear(nn.Module):
    """A frozen ``Linear`` with its low-rank update; A, B and m (None without DoRA) are kept in float32."""

    def __init__(self, base: Linear, config: LoRAConfig):
        super().__init__()
        self.base = base.requires_grad_(False)
        weight = base.dequantize()
        device, kind = weight.device, torch.promote_types(weight.dtype, torch.float32)
        self.lora_A = nn.Parameter(torch.empty(config.rank, base.in_features, device=device, dtype=kind))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device, dtype=kind))
        self.lora_m: nn.Parameter | None = None
        if config.dora:
            self.lora_m = nn.Parameter(torch.linalg.vector_norm(weight.detach().to(kind), dim=1))
        self.scale = config.scale
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        if self.dropout and self.training:
            return self._with_dropout(x)
        weight, A, B = self.base.dequantize(), self.lora_A, self.lora_B
        if self.lora_m is None:
            return lora_linear(x, weight, self.base.bias, A, B, self.scale)
        y = self.gain().to(x.dtype) * lora_linear(x, weight, None, A, B, self.scale)  # LORA-5
        return y if self.base.bias is None else y + self.base.bias.to(x.dtype)

    def _with_dropout(self, x: Tensor) -> Tensor:
        """``y = W x + b + s B A z`` for x with dropout z; DoRA adds ``(g - 1) (W z + s B A z)``, as PEFT does."""
        z = F.dropout(x, self.dropout)
        update = self.scale * linear(linear(z, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        if self.lora_m is None:
            return self.base(x) + update
        g = self.gain().to(x.dtype)
        return self.base(x) + (g - 1) * linear(z, self.base.dequantize().to(x.dtype)) + g * update  # LORA-7

    def gain(self) -> Tensor:
        """g = m / |W + s B A| (out,) of DoRA; the norm is a constant for the backward."""
        assert self.lora_m is not None
        return self.lora_m / self.row_norms()  # LORA-5, LORA-12

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """|W + s B A| (out,), without the product B A of the size of W.

        |w + s b A|^2 = |w|^2 + 2 s b (w A^T)^T + s^2 b (A A^T) b^T          for rows w of W and b of B
        """
        A, B = self.lora_A, self.lora_B
        W = self.base.dequantize().to(A.dtype)
        cross = W @ A.T + (0.5 * self.scale) * (B @ (A @ A.T))  # (out, R)
        return (W.square().sum(1) + 2 * self.scale * (B * cross).sum(1)).clamp_(min=0).sqrt_()  # LORA-6

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The one matrix (out, in) that does the same, in the type of A and B."""
        W = self.base.dequantize().to(self.lora_A.dtype) + self.scale * (self.lora_B @ self.lora_A)  # LORA-4
        return W if self.lora_m is None else self.gain()[:, None] * W


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
        bound = 1 / math.sqrt(lora.base.in_features)  # Kaiming uniform with a = sqrt(5), as PEFT starts, LORA-3
        start = torch.rand(lora.lora_A.shape, generator=generator) * 2 * bound - bound
        with torch.no_grad():
            lora.lora_A.copy_(start)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, lora)
    return chosen


def merge_adapter(model: LanguageModel) -> int:
    """Put the merged matrix in the place of every layer with LoRA; how many there were.

    A base kept in a narrower type than A and B is rounded to it once, at the end.
    """
    adapted = adapted_layers(model)
    for name, lora in adapted.items():
        base = lora.base
        with torch.no_grad():
            base.weight.copy_(lora.merged())
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, base)
    return len(adapted)


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
        match = in_blocks if target == ALL_LINEAR else [n for n in layers if _means(target, *names[n])]
        if _is_pattern(target):
            match = [name for name in match if name in in_blocks]
        if not match:
            known = sorted({name.rpartition(".")[2] for name in in_blocks})
            raise ConfigError(
                f"target {target!r} names no linear layer{nearest(target, known)}; there are: {', '.join(known)}"
            )
        chosen.update(match)
    if "head" in chosen:
        raise ConfigError("LoRA on the head is not built yet; the targets are the layers of the blocks")
    return [name for name in layers if name in chosen]


def _is_pattern(target: str) -> bool:
    return any(sign in target for sign in "*?[")


def _means(target: str, *names: str) -> bool:
    if _is_pattern(target):
        return any(fnmatch.fnmatchcase(name, target) for name in names)
    return any(name == target or name.endswith("." + target) for name in names)
