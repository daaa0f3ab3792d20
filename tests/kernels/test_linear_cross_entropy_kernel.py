"""Head and loss in one: as accurate as PyTorch, whichever gradients are asked for, without the logits."""

from typing import Any

import pytest
import torch
from kernel_cases import INTERPRETED, assert_as_accurate, gradients, randn
from minitune_kernels import logit_free
from minitune_kernels.cross_entropy import IGNORE
from minitune_kernels.linear_cross_entropy import linear_cross_entropy, token_logprobs
from torch import Tensor

from minitune.ops import BUILTIN, REFERENCE

BIG = pytest.mark.skipif(INTERPRETED, reason="real sizes need a GPU")
FORMS = {
    "chunks": (linear_cross_entropy, token_logprobs),
    "logit-free": (logit_free.linear_cross_entropy, logit_free.token_logprobs),
}
BY_FORM = pytest.mark.parametrize("form", FORMS)
OPTIONS = [
    {}, {"bias": True}, {"smoothing": 0.1}, {"softcap": 3.0}, {"z_loss": 1e-2}, {"weighted": True},
    {"bias": True, "smoothing": 0.2, "softcap": 3.0, "z_loss": 1e-3, "weighted": True},
]  # fmt: skip


def case(N: int, C: int, V: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, head = randn(N, C, dtype=dtype, device=device), randn(V, C, seed=1, dtype=dtype, device=device) * 0.3
    targets = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(N))
    targets[1::3] = IGNORE
    return x, head, randn(V, seed=2, dtype=dtype, device=device), targets.to(device)


def run(
    f: Any, inputs: tuple[Tensor, ...], targets: Tensor, weight: Tensor | None, with_bias: bool, **options: Any
) -> tuple[Tensor, ...]:
    kind = torch.promote_types(inputs[0].dtype, torch.float32)
    w = None if weight is None else weight.to(kind)
    leaves = inputs if with_bias else inputs[:2]

    def loss(x: Tensor, head: Tensor, bias: Tensor | None = None) -> Tensor:
        total, denominator = f(x, head, targets, bias=bias, token_weight=w, **options)
        assert torch.allclose(denominator.double(), expected.double())
        return total

    expected = (targets != IGNORE).double() if weight is None else weight.double() * (targets != IGNORE)
    expected = expected.sum()
    return gradients(loss, leaves, torch.tensor(0.37, dtype=kind, device=inputs[0].device))


def check(
    form: str, x: Tensor, head: Tensor, offsets: Tensor, targets: Tensor, slack: float = 0.0, **options: Any
) -> None:
    with_bias, weighted = options.pop("bias", False), options.pop("weighted", False)
    weight = randn(len(x), seed=3).abs().to(x.device) + 0.1 if weighted else None
    inputs = (x, head, offsets)
    wide = tuple(t.double() for t in inputs)
    ours = run(FORMS[form][0], inputs, targets, weight, with_bias, **options)
    eager = run(BUILTIN.linear_cross_entropy, inputs, targets, weight, with_bias, **options)
    truth = run(REFERENCE.linear_cross_entropy, wide, targets, weight, with_bias, **options)
    for mine, theirs, true in zip(ours, eager, truth, strict=True):
        assert_as_accurate(mine, theirs, true, slack=slack)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@BY_FORM
def test_options(form: str, options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    check(form, *case(31, 16, 90, dtype, device), **options)


@pytest.mark.parametrize(("N", "C", "V"), [(1, 1, 2), (2, 8, 64), (40, 24, 131)])
@BY_FORM
def test_shapes(form: str, N: int, C: int, V: int, dtype: torch.dtype, device: torch.device) -> None:
    # Of a single small loss the rounding is that of the numbers around 1 that it is the difference of.
    check(form, *case(N, C, V, dtype, device), slack=2**-24 if N == 1 else 0.0)


@BY_FORM
def test_a_frozen_head_costs_no_gradient(form: str, dtype: torch.dtype, device: torch.device) -> None:
    """Guards LoRA: dx is the same, and nothing of the head's size is made."""
    loss_of, _ = FORMS[form]
    x, head, _, targets = case(20, 16, 90, dtype, device)
    (_, dx, _) = gradients(lambda x, w: loss_of(x, w, targets)[0], (x, head), torch.tensor(1.0, device=device))
    (_, frozen) = gradients(lambda x: loss_of(x, head, targets)[0], (x,), torch.tensor(1.0, device=device))
    assert torch.equal(dx, frozen)
    (_, dw) = gradients(lambda w: loss_of(x, w, targets)[0], (head,), torch.tensor(1.0, device=device))
    assert dw.shape == head.shape


def test_without_gradients_none_is_made(device: torch.device) -> None:
    """Guards validation: a head that could be trained is not, while gradients are off."""
    x, head, _, targets = case(9, 8, 30, torch.float32, device)
    x, head = x.requires_grad_(), head.requires_grad_()
    with torch.no_grad(), torch.autograd.profiler.profile() as profile:
        loss, _ = linear_cross_entropy(x, head, targets)
    assert not loss.requires_grad
    assert profile is not None
    events = profile.function_events
    assert events is not None
    products = sum(event.name == "aten::mm" for event in events)
    assert products == 1  # one chunk of six rows, for its logits


@BY_FORM
def test_the_upstream_gradient_is_not_rounded(form: str, dtype: torch.dtype, device: torch.device) -> None:
    """Guards 1 / 1531, which bfloat16 would make 0.13 % too small, in every gradient at once; and a second backward."""
    loss_of, _ = FORMS[form]
    x, head, _, targets = case(20, 16, 90, dtype, device)
    leaves = [x.requires_grad_(), head.requires_grad_()]
    loss, denominator = loss_of(x, head, targets)
    assert not denominator.requires_grad
    plain = torch.autograd.grad(loss, x, torch.tensor(1.0, device=device), retain_graph=True)[0]
    for factor in (1 / 1531, 2.0):
        up = torch.tensor(factor, device=device)
        dx, dhead = torch.autograd.grad(loss, leaves, up, retain_graph=True)
        if form == "chunks":  # made for 1 and multiplied later; the other form rounds the product only
            assert torch.equal(dx, (plain.double() * up.double()).to(dtype))
        error = (dx.double() - plain.double() * up.double()).norm() / (plain.double() * up.double()).norm()
        assert error < 2**-7
        assert dhead.dtype == dtype


@BY_FORM
def test_a_target_that_is_no_word_shows(form: str, dtype: torch.dtype, device: torch.device) -> None:
    """Guards memory beyond the row: neither read nor written; the loss is NaN, so nobody trains on."""
    loss_of, logprobs_of = FORMS[form]
    x, head, _, targets = case(20, 16, 90, dtype, device)
    for wrong in (90, -1, 1 << 40):
        targets[3] = wrong
        loss, _ = loss_of(x.requires_grad_(), head, targets)
        assert loss.isnan()
        (dx,) = torch.autograd.grad(loss, x)
        assert dx.isnan().any(1).nonzero().tolist() == [[3]]
        each = logprobs_of(x, head, targets)
        assert each.isnan().nonzero().tolist() == [[3]]


@BY_FORM
def test_no_targets_at_all(form: str, dtype: torch.dtype, device: torch.device) -> None:
    loss_of, _ = FORMS[form]
    x, head, _, targets = case(4, 8, 30, dtype, device)
    targets[:] = IGNORE
    x, head = x.requires_grad_(), head.requires_grad_()
    loss, denominator = loss_of(x, head, targets)
    loss.backward()
    assert loss == 0
    assert denominator == 0
    assert x.grad is not None
    assert head.grad is not None
    assert not x.grad.any()
    assert not head.grad.any()


@BY_FORM
def test_a_wider_head_keeps_its_type(form: str, device: torch.device) -> None:
    loss_of, _ = FORMS[form]
    x, head, _, targets = case(9, 8, 30, torch.float16, device)
    made = gradients(lambda x, w: loss_of(x, w, targets)[0], (x, head.float()), torch.tensor(1.0, device=device))
    assert made[1].dtype == torch.float16
    assert made[2].dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"softcap": 3.0}], ids=str)
@BY_FORM
def test_token_logprobs(form: str, options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    x, head, bias, targets = case(20, 16, 90, dtype, device)
    up = randn(20, seed=4).to(device)

    def run(f: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        leaves = inputs if "bias" in options else inputs[:2]
        kind = torch.promote_types(inputs[0].dtype, torch.float32)
        return gradients(
            lambda x, w, b=None: f(x, w, targets, bias=b, softcap=options.get("softcap")), leaves, up.to(kind)
        )

    inputs = (x, head, bias)
    ours, eager = run(FORMS[form][1], inputs), run(BUILTIN.token_logprobs, inputs)
    truth = run(REFERENCE.token_logprobs, tuple(t.double() for t in inputs))
    for mine, theirs, true in zip(ours, eager, truth, strict=True):
        assert_as_accurate(mine, theirs, true)


# Dynamo makes an instance of an autograd function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@BY_FORM
def test_one_graph_for_the_compiler(form: str, device: torch.device) -> None:
    loss_of, logprobs_of = FORMS[form]
    x, head, _, targets = case(9, 8, 30, torch.float32, device)

    def f(x: Tensor, head: Tensor) -> Tensor:
        loss, denominator = loss_of(x, head, targets)
        return loss / denominator + logprobs_of(x, head, targets).sum()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    one = torch.tensor(1.0, device=device)
    for a, b in zip(gradients(compiled, (x, head), one), gradients(f, (x, head), one), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@BIG
@pytest.mark.parametrize(("C", "V"), [(576, 49_152), (896, 151_936), (2304, 256_000)])
@pytest.mark.parametrize("options", OPTIONS[:1] + OPTIONS[-1:], ids=str)
@BY_FORM
def test_real_heads(form: str, C: int, V: int, options: dict[str, Any], device: torch.device) -> None:
    """Guards more than one chunk: 1,500 rows of 256,000 words pass the buffer's bound."""
    x, head, bias, targets = case(1500, C, V, torch.bfloat16, device)
    check(form, x, head * (10 / C**0.5), bias, targets, **options)
