"""Rotary positions: queries and keys read once and written once, in either direction."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.ops import Case
from bench.ops.peers import compiled, noise
from bench.ops.rms_norm import memory_case

MODELS = {"SmolLM2-135M": (9, 3, 64), "Llama-3.2-1B": (32, 8, 64), "Llama-3-8B": (32, 8, 128)}


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """4 rows of 4,096 tokens."""
    B, T = (4, 4096) if device.type == "cuda" else (1, 512)
    for model in ("SmolLM2-135M",) if quick else MODELS:
        H, K, D = MODELS[model]
        contestants: dict[str, Callable[..., Tensor]] = {"eager": eager, "torch.compile": compiled(eager)}
        if device.type == "cuda":
            contestants["ours"] = ours
        name = f"{model} B{B} T{T} H{H} K{K} D{D}"
        elements = B * T * (H + K) * D
        yield replace(
            memory_case(name, partial(inputs, device, B, T, H, K, D), contestants, elements, device, 2, 2, truth),
            part=lambda outputs: [outputs[0][:1, :8]],
            directions=("forward", "both"),
        )


def inputs(device: torch.device, B: int, T: int, H: int, K: int, D: int, seed: int) -> tuple[Tensor, ...]:
    angle = torch.arange(T, device=device)[None, :, None] * 10_000.0 ** (
        -torch.arange(D // 2, device=device) / (D // 2)
    )
    return noise(device, seed, B, T, H, D), noise(device, seed + 1, B, T, K, D), angle.cos(), angle.sin()


class Joined(torch.autograd.Function):
    """Queries as the output, with keys behind them that get a gradient of their own: no copy in either direction."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        ctx.dk = torch.ones_like(k)
        return q.view_as(q)

    @staticmethod
    def backward(ctx: Any, dq: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return dq, ctx.dk


def joined(q: Tensor, k: Tensor) -> Tensor:
    return Joined.apply(q, k)


def eager(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    from minitune.ops import REFERENCE

    return joined(*REFERENCE.rope(q, k, cos, sin))


def ours(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    from minitune_kernels import rope

    return joined(*rope(q, k, cos, sin))


def truth(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
    from minitune.ops import REFERENCE

    turned, _ = REFERENCE.rope(q[:1, :8].detach().double(), k[:1, :8].detach().double(), cos[:, :8], sin[:, :8])
    return [turned]


def shipped() -> dict[str, Callable[[], object]]:
    """Every type, head sizes with and without channels that stay, both directions."""
    calls: dict[str, Callable[[], object]] = {}
    for dtype in (torch.bfloat16, torch.float32):
        for H, K, D, pairs in ((9, 3, 64, 32), (32, 8, 128, 64), (16, 16, 80, 10), (8, 4, 256, 128)):
            calls[f"{str(dtype)[6:]} H{H} K{K} D{D} pairs {pairs}"] = partial(_meta, dtype, H, K, D, pairs)
    return calls


def _meta(dtype: torch.dtype, H: int, K: int, D: int, pairs: int) -> None:
    from minitune_kernels.rope import rotate

    q, k = (torch.empty(2, 4096, heads, D, dtype=dtype, device="meta") for heads in (H, K))
    table = torch.empty(1, 4096, pairs, device="meta")
    for back in (False, True):
        rotate(q, k, table, table, back)
