"""Weights in int8: what the layer computes is its own dequantised weight, and what it keeps is near the base."""

from pathlib import Path

import pytest
import torch

import minitune
from minitune.errors import ConfigError
from minitune.models.int8 import FEW_ROWS, Int8Linear, quantise
from minitune.models.layers import Head
from minitune.models.linear import Linear


def layer(in_features: int, out_features: int, *, bias: bool = False) -> Linear:
    base = Linear(in_features, out_features, bias=bias)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in base.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return base


@pytest.mark.parametrize("sizes", [(64, 48), (172, 64), (40, 7), (7, 5), (576, 1)], ids=str)
@pytest.mark.parametrize("rows", [1, 3, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_multiplies_by_what_it_says(sizes: tuple[int, int], rows: int, bias: bool) -> None:
    """Guards shapes that torch's product reads past the end of: 40 columns gave 1e30, 7 a crash."""
    base = layer(*sizes, bias=bias)
    ours = Int8Linear(base)
    x = torch.randn(rows, sizes[0], generator=torch.Generator().manual_seed(1))
    truth = x.double() @ ours.dequantize().double().T + (0.0 if base.bias is None else base.bias.detach().double())
    with torch.inference_mode():
        got = ours(x)
    assert got.dtype == torch.float32
    # Activations and the result are rounded to bfloat16, whose unit is 2^-8.
    assert float((got - truth).norm() / truth.norm()) < 2**-7
    assert torch.equal(ours(x[None])[0], got)


def test_a_weight_moves_by_half_a_step_of_its_row() -> None:
    """Guards the scales: each row has its own, and rounding them to bfloat16 costs no more than its largest weight."""
    base = layer(64, 48)
    with torch.no_grad():
        base.weight[3] *= 1000
        base.weight[5] = 0
    ours = Int8Linear(base)
    step = ours.scale.float()[:, None]
    moved = (ours.dequantize() - base.weight).abs()
    largest = base.weight.abs().amax(1, keepdim=True)
    assert bool((moved <= torch.maximum(step / 2, largest * 2**-8) * 1.001).all())
    assert float(ours.dequantize()[5].abs().sum()) == 0
    assert not ours.dequantize().requires_grad


def test_a_model_goes_on_almost_alike(material: Path) -> None:
    """Guards the whole way: every linear layer is replaced, the tied embedding stays, and the distribution holds."""
    folder = material / "weights" / "stories260K" / "hf"
    model, _ = minitune.load(folder, device="cpu", dtype="float32")
    small, tokenizer = minitune.load(folder, device="cpu", dtype="float32", quantise="int8")
    assert not [name for name, module in small.named_modules() if type(module) in (Linear, Head)]
    assert torch.equal(small.embed.weight, model.embed.weight)
    ids = torch.tensor([[1, *tokenizer.encode("Once upon a time there was a little girl.")]])
    with torch.inference_mode():
        p, q = (torch.log_softmax(m.logits(m(ids)), -1) for m in (model, small))
    divergence = float((p.exp() * (p - q)).sum(-1).mean())
    assert 0 < divergence < 0.01
    text = "".join(str(piece) for piece in minitune.generate(small, tokenizer, "Once upon a time", max_tokens=20))
    assert text.startswith(", there was")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="none, int8"):
        minitune.load("tiny", quantise="int4")


def test_layers_with_adapters_are_left_alone() -> None:
    from minitune.adapters import LoRAConfig, add_lora

    model, _ = minitune.load("tiny", device="cpu", dtype="float32")
    add_lora(model, LoRAConfig(targets=("q_proj",)))
    before = len([m for m in model.modules() if type(m) is Linear])
    assert quantise(model) == before - model.config.num_layers + 1  # with the head
