"""Head and loss in one operation: hidden states in, ``(loss_sum, denominator)`` out.

    z = x W^T + b          loss and dz as in cross_entropy
    dx = dz W              dW = dz^T x              db = sum over rows of dz

and the probability of the target alone, for comparing models and for objectives made of it:

    logp = z[y] - lse      dz = dlogp (onehot(y) - p),  times 1 - (z / c)^2 with a softcap c

Rows without a target are dropped before the product: on instruction data most rows are prompt, and a head of 50,000
words is a large part of a small model.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minitune.ops import head_on_cpu
from minitune.ops.cross_entropy import (
    IGNORE,
    capped,
    check_options,
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_builtin,
)
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
    """``(loss_sum, denominator)`` of ``x (N, C)`` through the head ``weight (V, C)`` against ``targets (N,)``.

    ``bias (V,)`` is added to the logits; the other options, and what is refused, as in ``cross_entropy``.
    """
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
    smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients ``(dx (N, C), dweight (V, C), dbias (V,) or None)`` of the loss sum, in closed form."""
    kept_x, kept_targets, token_weight = _trained_rows(x, targets, token_weight)
    dz = cross_entropy_backward(
        dloss,
        _logits(kept_x, weight, bias).to(wide(x.dtype)),
        kept_targets,
        token_weight=token_weight,
        smoothing=smoothing,
        softcap=softcap,
        z_loss=z_loss,
    )  # (M, V)
    return _through_head(dz, x, weight, targets, bias)


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
    """``linear_cross_entropy`` by ``torch.nn.functional``; on a CPU in chunks, whose logits fit a cache."""
    check_options(smoothing, softcap, z_loss)
    options: dict[str, Any] = {"token_weight": token_weight, "smoothing": smoothing}
    if head_on_cpu.served(x, bias, softcap, z_loss):
        return head_on_cpu.linear_cross_entropy_on_cpu(x, weight, targets, **options)
    return linear_cross_entropy_whole(x, weight, targets, bias=bias, softcap=softcap, z_loss=z_loss, **options)


def linear_cross_entropy_whole(
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
    """``linear_cross_entropy`` by ``torch.nn.functional``, which keeps all logits for the backward."""
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
    check_options(0.0, softcap, 0.0)
    kept = targets != IGNORE
    z = capped(_logits(x[kept], weight, bias).to(wide(x.dtype)), softcap)  # (M, V)
    z = z - z.detach().amax(-1, keepdim=True)
    logprobs = z.gather(-1, targets[kept, None]).squeeze(-1) - z.exp().sum(-1).log()  # (M,), CE-11
    return _in_place(logprobs, kept)


def token_logprobs_backward(
    dlogprobs: Tensor,
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients ``(dx (N, C), dweight (V, C), dbias (V,) or None)`` for the upstream ``dlogprobs (N,)``.

    A log-probability is a loss of weight -1, so each row's upstream gradient is a token weight.
    """
    kept_x, kept_targets, up = _trained_rows(x, targets, -dlogprobs)
    logits = _logits(kept_x, weight, bias).to(wide(x.dtype))
    one = torch.ones((), dtype=logits.dtype, device=x.device)
    dz = cross_entropy_backward(one, logits, kept_targets, token_weight=up, softcap=softcap)  # (M, V), CE-11
    return _through_head(dz, x, weight, targets, bias)


def token_logprobs_builtin(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """``token_logprobs`` by ``torch.nn.functional.cross_entropy``."""
    check_options(0.0, softcap, 0.0)
    kept = targets != IGNORE
    z = capped(_logits(x[kept], weight, bias).to(wide(x.dtype)), softcap)
    return _in_place(-F.cross_entropy(z, targets[kept], reduction="none"), kept)


def _through_head(
    dz: Tensor, x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """From ``dz (M, V)`` of the trained rows, in float32 or wider, to the gradients of the head's three inputs."""
    kept = targets != IGNORE
    dx = torch.zeros_like(x)
    dx[kept] = (dz @ weight.to(dz.dtype)).to(x.dtype)  # HEAD-3
    dweight = dz.T @ x[kept].to(dz.dtype)  # HEAD-4
    return dx, dweight.to(weight.dtype), None if bias is None else dz.sum(0).to(bias.dtype)


def _in_place(values: Tensor, kept: Tensor) -> Tensor:
    """``values (M,)`` at the kept rows of ``(N,)``, 0 elsewhere."""
    return torch.zeros(len(kept), dtype=values.dtype, device=values.device).masked_scatter(kept, values)


def _trained_rows(x: Tensor, targets: Tensor, token_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    kept = targets != IGNORE
    return x[kept], targets[kept], None if token_weight is None else token_weight[kept]


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b`` in the type of ``x``; the head may be kept in a wider type than the activations."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))  # HEAD-1
