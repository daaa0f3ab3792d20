"""Cross-entropy alone and with the head: gradients, accuracy, and rows that do not count."""

import pytest
import torch
from ops_cases import assert_as_accurate, assert_close64, autograd, randn
from torch import Tensor

from minitune.ops import BUILTIN, IGNORE, REFERENCE, Ops
from minitune.ops.cross_entropy import cross_entropy, cross_entropy_backward
from minitune.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_backward

TABLES = [REFERENCE, BUILTIN]
TARGETS = torch.tensor([3, IGNORE, 0, 12, IGNORE, 7])
WEIGHT = torch.tensor([0.5, 9.0, 2.0, 0.0, 9.0, 1.25], dtype=torch.float64)


def by_loop(logits: Tensor, targets: Tensor, token_weight: Tensor | None = None) -> tuple[float, float]:
    """The definition, one row at a time."""
    total = count = 0.0
    for i, target in enumerate(targets.tolist()):
        if target != IGNORE:
            weight = 1.0 if token_weight is None else float(token_weight[i])
            total -= weight * float(torch.log(logits[i].exp()[target] / logits[i].exp().sum()))
            count += weight
    return total, count


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
@pytest.mark.parametrize("token_weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_cross_entropy_is_its_definition(ops: Ops, token_weight: Tensor | None) -> None:
    logits, x, w, b = randn(6, 13), randn(6, 5), randn(13, 5, seed=1), randn(13, seed=2)
    total, count = ops.cross_entropy(logits, TARGETS, token_weight=token_weight)
    assert (float(total), float(count)) == pytest.approx(by_loop(logits, TARGETS, token_weight), rel=1e-12)
    total, count = ops.linear_cross_entropy(x, w, TARGETS, bias=b, token_weight=token_weight)
    assert (float(total), float(count)) == pytest.approx(by_loop(x @ w.T + b, TARGETS, token_weight), rel=1e-12)
    each = -ops.token_logprobs(x, w, TARGETS, bias=b)
    want = [by_loop((x @ w.T + b)[i : i + 1], TARGETS[i : i + 1])[0] for i in range(6)]
    assert each.tolist() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("token_weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_backward_is_autograd(token_weight: Tensor | None) -> None:
    logits, x, w, b = randn(6, 13), randn(6, 5), randn(13, 5, seed=1), randn(13, seed=2)
    up = torch.tensor(0.37, dtype=torch.float64)

    def alone(z: Tensor) -> Tensor:
        return cross_entropy(z, TARGETS, token_weight=token_weight)[0]

    def headed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, TARGETS, bias=b, token_weight=token_weight)[0]

    dz = cross_entropy_backward(up, logits, TARGETS, token_weight=token_weight)
    assert_close64([dz], autograd(alone, [logits], [up]))
    dx, dw, db = linear_cross_entropy_backward(up, x, w, TARGETS, bias=b, token_weight=token_weight)
    assert db is not None
    assert_close64([dx, dw, db], autograd(headed, [x, w, b], [up]))
    assert torch.autograd.gradcheck(alone, [logits.requires_grad_()])
    assert torch.autograd.gradcheck(headed, [t.requires_grad_() for t in (x, w, b)])


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_rows_without_a_target_count_nowhere(ops: Ops) -> None:
    """All rows ignored is a loss of 0 with gradient 0, never 0 / 0."""
    x, w = randn(4, 5).requires_grad_(), randn(13, 5, seed=1).requires_grad_()
    nothing = torch.full((4,), IGNORE)
    total, count = ops.linear_cross_entropy(x, w, nothing)
    assert (float(total.detach()), float(count)) == (0.0, 0.0)
    dx, dw = torch.autograd.grad(total, (x, w))
    assert not dx.any()
    assert not dw.any()
    # What stands in an ignored row changes no bit of the rest.
    targets = torch.tensor([1, IGNORE, 2, IGNORE])
    kept = ops.linear_cross_entropy(x, w, targets)[0]
    changed = x.detach().clone()
    changed[1], changed[3] = torch.nan, 1e30
    assert torch.equal(ops.linear_cross_entropy(changed, w, targets)[0], kept)


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_the_loss_ignores_a_shift_and_survives_large_logits(ops: Ops) -> None:
    logits = randn(6, 13)
    assert_close64([ops.cross_entropy(logits + 100.0, TARGETS)[0]], [ops.cross_entropy(logits, TARGETS)[0]])
    large = torch.zeros(1, 4, dtype=torch.float32)
    large[0, 0] = 1e4
    assert float(ops.cross_entropy(large, torch.tensor([0]))[0]) == 0.0
    assert float(ops.cross_entropy(large, torch.tensor([1]))[0]) == pytest.approx(1e4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("shape", [(1, 7), (33, 130)])
def test_loss_and_gradient_are_as_accurate_as_eager(
    ops: Ops, dtype: torch.dtype, scale: float, shape: tuple[int, int]
) -> None:
    logits = (randn(*shape) * scale).to(dtype)
    targets = torch.arange(shape[0]) * 31 % shape[1]
    exact = logits.double().requires_grad_()
    truth = torch.nn.functional.cross_entropy(exact, targets, reduction="sum")
    (truth_grad,) = torch.autograd.grad(truth, exact)
    results = []
    for f in (
        lambda z: ops.cross_entropy(z, targets)[0],
        lambda z: torch.nn.functional.cross_entropy(z.float(), targets, reduction="sum"),
    ):
        leaf = logits.clone().requires_grad_()
        loss = f(leaf)
        results.append((loss.detach()[None], torch.autograd.grad(loss, leaf)[0]))
    assert_as_accurate(results[0][0], results[1][0], truth.detach()[None])
    assert_as_accurate(results[0][1], results[1][1], truth_grad)


def test_a_confident_target_keeps_its_gradient_in_bfloat16() -> None:
    """p - 1 formed after rounding to bfloat16 would be off by 20 % at p = 0.99; it is formed in float32."""
    logits = torch.zeros(1, 2, dtype=torch.bfloat16)
    logits[0, 0] = 4.59375  # p = 0.99
    truth = torch.softmax(logits.double(), -1)[0, 0] - 1
    got = cross_entropy_backward(torch.tensor(1.0), logits, torch.tensor([0]))[0, 0].double()
    assert abs(got / truth - 1) < 2**-8


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
@pytest.mark.parametrize("option", [{"smoothing": 0.1}, {"softcap": 30.0}, {"z_loss": 1e-4}], ids=str)
def test_an_option_that_is_not_built_is_refused_by_name(ops: Ops, option: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        ops.cross_entropy(randn(2, 3), torch.tensor([0, 1]), **option)
    with pytest.raises(ValueError, match=next(iter(option))):
        ops.linear_cross_entropy(randn(2, 3), randn(4, 3), torch.tensor([0, 1]), **option)
