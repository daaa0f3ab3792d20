"""The cross-entropy kernels: as accurate as PyTorch at every type, at confident targets too, whatever the options."""

from typing import Any

import pytest
import torch
from kernel_cases import INTERPRETED, assert_as_accurate, gradients, randn
from minitune_kernels.cross_entropy import IGNORE, cross_entropy
from torch import Tensor

from minitune.ops import BUILTIN, REFERENCE

BIG = pytest.mark.skipif(INTERPRETED, reason="real sizes need a GPU")
OPTIONS = [
    {}, {"smoothing": 0.1}, {"softcap": 5.0}, {"z_loss": 1e-2}, {"weighted": True},
    {"smoothing": 0.2, "softcap": 3.0, "z_loss": 1e-3, "weighted": True},
]  # fmt: skip


def case(N: int, V: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    logits = (randn(N, V) * scale).to(dtype).to(device)
    targets = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(N))
    targets[1::3] = IGNORE
    return logits, targets.to(device)


def check(logits: Tensor, targets: Tensor, *, weighted: bool = False, **options: Any) -> None:
    weight = randn(len(logits), seed=3).abs().to(logits.device) + 0.1 if weighted else None
    up = torch.tensor(0.37, device=logits.device)

    def run(ops: Any, x: Tensor) -> tuple[Tensor, ...]:
        w = None if weight is None else weight.to(torch.promote_types(x.dtype, torch.float32))
        kept: list[Tensor] = []

        def f(x: Tensor) -> Tensor:
            loss, denominator = ops(x, targets, token_weight=w, **options)
            kept.append(denominator)
            return loss

        return *gradients(f, [x], up.to(torch.promote_types(x.dtype, torch.float32))), kept[0]

    ours, eager = run(cross_entropy, logits), run(BUILTIN.cross_entropy, logits)
    truth = run(REFERENCE.cross_entropy, logits.double())
    for i, (mine, theirs, true) in enumerate(zip(ours, eager, truth, strict=True)):
        # The sum behind a loss near 0 is just above 1, where float32 has a unit of 2^-23; so many rows, so many units.
        # A probability just below 1 is right to half a unit of 2^-24 there, and its gradient is what is left of it.
        assert_as_accurate(mine, theirs, true, slack=2**-23 * len(logits) if i == 0 else 2**-25)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    check(*case(7, 200, dtype, device), **options)


@pytest.mark.parametrize(("N", "V"), [(1, 1), (1, 63), (3, 64), (2, 65), (5, 500)])
@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_shapes_and_scales(N: int, V: int, scale: float, dtype: torch.dtype, device: torch.device) -> None:
    check(*case(N, V, dtype, device, scale))


@pytest.mark.parametrize("p", [0.9, 0.99, 0.999])
def test_confident_targets(p: float, dtype: torch.dtype, device: torch.device) -> None:
    """Guards the gradient p - 1 of a target that is nearly sure: rounded once, not after a subtraction of rounded p."""
    V = 100
    logits = randn(6, V, dtype=torch.float64) * 0.01
    targets = torch.arange(6)
    logits[torch.arange(6), targets] = torch.logsumexp(logits[:, 6:], 1) + torch.tensor(p / (1 - p)).double().log()
    check(logits.to(dtype).to(device), targets.to(device))


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_large_logits_keep_their_digits(shift: float, dtype: torch.dtype, device: torch.device) -> None:
    if dtype == torch.bfloat16:
        shift *= 0.1
    logits, targets = case(5, 130, dtype, device, 20.0)
    check((logits.double() + shift).to(dtype), targets)


def test_rows_without_a_target_count_nothing(dtype: torch.dtype, device: torch.device) -> None:
    logits, targets = case(4, 70, dtype, device)
    targets[:] = IGNORE
    x = logits.clone().requires_grad_()
    loss, denominator = cross_entropy(x, targets, smoothing=0.1)
    loss.backward()
    assert loss == 0
    assert denominator == 0
    assert x.grad is not None
    assert not x.grad.any()


def test_strided_rows_and_untouched_logits(dtype: torch.dtype, device: torch.device) -> None:
    wide = randn(6, 300, dtype=dtype, device=device)
    targets = case(6, 100, dtype, device)[1]
    check(wide[:, 100:200], targets)
    check(randn(100, 6, dtype=dtype, device=device).T, targets)
    before = wide.clone()
    x = wide.requires_grad_()
    cross_entropy(x[:, :100], targets)[0].backward()
    assert torch.equal(wide.detach(), before)


@pytest.mark.parametrize("wrong", [100, -1, 1 << 40])
def test_a_target_that_is_no_column_shows(wrong: int, dtype: torch.dtype, device: torch.device) -> None:
    """Guards memory beyond the row: not read; the loss and that row's gradient are NaN, so nobody trains on."""
    logits, targets = case(6, 100, dtype, device)
    targets[2] = wrong
    x = logits.requires_grad_()
    loss, _ = cross_entropy(x, targets, smoothing=0.1)
    (dx,) = torch.autograd.grad(loss, x)
    assert loss.isnan()
    assert dx.isnan().any(1).nonzero().tolist() == [[2]]


def test_a_forbidden_word_costs_nothing(dtype: torch.dtype, device: torch.device) -> None:
    """A column of -inf, and a tile of nothing else, leave loss and gradient as without them."""
    logits, targets = case(5, 400, dtype, device)
    targets = torch.where(targets == IGNORE, IGNORE, targets % 60)
    gaps = logits.clone()
    gaps[:, 64:300] = -torch.inf
    dense = torch.cat((logits[:, :64], logits[:, 300:]), 1)
    one = torch.tensor(1.0, device=device)
    loss, dx = gradients(lambda x: cross_entropy(x, targets, z_loss=0.01)[0], [gaps], one)
    same, dense_dx = gradients(lambda x: cross_entropy(x, targets, z_loss=0.01)[0], [dense], one)
    assert torch.allclose(loss, same)
    assert not dx[:, 64:300].any()
    assert torch.allclose(torch.cat((dx[:, :64], dx[:, 300:]), 1), dense_dx, atol=1e-3)


def test_smoothing_beside_one_logit_far_below(device: torch.device) -> None:
    """Guards the mean over the vocabulary: summed below the largest logit, not as large numbers that cancel."""
    logits = randn(4, 500, dtype=torch.float32, device=device) + 1e4
    targets = torch.tensor([3, 7, 100, 499], device=device)
    logits[torch.arange(4), targets] = -1e4
    for smoothing in (0.1, 1.0):
        check(logits, targets, smoothing=smoothing)


def test_refusals(device: torch.device) -> None:
    logits, targets = case(2, 8, torch.float32, device)
    with pytest.raises(ValueError, match=r"BUILTIN\.cross_entropy"):
        cross_entropy(logits.double(), targets)
    wrongs: list[dict[str, Any]] = [{"smoothing": 1.5}, {"softcap": 0.0}, {"z_loss": -1.0}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            cross_entropy(logits, targets, **wrong)


# Dynamo makes an instance of an autograd function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_one_graph_for_the_compiler(device: torch.device) -> None:
    logits, targets = case(4, 70, torch.float32, device)

    def f(x: Tensor) -> Tensor:
        loss, denominator = cross_entropy(x, targets, smoothing=0.1)
        return loss / denominator

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    one = torch.tensor(1.0, device=device)
    for a, b in zip(gradients(compiled, [logits], one), gradients(f, [logits], one), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@BIG
@pytest.mark.parametrize("V", [32_000, 49_152, 128_256, 151_936, 262_144])
@pytest.mark.parametrize("options", OPTIONS[:2] + OPTIONS[-1:], ids=str)
def test_real_vocabularies(V: int, options: dict[str, Any], device: torch.device) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        check(*case(64, V, dtype, device, 3.0), **options)
    check(*case(1, V, torch.bfloat16, device, 3.0), **options)


@BIG
def test_more_than_two_billion_logits(device: torch.device) -> None:
    """Guards 32-bit offsets: the last rows against float64."""
    N, V = 8448, 262_144
    logits = torch.randn(N, V, device=device, dtype=torch.bfloat16)
    targets = torch.randint(0, V, (N,), device=device)
    x = logits.requires_grad_()
    loss, _ = cross_entropy(x, targets)
    (dx,) = torch.autograd.grad(loss, x)
    last = logits[-2:].detach().double().requires_grad_()
    true, _ = REFERENCE.cross_entropy(last, targets[-2:])
    (dtrue,) = torch.autograd.grad(true, last)
    assert (dx[-2:].double() - dtrue).abs().max() <= 2**-8
    assert (dx[-2:].double() - dtrue).norm() <= 5e-3 * dtrue.norm()
