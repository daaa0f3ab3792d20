"""The fast paths on a CPU against the formulas: in float64 to its digits, in float32 as accurate as torch's own."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from minitune.ops import BUILTIN, IGNORE, REFERENCE, rows_plan
from minitune.ops import product as rooms
from minitune.ops.attention import attention, attention_backward
from minitune.ops.attention_on_cpu import LONG, TILE, attention_on_cpu
from minitune.ops.head_on_cpu import TRAINED_ROWS, WORDS, linear_cross_entropy_on_cpu
from minitune.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_backward
from minitune.ops.product import linear, onednn, product, served


@pytest.fixture(params=[True, False], ids=["oneDNN", "MKL"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both libraries, whatever this processor would take; oneDNN only where torch has it."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(rooms, "onednn", lambda: request.param)
    return request.param


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def relative(got: Tensor, truth: Tensor) -> float:
    return float((got.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("N", [1, 3, 64, 400])
def test_products_are_products(library: bool, N: int) -> None:
    """Guards the strides: either factor may be a transposed view, or have gaps between its rows."""
    x, weight, dy = noise(N, 200), noise(700, 200), noise(N, 700)
    gaps = noise(700, 3, 200)[:, 1]
    for a, b in ((x, weight), (dy, weight.T), (dy.T, x.T), (x, gaps), (dy, gaps.T), (gaps.T, dy)):
        assert relative(product(a, b), a.double() @ b.double().T) < 1e-6
    bias = noise(700)
    assert relative(product(x, weight, bias), x.double() @ weight.double().T + bias.double()) < 1e-6
    assert served(x, weight) == library  # else nothing of this was oneDNN's


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_linear_layer_has_autograds_gradients(library: bool, with_bias: bool) -> None:
    x, weight, bias, dy = noise(2, 20, 200), noise(700, 200), noise(700), noise(2, 20, 700)
    assert served(x, weight) == library
    found = []
    for f, kind in ((linear, torch.float32), (F.linear, torch.float64)):
        leaves = [t.to(kind).requires_grad_() for t in (x, weight, bias)[: 2 + with_bias]]
        y = f(*leaves)
        found.append([y.detach(), *torch.autograd.grad(y, leaves, dy.to(kind))])
    for got, truth in zip(*found, strict=True):
        assert relative(got, truth) < 1e-6


def test_a_frozen_weight_takes_no_gradient(library: bool) -> None:
    x, weight = noise(20, 200).requires_grad_(), noise(700, 200)
    linear(x, weight).sum().backward()
    assert weight.grad is None
    assert x.grad is not None


def test_the_choice_is_no_measurement() -> None:
    """Guards a run that goes on: which library multiplies must not change from one process to the next."""
    assert onednn() is onednn()
    x, weight = noise(8, 200), noise(700, 200)
    assert served(x, weight) == onednn()
    assert not served(x.double(), weight.double())
    assert not served(x.bfloat16(), weight.bfloat16())


CASES = [{}, {"smoothing": 0.1}, {"token_weight": True}, {"smoothing": 0.3, "token_weight": True}]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "+".join(case) or "plain")
@pytest.mark.parametrize("frozen", [True, False])
def test_the_head_in_chunks_is_the_formula(case: dict[str, Any], frozen: bool) -> None:
    """Guards the ends of chunks: rows and words that do not divide, and rows without a target between them."""
    N, C, V = 2 * TRAINED_ROWS + 37, 8, WORDS + 11
    x, weight = noise(N, C, dtype=torch.float64), noise(V, C, dtype=torch.float64)
    targets = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(1))
    targets[::5] = IGNORE
    options = dict(case)
    if "token_weight" in options:
        options["token_weight"] = noise(N, dtype=torch.float64).abs()
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)]
    loss, denominator = linear_cross_entropy_on_cpu(leaves[0], leaves[1], targets, **options)
    (3 * loss).backward()
    truth, divisor = linear_cross_entropy(x, weight, targets, **options)
    three = torch.tensor(3.0, dtype=torch.float64)
    dx, dweight, _ = linear_cross_entropy_backward(three, x, weight, targets, **options)
    torch.testing.assert_close(loss, truth, rtol=1e-12, atol=0)
    torch.testing.assert_close(denominator, divisor, rtol=1e-12, atol=0)
    assert leaves[0].grad is not None
    torch.testing.assert_close(leaves[0].grad, dx, rtol=1e-10, atol=1e-12)
    if frozen:
        assert leaves[1].grad is None
    else:
        assert leaves[1].grad is not None
        torch.testing.assert_close(leaves[1].grad, dweight, rtol=1e-10, atol=1e-12)


def test_the_head_holds_its_digits_where_logits_are_large() -> None:
    """Guards -log p of a target that is nearly certain, and of one whose probability is 0 in float32."""
    x, weight = torch.eye(3), torch.tensor([[200.0, 0.0, 0.5], [0.0, 0.0, 0.0], [-200.0, 12.0, 0.0]])
    for targets in ([0, 1, 2], [2, 2, 0]):
        got, _ = linear_cross_entropy_on_cpu(x, weight, torch.tensor(targets))
        truth, _ = linear_cross_entropy(x.double(), weight.double(), torch.tensor(targets))
        torch.testing.assert_close(got.double(), truth, rtol=1e-6, atol=0)


def test_a_batch_without_a_target_is_zero() -> None:
    x = noise(4, 8).requires_grad_()
    loss, denominator = linear_cross_entropy_on_cpu(x, noise(50, 8), torch.full((4,), IGNORE))
    loss.backward()
    assert x.grad is not None
    assert (float(loss.detach()), float(denominator), float(x.grad.abs().sum())) == (0.0, 0.0, 0.0)


SHAPES = [(2, 2 * TILE + 5, 2 * TILE + 5, 4, 2), (1, TILE, TILE + 40, 3, 3), (1, 7, 7, 4, 1), (2, TILE + 1, 300, 6, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_in_tiles_is_the_formula(shape: tuple[int, ...], scale: float | None) -> None:
    """Guards the last tile, groups of heads, and queries behind cached keys."""
    B, T, S, H, K = shape
    q, k, v = (noise(B, n, heads, 16, dtype=torch.float64) for n, heads in ((T, H), (S, K), (S, K)))
    dy = noise(B, T, H, 16, seed=1, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    y = attention_on_cpu(leaves[0], leaves[1], leaves[2], scale)
    torch.testing.assert_close(y, attention(q, k, v, scale=scale), rtol=1e-10, atol=1e-12)
    truths = attention_backward(dy, q, k, v, scale=scale)
    for got, truth in zip(torch.autograd.grad(y, leaves, dy), truths, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-10, atol=1e-12)


def test_long_rows_of_the_builtin_table_are_as_accurate_as_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards that the table takes the tiles at all, and what float32 loses in them."""
    if not onednn():
        pytest.skip("this processor's products stay with MKL")
    q, k, v = (noise(1, LONG, heads, 32) for heads in (4, 2, 2))
    truth = REFERENCE.attention(q.double(), k.double(), v.double())
    ours = BUILTIN.attention(q, k, v, plan=rows_plan(1, LONG, "cpu"))
    theirs = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    assert torch.equal(ours, attention_on_cpu(q, k, v))
    assert relative(ours, truth) <= 1.25 * relative(theirs, truth) + 1e-7
