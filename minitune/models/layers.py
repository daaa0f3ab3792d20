"""Layers that more than one decoder is made of."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minitune.ops import Ops


class Embedding(nn.Module):
    """A row of ``weight (V, C)`` for each id, rounded to the compute type."""

    def __init__(self, vocab_size: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, channels))

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(ids, self.weight).to(dtype)


class RMSNorm(nn.Module):
    """``ops.rms_norm`` with its weight ``(C,)``."""

    def __init__(self, channels: int, eps: float, ops: Ops):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.eps, self.ops = eps, ops

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, eps=self.eps)
