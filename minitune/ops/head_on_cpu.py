"""Head and loss on a CPU, a few rows at a time: chunked_loss.py made fast.

Gradients are made beside the loss, for an upstream gradient of 1, and multiplied later by what comes down. A chunk has
rows enough for the head to be worth reading, and its logits are turned into their gradient where they stand; nothing as
large as all logits ever is. With m the largest logit of a row, p = softmax(z) and p[m] = 1 / sum:

    nll  = m - z[y] - log p[m]          loss = nll + e (z[y] - mean z)          dz = p - (1 - e) onehot(y) - e / V

and both times the weight of the row's token. The same formulas as in cross_entropy.py.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minitune.ops.cross_entropy import IGNORE
from minitune.ops.precision import wide
from minitune.ops.product import product

CHUNK_BYTES, FEWEST_ROWS = 96 << 20, 128
"""Logits of a chunk take about so much where the head is frozen, but it has so many rows: the whole head is read."""
TRAINED_ROWS = 512
"""Rows of a chunk where the head is trained: its gradient, as large as itself, is read and written once a chunk."""
WORDS = 8192
"""Rows of the head whose gradient is added at a time."""


def served(x: Tensor, bias: Tensor | None, softcap: float | None, z_loss: float) -> bool:
    """Whether the head and loss of these arguments are made here."""
    return x.device.type == "cpu" and bias is None and softcap is None and not z_loss


def linear_cross_entropy_on_cpu(
    x: Tensor, weight: Tensor, targets: Tensor, *, token_weight: Tensor | None = None, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """``(loss_sum, denominator)`` as ``linear_cross_entropy``, for ``x (N, C)`` and the head ``weight (V, C)``."""
    kept = targets != IGNORE
    scale = None if token_weight is None else token_weight[kept].to(wide(x.dtype))
    denominator = kept.sum().to(wide(x.dtype)) if scale is None else scale.sum()
    return _HeadAndLoss.apply(x[kept], weight, targets[kept], scale, smoothing), denominator


class _HeadAndLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, scale: Tensor | None, smoothing: float) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        V, kind = len(weight), wide(x.dtype)
        rows = TRAINED_ROWS if needs_weight else max(FEWEST_ROWS, CHUNK_BYTES // (V * kind.itemsize))
        W = weight.to(x.dtype)
        dx = torch.empty_like(x) if needs_x else None
        dweight = torch.zeros_like(weight, dtype=kind) if needs_weight else None
        loss_sum = torch.zeros((), dtype=kind)
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            own = None if scale is None else scale[part]
            z = product(x[part], W).to(kind)
            loss, dz = _loss_and_dz(z, targets[part], own, smoothing)
            loss_sum += loss
            dz = dz.to(x.dtype)
            if dx is not None:
                dx[part] = product(dz, W.T)
            if dweight is not None:
                for word in range(0, V, WORDS):
                    dweight[word : word + WORDS] += product(dz[:, word : word + WORDS].T, x[part].T)
        ctx.made = (dx, None if dweight is None else dweight.to(weight.dtype))
        return loss_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dx, dweight = ctx.made
        return (
            None if dx is None else dx * dloss.to(dx.dtype),
            None if dweight is None else dweight * dloss.to(dweight.dtype),
            None,
            None,
            None,
        )


def _loss_and_dz(z: Tensor, targets: Tensor, scale: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
    """The sum of the losses of logits ``z (M, V)``, and its gradient, which takes the place of ``z`` in memory."""
    at = targets[:, None]
    largest, own = z.amax(-1, keepdim=True), z.gather(-1, at)
    mean = z.mean(-1, keepdim=True) if smoothing else own
    p = torch.softmax(z, -1, out=z)
    loss = largest - own - p.amax(-1, keepdim=True).log() + smoothing * (own - mean)  # (M, 1)
    if smoothing:
        p -= smoothing / z.shape[-1]
    p.scatter_add_(-1, at, torch.full_like(own, smoothing - 1))
    if scale is not None:
        loss *= scale[:, None]
        p *= scale[:, None]
    return loss.sum(), p
