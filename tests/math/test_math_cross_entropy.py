"""Chapter 11: the loss by plain Python numbers, its gradient by autograd and by differences."""

import math

import pytest
import torch
from math_cases import by_autograd, numbers, same, softmax
from torch import Tensor

from minitune.ops.chunked_loss import chunked_linear_cross_entropy
from minitune.ops.cross_entropy import IGNORE, capped, cross_entropy, cross_entropy_backward
from minitune.ops.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_backward,
    token_logprobs,
    token_logprobs_backward,
)

N, V, C = 6, 5, 4
TARGETS = torch.tensor([0, IGNORE, 4, 2, IGNORE, 2])
WEIGHTS = torch.tensor([1.0, 3.0, 0.5, 2.0, 1.0, 0.25], dtype=torch.float64)
ONE = torch.ones((), dtype=torch.float64)
OPTIONS = [
    {},
    {"smoothing": 0.1},
    {"z_loss": 0.03},
    {"softcap": 1.5},
    {"token_weight": WEIGHTS},
    {"smoothing": 0.2, "z_loss": 0.01, "softcap": 2.0, "token_weight": WEIGHTS},
]


def by_numbers(
    u: Tensor,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    token_weight: Tensor | None = None,
) -> tuple[float, float]:
    """The chapter, a row at a time: the loss as the cross-entropy against a mixture, not as the code has it."""
    total = weighed = 0.0
    for n in range(len(u)):
        y = int(TARGETS[n])
        if y == IGNORE:
            continue
        z = [float(a) if softcap is None else softcap * math.tanh(float(a) / softcap) for a in u[n]]
        p = softmax(z)
        aim = [(1 - smoothing) * (v == y) + smoothing / V for v in range(V)]
        loss = -sum(q * math.log(p[v]) for v, q in enumerate(aim))
        loss += z_loss * math.log(sum(math.exp(a) for a in z)) ** 2
        weight = 1.0 if token_weight is None else float(token_weight[n])
        total, weighed = total + weight * loss, weighed + weight
    return total, weighed


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_is_the_chapter_by_numbers(options: dict) -> None:
    """CE-2, CE-3, CE-4, CE-5, CE-6."""
    for scale in (1.0, 20.0):
        u = numbers(N, V) * scale
        same(cross_entropy(u, TARGETS, **options), by_numbers(u, **options))


def test_softcap() -> None:
    """CE-1: the curve, its limits, and a slope of 1 at 0."""
    u = torch.tensor([-1e9, -3.0, 0.0, 0.1, 1e9], dtype=torch.float64)
    same(capped(u, 2.0), [2.0 * math.tanh(float(a) / 2.0) for a in u])
    same(capped(u, None), u)
    same(by_autograd(lambda a: capped(a, 2.0), [torch.zeros(1, dtype=torch.float64)], ONE[None])[0], [1.0])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradient_is_autograd_and_difference(options: dict) -> None:
    """CE-7, CE-8, CE-9, CE-10: also that rows without a target get exactly 0."""
    u = numbers(N, V)
    for up in (1.0, -0.7):
        du = cross_entropy_backward(ONE * up, u, TARGETS, **options)
        same(du, by_autograd(lambda a: cross_entropy(a, TARGETS, **options)[0], [u], ONE * up)[0])
        assert not du[TARGETS == IGNORE].any()
    du, step = cross_entropy_backward(ONE, u, TARGETS, **options), 1e-5
    for n, v in ((0, 0), (0, 3), (2, 4), (5, 1)):
        moved = torch.zeros(N, V, dtype=torch.float64)
        moved[n, v] = step
        slope = (by_numbers(u + moved, **options)[0] - by_numbers(u - moved, **options)[0]) / (2 * step)
        assert float(du[n, v]) == pytest.approx(slope, abs=1e-8)


def test_a_gradient_without_z_loss_sums_to_zero() -> None:
    """CE-7: a shift of all logits of a row changes nothing; CE-8 breaks it."""
    u = numbers(N, V)
    same(cross_entropy_backward(ONE, u, TARGETS, smoothing=0.3).sum(-1), torch.zeros(N, dtype=torch.float64))
    assert cross_entropy_backward(ONE, u, TARGETS, z_loss=0.3).sum(-1)[TARGETS != IGNORE].abs().min() > 1e-3


def test_log_probability_and_its_gradient() -> None:
    """CE-11: the log of the softmax at the target, 0 without one; the gradient for one upstream number a row."""
    x, W, up = numbers(N, C), numbers(V, C, seed=1), numbers(N, seed=2)
    rows = (x @ W.T).tolist()
    want = [0.0 if y == IGNORE else math.log(softmax(z)[y]) for z, y in zip(rows, TARGETS.tolist(), strict=True)]
    same(token_logprobs(x, W, TARGETS), torch.tensor(want, dtype=torch.float64))
    dx, dW, _ = token_logprobs_backward(up, x, W, TARGETS)
    same((dx, dW), by_autograd(lambda a, b: token_logprobs(a, b, TARGETS), [x, W], up))


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_chunks_are_the_whole(chunk: int) -> None:
    """CE-12: loss, divisor and gradients by chunks are those of all rows at once, and of autograd."""
    x, W = numbers(N, C), numbers(V, C, seed=1)
    given: dict = {"smoothing": 0.1, "z_loss": 0.02}
    loss, weighed, dx, dW = chunked_linear_cross_entropy(x, W, TARGETS, chunk=chunk, **given)
    same((loss, weighed), linear_cross_entropy(x, W, TARGETS, **given))
    same((loss, weighed), by_numbers(x @ W.T, **given))
    same((dx, dW), linear_cross_entropy_backward(ONE, x, W, TARGETS, **given)[:2])
    same((dx, dW), by_autograd(lambda a, b: linear_cross_entropy(a, b, TARGETS, **given)[0], [x, W]))


def test_a_chunk_of_no_rows_is_refused_and_a_batch_without_targets_is_zero() -> None:
    """CE-12 at its ends."""
    x, W = numbers(N, C), numbers(V, C, seed=1)
    with pytest.raises(ValueError, match="1 row or more"):
        chunked_linear_cross_entropy(x, W, TARGETS, chunk=0)
    loss, weighed, dx, dW = chunked_linear_cross_entropy(x, W, torch.full((N,), IGNORE), chunk=2)
    assert not any(t.any() for t in (loss, weighed, dx, dW))
