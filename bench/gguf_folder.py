"""A model folder as one GGUF file, which llama.cpp reads.

Llama and Qwen2 only. Matrices keep their stored type (float32, float16 or bfloat16), so that the weights are the same
numbers; vectors become float32, which llama.cpp wants. There is no tokenizer in the file: ids go in and come out. Keys
and tensor names are those of the ``gguf`` package. What the two graphs of llama.cpp expect beside them is as in its own
``conversion/llama.py`` and ``conversion/qwen.py``:

* Llama turns neighbouring channels together where published files pair channel i with i + D/2, so the rows of q and k
  are reordered within each head. Qwen2 pairs them as published.
* The frequencies of the llama3 scaling are stored as what each plain one is divided by, ``rope_freqs.weight (D / 2,)``.
"""

import math
from pathlib import Path

import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map

from minitune.checkpoint import read_config
from minitune.config import ModelConfig
from minitune.ops.rope import rope_frequencies
from minitune.storage import TensorFolder, open_folder

ARCHITECTURES = {"llama": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2}


def write_gguf(folder: Path, file: Path) -> None:
    """Write the model of ``folder`` to ``file``, one tensor in memory at a time, whole or not at all.

    Raises ValueError for a family or a rope scaling that is not written here.
    """
    config, _ = read_config(folder)
    if config.family not in ARCHITECTURES:
        raise ValueError(f"{folder}: is of the family {config.family!r}; GGUF is written of {', '.join(ARCHITECTURES)}")
    scaling = config.rope_scaling
    if any(config.windows) or (scaling is not None and (config.family, scaling.kind) != ("llama", "llama3")):
        raise ValueError(f"{folder}: GGUF is written of no sliding windows and no rope scaling but Llama's llama3")
    part = file.with_name(f".{file.name}.part")
    writer = GGUFWriter(part, MODEL_ARCH_NAMES[ARCHITECTURES[config.family]])
    _say_shape(writer, config)
    with open_folder(folder) as tensors:
        names = _names(config, tensors)
        for name, theirs in names.items():
            stored, shape = tensors.kind(name)
            _announce(writer, theirs, shape, "F32" if len(shape) == 1 else stored)
        factors = _rope_factors(config)
        if factors is not None:
            _announce(writer, "rope_freqs.weight", tuple(factors.shape), "F32")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in names:
            writer.write_tensor_data(_array(_rows(tensors.read(name), name, config)))
        if factors is not None:
            writer.write_tensor_data(_array(factors))
    writer.close()
    part.replace(file)


def _say_shape(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("none")


def _names(config: ModelConfig, tensors: TensorFolder) -> dict[str, str]:
    """Published name -> GGUF's, of every tensor to write; a tied head is not written, llama.cpp reads the embedding."""
    known = get_tensor_name_map(ARCHITECTURES[config.family], config.num_layers)
    found = {}
    for name in tensors.names:
        if name == "lm_head.weight" and config.tie_embeddings:
            continue
        theirs = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise ValueError(f"{tensors.where(name)}: GGUF has no name for {name!r}")
        found[name] = theirs
    return found


def _announce(writer: GGUFWriter, name: str, shape: tuple[int, ...], stored: str) -> None:
    kind = GGMLQuantizationType[stored]
    size = math.prod(shape) * (4 if stored == "F32" else 2)
    writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)


def _rows(tensor: torch.Tensor, name: str, config: ModelConfig) -> torch.Tensor:
    """A Llama's q or k ``(H D, ...)`` with channels i and i + D/2 of each head side by side; all else as it is."""
    if config.family != "llama" or not (".q_proj." in name or ".k_proj." in name):
        return tensor
    halves = tensor.unflatten(0, (-1, 2, config.head_dim // 2))  # (H, 2, D/2, ...)
    return halves.transpose(1, 2).flatten(0, 2)


def _rope_factors(config: ModelConfig) -> torch.Tensor | None:
    """What the scaling divides each plain frequency by, ``(D / 2,)``; None without one."""
    if config.rope_scaling is None:
        return None
    plain = rope_frequencies(config.head_dim, config.rope_theta)
    return plain / rope_frequencies(config.head_dim, config.rope_theta, scaling=config.rope_scaling)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """For the file: a vector in float32, a matrix as it is; numpy has no bfloat16, so its bits."""
    tensor = tensor.float() if tensor.dim() == 1 else tensor
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy()
