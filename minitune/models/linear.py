"""The one Linear of the house.

Adapters, merging and the head go through this class and never touch a weight of the base by another way, so that a
quantised base can later stand in its place: same attributes, another ``forward`` and ``dequantize``.
"""

import torch
from torch import Tensor, nn

from minitune.ops.product import linear


class Linear(nn.Module):
    """``y = x W^T + b`` with ``weight (out_features, in_features)``.

    The product is computed in the type of ``x``: a weight kept in float32 is rounded on the way, which is what keeps
    trainable weights in float32 under bfloat16 compute.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return linear(x, self.weight.to(x.dtype), bias)  # RES-1

    def dequantize(self) -> Tensor:
        """The logical weight ``(out_features, in_features)`` as a float tensor; here the weight itself."""
        return self.weight

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, bias={self.bias is not None}"
