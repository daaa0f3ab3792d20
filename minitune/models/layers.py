"""Layers that more than one decoder is made of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minitune.config import ModelConfig
from minitune.models.linear import Linear, Part, joined
from minitune.ops import Ops, pick_frequencies, rope_frequencies, rope_tables
from minitune.ops.precision import wide


class Embedding(nn.Module):
    """A row of ``weight (V, C)`` for each id, rounded to the compute type, times a factor rounded to it too."""

    def __init__(self, vocab_size: int, channels: int, scale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, channels))
        self.scale = scale

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        x = F.embedding(ids, self.weight).to(dtype)  # EMB-1
        return x if self.scale == 1.0 else x * torch.tensor(self.scale, dtype=dtype)


class Head(Linear):
    """The Linear that scores the vocabulary: ``head(x (..., C)) -> (..., V)``, and the loss in the same operation."""

    def loss(self, ops: Ops, x: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """``ops.linear_cross_entropy`` of ``x (N, C)`` against ``targets (N,)`` through this head."""
        return ops.linear_cross_entropy(x, self.dequantize(), targets, bias=self.bias, **options)


def replace_linear(model: nn.Module, make: Callable[[Linear], nn.Module]) -> int:
    """Put ``make(layer)`` in the place of every linear layer and of the head; how many there were.

    Layers that read the same, as a module's ``same_input`` names them, become parts of one: few rows wait for one call
    instead of three. Layers that something else stands around, such as an adapter, are left alone. For inference.
    """
    count = 0
    for module in list(model.modules()):
        groups = getattr(module, "same_input", ())
        for names in groups:
            layers = [getattr(module, name) for name in names]
            if all(type(layer) is Linear for layer in layers):
                whole, start = make(joined(layers)), 0
                for name, layer in zip(names, layers, strict=True):
                    setattr(module, name, Part(whole, start, layer))
                    start += layer.out_features
                count += len(layers)
    chosen = [name for name, module in model.named_modules() if type(module) in (Linear, Head)]
    chosen = [name for name in chosen if not name.endswith(".base")]
    for name in chosen:
        parent, _, leaf = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, Linear)
        setattr(model.get_submodule(parent), leaf, make(layer))
    return count + len(chosen)


class RMSNorm(nn.Module):
    """``ops.rms_norm`` with its weight ``(channels,)``, in the order of rounding that the family has."""

    def __init__(self, channels: int, config: ModelConfig, ops: Ops):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.config, self.ops = config, ops

    @property
    def options(self) -> dict[str, Any]:
        """What the operation is given beside tensors."""
        config = self.config
        return {"eps": config.norm_eps, "offset": config.norm_offset, "scale_in_fp32": config.norm_scale_in_fp32}

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, **self.options)


class LayerNorm(nn.Module):
    """``ops.layer_norm`` with its weight and bias ``(channels,)``."""

    def __init__(self, channels: int, config: ModelConfig, ops: Ops):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.eps, self.ops = config.norm_eps, ops

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class Rotary:
    """The rotary tables of a model: not a module, since it has no weight and must not follow the weights' type."""

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype):
        scaling = config.rope_scaling
        self.scaling, self.dtype = scaling, compute_dtype

        def frequencies(length: int) -> Tensor:
            return rope_frequencies(
                config.rope_channels, config.rope_theta, scaling=scaling, length=length, device="cpu"
            )

        self.short = frequencies(0)
        # longrope has other frequencies for a batch with a text beyond the positions of the pretraining.
        self.long = frequencies(2**31) if scaling and scaling.kind == "longrope" else None
        self.factor = scaling.table_factor if scaling else 1.0
        self._there: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor | None]] = {}

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """``cos, sin (B, T, pairs)`` for ``positions (B, T)``."""
        short, long = self._on(positions.device)
        if long is None or self.scaling is None:
            return rope_tables(positions, short, self.dtype, self.factor)
        above = self.scaling.original_max_positions or 0
        inv_freq = pick_frequencies(positions, short, long, self.dtype, above=above)
        return rope_tables(positions, inv_freq, self.dtype, self.factor)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The frequencies on ``device``, copied once: a copy in every call waits for the device, and no CUDA graph can
        hold one."""
        kind = wide(self.dtype)
        if (device, kind) not in self._there:
            with torch.inference_mode(False):  # what is copied while sampling may be used by a training step
                short, long = (None if f is None else f.to(kind).to(device) for f in (self.short, self.long))
            assert short is not None
            self._there[device, kind] = short, long
        return self._there[device, kind]
