"""The model files of llama2.c (``stories15M.bin`` and its kin) as a folder that everything else reads.

    python -m minitune.llama2c stories260K.bin tok512.model OUT

The file is a header of seven int32, then all weights in float32, each kind for all layers together. It pairs
neighbouring channels for the rotation where published safetensors pair channel i with channel i + D/2, so the rows of q
and k are put in that order. Format: the legacy export of the llama2.c project (version 0).
"""

import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from minitune.checkpoint import save_checkpoint
from minitune.config import ModelConfig
from minitune.errors import CheckpointError, MinituneError
from minitune.models import build

_HEADER = struct.Struct("<7i")


def convert(source: Path, folder: Path, tokenizer: Path | None = None) -> None:
    """Write the model in ``source`` as a folder; the tokenizer file goes along as ``tokenizer.model``.

    Raises CheckpointError where the file is not of this format or does not have the size that its header says.
    """
    try:
        data = source.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read ({error.strerror})") from None
    config, values = _read(source, data)
    with torch.device("meta"):
        model = build(config)
    for name, tensor in _tensors(config, values).items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Parameter(tensor))
    model.tie()
    save_checkpoint(model, folder)
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder / "tokenizer.model")


def _read(source: Path, data: bytes) -> tuple[ModelConfig, Tensor]:
    """The shape from the header, and all weights in a row."""
    if len(data) < _HEADER.size:
        raise CheckpointError(f"{source}: {len(data)} bytes are too few for a llama2.c model")
    C, F, L, H, K, V, T = _HEADER.unpack_from(data)
    # A negative vocabulary says that the head has weights of its own.
    if min(C, F, L, H, K, abs(V), T) < 1 or C % H or (C // H) % 2:
        header = (C, F, L, H, K, V, T)
        raise CheckpointError(f"{source}: its header {header} is not that of a llama2.c model (version 0)")
    config = ModelConfig(
        vocab_size=abs(V),
        hidden_size=C,
        intermediate_size=F,
        num_layers=L,
        num_heads=H,
        num_kv_heads=K,
        head_dim=C // H,
        max_positions=T,
        tie_embeddings=V > 0,
    )
    values = torch.from_numpy(np.frombuffer(data, dtype="<f4", offset=_HEADER.size).copy())
    return config, values


def _tensors(config: ModelConfig, values: Tensor) -> dict[str, Tensor]:
    """Our parameters, cut from the row of weights in the order of the file."""
    V, C, F, L = config.vocab_size, config.hidden_size, config.intermediate_size, config.num_layers
    H, K, D, T = config.num_heads, config.num_kv_heads, config.head_dim, config.max_positions
    sections = {
        "embed.weight": (V, C),
        "attention_norm.weight": (L, C),
        "attention.q_proj.weight": (L, H * D, C),
        "attention.k_proj.weight": (L, K * D, C),
        "attention.v_proj.weight": (L, K * D, C),
        "attention.o_proj.weight": (L, C, H * D),
        "mlp_norm.weight": (L, C),
        "mlp.gate_proj.weight": (L, F, C),
        "mlp.down_proj.weight": (L, C, F),
        "mlp.up_proj.weight": (L, F, C),
        "norm.weight": (C,),
        "rotary tables": (2, T, D // 2),
        "head.weight": (0 if config.tie_embeddings else V, C),
    }
    sizes = [int(np.prod(shape)) for shape in sections.values()]
    if sum(sizes) != len(values):
        raise CheckpointError(f"the header asks for {sum(sizes):,} weights; the file has {len(values):,}")
    cut = {name: part.view(sections[name]) for name, part in zip(sections, values.split(sizes), strict=True)}
    tensors = {name: cut[name] for name in ("embed.weight", "norm.weight")}
    if not config.tie_embeddings:
        tensors["head.weight"] = cut["head.weight"]
    for name, part in cut.items():
        if name.startswith(("attention", "mlp")):
            for layer in range(L):
                weight = part[layer]
                halves = name.startswith(("attention.q", "attention.k"))
                tensors[f"blocks.{layer}.{name}"] = _half_split(weight, D) if halves else weight
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _half_split(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of each head from neighbouring pairs (0, 1), (2, 3) ... to halves: all first ones, then all second ones."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def main(args: list[str]) -> int:
    """``FILE [TOKENIZER] OUT``"""
    if len(args) not in (2, 3):
        print("usage: python -m minitune.llama2c MODEL.bin [TOKENIZER.model] OUT", file=sys.stderr)
        return 2
    try:
        convert(Path(args[0]), Path(args[-1]), Path(args[1]) if len(args) == 3 else None)
    except MinituneError as error:
        print(f"minitune: {error}", file=sys.stderr)
        return 2
    print(f"written to {args[-1]}; try: minitune generate {args[-1]} ''")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
