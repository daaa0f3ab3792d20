"""The GGUF file of ``bench.sample``'s llama.cpp contestant, read back by the ``gguf`` package, and by llama.cpp."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

gguf = pytest.importorskip("gguf")
from bench.gguf_folder import write_gguf  # noqa: E402
from minitune.checkpoint import load_checkpoint  # noqa: E402

C, F, L, H, K, D, V = 24, 40, 2, 4, 2, 8, 50
SHAPE = {
    "vocab_size": V, "hidden_size": C, "intermediate_size": F, "num_hidden_layers": L, "num_attention_heads": H,
    "num_key_value_heads": K, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "hidden_act": "silu",
}  # fmt: skip
SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LLAMA = SHAPE | {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": D, "rope_theta": 500.0,
    "tie_word_embeddings": False, "rope_scaling": SCALING,
}  # fmt: skip
QWEN2 = SHAPE | {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": H * D, "rope_theta": 1e6,
    "tie_word_embeddings": True, "use_sliding_window": False,
}  # fmt: skip
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""Published module of a block -> llama.cpp's."""


def published(raw: dict[str, Any], folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """A folder as published, every weight random and different; its tensors."""
    c = raw["hidden_size"]
    shapes = {
        "input_layernorm": (c,), "self_attn.q_proj": (H * D, c), "self_attn.k_proj": (K * D, c),
        "self_attn.v_proj": (K * D, c), "self_attn.o_proj": (c, H * D), "post_attention_layernorm": (c,),
        "mlp.gate_proj": (F, c), "mlp.up_proj": (F, c), "mlp.down_proj": (c, F),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    wanted: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, c), "model.norm.weight": (c,)}
    for layer in range(L):
        for module, shape in shapes.items():
            wanted[f"model.layers.{layer}.{module}.weight"] = shape
            if raw["model_type"] == "qwen2" and module.endswith(("q_proj", "k_proj", "v_proj")):
                wanted[f"model.layers.{layer}.{module}.bias"] = shape[:1]
    if not raw["tie_word_embeddings"]:
        wanted["lm_head.weight"] = (V, c)
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in wanted.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return tensors


def read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """What the package's own reader finds: keys, tensors in float32, and the type that each is stored in."""
    reader = gguf.GGUFReader(file)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors, kinds = {}, {}
    for tensor in reader.tensors:
        kinds[tensor.name] = tensor.tensor_type.name
        values = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
        tensors[tensor.name] = torch.from_numpy(np.array(values)).float()
    return keys, tensors, kinds


def published_name(name: str) -> str:
    """The published name of a tensor of the file."""
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    module, _, kind = name.rpartition(".")
    if module in outer:
        return f"{outer[module]}.{kind}"
    _, layer, module = module.split(".")
    theirs = {ours: published for published, ours in NAMES.items()}
    return f"model.layers.{layer}.{theirs[module]}.{kind}"


def published_rows(tensor: Tensor) -> Tensor:
    """Rows of q or k as published, from a file that pairs channels 2 j and 2 j + 1: row by row, by definition."""
    back = torch.empty_like(tensor)
    for head in range(len(tensor) // D):
        for j in range(D // 2):
            for half in (0, 1):
                back[head * D + half * D // 2 + j] = tensor[head * D + 2 * j + half]
    return back


@pytest.mark.parametrize("raw", [LLAMA, QWEN2], ids=["llama", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_tensor_comes_back(raw: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    """Guards the names, the order of q's and k's rows, and that no number was rounded on its way into the file."""
    wanted = published(raw, tmp_path / "model", dtype)
    write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    _, tensors, kinds = read(tmp_path / "model.gguf")
    tensors.pop("rope_freqs.weight", None)
    assert sorted(map(published_name, tensors)) == sorted(wanted)
    for name, tensor in tensors.items():
        if raw is LLAMA and ("attn_q" in name or "attn_k" in name):
            tensor = published_rows(tensor)
        assert torch.equal(tensor, wanted[published_name(name)].float()), name
        assert kinds[name] == ("F32" if tensor.dim() == 1 or dtype == torch.float32 else "BF16")


def test_the_file_says_what_the_model_is(tmp_path: Path) -> None:
    """Guards the numbers that llama.cpp computes with; a key it does not find has a default that may be wrong."""
    published(LLAMA, tmp_path / "model", torch.float32)
    write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    keys, tensors, kinds = read(tmp_path / "model.gguf")
    assert keys["general.architecture"] == "llama"
    assert keys["tokenizer.ggml.model"] == "none"
    said = {name.removeprefix("llama."): value for name, value in keys.items() if name.startswith("llama.")}
    assert said.pop("attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    assert said == {
        "vocab_size": V, "context_length": 4096, "embedding_length": C, "feed_forward_length": F, "block_count": L,
        "attention.head_count": H, "attention.head_count_kv": K, "attention.key_length": D,
        "attention.value_length": D, "rope.dimension_count": D, "rope.freq_base": 500.0,
    }  # fmt: skip
    plain = 500.0 ** -(torch.arange(0, D, 2) / D)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**LLAMA), torch.device("cpu"))
    assert kinds["rope_freqs.weight"] == "F32"
    torch.testing.assert_close(plain / tensors["rope_freqs.weight"], scaled)
    assert not torch.equal(plain, scaled)


@pytest.mark.parametrize("raw", [LLAMA, QWEN2], ids=["llama", "qwen2"])
def test_llama_cpp_reads_the_same_model(raw: dict[str, Any], tmp_path: Path) -> None:
    """Guards the meaning of what is written: logits of a text far longer than the scaling's original 64 positions.

    They are up to 25 and 1e-3 apart by rounding; q and k in the published order, or plain frequencies, make it 30.
    """
    llama = pytest.importorskip("llama_cpp")
    published(raw, tmp_path / "model", torch.float32)
    write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    ids = torch.randint(0, V, (1, 200), generator=torch.Generator().manual_seed(1))
    model = load_checkpoint(tmp_path / "model").model
    with torch.inference_mode():
        wanted = model.logits(model(ids))[0]
    file = str(tmp_path / "model.gguf")
    theirs = llama.Llama(file, n_ctx=256, logits_all=True, n_threads=1, type_k=0, type_v=0, verbose=False)
    theirs.eval(ids[0].tolist())
    torch.testing.assert_close(torch.from_numpy(theirs.scores[:200]), wanted, atol=1e-2, rtol=0)
    theirs.close()


def test_what_is_not_written_is_refused(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    published(LLAMA | {"rope_scaling": yarn}, tmp_path / "yarn", torch.float32)
    with pytest.raises(ValueError, match="no rope scaling but Llama's llama3"):
        write_gguf(tmp_path / "yarn", tmp_path / "yarn.gguf")
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "rope_scaling": None}
    published(LLAMA | mistral, tmp_path / "mistral", torch.float32)
    with pytest.raises(ValueError, match="family 'mistral'"):
        write_gguf(tmp_path / "mistral", tmp_path / "mistral.gguf")
    assert not list(tmp_path.glob("*.gguf"))
