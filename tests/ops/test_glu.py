"""Gated linear units."""

import pytest
import torch
from ops_cases import SCALES, assert_as_accurate, assert_close64, autograd, randn

from minitune.ops import BUILTIN, REFERENCE, Ops
from minitune.ops.glu import glu, glu_backward

TABLES = [REFERENCE, BUILTIN]


def test_glu_backward_is_autograd() -> None:
    gate, up, dy = randn(3, 11), randn(3, 11, seed=1), randn(3, 11, seed=2)
    want = autograd(lambda a, b: glu(a, b, kind="silu"), [gate, up], [dy])
    assert_close64(glu_backward(dy, gate, up, kind="silu"), want)
    assert torch.autograd.gradcheck(lambda a, b: glu(a, b, kind="silu"), [gate.requires_grad_(), up.requires_grad_()])


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_glu_is_as_accurate_as_eager(ops: Ops, dtype: torch.dtype, scale: float) -> None:
    gate, up = randn(5, 130, dtype=dtype)[:, ::2] * scale, randn(5, 65, seed=1, dtype=dtype) * scale
    truth = gate.double() * torch.sigmoid(gate.double()) * up.double()
    assert_as_accurate(ops.glu(gate, up, kind="silu"), torch.nn.functional.silu(gate) * up, truth)


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_glu_passes_an_open_gate_and_stops_a_shut_one(ops: Ops) -> None:
    up = randn(4)
    open_gate, shut = torch.full_like(up, 50.0), torch.full_like(up, -800.0)
    assert_close64([ops.glu(open_gate, up, kind="silu")], [50.0 * up])
    assert ops.glu(shut, up, kind="silu").abs().max() < 1e-300


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_a_kind_that_is_not_built_is_refused_by_name(ops: Ops) -> None:
    with pytest.raises(ValueError, match="'gelu'"):
        ops.glu(randn(2), randn(2), kind="gelu")
