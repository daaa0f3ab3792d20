"""The hand-written backward of a linear layer with LoRA: autograd's gradients, and less memory on the way."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from minitune.adapters.lora_linear import lora_linear


def formula(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
    return F.linear(x, weight, bias) + scale * F.linear(F.linear(x, A), B)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 7), (6, 7), (6,), (3, 7), (6, 3))
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)


@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_are_autograds(with_bias: bool) -> None:
    x, weight, bias, A, B = inputs()
    chosen = bias if with_bias else None
    dy = torch.randn(2, 5, 6, dtype=torch.float64)
    made = []
    contestants: list[Callable[..., Tensor]] = [lora_linear, formula]
    for f in contestants:
        leaves = [t.clone().requires_grad_() for t in (x, A, B)]
        y = f(leaves[0], weight, chosen, leaves[1], leaves[2], 0.7)
        made.append([y.detach(), *torch.autograd.grad(y, leaves, dy)])
    for ours, theirs in zip(*made, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12
    leaves = [t.clone().requires_grad_() for t in (x, A, B)]
    assert torch.autograd.gradcheck(lambda x, A, B: lora_linear(x, weight, chosen, A, B, 0.7), leaves)


def test_a_zero_b_is_the_base_bit_for_bit() -> None:
    x, weight, bias, A, B = inputs(torch.float32)
    assert torch.equal(lora_linear(x, weight, bias, A, torch.zeros_like(B), 2.0), F.linear(x, weight, bias))


def test_only_what_is_asked_for_is_made_and_in_its_type() -> None:
    """Guards mixed precision: float32 adapters under 16-bit activations; and a first layer, whose x takes none."""
    x, weight, _, A, B = inputs(torch.float32)
    A, B = A.requires_grad_(), B.requires_grad_()
    y = lora_linear(x.bfloat16(), weight.bfloat16(), None, A, B, 0.5)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert A.grad is not None
    assert B.grad is not None
    assert A.grad.dtype == B.grad.dtype == torch.float32


def test_layers_that_read_the_same_input_keep_it_once() -> None:
    """Guards the memory of q, k and v: what autograd keeps is one x, the weights that are there anyway, and h each."""
    x, weight, _, A, B = inputs(torch.float32)
    x, A, B = x.requires_grad_(), A.requires_grad_(), B.requires_grad_()
    kept: set[int] = set()
    shapes: list[tuple[int, ...]] = []

    def keep(t: Tensor) -> Tensor:
        if t.data_ptr() not in kept:
            kept.add(t.data_ptr())
            shapes.append(tuple(t.shape))
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        outs = [lora_linear(x, weight, None, A, B, 1.0) for _ in range(3)]
    assert len(outs) == 3
    assert shapes.count((2, 5, 7)) == 1
    assert shapes.count((10, 3)) == 3
    assert len(shapes) == 7  # x, weight, A, B, and h three times
