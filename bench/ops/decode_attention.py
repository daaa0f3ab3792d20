"""Attention of one query a row over a long cache: memory is the roofline, each key and value read once."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.ops import Case
from bench.ops.attention import MODELS, reference


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Batches of 1 to 32 rows with caches of 2k to 32k tokens."""
    shapes = ((1, 4096), (8, 4096)) if quick else ((1, 2048), (1, 32768), (8, 8192), (32, 4096))
    for model in ("Llama-3-8B",) if quick else ("Llama-3.2-1B", "Llama-3-8B"):
        H, K, D = MODELS[model]
        for B, S in shapes:
            size = 2 if device.type == "cuda" else 4
            moved = size * (2 * B * S * K * D + 2 * B * H * D)
            yield Case(
                name=f"{model} B{B} S{S} H{H} K{K} D{D}",
                inputs=partial(inputs, device, B, S, H, K, D),
                contestants={
                    "ours": ours,
                    "SDPA as dispatched": sdpa,
                    "reference": partial(reference, causal=True),
                },
                unit="bytes",
                work={"forward": float(moved)},
                directions=("forward",),
                truth=truth,
                part=lambda outputs: [outputs[0][:1]],
                input_sets=4,
            )


def inputs(device: torch.device, B: int, S: int, H: int, K: int, D: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator(device).manual_seed(seed)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shapes = ((B, 1, H, D), (B, S, K, D), (B, S, K, D))
    return tuple(torch.randn(s, generator=generator, device=device).to(dtype) for s in shapes)


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from minitune_kernels import attention

    return attention(q, k, v)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), enable_gqa=q.shape[2] != k.shape[2]
    )
    return y.transpose(1, 2)


def truth(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    from minitune.ops.attention import attention

    return [attention(q[:1].double(), k[:1].double(), v[:1].double())]


def shipped() -> dict[str, Callable[[], object]]:
    """Head dims, types, softcap, and how many rows of queries share a tile."""
    calls: dict[str, Callable[[], object]] = {}
    for dtype in (torch.bfloat16,):
        for D in (64, 80, 128, 256):
            for T, H, K in ((1, 8, 2), (4, 32, 4)):
                softcap = 30.0 if D == 256 else 0.0
                name = f"{str(dtype)[6:]} D{D} T{T} group {H // K}" + (" softcap" if softcap else "")
                calls[name] = partial(_meta, dtype, D, T, H, K, softcap)
    return calls


def _meta(dtype: torch.dtype, D: int, T: int, H: int, K: int, softcap: float) -> None:
    from minitune_kernels.decode_attention import decode_attention

    q, k, v = (torch.empty(4, n, h, D, dtype=dtype, device="meta") for n, h in ((T, H), (4096, K), (4096, K)))
    span = torch.empty(1, T, dtype=torch.int32, device="meta")
    decode_attention(q, k, v, span, span, 0.1, softcap)
