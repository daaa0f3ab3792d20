"""Weights in the order in which oneDNN reads them, for inference in float32 on a CPU.

A product of few rows waits for its weight. Kept by rows, the weight is walked in strips, or turned into blocks at every
call; kept in blocks it is read once, from its beginning to its end. The numbers are the same, only their order is not.
"""

from typing import Any

import torch
from torch import Tensor, nn

from minitune.models.base import LanguageModel
from minitune.models.layers import replace_linear
from minitune.models.linear import Linear

ROWS = 8
"""The order is made for products of so many rows; it does as well for one and for five hundred."""


class PackedLinear(nn.Module):
    """A ``Linear`` for inference with its weight in blocks: same attributes, another ``forward`` and ``dequantize``."""

    def __init__(self, base: Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = base.in_features, base.out_features, base.bias
        # No buffer: a tensor of this layout can be neither moved nor saved.
        self.packed: Any = torch.ops.mkldnn._reorder_linear_weight(base.dequantize().detach(), ROWS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def dequantize(self) -> Tensor:
        """The logical weight ``(out_features, in_features)``."""
        return self.packed.to_dense()

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, packed, bias={self.bias is not None}"


def available() -> bool:
    """Whether this torch can keep weights in oneDNN's order: faster than MKL on the AMD processors tried."""
    ops = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(ops, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


@torch.no_grad()
def pack(model: LanguageModel) -> int:
    """Pack every linear layer of ``model``, the head too, where torch has oneDNN; how many there were.

    The embedding stays as it is, also where the head is tied to it, and so do layers with adapters. For inference only.
    """
    there = {weight.dtype for weight in model.parameters()} | {model.compute_dtype}
    if there != {torch.float32} or model.embed.weight.device.type != "cpu" or not available():
        return 0
    return replace_linear(model, PackedLinear)
