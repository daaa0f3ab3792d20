"""A model made of nothing but the kernels: the reference library's logits, and three training steps of the formulas."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kernel_cases import INTERPRETED
from minitune_kernels.launch import ran
from torch import Tensor

from bench.recorded import Recorded
from minitune.chat import Encoded
from minitune.checkpoint import load_checkpoint
from minitune.config import ModelConfig
from minitune.data.batch import pad_rows
from minitune.models import LanguageModel, build
from minitune.models.cache import KVCache
from minitune.ops import REFERENCE, Ops, triton_ops
from minitune.optim import AdamW
from minitune.sample import graph
from minitune.train import train

SHAPE = ModelConfig(
    vocab_size=70,
    hidden_size=32,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_positions=64,
    tie_embeddings=True,
)


def test_every_operation_has_its_kernel() -> None:
    assert triton_ops().name == "triton"


def test_logits_are_those_of_transformers(tmp_path: Path, device: torch.device) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path, ops=triton_ops(), device=device).model
    ids = torch.randint(0, 97, (2, 23), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = theirs(ids).logits
        got = ours.logits(ours(ids.to(device))).cpu()
    tolerance = 1e-4 if INTERPRETED else 1e-3  # products on the tensor cores, in three parts
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def rows(count: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for i in range(count):
        ids = torch.randint(0, 70, (9 + 4 * i,), generator=generator).tolist()
        made.append(Encoded.of(ids, [j > 4 for j in range(len(ids))]))
    return made


@pytest.mark.parametrize("case", ["plain", "qk norm and window"])
def test_three_training_steps_are_those_of_the_formulas(case: str, device: torch.device) -> None:
    shape = SHAPE if case == "plain" else replace(SHAPE, qk_norm="head", windows=(6, 0))

    def run(ops: Ops) -> tuple[list[float], dict[str, Tensor]]:
        model: LanguageModel = build(shape, ops).to(device)
        model.initialize(seed=1, std=0.2)
        optimizer = AdamW(dict(model.named_parameters()), weight_decay=0.1)
        steps = [[pad_rows(rows(3)[:2], device), pad_rows(rows(3)[2:], device)]] * 3
        reports = list(train(model, optimizer, steps, lr=lambda step: 1e-3))
        return [r.loss for r in reports], {name: w.detach().cpu() for name, w in model.named_parameters()}

    losses, weights = run(triton_ops())
    true_losses, true_weights = run(REFERENCE)
    assert losses == pytest.approx(true_losses, rel=1e-5 if INTERPRETED else 1e-4)
    assert true_losses[2] < true_losses[0]
    for name, weight in weights.items():
        # AdamW's first steps follow the sign of a gradient, which may be that of a rounding where it is nearly 0.
        moved = (weight - true_weights[name]).abs()
        assert (moved <= 2e-4).float().mean() >= 0.99, name


@pytest.mark.parametrize("case", ["plain", "qk norm"])
def test_a_recorded_decode_step_is_the_ordinary_one(
    case: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards lengths that the kernels are told on the device, and what they keep from call to call: done again for
    other lengths, the recorded launches make the formulas' logits. On a GPU a graph is captured."""
    if INTERPRETED:
        monkeypatch.setattr(graph, "capture_on", lambda device: Recorded)
    monkeypatch.setattr(graph, "WORTH_CAPTURING", 0)
    shape = replace(SHAPE, max_positions=300, qk_norm="head" if case == "qk norm" else "none")
    models = [build(shape, ops).eval() for ops in (REFERENCE, triton_ops())]
    for model in models:
        model.initialize(seed=1, std=0.2)
        model.to(device)
    caches = [KVCache(shape, 3, 300, device=device, dtype=torch.float32) for _ in models]
    step = graph.DecodeGraph(models[1], caches[1])
    generator = torch.Generator().manual_seed(2)

    def some(rows: list[int], tokens: int) -> Tensor:
        return torch.randint(0, 70, (len(rows), tokens), generator=generator).to(device)

    @torch.inference_mode()
    def fed(which: int, ids: Tensor, rows: list[int]) -> Tensor:
        """Logits behind ``ids``, by the ordinary step of one of the models."""
        plan = caches[which].plan(ids.shape[1], rows)
        return models[which].logits(models[which](ids, plan=plan, cache=caches[which])[:, -1])

    for rows, tokens in (([0], 90), ([1], 4)):
        ids = some(rows, tokens)
        for which, cache in enumerate(caches):
            fed(which, ids, rows)
            cache.advance(tokens, rows)
    for rows in ([0, 1], [1], [0, 1, 2], [0, 2], [2], [0, 1, 2]):
        ids = some(rows, 1)
        expected = fed(0, ids, rows)
        made = step.step(dict(zip(rows, ids[:, 0].tolist(), strict=True)), left=100)
        assert made is not None
        assert (made[0][rows] - expected).abs().max() <= (1e-5 if INTERPRETED else 1e-3) * expected.abs().max()
        for cache in caches:
            cache.advance(1, rows)
    assert ran()["attention"] == "split keys"
