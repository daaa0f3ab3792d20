"""Adapters of the other families in PEFT's layout, both ways: fused, transposed and interleaved bases included."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.parity import CASES, Case, reference_model, relative
from minitune.adapters import LoRAConfig, add_lora, load_adapter, save_adapter
from minitune.checkpoint import load_checkpoint
from minitune.errors import CheckpointError

pytestmark = [
    # The reference warns of a tiny vocabulary, and PEFT that it sets fan_in_fan_out for GPT-2 by itself.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
NAMES = ("qwen3, wide heads, biases", "gemma2, window, caps, scale", "olmo2, grouped", "gpt2", "gpt_neox, parallel")
PICKED = [case for case in CASES if case.name in NAMES]
FEW = {"gpt2": ["attn.c_attn", "mlp.c_proj"], "gpt_neox": ["query_key_value"]}


def logits_of(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize(
    ("every", "variant"),
    [(True, {}), (False, {}), (True, {"use_dora": True}), (False, {"use_rslora": True, "use_dora": True})],
    ids=["all layers", "some layers", "dora", "rank-stabilised dora"],
)
@pytest.mark.parametrize("case", PICKED, ids=lambda case: case.family)
def test_an_adapter_goes_both_ways(case: Case, every: bool, variant: dict[str, Any], tmp_path: Path) -> None:
    """Logits with the adapter are equal, whoever wrote it: rows of B and m are reordered as those of the base are."""
    import peft

    reference = reference_model(case)
    reference.save_pretrained(tmp_path / "base")
    targets = "all-linear" if every else FEW.get(case.family, ["q_proj", "down_proj"])
    theirs: Any = peft.get_peft_model(
        reference, peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM", **variant)
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
            if "magnitude" in name:
                weight.mul_(torch.rand(weight.shape, generator=generator) + 0.5)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    ids = torch.arange(20)[None] % case.settings["vocab_size"]
    want = logits_of(theirs, ids)

    model = load_checkpoint(tmp_path / "base").model.eval()
    before = model.logits(model(ids)).detach()
    config = load_adapter(model, tmp_path / "theirs")
    with torch.no_grad():
        assert relative(model.logits(model(ids)), want) <= 1e-5
        assert relative(before, want) > 1e-2  # the adapter does something

    save_adapter(model, tmp_path / "ours", config, base=str(tmp_path / "base"))
    back = peft.PeftModel.from_pretrained(reference_model(case), tmp_path / "ours").eval()
    assert relative(logits_of(back, ids), want) <= 1e-5


@pytest.mark.parametrize("case", PICKED, ids=lambda case: case.family)
def test_a_new_adapter_changes_no_bit(case: Case, tmp_path: Path) -> None:
    reference_model(case).save_pretrained(tmp_path / "base")
    model = load_checkpoint(tmp_path / "base").model.eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = model.logits(model(ids))
        add_lora(model, LoRAConfig())
        assert torch.equal(model.logits(model(ids)), before)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_changes_the_base_is_refused(start: str, tmp_path: Path) -> None:
    """PiSSA and OLoRA take their part out of the base weights: on the plain base their adapter is another model."""
    import peft

    reference = reference_model(PICKED[0])
    reference.save_pretrained(tmp_path / "base")
    how: dict[str, Any] = {"task_type": "CAUSAL_LM", "init_lora_weights": start}
    adapted: Any = peft.get_peft_model(reference, peft.LoraConfig(r=4, target_modules=["q_proj"], **how))
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="init_lora_weights is"):
        load_adapter(load_checkpoint(tmp_path / "base").model, tmp_path / "adapter")
