"""Activations and gated linear units."""

import math

import pytest
import torch
from ops_cases import SCALES, assert_as_accurate, assert_close64, autograd, randn
from torch import Tensor

from minitune.ops import BUILTIN, REFERENCE, Ops
from minitune.ops.glu import Kind, activation, activation_backward, glu, glu_backward

TABLES = [REFERENCE, BUILTIN]
KINDS: tuple[Kind, ...] = ("silu", "gelu", "gelu_tanh")


def eager(x: Tensor, kind: Kind) -> Tensor:
    """The formulas as the papers print them, at the type of ``x``."""
    if kind == "silu":
        return x / (1 + torch.exp(-x))
    if kind == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_activations_are_their_definition(ops: Ops, kind: Kind) -> None:
    x, up = randn(5, 33) * 3, randn(5, 33, seed=1)
    assert_close64([ops.activation(x, kind=kind)], [eager(x, kind)])
    assert_close64([ops.glu(x, up, kind=kind)], [eager(x, kind) * up])


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_the_two_gelus_are_not_one(ops: Ops) -> None:
    """Guards the two spellings: at a = 1 the normal distribution gives 0.841345, its tanh form 0.841192."""
    one = torch.ones(1, dtype=torch.float64)
    assert float(ops.activation(one, kind="gelu")) == pytest.approx(0.8413447460685429, abs=1e-12)
    assert float(ops.activation(one, kind="gelu_tanh")) == pytest.approx(0.8411919906082768, abs=1e-12)
    assert float(ops.activation(one, kind="silu")) == pytest.approx(0.7310585786300049, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_is_autograd(kind: Kind) -> None:
    gate, up, dy = randn(3, 11) * 2, randn(3, 11, seed=1), randn(3, 11, seed=2)
    want = autograd(lambda a, b: glu(a, b, kind=kind), [gate, up], [dy])
    assert_close64(glu_backward(dy, gate, up, kind=kind), want)
    want = autograd(lambda a: activation(a, kind=kind), [gate], [dy])
    assert_close64([activation_backward(dy, gate, kind=kind)], want)
    gate, up = gate.requires_grad_(), up.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: glu(a, b, kind=kind), [gate, up])
    assert torch.autograd.gradcheck(lambda a: activation(a, kind=kind), [gate])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_values_and_gradients_are_as_accurate_as_eager(ops: Ops, dtype: torch.dtype, scale: float, kind: Kind) -> None:
    """torch's own functions are the eager ones here: the printed formulas at bfloat16 would be too easy to beat."""
    native = {
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    }[kind]
    for shape in ((1, 1), (5, 130)):
        gate, up = (randn(*shape, dtype=dtype) * scale)[:, ::2], (randn(*shape, seed=1, dtype=dtype) * scale)[:, ::2]
        dy = randn(*gate.shape, seed=2, dtype=dtype)
        exact = [t.double() for t in (gate, up)]
        truth = eager(exact[0], kind) * exact[1]
        assert_as_accurate(ops.glu(gate, up, kind=kind), native(gate) * up, truth)
        assert_as_accurate(ops.activation(gate, kind=kind), native(gate), eager(exact[0], kind))
        truth = autograd(lambda a, b: eager(a, kind) * b, exact, [dy.double()])
        ours = autograd(lambda a, b: ops.glu(a, b, kind=kind), [gate, up], [dy])
        theirs = autograd(lambda a, b: native(a) * b, [gate, up], [dy])
        for a, b, c in zip(ours, theirs, truth, strict=True):
            assert_as_accurate(a, b, c)
        for a, b, c in zip(glu_backward(dy, gate, up, kind=kind), theirs, truth, strict=True):
            assert_as_accurate(a, b, c)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_an_open_gate_passes_and_a_shut_one_stops(ops: Ops, kind: Kind) -> None:
    up = randn(4)
    open_gate, shut = torch.full_like(up, 50.0), torch.full_like(up, -800.0)
    assert_close64([ops.glu(open_gate, up, kind=kind)], [50.0 * up])
    assert ops.glu(shut, up, kind=kind).abs().max() < 1e-300
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    (slope,) = torch.autograd.grad(ops.activation(far, kind=kind).sum(), far)
    assert slope.tolist() == [0.0, 1.0]


def test_a_nearly_shut_gelu_keeps_its_digits() -> None:
    """Guards erfc in place of 1 + erf, which in float32 cancels to 0 at -6."""
    assert float(activation(torch.tensor([-6.0]), kind="gelu")) == pytest.approx(-5.9195258e-09, rel=1e-5)


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_an_unknown_kind_is_refused_with_the_known_ones(ops: Ops) -> None:
    with pytest.raises(ValueError, match=r"'relu' is not known.*silu, gelu, gelu_tanh"):
        ops.glu(randn(2), randn(2), kind="relu")
    with pytest.raises(ValueError, match="'swish'"):
        ops.activation(randn(2), kind="swish")
