"""Chapter 8: the activations by the math library's own numbers, their gradients by autograd and by differences."""

import math

import pytest
import torch
from math_cases import by_autograd, numbers, same

from minitune.ops.glu import Kind, activation, activation_backward, glu, glu_backward

SHARES = {
    "silu": lambda a: 1 / (1 + math.exp(-a)),
    "gelu": lambda a: 0.5 * (1 + math.erf(a / math.sqrt(2))),
    "gelu_tanh": lambda a: 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))),
}
EACH = pytest.mark.parametrize("kind", list(SHARES))


@EACH
def test_activation_and_gate(kind: Kind) -> None:
    """GLU-1, GLU-2, GLU-3, GLU-4, GLU-5: a number at a time."""
    a, u = 3 * numbers(40), numbers(40, seed=1)
    want = torch.tensor([x * SHARES[kind](x) for x in a.tolist()], dtype=torch.float64)
    same(activation(a, kind=kind), want)
    same(glu(a, u, kind=kind), want * u)


@EACH
def test_gradients(kind: Kind) -> None:
    """GLU-6, GLU-7, GLU-8, GLU-9, GLU-10: by autograd, and the share's slope by differences."""
    a, u, dy = 3 * numbers(40), numbers(40, seed=1), numbers(40, seed=2)
    same(activation_backward(dy, a, kind=kind), by_autograd(lambda x: activation(x, kind=kind), [a], dy)[0])
    same(glu_backward(dy, a, u, kind=kind), by_autograd(lambda x, y: glu(x, y, kind=kind), [a, u], dy))
    step = 1e-6
    for x in (-3.0, -0.4, 0.0, 0.7, 2.5):
        slope = (SHARES[kind](x + step) - SHARES[kind](x - step)) / (2 * step)
        got = activation_backward(torch.ones(1, dtype=torch.float64), torch.tensor([x], dtype=torch.float64), kind=kind)
        assert float(got) == pytest.approx(SHARES[kind](x) + x * slope, abs=1e-8)


@EACH
def test_far_out_it_is_nothing_or_everything(kind: Kind) -> None:
    """GLU-1: and the slope, GLU-6, is 0 or 1 there."""
    far = torch.tensor([-40.0, 40.0], dtype=torch.float64)
    same(activation(far, kind=kind), torch.tensor([0.0, 40.0], dtype=torch.float64))
    same(activation_backward(torch.ones_like(far), far, kind=kind), torch.tensor([0.0, 1.0], dtype=torch.float64))
