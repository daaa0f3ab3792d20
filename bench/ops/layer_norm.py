"""LayerNorm: as RMSNorm."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.ops import Case
from bench.ops.peers import compiled, noise
from bench.ops.rms_norm import memory_case


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """The hidden sizes of GPT-2 and Pythia."""
    for N, C in ((8192, 768),) if quick else ((8192, 768), (8192, 2048), (8192, 4096)):
        contestants: dict[str, Callable[..., Tensor]] = {"builtin": builtin, "torch.compile": compiled(builtin)}
        if device.type == "cuda":
            contestants["ours"] = ours
        yield memory_case(f"{N} x {C}", partial(inputs, device, N, C), contestants, N * C, device, 2, 3, truth)


def inputs(device: torch.device, N: int, C: int, seed: int) -> tuple[Tensor, ...]:
    return noise(device, seed, N, C), noise(device, seed + 100, C), noise(device, seed + 200, C)


def builtin(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from minitune_kernels import layer_norm

    return layer_norm(x, weight, bias, eps=1e-5)


def truth(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    return [builtin(x[:256].detach().double(), weight.detach().double(), bias.detach().double())]


def shipped() -> dict[str, Callable[[], object]]:
    """Every type and tile, with and without the gradient of weight and bias."""
    calls: dict[str, Callable[[], object]] = {}
    for dtype in (torch.bfloat16,):
        for C in (768, 4096):
            calls[f"{str(dtype)[6:]} C{C}"] = partial(_meta, dtype, C)
    return calls


def _meta(dtype: torch.dtype, C: int) -> None:
    from minitune_kernels.layer_norm import layer_norm_backward, layer_norm_forward

    x, w = torch.empty(4096, C, dtype=dtype, device="meta"), torch.empty(C, dtype=dtype, device="meta")
    row = torch.empty(4096, device="meta")
    layer_norm_forward(x, w, w, 1e-5)
    layer_norm_forward(x, w, None, 1e-5)
    for train in (False, True):
        layer_norm_backward(x, x, w, row, row, train)
