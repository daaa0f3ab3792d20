"""Chapter 16: weights of real models, products by torch's own counter, and kept bytes by autograd's own hooks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from math_cases import same, small_config
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minitune.adapters.lora import LoRAConfig, LoRALinear, adapted_layers, add_lora
from minitune.config import ModelConfig
from minitune.models.base import LanguageModel
from minitune.models.cache import KVCache
from minitune.models.decoder import Decoder
from minitune.models.gpt import GPT
from minitune.ops import BUILTIN, IGNORE, REFERENCE, Ops
from minitune.ops.costs import (
    OPTIMIZER_BYTES,
    activation_numbers,
    all_weights,
    attention_pairs,
    block_matrices,
    block_numbers,
    cache_bytes,
    forward_flops,
    lora_weights,
    matrix_weights,
    roofline_seconds,
    state_bytes,
    step_flops,
    utilisation,
    visible_pairs,
)
from minitune.ops.linear_cross_entropy import linear_cross_entropy_whole
from minitune.ops.plan import in_sight
from minitune.optim import AdamW

TORCHS_OWN = replace(BUILTIN, linear_cross_entropy=linear_cross_entropy_whole)
"""Without the head in chunks, which keeps nothing for the backward but the gradients themselves."""
B, T = 2, 16
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied, grouped": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "tie_embeddings": True},
    "every bias and norm": {
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "post_norm": True,
        "qk_norm": "head",
        "num_layers": 3,
    },
    "norm of all heads": {"qk_norm": "all", "pre_norm": False, "post_norm": True},
    "gpt2": {"form": "gpt", "learned_positions": True, "qkv_bias": True, "o_bias": True, "mlp_bias": True},
    "neox": {"form": "gpt", "parallel_residual": True, "rope_fraction": 0.5, "qkv_bias": True},
}


def model_of(config: ModelConfig, ops: Ops = REFERENCE) -> LanguageModel:
    made: LanguageModel = (GPT if config.form == "gpt" else Decoder)(config, ops)
    made.initialize(0)
    made.tie()
    return made


def data(trained: int) -> tuple[Tensor, Tensor]:
    ids = torch.arange(B * T).reshape(B, T) % 7
    targets = torch.full((B * T,), IGNORE)
    targets[:trained] = 3
    return ids, targets.reshape(B, T)


@pytest.mark.parametrize("name", SHAPES)
def test_weights(name: str) -> None:
    """COST-1, COST-2: by adding up the model's own."""
    config = small_config(**SHAPES[name])
    model = model_of(config)
    assert all_weights(config) == sum(w.numel() for w in model.parameters())
    assert matrix_weights(config) == sum(w.numel() for w in model.blocks.parameters() if w.ndim == 2)


@pytest.mark.parametrize("window", [None, 1, 3, 50])
def test_pairs(window: int | None) -> None:
    """COST-3: by counting the mask."""
    for lengths in ([1], [7], [5, 2, 9]):
        places = [torch.arange(n) for n in lengths]
        assert visible_pairs(lengths, window) == sum(int(in_sight(at, at, True, window).sum()) for at in places)
    layers = small_config(windows=(0, 3))
    assert attention_pairs(layers, [9]) == visible_pairs([9]) + visible_pairs([9], 3)


def addmm(y: Any, a: tuple[int, int], b: tuple[int, int], **_: Any) -> int:
    """Of ``y += a b``, which the counter does not know."""
    return 2 * a[0] * a[1] * b[1]


def counted(model: LanguageModel, trained: int) -> tuple[int, int]:
    """FLOPs of products in one forward and one backward, by torch's own counter."""
    ids, targets = data(trained)
    in_place = {torch.ops.aten.addmm_: addmm}
    with FlopCounterMode(display=False, custom_mapping=in_place) as forward:
        loss, _ = model.loss(model(ids), targets)
    with FlopCounterMode(display=False, custom_mapping=in_place) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("trained", [B * T, 10])
@pytest.mark.parametrize("name", SHAPES)
def test_operations_of_full_tuning(name: str, trained: int) -> None:
    """COST-4, COST-6: the readable attention multiplies all T T pairs, so these are given to the formula."""
    config = small_config(**SHAPES[name])
    pairs = config.num_layers * B * T * T
    forward, backward = counted(model_of(config), trained)
    step: dict[str, Any] = {"tokens": B * T, "trained": trained, "pairs": pairs}
    assert forward == forward_flops(config, **step)
    assert forward + backward == step_flops(config, **step)


def test_operations_of_checkpointing() -> None:
    """COST-6: the forward of the blocks once more, but for the last product of each."""
    config = small_config()
    model = model_of(config)
    model.checkpointing = True
    step: dict[str, Any] = {"tokens": B * T, "trained": 10, "pairs": config.num_layers * B * T * T}
    last = config.num_layers * 2 * B * T * config.intermediate_size * config.hidden_size
    assert sum(counted(model, 10)) == step_flops(config, checkpointing=True, **step) - last


def test_operations_of_lora() -> None:
    """COST-7, COST-8: but for the first block's q, k and v, whose input needs no gradient."""
    config, rank = small_config(num_heads=4, num_kv_heads=2, head_dim=6), 3
    model = model_of(config)
    add_lora(model, LoRAConfig(rank=rank))
    of_lora = [w for layer in adapted_layers(model).values() for w in (layer.lora_A, layer.lora_B)]
    assert lora_weights(config, rank) == sum(w.numel() for w in of_lora)
    assert isinstance(model.blocks[0].get_submodule("attention.q_proj"), LoRALinear)
    step: dict[str, Any] = {"tokens": B * T, "trained": 10, "pairs": config.num_layers * B * T * T}
    shapes = [block_matrices(config)[name] for name in ("q", "k", "v")]
    saved = 2 * B * T * sum(out * into + rank * into for out, into in shapes)
    assert sum(counted(model, 10)) == step_flops(config, rank=rank, **step) - saved


def test_rates() -> None:
    """COST-9, COST-10."""
    same(utilisation(5e12, 0.1, 1e14), 0.5)
    same(roofline_seconds(1e12, 1e9, 1e14, 1e12), 0.01)
    same(roofline_seconds(1e12, 1e11, 1e14, 1e12), 0.1)


def test_state() -> None:
    """COST-11: of a real step: weight, gradient, m and v of each trained weight; frozen ones the weight alone."""
    config = small_config()
    model = model_of(config)
    add_lora(model, LoRAConfig(rank=2))
    sum_of, _ = model.loss(model(data(5)[0]), data(5)[1])
    sum_of.backward()
    learned = {name: w for name, w in model.named_parameters() if w.requires_grad}
    optimizer = AdamW(learned)
    optimizer.step(0.1)
    tensors = [*model.parameters(), *optimizer.m.values(), *optimizer.v.values()]
    tensors += [w.grad for w in learned.values() if w.grad is not None]
    trained = lora_weights(config, 2)
    assert sum(t.numel() * t.element_size() for t in tensors) == state_bytes(all_weights(config), trained)
    assert OPTIMIZER_BYTES == 4 * 4


def kept(model: LanguageModel, trained: int) -> int:
    """Numbers that autograd keeps after a forward, by its own hook: each piece of memory once, weights and the
    rotary tables apart, whole numbers and masks not counted."""
    pairs = model.config.rope_channels // 2
    alive: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        alive[t.untyped_storage().data_ptr()] = t
        return t

    model.train()
    ids, targets = data(trained)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss, _ = model.loss(model(ids), targets)
    weights = {w.untyped_storage().data_ptr() for w in model.parameters()}
    found = 0
    for place, t in alive.items():
        if place not in weights and t.is_floating_point() and t.ndim and t.shape[-1] != pairs:
            found += t.untyped_storage().nbytes() // t.element_size()
    assert loss.requires_grad
    return found


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("trained", [B * T, 10])
def test_activations(layers: int, trained: int) -> None:
    """COST-12, COST-13: what torch's own functions keep, to the number."""
    config = small_config(
        num_layers=layers, hidden_size=24, intermediate_size=40, num_heads=4, num_kv_heads=2, head_dim=6, vocab_size=50
    )
    assert kept(model_of(config, TORCHS_OWN), trained) == activation_numbers(config, tokens=B * T, trained=trained)


def test_activations_with_checkpointing() -> None:
    """COST-14: nothing inside a block is kept but its input; and in the backward there is one block at a time."""
    config = small_config(
        num_layers=3, hidden_size=24, intermediate_size=40, num_heads=4, num_kv_heads=2, head_dim=6, vocab_size=50
    )
    model = model_of(config, TORCHS_OWN)
    whole = kept(model, 10)
    model.checkpointing = True
    outside = kept(model, 10)
    inside = B * T * (block_numbers(config) - config.hidden_size)
    assert whole - outside == 3 * inside
    assert outside + inside == activation_numbers(config, tokens=B * T, trained=10, checkpointing=True)
    assert activation_numbers(replace(config, num_layers=30), tokens=1, trained=1) > 20 * block_numbers(config)


def test_cache() -> None:
    """COST-5: by the cache's own tensors."""
    config = small_config(num_heads=4, num_kv_heads=2, head_dim=6)
    cache = KVCache(config, batch=2, capacity=9, dtype=torch.float32, device="cpu")
    held = [t for buffer in cache.buffers for t in (buffer.k, buffer.v)]
    assert sum(t.numel() * t.element_size() for t in held) == cache_bytes(config, tokens=2 * 9, itemsize=4)
