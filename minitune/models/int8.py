"""Weights as whole numbers of eight bits, for inference: a quarter of the bytes that decoding waits for.

    scale[o] = max over i of |W[o, i]| / 127          q = round(W / scale)          y = (x q^T) * scale + b

Each row of a weight has its scale, and the range is symmetric. Activations are not quantised: torch's own product takes
them in bfloat16 and widens the weight in registers. With many rows at a time, as in a prompt, arithmetic takes the
time and not memory; then the weight is made float for all of them at once.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minitune.models.base import LanguageModel
from minitune.models.layers import replace_linear
from minitune.models.linear import Linear
from minitune.ops.product import linear

STEP = 16
"""torch's product reads so many columns at a time, and what stands behind the last ones; so there are zeros."""
TINY = 2.0**-100
"""The least scale, of a row of zeros."""
FEW_ROWS = 32
"""Rows up to which the product takes the weight as it is kept."""


class Int8Linear(nn.Module):
    """A ``Linear`` for inference with a weight of int8: same attributes, another ``forward`` and ``dequantize``."""

    quantised: Tensor
    scale: Tensor

    def __init__(self, base: Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = base.in_features, base.out_features, base.bias
        weight = base.dequantize().detach()
        self.dtype = weight.dtype
        W = weight.float()
        # The scales are kept as the product takes them; one that was rounded down cuts 0.4 % off the largest weight.
        scale = (W.abs().amax(1, keepdim=True) / 127).to(torch.bfloat16).clamp_min(TINY)  # (out, 1)
        q = (W / scale.float()).round().clamp(-127, 127).to(torch.int8)
        self.register_buffer("quantised", F.pad(q, (0, -self.in_features % STEP)).contiguous())  # (out, in and zeros)
        self.register_buffer("scale", scale[:, 0].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)  # (N, in)
        if len(rows) > FEW_ROWS or x.device.type != "cpu":
            return linear(x, self.dequantize().to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        rows = rows.to(torch.bfloat16)
        if self.in_features % STEP:
            rows = F.pad(rows, (0, -self.in_features % STEP))
        y = torch.ops.aten._weight_int8pack_mm(rows, self.quantised, self.scale).to(x.dtype)
        y = y if self.bias is None else y + self.bias.to(x.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def dequantize(self) -> Tensor:
        """The logical weight ``(out_features, in_features)`` in the type of the base."""
        return self.quantised[:, : self.in_features].to(self.dtype) * self.scale[:, None].to(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, int8, bias={self.bias is not None}"


@torch.no_grad()
def quantise(model: LanguageModel) -> int:
    """Put an ``Int8Linear`` in the place of every linear layer of ``model``, the head too; how many there were.

    The embedding stays as it is, also where the head is tied to it. Layers with adapters are left alone: merge them
    before. For inference only.
    """
    return replace_linear(model, Int8Linear)
