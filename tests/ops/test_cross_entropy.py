"""Cross-entropy alone and with the head: gradients, accuracy, and rows that do not count."""

import math

import pytest
import torch
from ops_cases import assert_as_accurate, assert_close64, autograd, randn
from torch import Tensor

from minitune.ops import BUILTIN, IGNORE, REFERENCE, Ops
from minitune.ops.cross_entropy import cross_entropy, cross_entropy_backward
from minitune.ops.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_backward,
    token_logprobs_backward,
)

TABLES = [REFERENCE, BUILTIN]
BY_NAME = pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
TARGETS = torch.tensor([3, IGNORE, 0, 12, IGNORE, 7])
WEIGHT = torch.tensor([0.5, 9.0, 2.0, 0.0, 9.0, 1.25], dtype=torch.float64)
OPTIONS = {
    "plain": {},
    "weighted": {"token_weight": WEIGHT},
    "smoothing": {"smoothing": 0.1},
    "all smoothing": {"smoothing": 1.0},
    "softcap": {"softcap": 1.5},
    "z_loss": {"z_loss": 0.03},
    "all": {"token_weight": WEIGHT, "smoothing": 0.2, "softcap": 2.0, "z_loss": 0.01},
}
BY_OPTION = pytest.mark.parametrize("given", OPTIONS.values(), ids=OPTIONS.keys())


def by_loop(
    logits: Tensor,
    targets: Tensor,
    token_weight: Tensor | None = None,
    smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[float, float]:
    """The definition, one row and one word at a time."""
    total = count = 0.0
    for i, target in enumerate(targets.tolist()):
        if target == IGNORE:
            continue
        z = [float(a) for a in logits[i]]
        z = z if softcap is None else [softcap * math.tanh(a / softcap) for a in z]
        partition = math.fsum(math.exp(a) for a in z)
        loss = 0.0
        for word, a in enumerate(z):
            mass = (1 - smoothing) * (word == target) + smoothing / len(z)
            loss -= mass * math.log(math.exp(a) / partition)
        weight = 1.0 if token_weight is None else float(token_weight[i])
        total += weight * (loss + z_loss * math.log(partition) ** 2)
        count += weight
    return total, count


# ---- what it is, and its gradients


@BY_OPTION
@BY_NAME
def test_cross_entropy_is_its_definition(ops: Ops, given: dict) -> None:
    logits, x, w, b = randn(6, 13) * 2, randn(6, 5), randn(13, 5, seed=1), randn(13, seed=2)
    total, count = ops.cross_entropy(logits, TARGETS, **given)
    assert (float(total), float(count)) == pytest.approx(by_loop(logits, TARGETS, **given), rel=1e-12)
    total, count = ops.linear_cross_entropy(x, w, TARGETS, bias=b, **given)
    assert (float(total), float(count)) == pytest.approx(by_loop(x @ w.T + b, TARGETS, **given), rel=1e-12)
    softcap = given.get("softcap")
    each = -ops.token_logprobs(x, w, TARGETS, bias=b, softcap=softcap)
    want = [by_loop((x @ w.T + b)[i : i + 1], TARGETS[i : i + 1], softcap=softcap)[0] for i in range(6)]
    assert each.tolist() == pytest.approx(want, rel=1e-12)


@BY_OPTION
@BY_NAME
def test_backward_is_autograd_of_every_table(ops: Ops, given: dict) -> None:
    logits, x, w, b = randn(6, 13) * 2, randn(6, 5), randn(13, 5, seed=1), randn(13, seed=2)
    up = torch.tensor(0.37, dtype=torch.float64)
    dz = cross_entropy_backward(up, logits, TARGETS, **given)
    assert_close64([dz], autograd(lambda z: ops.cross_entropy(z, TARGETS, **given)[0], [logits], [up]))

    def headed(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return ops.linear_cross_entropy(x, w, TARGETS, bias=b, **given)[0]

    dx, dw, db = linear_cross_entropy_backward(up, x, w, TARGETS, bias=b, **given)
    assert db is not None
    assert_close64([dx, dw, db], autograd(headed, [x, w, b], [up]))
    dx, dw, db = linear_cross_entropy_backward(up, x, w, TARGETS, **given)
    assert db is None
    assert_close64([dx, dw], autograd(headed, [x, w], [up]))


@BY_OPTION
def test_gradients_are_differences(given: dict) -> None:
    logits, x, w, b = randn(6, 13), randn(6, 5), randn(13, 5, seed=1), randn(13, seed=2)
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, TARGETS, **given)[0], [logits.requires_grad_()])
    inputs = [t.requires_grad_() for t in (x, w, b)]
    assert torch.autograd.gradcheck(lambda x, w, b: linear_cross_entropy(x, w, TARGETS, bias=b, **given)[0], inputs)


@pytest.mark.parametrize("softcap", [None, 1.5])
@BY_NAME
def test_token_logprobs_backward_is_autograd(ops: Ops, softcap: float | None) -> None:
    """Each row has an upstream gradient of its own, which must multiply before rows are summed."""
    x, w, b, up = randn(6, 5), randn(13, 5, seed=1), randn(13, seed=2), randn(6, seed=3)

    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return ops.token_logprobs(x, w, TARGETS, bias=b, softcap=softcap)

    dx, dw, db = token_logprobs_backward(up, x, w, TARGETS, bias=b, softcap=softcap)
    assert db is not None
    assert_close64([dx, dw, db], autograd(f, [x, w, b], [up]))
    assert torch.autograd.gradcheck(f, [t.requires_grad_() for t in (x, w, b)])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@BY_NAME
def test_the_plain_loss_is_torchs(ops: Ops, smoothing: float) -> None:
    """Guards against the known mistake of smoothing over ignored rows (pytorch issue 73205)."""
    logits = randn(6, 13)
    total, count = ops.cross_entropy(logits, TARGETS, smoothing=smoothing)
    want = torch.nn.functional.cross_entropy(logits, TARGETS, ignore_index=IGNORE, label_smoothing=smoothing)
    assert_close64([total / count], [want])


# ---- rows that do not count


@BY_OPTION
@BY_NAME
def test_rows_without_a_target_count_nowhere(ops: Ops, given: dict) -> None:
    """All rows ignored is a loss of 0 with gradient 0, never 0 / 0; and their contents change no bit of the rest."""
    given = given | {"token_weight": WEIGHT[:4]} if "token_weight" in given else given
    x, w = randn(4, 5).requires_grad_(), randn(13, 5, seed=1).requires_grad_()
    nothing = torch.full((4,), IGNORE)
    total, count = ops.linear_cross_entropy(x, w, nothing, **given)
    assert (float(total.detach()), float(count)) == (0.0, 0.0)
    for gradient in torch.autograd.grad(total, (x, w)):
        assert not gradient.any()
    up = torch.ones((), dtype=torch.float64)
    dx, dw, _ = linear_cross_entropy_backward(up, x.detach(), w.detach(), nothing, **given)
    assert not dx.any()
    assert not dw.any()
    targets = torch.tensor([1, IGNORE, 2, IGNORE])
    kept = ops.linear_cross_entropy(x, w, targets, **given)[0]
    changed = x.detach().clone()
    changed[1], changed[3] = torch.nan, 1e30
    assert torch.equal(ops.linear_cross_entropy(changed, w, targets, **given)[0], kept)
    dz = cross_entropy_backward(up, changed @ w.detach().T, targets, **given)
    assert dz.isfinite().all()
    assert not dz[1::2].any()
    assert not ops.token_logprobs(changed, w, targets)[1::2].any()


@BY_OPTION
@BY_NAME
def test_one_row_is_a_batch(ops: Ops, given: dict) -> None:
    given = given | {"token_weight": WEIGHT[:1]} if "token_weight" in given else given
    logits, target = randn(1, 13), TARGETS[:1]
    total, count = ops.cross_entropy(logits, target, **given)
    assert (float(total), float(count)) == pytest.approx(by_loop(logits, target, **given), rel=1e-12)


@BY_NAME
def test_smoothing_reaches_every_column_it_is_given(ops: Ops) -> None:
    """A head of 13 words with 3 rows of padding: given whole, the padding has its share; without, none."""
    x, w = randn(6, 5), torch.cat((randn(13, 5, seed=1), torch.zeros(3, 5, dtype=torch.float64)))
    for rows in (16, 13):
        got = ops.linear_cross_entropy(x, w[:rows], TARGETS, smoothing=0.3)[0]
        assert float(got) == pytest.approx(by_loop(x @ w[:rows].T, TARGETS, smoothing=0.3)[0], rel=1e-12)


@BY_NAME
def test_a_word_that_cannot_be_costs_nothing(ops: Ops) -> None:
    """A column of -inf (a forbidden word) leaves loss and gradient finite, as long as nothing smooths over it."""
    logits = randn(6, 13)
    logits[:, 5] = -torch.inf
    leaf = logits.clone().requires_grad_()
    total = ops.cross_entropy(leaf, TARGETS, z_loss=0.01)[0]
    without = torch.cat((logits[:, :5], logits[:, 6:]), 1)
    moved = torch.where(TARGETS > 5, TARGETS - 1, TARGETS)
    assert_close64([total], [ops.cross_entropy(without, moved, z_loss=0.01)[0]])
    (got,) = torch.autograd.grad(total, leaf)
    assert got.isfinite().all()
    assert_close64([cross_entropy_backward(torch.ones((), dtype=torch.float64), logits, TARGETS, z_loss=0.01)], [got])


# ---- large numbers


@BY_NAME
def test_the_loss_ignores_a_shift(ops: Ops) -> None:
    """Not so with a softcap or a z_loss, which look at the size of the logits."""
    logits = randn(6, 13)
    for given in ({}, {"smoothing": 0.1}):
        shifted = ops.cross_entropy(logits + 100.0, TARGETS, **given)[0]
        assert_close64([shifted], [ops.cross_entropy(logits, TARGETS, **given)[0]])
    for given in ({"softcap": 2.0}, {"z_loss": 0.1}):
        shifted = ops.cross_entropy(logits + 100.0, TARGETS, **given)[0]
        assert abs(float(shifted - ops.cross_entropy(logits, TARGETS, **given)[0])) > 1


@pytest.mark.parametrize("given", [{}, {"smoothing": 0.1}, {"softcap": 30.0}, {"z_loss": 1e-4}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@BY_NAME
def test_logits_of_ten_thousand_are_safe(ops: Ops, dtype: torch.dtype, given: dict) -> None:
    """exp of such a logit is infinite; loss and gradient are as in float64 all the same, at either end."""
    logits = torch.tensor([[1e4, 0, 0, -1e4], [1e4, 0, 0, -1e4], [-1e4, -1e4, -1e4, -1e4], [1e4, 1e4, 0, 1]])
    targets = torch.tensor([0, 3, 1, 0])
    for rows in (slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4), slice(0, 4)):
        leaf = logits[rows].to(dtype).requires_grad_()
        exact = leaf.detach().double().requires_grad_()
        loss, truth = (
            ops.cross_entropy(leaf, targets[rows], **given)[0],
            cross_entropy(exact, targets[rows], **given)[0],
        )
        assert float(loss.detach()) == pytest.approx(float(truth.detach()), rel=1e-6, abs=1e-10)
        (got,), (want,) = torch.autograd.grad(loss, leaf), torch.autograd.grad(truth, exact)
        assert torch.allclose(got.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
        closed = cross_entropy_backward(torch.ones(()), leaf.detach(), targets[rows], **given)
        assert torch.allclose(closed.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    certain = torch.zeros(1, 4)
    certain[0, 0] = 1e4
    assert float(ops.cross_entropy(certain, torch.tensor([0]))[0]) == 0.0
    assert float(ops.cross_entropy(certain, torch.tensor([1]))[0]) == 1e4


@BY_NAME
def test_a_loss_near_zero_keeps_its_digits_beside_large_logits(ops: Ops) -> None:
    """lse and z[y] are both about 1000.00005 here, where float32 has steps of 6e-5: their difference would be noise."""
    logits = torch.tensor([[1000.0, 990.0]])
    assert float(ops.cross_entropy(logits, torch.tensor([0]))[0]) == pytest.approx(math.log1p(math.exp(-10)), rel=1e-3)


@pytest.mark.parametrize("p", [0.9, 0.99, 0.999])
def test_a_confident_target_keeps_its_gradient_in_bfloat16(p: float) -> None:
    """p - 1 formed after rounding to bfloat16 would be off by 2, 20 and 100 %; it is formed in float32."""
    logits = torch.tensor([[math.log(p / (1 - p)), 0.0]], dtype=torch.bfloat16)
    truth = torch.softmax(logits.double(), -1)[0, 0] - 1
    got = cross_entropy_backward(torch.tensor(1.0), logits, torch.tensor([0]))[0, 0].double()
    assert abs(got / truth - 1) < 2**-8


# ---- accuracy


def eager_loss(
    z: Tensor, targets: Tensor, smoothing: float = 0.0, softcap: float | None = None, z_loss: float = 0.0
) -> Tensor:
    """The formula as training scripts write it: logits to float32 (float64 stays), then torch's functions."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    loss = torch.nn.functional.cross_entropy(z, targets, reduction="sum", label_smoothing=smoothing)
    return loss + z_loss * torch.logsumexp(z, -1).square().sum()


ACCURACY = [{}, {"smoothing": 0.1}, {"smoothing": 0.1, "softcap": 3.0, "z_loss": 1e-2}]


@pytest.mark.parametrize("given", ACCURACY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("shape", [(1, 7), (33, 130)])
@BY_NAME
def test_loss_and_gradient_are_as_accurate_as_eager(
    ops: Ops, dtype: torch.dtype, scale: float, shape: tuple[int, int], given: dict
) -> None:
    N, V = shape
    logits = (randn(V, N) * scale).to(dtype).T  # strided
    targets = torch.arange(N) * 31 % V
    exact = logits.double().requires_grad_()
    truth = eager_loss(exact, targets, **given)
    (truth_grad,) = torch.autograd.grad(truth, exact)
    results = []
    for f in (lambda z: ops.cross_entropy(z, targets, **given)[0], lambda z: eager_loss(z, targets, **given)):
        leaf = logits.clone().requires_grad_()
        loss = f(leaf)
        results.append((loss.detach()[None], torch.autograd.grad(loss, leaf)[0]))
    assert_as_accurate(results[0][0], results[1][0], truth.detach()[None])
    assert_as_accurate(results[0][1], results[1][1], truth_grad)
    closed = cross_entropy_backward(torch.ones(()), logits, targets, **given)
    assert_as_accurate(closed, results[1][1], truth_grad)


@pytest.mark.parametrize("given", ACCURACY, ids=str)
@BY_NAME
def test_a_large_vocabulary_is_summed_as_accurately(ops: Ops, given: dict) -> None:
    """262,144 words and some padding: sums over so many terms, and a smoothing of 4e-7 a word."""
    logits, targets = randn(3, 262144 + 57, dtype=torch.float32), torch.tensor([0, 262143, 262144 + 56])
    truth = eager_loss(logits.double(), targets, **given)[None]
    assert_as_accurate(
        ops.cross_entropy(logits, targets, **given)[0][None], eager_loss(logits, targets, **given)[None], truth
    )
    up = torch.ones(())
    (want,) = autograd(lambda z: eager_loss(z, targets, **given), [logits.double()], [up.double()])
    (eager,) = autograd(lambda z: eager_loss(z, targets, **given), [logits], [up])
    (ours,) = autograd(lambda z: ops.cross_entropy(z, targets, **given)[0], [logits], [up])
    assert_as_accurate(ours, eager, want)
    assert_as_accurate(cross_entropy_backward(up, logits, targets, **given), eager, want)


@pytest.mark.parametrize("given", ACCURACY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@BY_NAME
def test_head_and_loss_are_as_accurate_as_eager(ops: Ops, dtype: torch.dtype, scale: float, given: dict) -> None:
    """The gradients of hidden states, head and bias, which are sums over words and over rows."""
    x, w, b = randn(33, 24, dtype=dtype) * scale, randn(131, 24, seed=1, dtype=dtype), randn(131, seed=2, dtype=dtype)
    w = w / 24**0.5
    targets = torch.where(torch.arange(33) % 4 == 0, IGNORE, torch.arange(33) * 31 % 131)
    kept = targets != IGNORE
    inputs = [x, w, b]

    def eager(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return eager_loss((torch.nn.functional.linear(x, w, b))[kept], targets[kept], **given)

    def ours(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return ops.linear_cross_entropy(x, w, targets, bias=b, **given)[0]

    up = torch.ones(())
    exact = [t.double() for t in inputs]
    assert_as_accurate(ours(*inputs)[None], eager(*inputs)[None], eager(*exact)[None])
    truth = autograd(eager, exact, [up.double()])
    theirs = autograd(eager, inputs, [up])
    closed = linear_cross_entropy_backward(up, x, w, targets, bias=b, **given)
    for mine in (autograd(ours, inputs, [up]), closed):
        for a, e, t in zip(mine, theirs, truth, strict=True):
            assert a is not None
            assert_as_accurate(a, e, t)
    softcap = given.get("softcap")
    each = ops.token_logprobs(x, w, targets, bias=b, softcap=softcap)[kept]
    logits = torch.nn.functional.linear(x, w, b)[kept]
    torchs = torch.stack(
        [-eager_loss(row[None], t[None], softcap=softcap) for row, t in zip(logits, targets[kept], strict=True)]
    )
    assert_as_accurate(
        each, torchs, REFERENCE.token_logprobs(*exact[:2], targets, bias=exact[2], softcap=softcap)[kept]
    )


@BY_NAME
def test_a_head_in_float32_serves_bfloat16_activations(ops: Ops) -> None:
    """Trainable weights are kept wide; their gradients come back in their own type."""
    x, w, b = randn(6, 5, dtype=torch.bfloat16), randn(13, 5, seed=1, dtype=torch.float32), torch.zeros(13)
    up = torch.ones(())
    want = autograd(lambda x, w, b: ops.linear_cross_entropy(x, w, TARGETS, bias=b)[0], [x, w, b], [up])
    got = linear_cross_entropy_backward(up, x, w, TARGETS, bias=b)
    for a, e in zip(got, want, strict=True):
        assert a is not None
        assert a.dtype == e.dtype
        assert torch.allclose(a, e, rtol=2**-6, atol=2**-7)


# ---- what is refused


@BY_NAME
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"smoothing": 1.5}, "smoothing is 1.5"),
        ({"smoothing": -0.1}, "smoothing is -0.1"),
        ({"softcap": 0.0}, "softcap is 0.0"),
        ({"z_loss": -1.0}, "z_loss is -1.0"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused(ops: Ops, given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ops.cross_entropy(randn(2, 3), torch.tensor([0, 1]), **given)
    if "softcap" in given:
        with pytest.raises(ValueError, match=words):
            ops.token_logprobs(randn(2, 3), randn(4, 3), torch.tensor([0, 1]), **given)
