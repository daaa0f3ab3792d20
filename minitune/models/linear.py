"""The one Linear of the house.

Adapters, merging and the head go through this class and never touch a weight of the base by another way, so that a
quantised base can later stand in its place: same attributes, another ``forward`` and ``dequantize``.
"""

from collections.abc import Sequence

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


class Part(nn.Module):
    """Some rows of a layer that others share with it, for inference: the attributes of ``Linear``."""

    def __init__(self, whole: nn.Module, start: int, base: Linear):
        super().__init__()
        self.whole, self.start = whole, start
        self.in_features, self.out_features, self.bias = base.in_features, base.out_features, base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(x).narrow(-1, self.start, self.out_features)

    def dequantize(self) -> Tensor:
        """The logical weight ``(out_features, in_features)``."""
        return self.whole.dequantize().narrow(0, self.start, self.out_features)  # pyright: ignore[reportCallIssue]

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, from row {self.start}, bias={self.bias is not None}"


def together(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """What each of ``layers`` makes of the same ``x``: by one product where they are the parts of one layer."""
    whole = layers[0].whole if isinstance(layers[0], Part) else None
    if whole is not None and all(isinstance(layer, Part) and layer.whole is whole for layer in layers):
        return whole(x).split([layer.out_features for layer in layers], -1)
    return tuple(layer(x) for layer in layers)


def joined(layers: Sequence[Linear]) -> Linear:
    """One layer with the rows of several that read the same, in their order; frozen."""
    first = layers[0]
    with torch.device("meta"):  # what is allocated here is replaced below
        whole = Linear(first.in_features, sum(layer.out_features for layer in layers), bias=first.bias is not None)
    whole.weight = nn.Parameter(torch.cat([layer.dequantize().detach() for layer in layers]), requires_grad=False)
    if whole.bias is not None:
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        whole.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return whole
