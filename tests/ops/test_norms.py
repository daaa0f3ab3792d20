"""RMSNorm and LayerNorm: gradients in closed form, accuracy at every type, and what makes them norms."""

import pytest
import torch
from ops_cases import SCALES, assert_as_accurate, assert_close64, autograd, randn
from torch import Tensor

from minitune.ops import BUILTIN, REFERENCE, Ops
from minitune.ops.norms import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward

SHAPES = [(1, 1), (1, 7), (5, 64), (2, 3, 33)]
TABLES = [REFERENCE, BUILTIN]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_backward_is_autograd(shape: tuple[int, ...], offset: float) -> None:
    x, w, dy = randn(*shape), randn(shape[-1], seed=1), randn(*shape, seed=2)
    for scale_in_fp32 in (False, True):

        def f(x: Tensor, w: Tensor, late: bool = scale_in_fp32) -> Tensor:
            return rms_norm(x, w, eps=1e-5, offset=offset, scale_in_fp32=late)

        assert_close64(rms_norm_backward(dy, x, w, eps=1e-5, offset=offset), autograd(f, [x, w], [dy]))
        assert torch.autograd.gradcheck(f, [x.requires_grad_(), w.requires_grad_()])
        x, w = x.detach(), w.detach()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_builtin_rms_norm_has_the_gradient_of_the_formula(shape: tuple[int, ...], offset: float) -> None:
    """Guards the hand-written backward of a CPU, also where the weight is frozen, as under LoRA, or the input is."""
    x, w, dy = randn(*shape), randn(shape[-1], seed=1), randn(*shape, seed=2)
    dx, dw = rms_norm_backward(dy, x, w, eps=1e-5, offset=offset)

    def f(x: Tensor, w: Tensor) -> Tensor:
        return BUILTIN.rms_norm(x, w, eps=1e-5, offset=offset)

    assert_close64(autograd(f, [x, w], [dy]), [dx, dw])
    assert_close64(autograd(lambda x: f(x, w), [x], [dy]), [dx])
    assert_close64(autograd(lambda w: f(x, w), [w], [dy]), [dw])


@pytest.mark.parametrize("scale", SCALES)
def test_the_builtin_rms_norm_backward_is_as_accurate_as_torch_s(scale: float) -> None:
    x, w, dy = randn(9, 67, dtype=torch.float32) * scale, randn(67, seed=1, dtype=torch.float32), randn(9, 67, seed=2)
    truth = rms_norm_backward(dy, x.double(), w.double(), eps=1e-5)
    ours = autograd(lambda x, w: BUILTIN.rms_norm(x, w, eps=1e-5), [x, w], [dy.float()])
    eager = autograd(lambda x, w: torch.nn.functional.rms_norm(x, (67,), w, 1e-5), [x, w], [dy.float()])
    for got, theirs, exact in zip(ours, eager, truth, strict=True):
        assert_as_accurate(got, theirs, exact)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_layer_norm_backward_is_autograd(shape: tuple[int, ...]) -> None:
    x, w, b, dy = randn(*shape), randn(shape[-1], seed=1), randn(shape[-1], seed=2), randn(*shape, seed=3)

    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return layer_norm(x, w, b, eps=1e-5)

    assert_close64(layer_norm_backward(dy, x, w, eps=1e-5), autograd(f, [x, w, b], [dy]))
    assert torch.autograd.gradcheck(f, [t.requires_grad_() for t in (x, w, b)])


def eager_rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """The reference library's order for Llama: normalise in float32, round, scale."""
    wide = x.float()
    return w * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_norms_are_as_accurate_as_eager(ops: Ops, dtype: torch.dtype, scale: float) -> None:
    x, w, b = randn(9, 67, dtype=dtype) * scale, randn(67, seed=1, dtype=dtype), randn(67, seed=2, dtype=dtype)
    x = x.t().contiguous().t()  # strided rows
    truth = rms_norm(x.double(), w.double(), eps=1e-5)
    assert_as_accurate(ops.rms_norm(x, w, eps=1e-5), eager_rms_norm(x, w, 1e-5), truth)
    truth = layer_norm(x.double(), w.double(), b.double(), eps=1e-5)
    eager = torch.nn.functional.layer_norm(x, (67,), w, b, 1e-5)
    assert_as_accurate(ops.layer_norm(x, w, b, eps=1e-5), eager, truth)


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_rms_norm_ignores_length_and_layer_norm_the_mean_too(ops: Ops) -> None:
    x, w, b = randn(4, 32), randn(32, seed=1), randn(32, seed=2)
    assert_close64([ops.rms_norm(7.5 * x, w, eps=1e-300)], [ops.rms_norm(x, w, eps=1e-300)])
    assert_close64([ops.layer_norm(7.5 * x + 3, w, b, eps=1e-300)], [ops.layer_norm(x, w, b, eps=1e-300)])
    ones = torch.ones(32, dtype=torch.float64)
    assert_close64([ops.rms_norm(x, ones, eps=1e-300).square().mean(-1)], [ones[:4]])


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_the_order_of_rounding_is_the_familys(ops: Ops) -> None:
    """In bfloat16 Llama rounds before it scales, Gemma and OLMo-2 after; the bits differ and must be right."""
    x, w = randn(16, 64, dtype=torch.bfloat16), randn(64, seed=1, dtype=torch.bfloat16)
    x_hat = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(ops.rms_norm(x, w, eps=1e-6), x_hat.bfloat16() * w)
    late = ops.rms_norm(x, w, eps=1e-6, offset=1.0, scale_in_fp32=True)
    assert torch.equal(late, (x_hat * (1.0 + w.float())).bfloat16())
