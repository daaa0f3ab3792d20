"""Norm and rotation of each head at once: queries and keys read once and written once, and read once more backward."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bench.ops import Case
from bench.ops.peers import compiled, noise
from bench.ops.rms_norm import memory_case
from bench.ops.rope import inputs as rope_inputs
from bench.ops.rope import joined

MODELS = {"Qwen3-0.6B": (16, 8, 128), "Qwen3-8B": (32, 8, 128), "Qwen3-32B": (64, 8, 128)}


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """4 rows of 4,096 tokens; "apart" is two launches of the norm's kernel and one of the rotation's."""
    B, T = (4, 4096) if device.type == "cuda" else (1, 512)
    for model in ("Qwen3-0.6B",) if quick else MODELS:
        H, K, D = MODELS[model]
        contestants: dict[str, Callable[..., Tensor]] = {"eager": eager, "torch.compile": compiled(eager)}
        if device.type == "cuda":
            contestants |= {"ours": ours, "ours, apart": apart}
        name = f"{model} B{B} T{T} H{H} K{K} D{D}"
        elements = B * T * (H + K) * D
        yield replace(
            memory_case(name, partial(inputs, device, B, T, H, K, D), contestants, elements, device, 2, 3, truth),
            part=lambda outputs: [outputs[0][:1, :8]],
            directions=("forward", "both"),
        )


def inputs(device: torch.device, B: int, T: int, H: int, K: int, D: int, seed: int) -> tuple[Tensor, ...]:
    q, k, cos, sin = rope_inputs(device, B, T, H, K, D, seed)
    return q, k, noise(device, seed + 2, D), noise(device, seed + 3, D), cos, sin


def eager(*tensors: Tensor) -> Tensor:
    from minitune.ops import REFERENCE

    return joined(*REFERENCE.qk_norm_rope(*tensors, eps=1e-6))


def ours(*tensors: Tensor) -> Tensor:
    from minitune_kernels import qk_norm_rope

    q, k, q_weight, k_weight, cos, sin = tensors
    return joined(*qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps=1e-6))


def apart(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    from minitune_kernels import rms_norm, rope

    return joined(*rope(rms_norm(q, q_weight, eps=1e-6), rms_norm(k, k_weight, eps=1e-6), cos, sin))


def truth(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
    from minitune.ops import REFERENCE

    first = [x[:1, :8].detach().double() for x in (q, k)] + [w.detach().double() for w in (q_weight, k_weight)]
    return [REFERENCE.qk_norm_rope(*first, cos[:, :8], sin[:, :8], eps=1e-6)[0]]


def shipped() -> dict[str, Callable[[], object]]:
    """Every type, head sizes with and without channels that stay, both directions, weights trained and frozen."""
    calls: dict[str, Callable[[], object]] = {}
    for dtype in (torch.bfloat16, torch.float32):
        for H, K, D, pairs in (
            (16, 8, 128, 64),
            (64, 8, 128, 64),
            (16, 2, 256, 32),
            (8, 4, 256, 128),
            (16, 16, 80, 10),
        ):
            calls[f"{str(dtype)[6:]} H{H} K{K} D{D} pairs {pairs}"] = partial(_meta, dtype, H, K, D, pairs)
    return calls


def _meta(dtype: torch.dtype, H: int, K: int, D: int, pairs: int) -> None:
    from minitune_kernels.qk_norm_rope import norm_and_rotate, norm_and_rotate_backward

    q, k = (torch.empty(2, 4096, heads, D, dtype=dtype, device="meta") for heads in (H, K))
    w, table = torch.empty(D, dtype=dtype, device="meta"), torch.empty(1, 4096, pairs, device="meta")
    norm_and_rotate(q, k, w, w, table, table, 1e-6, 0.0, False)
    for train in (False, True):
        norm_and_rotate_backward(q, k, q, k, w, w, table, table, 1e-6, 0.0, False, train)
