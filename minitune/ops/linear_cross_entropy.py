"""Head and loss in one operation: hidden states in, ``(loss_sum, denominator)`` out.

    z = x W^T + b          loss as in cross_entropy
    dx = dz W              dW = dz^T x              db = sum over rows of dz

Rows without a target are dropped before the product: on instruction data most rows are prompt, and a head of 50,000
words is a large part of a small model.
"""

import torch
from torch import Tensor

from minitune.ops.cross_entropy import IGNORE, cross_entropy, cross_entropy_backward, cross_entropy_builtin
from minitune.ops.precision import wide


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    token_weight: Tensor | None = None,
    smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``(loss_sum, denominator)`` of ``x (N, C)`` through the head ``weight (V, C)`` against ``targets (N,)``."""
    x, targets, token_weight = _trained_rows(x, targets, token_weight)
    logits = _logits(x, weight, bias)  # (M, V)
    return cross_entropy(
        logits, targets, token_weight=token_weight, smoothing=smoothing, softcap=softcap, z_loss=z_loss
    )


def linear_cross_entropy_backward(
    dloss: Tensor,
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    token_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients ``(dx (N, C), dweight (V, C), dbias (V,) or None)`` of the loss sum, in closed form."""
    kept_x, kept_targets, token_weight = _trained_rows(x, targets, token_weight)
    logits = _logits(kept_x, weight, bias)
    dz = cross_entropy_backward(dloss, logits, kept_targets, token_weight=token_weight)  # (M, V)
    dx = torch.zeros_like(x)
    dx[targets != IGNORE] = dz @ weight
    return dx, dz.T @ kept_x, None if bias is None else dz.sum(0)


def linear_cross_entropy_builtin(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    token_weight: Tensor | None = None,
    smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``linear_cross_entropy`` by ``torch.nn.functional``."""
    x, targets, token_weight = _trained_rows(x, targets, token_weight)
    logits = _logits(x, weight, bias)
    return cross_entropy_builtin(
        logits, targets, token_weight=token_weight, smoothing=smoothing, softcap=softcap, z_loss=z_loss
    )


def token_logprobs(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """``log p(target)`` of each row ``(N,)``, 0 where there is no target; in float32 or wider."""
    if softcap:
        raise ValueError("token_logprobs: softcap is not built yet")
    kept = targets != IGNORE
    z = _logits(x[kept], weight, bias).to(wide(x.dtype))
    logprobs = torch.log_softmax(z, dim=-1).gather(-1, targets[kept, None]).squeeze(-1)
    return torch.zeros(len(x), dtype=logprobs.dtype, device=x.device).masked_scatter(kept, logprobs)


def _trained_rows(
    x: Tensor, targets: Tensor, token_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    kept = targets != IGNORE
    return x[kept], targets[kept], None if token_weight is None else token_weight[kept]


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b`` in the type of ``x``; the head may be kept in a wider type than the activations."""
    return torch.nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
