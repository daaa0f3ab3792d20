"""Head and loss in chunks of rows, gradients made on the way: never more than ``chunk`` rows of logits at a time.

The loss is a sum over rows, so rows can be taken a few at a time; and it is one number, so its gradients need no
second visit: they are made for an upstream gradient of 1, beside the loss, and multiplied later by what comes down.
Logits of N rows and V columns would otherwise be the largest tensor of a small model's training step, and be kept
until the backward. Hsu et al. (Liger), arXiv 2410.10989.
"""

import torch
from torch import Tensor

from minitune.ops.cross_entropy import IGNORE
from minitune.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_backward
from minitune.ops.precision import wide


def chunked_linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, chunk: int, smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(loss_sum, denominator, dx (N, C), dweight (V, C))`` of ``x (N, C)`` through the head ``weight (V, C)``.

    The gradients are those of the loss sum; a caller divides them with the loss. Sums over chunks are in float32 or
    wider. Raises ValueError for a chunk below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunked_linear_cross_entropy: chunk is {chunk}; it must be 1 row or more")
    kind = wide(x.dtype)
    one = torch.ones((), dtype=kind, device=x.device)
    loss_sum, denominator = torch.zeros_like(one), torch.zeros_like(one)
    dx, dweight = torch.zeros_like(x), torch.zeros_like(weight, dtype=kind)
    kept = (targets != IGNORE).nonzero().flatten()  # rows that carry a target
    for rows in kept.split(chunk):
        part, aimed = x[rows], targets[rows]
        loss, weighed = linear_cross_entropy(part, weight, aimed, smoothing=smoothing, z_loss=z_loss)
        dpart, dw, _ = linear_cross_entropy_backward(one, part, weight, aimed, smoothing=smoothing, z_loss=z_loss)
        loss_sum, denominator = loss_sum + loss, denominator + weighed  # CE-12
        dx[rows] = dpart  # CE-12
        dweight += dw  # CE-12
    return loss_sum, denominator, dx, dweight.to(weight.dtype)
