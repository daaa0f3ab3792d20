"""Packed weights: the same numbers, and logits that are the plain model's to float32."""

import pytest
import torch

import minitune
from minitune.jobs.load import load
from minitune.models.linear import Linear
from minitune.models.packed import PackedLinear, available, pack

needs_onednn = pytest.mark.skipif(not available(), reason="this torch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_the_base(rows: int, bias: bool) -> None:
    """Guards the order of the numbers: what comes back is the base, bit for bit, and so is the product but for sums."""
    base = Linear(40, 72, bias=bias)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in base.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    ours = PackedLinear(base)
    assert torch.equal(ours.dequantize(), base.weight)
    x = torch.randn(2, rows, 40, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), base(x), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_a_packed_model_answers_alike() -> None:
    model, tokenizer = load("tiny", device="cpu", dtype="float32")
    fast, _ = load("tiny", device="cpu", dtype="float32", packed=True)
    assert type(fast.head) is PackedLinear
    assert not [name for name, module in fast.named_modules() if type(module) is Linear]
    ids = torch.tensor([tokenizer.encode("Tom has a red ball. Mia has a blue one.")])
    with torch.inference_mode():
        torch.testing.assert_close(fast.logits(fast(ids)), model.logits(model(ids)), rtol=1e-4, atol=1e-4)
    texts = ["".join(map(str, minitune.generate(m, tokenizer, "Tom has", max_tokens=12))) for m in (model, fast)]
    assert texts[0] == texts[1]


def test_only_float32_is_packed() -> None:
    """Guards the other types, whose weights are left as they are."""
    for dtype in ("bfloat16", "float16"):
        model, _ = load("tiny", device="cpu", dtype=dtype, packed=True)
        assert type(model.head) is not PackedLinear
        assert pack(model) == 0
