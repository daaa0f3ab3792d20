"""Rank-stabilised LoRA and DoRA: PEFT's values and gradients, nothing changed at the start, patterns for targets."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from minitune.adapters.lora import LoRAConfig, LoRALinear, add_lora
from minitune.config import ModelConfig
from minitune.errors import ConfigError
from minitune.models.decoder import Decoder
from minitune.models.linear import Linear

IN, OUT, RANK = 24, 40, 5
VARIANTS = [
    pytest.param({"dora": True}, id="dora"),
    pytest.param({"rslora": True}, id="rslora"),
    pytest.param({}, id="lora"),
]
# PEFT asks transformers for an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def adapted(dtype: torch.dtype = torch.float64, **changes: Any) -> LoRALinear:
    torch.manual_seed(0)
    base = Linear(IN, OUT, bias=True).to(dtype)
    with torch.no_grad():
        for weight in base.parameters():
            weight.normal_()
    layer = LoRALinear(base, LoRAConfig(rank=RANK, alpha=7.0, **changes))
    with torch.no_grad():
        layer.lora_A.normal_()
    return layer


def moved(layer: LoRALinear) -> LoRALinear:
    with torch.no_grad():
        layer.lora_B.normal_()
        if layer.lora_m is not None:
            layer.lora_m.mul_(torch.rand_like(layer.lora_m) + 0.5)
    return layer


def in_peft(layer: LoRALinear, config: LoRAConfig) -> Any:
    """PEFT's layer with the same numbers, and its names for ours."""
    from peft import LoraConfig, get_peft_model

    class Holder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(IN, OUT, dtype=torch.float64)

    holder = Holder()
    with torch.no_grad():
        holder.layer.weight.copy_(layer.base.weight)
        assert layer.base.bias is not None
        holder.layer.bias.copy_(layer.base.bias)
    settings = LoraConfig(
        r=RANK, lora_alpha=7, target_modules=["layer"], lora_dropout=config.dropout, use_dora=config.dora,
        use_rslora=config.rslora,
    )  # fmt: skip
    model: Any = get_peft_model(holder, settings, autocast_adapter_dtype=False)
    theirs = model.base_model.model.layer.double()
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(layer.lora_A)
        theirs.lora_B["default"].weight.copy_(layer.lora_B)
        if layer.lora_m is not None:
            theirs.lora_magnitude_vector["default"].weight.copy_(layer.lora_m)
    return theirs


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("changes", VARIANTS)
def test_values_and_gradients_are_those_of_peft(changes: dict[str, Any], dropout: float) -> None:
    """Guards the scale of both variants, and that DoRA's norm is a constant for the backward; float64."""
    config = LoRAConfig(rank=RANK, alpha=7.0, dropout=dropout, **changes)
    ours = moved(adapted(dropout=dropout, **changes))
    theirs = in_peft(ours, config)
    x = torch.randn(3, 7, IN, dtype=torch.float64)
    found = []
    for layer in (ours.train(), theirs.train()):
        torch.manual_seed(5)
        z = x.clone().requires_grad_()
        y = layer(z)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
        found.append((y.detach(), z.grad))
    grads: list[tuple[Tensor | None, Tensor | None]] = [
        (ours.lora_A.grad, theirs.lora_A["default"].weight.grad),
        (ours.lora_B.grad, theirs.lora_B["default"].weight.grad),
    ]
    if ours.lora_m is not None:
        grads.append((ours.lora_m.grad, theirs.lora_magnitude_vector["default"].weight.grad))
    for mine, other in (*zip(*found, strict=True), *grads):
        assert mine is not None
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_merged_matrix_does_the_same(changes: dict[str, Any]) -> None:
    layer = moved(adapted(**changes))
    x = torch.randn(9, IN, dtype=torch.float64)
    assert layer.base.bias is not None
    torch.testing.assert_close(x @ layer.merged().T + layer.base.bias, layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_start_is_the_base(changes: dict[str, Any]) -> None:
    """Guards B46: B = 0 changes no bit of LoRA, and DoRA by rounding alone, also of a base in bfloat16."""
    for dtype, close in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        layer = adapted(dtype, **changes)
        x = torch.randn(4, IN, dtype=dtype)
        before, after = layer.base(x).detach(), layer(x).detach()
        if changes.get("dora"):
            assert float((before - after).abs().max() / before.abs().max()) <= close
        else:
            assert torch.equal(before, after)


def test_rank_stabilised_scaling() -> None:
    assert LoRAConfig(rank=16, alpha=8.0, rslora=True).scale == 2.0
    assert LoRAConfig(rank=16, alpha=8.0).scale == 0.5


def test_row_norms_are_those_of_the_whole_matrix() -> None:
    """Guards the formula that never makes B A, at a size of cancellation: W + s B A almost zero in a row."""
    layer = moved(adapted(dora=True))
    whole = layer.base.weight + layer.scale * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer.row_norms(), whole.norm(dim=1), rtol=1e-10, atol=0)
    with torch.no_grad():
        layer.base.weight[3] = -layer.scale * (layer.lora_B @ layer.lora_A)[3]
    assert float(layer.row_norms()[3]) <= 1e-5 * math.sqrt(IN)


@pytest.mark.parametrize(
    ("target", "count"), [("blocks.0.*", 7), ("*.q_proj", 2), ("model.layers.?.mlp.*", 6), ("blocks.[1].*proj", 7)]
)
def test_a_pattern_is_for_the_whole_name(target: str, count: int) -> None:
    """Guards targets by pattern, of our names or the published ones."""
    shape = ModelConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4
    )
    assert len(add_lora(Decoder(shape), LoRAConfig(targets=(target,)))) == count
    with pytest.raises(ConfigError, match="names no linear layer"):
        add_lora(Decoder(shape), LoRAConfig(targets=("layers.*.wrong",)))
