"""Chapter 9: a block from closed forms against the model's own block, and its gradients against autograd through it."""

import dataclasses

import pytest
import torch
from math_cases import by_autograd, numbers, same, small_config

from minitune.models import decoder, gpt
from minitune.models.base import LanguageModel
from minitune.models.layers import Rotary
from minitune.models.linear import Linear
from minitune.ops import REFERENCE, rows_plan
from minitune.ops.block import BlockWeights, block, block_backward
from minitune.ops.linear import linear, linear_backward

NAMES = {
    "attention_norm": "attention_norm.weight",
    "q": "attention.q_proj.weight",
    "k": "attention.k_proj.weight",
    "v": "attention.v_proj.weight",
    "o": "attention.o_proj.weight",
    "mlp_norm": "mlp_norm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}


def filled(module: torch.nn.Module) -> torch.nn.Module:
    for n, weight in enumerate(module.parameters()):
        weight.data = numbers(*weight.shape, seed=n)
    return module


@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_a_block_is_the_models_and_so_is_its_gradient(heads: tuple[int, int], kind) -> None:
    """RES-2, RES-3 forward; RES-8, RES-9 backward: every gradient of the block, by autograd through the model's own."""
    config = small_config(num_heads=heads[0], num_kv_heads=heads[1], activation=kind)
    theirs = filled(decoder.Block(config, REFERENCE, 0))
    plan = rows_plan(2, 5, "cpu")
    cos, sin = Rotary(config, torch.float64)(plan.positions)
    x, dy = numbers(2, 5, 8).requires_grad_(), numbers(2, 5, 8, seed=50)
    w = BlockWeights(**{ours: theirs.get_parameter(name).detach() for ours, name in NAMES.items()})
    given = {"channels": config.head_dim, "eps": config.norm_eps, "kind": kind}
    want = theirs(x, cos, sin, plan, None)
    same(block(x, w, cos, sin, **given), want)
    leaves = [theirs.get_parameter(name) for name in NAMES.values()]
    dx, *dw = torch.autograd.grad(want, [x, *leaves], dy)
    got, of_weights = block_backward(dy, x.detach(), w, cos, sin, **given)
    same(got, dx)
    same([getattr(of_weights, field.name) for field in dataclasses.fields(BlockWeights)], dw)


def test_a_linear_layer() -> None:
    """RES-1 by a loop and by the model's layer; RES-6, RES-7 by autograd."""
    x, W, b, dy = numbers(2, 3, 4), numbers(5, 4, seed=1), numbers(5, seed=2), numbers(2, 3, 5, seed=3)
    want = torch.stack([x @ row for row in W], -1) + b
    same(linear(x, W, b), want)
    layer = Linear(4, 5, bias=True).double()
    layer.weight.data, layer.bias.data = W, b  # pyright: ignore[reportOptionalMemberAccess]
    same(layer(x), want)
    same(linear_backward(dy, x, W), by_autograd(linear, [x, W, b], dy))


def test_the_gradient_runs_past_a_layer() -> None:
    """RES-8: with layers that add nothing, what comes from above arrives unchanged."""
    config = small_config()
    cos, sin = Rotary(config, torch.float64)(torch.arange(5)[None])
    fresh = filled(decoder.Block(config, REFERENCE, 0))
    w = BlockWeights(**{ours: fresh.get_parameter(name).detach() for ours, name in NAMES.items()})
    w = dataclasses.replace(w, o=0 * w.o, down=0 * w.down)
    x, dy = numbers(1, 5, 8), numbers(1, 5, 8, seed=3)
    given = {"channels": config.head_dim, "eps": config.norm_eps}
    same(block(x, w, cos, sin, **given), x)
    dx, dw = block_backward(dy, x, w, cos, sin, **given)
    same(dx, dy)
    assert dw.o.abs().max() > 0  # but they learn


def test_the_parallel_form() -> None:
    """RES-4: both halves read the same stream; by the halves themselves, values and gradients."""
    config = small_config(form="gpt", parallel_residual=True)
    theirs = filled(gpt.Block(config, REFERENCE, 0))
    assert isinstance(theirs, gpt.Block)
    plan = rows_plan(2, 5, "cpu")
    rotation = Rotary(config, torch.float64)(plan.positions)
    x, dy = numbers(2, 5, 8), numbers(2, 5, 8, seed=3)

    def attention(x: torch.Tensor) -> torch.Tensor:
        return theirs.attention(theirs.attention_norm(x), rotation, plan, None)

    def mlp(x: torch.Tensor) -> torch.Tensor:
        return theirs.mlp(theirs.mlp_norm(x))

    same(theirs(x, rotation, plan, None), x + attention(x) + mlp(x))
    (got,) = by_autograd(lambda a: theirs(a, rotation, plan, None), [x], dy)
    same(got, dy + by_autograd(attention, [x], dy)[0] + by_autograd(mlp, [x], dy)[0])


def test_what_is_added_starts_narrow() -> None:
    """RES-5: the spread of the two matrices that end in the stream, for 2 layers and for 8."""
    for L in (2, 8):
        model: LanguageModel = decoder.Decoder(
            small_config(num_layers=L, hidden_size=160, intermediate_size=320, head_dim=80)
        )
        model.initialize(0)
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and name.startswith("blocks"):
                wide = 0.02 / (2 * L) ** 0.5 if name.split(".")[-2] in ("o_proj", "down_proj") else 0.02
                assert abs(float(weight.detach().std()) / wide - 1) < 5 / (2 * weight.numel()) ** 0.5, name
