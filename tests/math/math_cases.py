"""What the tests of the book share: float64 numbers, gradients by autograd, and how equal is equal."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minitune.config import ModelConfig


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise in float64, the same for a seed and a shape."""
    generator = torch.Generator().manual_seed(seed + 1000 * sum(shape) + len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def by_autograd(f: Callable[..., Any], inputs: Sequence[Tensor], *douts: Tensor) -> tuple[Tensor, ...]:
    """Gradients of ``f(*inputs)`` for its inputs, for the upstream gradients ``douts`` (1 for a scalar)."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outs = f(*leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    return torch.autograd.grad(outs, leaves, list(douts) if douts else None)


def same(got: Any, want: Any, within: float = 1e-10) -> None:
    """Equal in float64, two ways to the same number, to ``within`` of the largest; tuples one by one."""
    if isinstance(got, tuple | list):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            same(one, other, within)
        return
    a, b = torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(want, dtype=torch.float64)
    assert isinstance(got, float | int) or got.dtype == torch.float64
    assert a.shape == b.shape, (a.shape, b.shape)
    assert a.isfinite().all()
    if b.numel():
        error = float((a - b).detach().abs().max())
        assert error <= within * max(1.0, float(b.detach().abs().max())), error


def softmax(z: Sequence[float]) -> list[float]:
    """By the definition, one number at a time."""
    total = sum(math.exp(a) for a in z)
    return [math.exp(a) / total for a in z]


def small_config(**given: Any) -> ModelConfig:
    """A model of two layers, 8 channels and 7 ids, with what is ``given`` changed."""
    plain: dict[str, Any] = {"vocab_size": 7, "hidden_size": 8, "intermediate_size": 16, "num_layers": 2}
    plain |= {"num_heads": 2, "num_kv_heads": 2, "head_dim": 4, "max_positions": 16}
    return ModelConfig(**(plain | given))
