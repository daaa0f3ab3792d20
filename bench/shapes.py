"""Models to time: the shapes of published ones with random weights, in a folder that every contestant loads.

The tokenizer is the real one, from the folder of material. ``tiny`` is for tests of the benches themselves.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.recipes import material
from minitune.adapters import LoRAConfig, add_lora, save_adapter
from minitune.adapters.lora import adapted_layers
from minitune.checkpoint import save_checkpoint
from minitune.files import write_json
from minitune.models import build
from minitune.models.published import model_config

RANK, ALPHA = 8, 16.0
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SMOLLM2 = _LLAMA | {"vocab_size": 49152, "rope_theta": 100000.0, "max_position_embeddings": 8192}


@dataclass(frozen=True)
class Shape:
    """A ``config.json``, and the tokenizer that goes with it, as a path in the folder of material."""

    config: dict[str, Any]
    tokenizer: str


SHAPES = {
    "SmolLM2-135M": Shape(
        _SMOLLM2
        | {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
        "tokenizers/smollm2/tokenizer_clean.json",
    ),
    "Qwen2.5-0.5B": Shape(
        {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "max_position_embeddings": 32768,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "bos_token_id": 151643,
            "eos_token_id": 151643,
        },
        "tokenizers/qwen2/tokenizer.json",
    ),
    "Llama-3.2-1B": Shape(
        _LLAMA
        | {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
        "tokenizers/llama3/tokenizer.json",
    ),
    "tiny": Shape(
        _SMOLLM2
        | {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "tokenizers/smollm2/tokenizer_clean.json",
    ),
}


def make_folder(name: str, folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A model folder of the shape with random weights, as published ones are; in it ``adapter`` for the same base.

    The adapter's B is not zero, as it is at a start, so that every gradient is there to be compared.
    """
    shape = SHAPES[name]
    model = build(model_config(shape.config, name))
    with torch.no_grad():
        model.initialize(seed)
    # Round once here, so that contestants in a narrower type start from the same numbers.
    save_checkpoint(model.to(dtype), folder, beside={})
    write_json(folder / "config.json", shape.config)
    tokenizer = material() / shape.tokenizer
    if not tokenizer.is_file():
        raise FileNotFoundError(f"{tokenizer} is not there; it is part of the folder of material")
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    end = json.loads(tokenizer.read_text(encoding="utf-8"))["added_tokens"]
    ending = next(token["content"] for token in end if token["id"] == shape.config["eos_token_id"])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": ending, "pad_token": ending}
    write_json(folder / "tokenizer_config.json", settings)
    config = LoRAConfig(rank=RANK, alpha=ALPHA)
    add_lora(model.float(), config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.01)
    save_adapter(model, folder / "adapter", config, base=str(folder))
    return folder
