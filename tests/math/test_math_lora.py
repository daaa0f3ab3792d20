"""Chapter 13: LoRA and DoRA against the dense layer that they stand for, in value and in every gradient."""

import math

import pytest
import torch
from math_cases import by_autograd, numbers, same, small_config
from torch import Tensor, nn

from minitune.adapters.lora import LoRAConfig, LoRALinear, add_lora
from minitune.adapters.lora_linear import lora_linear
from minitune.models.decoder import Decoder
from minitune.models.linear import Linear
from minitune.optim import AdamW

IN, OUT = 6, 5


def layer(rank: int = 2, zero: bool = False, **given) -> LoRALinear:
    base = Linear(IN, OUT, bias=True).double()
    base.weight.data, base.bias.data = numbers(OUT, IN), numbers(OUT, seed=1)  # pyright: ignore[reportOptionalMemberAccess]
    made = LoRALinear(base, LoRAConfig(rank=rank, alpha=3.0, **given))
    made.lora_A.data = numbers(rank, IN, seed=2)
    made.lora_B.data = numbers(OUT, rank, seed=3) * (not zero)
    if made.lora_m is not None and not zero:
        made.lora_m.data = numbers(OUT, seed=4).abs() + 0.5
    return made


def dense(x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """The sum as one matrix."""
    return x @ (W + s * B @ A).T + b


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_lora_is_the_dense_sum_and_so_are_its_gradients(rank: int) -> None:
    """LORA-1 forward; LORA-8, LORA-9, LORA-10, LORA-11 by autograd through the dense matrix."""
    x, W, b = numbers(2, 3, IN, seed=9), numbers(OUT, IN), numbers(OUT, seed=1)
    A, B, dy = numbers(rank, IN, seed=2), numbers(OUT, rank, seed=3), numbers(2, 3, OUT, seed=5)
    same(lora_linear(x, W, b, A, B, 0.7), dense(x, W, b, A, B, 0.7))
    got = by_autograd(lambda x, A, B: lora_linear(x, W, b, A, B, 0.7), [x, A, B], dy)
    same(got, by_autograd(lambda x, A, B: dense(x, W, b, A, B, 0.7), [x, A, B], dy))
    h, dh = x @ A.T, 0.7 * dy @ B  # and the chapter's own lines
    want = (dy @ W + dh @ A, torch.einsum("btr,bti->ri", dh, x), 0.7 * torch.einsum("bto,btr->or", dy, h))
    same(got, want)


def test_scale() -> None:
    """LORA-2."""
    for rank in (1, 4, 9):
        same(LoRAConfig(rank=rank, alpha=6.0).scale, 6.0 / rank)
        same(LoRAConfig(rank=rank, alpha=6.0, rslora=True).scale, 6.0 / math.sqrt(rank))


@pytest.mark.parametrize("dora", [False, True])
def test_the_start(dora: bool) -> None:
    """LORA-3: B = 0 is the base; then B has a gradient and A has none; A lies in its bounds and fills them."""
    made = layer(zero=True, dora=dora)
    x, dy = numbers(4, IN, seed=9), numbers(4, OUT, seed=5)
    same(made(x), made.base(x))
    made(x).backward(dy)
    assert made.lora_A.grad is not None
    assert not made.lora_A.grad.any()
    assert made.lora_B.grad is not None
    assert made.lora_B.grad.abs().min() > 1e-3
    model = Decoder(small_config(hidden_size=64, head_dim=4))
    model.initialize(0)
    name = add_lora(model, LoRAConfig(rank=8))[0]
    adapted = model.get_submodule(name)
    assert isinstance(adapted, LoRALinear)
    assert not adapted.lora_B.any()
    bound = 1 / math.sqrt(64)
    assert bound * 0.95 < float(adapted.lora_A.detach().abs().max()) <= bound


@pytest.mark.parametrize("dora", [False, True])
def test_merged(dora: bool) -> None:
    """LORA-4: one matrix that does the same."""
    made = layer(dora=dora)
    x = numbers(4, IN, seed=9)
    same(made(x), x @ made.merged().T + numbers(OUT, seed=1))
    if not dora:
        same(made.merged(), made.base.weight + 1.5 * made.lora_B @ made.lora_A)


def test_dora_and_its_gradients() -> None:
    """LORA-5, LORA-6, LORA-12: by the dense matrix, its rows' lengths taken as constants in the backward."""
    made = layer(dora=True)
    W, b, s = made.base.weight.detach(), made.base.bias, made.scale
    assert b is not None
    assert made.lora_m is not None
    inputs = [numbers(4, IN, seed=9), made.lora_A.detach(), made.lora_B.detach(), made.lora_m.detach()]
    dy = numbers(4, OUT, seed=5)

    def theirs(x: Tensor, A: Tensor, B: Tensor, m: Tensor) -> Tensor:
        whole = W + s * B @ A
        return (m / whole.norm(dim=1).detach()) * (x @ whole.T) + b.detach()

    same(made.row_norms(), (W + s * inputs[2] @ inputs[1]).norm(dim=1))
    same(made.gain(), inputs[3] / (W + s * inputs[2] @ inputs[1]).norm(dim=1))
    x = inputs[0].clone().requires_grad_()
    y = made(x)
    same(y, theirs(*inputs))
    got = torch.autograd.grad(y, [x, made.lora_A, made.lora_B, made.lora_m], dy)
    same(got, by_autograd(theirs, inputs, dy))
    u = inputs[0] @ (W + s * inputs[2] @ inputs[1]).T
    same(got[3], (dy * u).sum(0) / made.row_norms())


@pytest.mark.parametrize("dora", [False, True])
def test_dropout(dora: bool) -> None:
    """LORA-7: with the mask that was drawn; and nothing is dropped outside of training."""
    made = layer(dora=dora, dropout=0.4)
    x = numbers(4, IN, seed=9)
    torch.manual_seed(5)
    got = made(x)
    torch.manual_seed(5)
    z = nn.functional.dropout(x, 0.4)
    W, s = made.base.weight, made.scale
    g = made.gain() if dora else 1.0
    same(got, made.base(x) + (g - 1) * (z @ W.T) + g * (s * z @ made.lora_A.T @ made.lora_B.T))
    made.eval()
    same(made(x), x @ made.merged().T + numbers(OUT, seed=1))


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_the_first_step_is_as_long_at_every_rank(rank: int) -> None:
    """LORA-2, LORA-11: after one step of AdamW the output has moved by lr alpha mean|h|, against the sign of dy."""
    made = layer(rank, zero=True)
    x, dy, lr = numbers(1, IN, seed=9), numbers(1, OUT, seed=5), 1e-2
    before = made(x)
    before.backward(dy)
    AdamW({"B": made.lora_B}, eps=1e-12).step(lr)
    mean = float((x @ made.lora_A.detach().T).abs().mean())
    same(made(x) - before, -lr * 3.0 * mean * dy.sign(), 1e-8)
