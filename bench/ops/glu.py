"""The gated half of the MLP: two readings and one writing forward, three and two backward."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.ops import Case
from bench.ops.peers import compiled, liger, noise
from bench.ops.rms_norm import memory_case


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """8,192 tokens of SmolLM2-135M, Llama-3.2-1B and Llama-3-8B, and GeGLU of Gemma."""
    for C, kind in (
        ((1536, "silu"),) if quick else ((1536, "silu"), (8192, "silu"), (14336, "silu"), (9216, "gelu_tanh"))
    ):
        contestants: dict[str, Callable[..., Tensor]] = {
            "builtin": partial(builtin, kind=kind),
            "torch.compile": compiled(partial(builtin, kind=kind)),
        }
        if device.type == "cuda":
            contestants["ours"] = partial(ours, kind=kind)
            if kind == "silu" and liger("swiglu", "LigerSiLUMulFunction") is not None:
                contestants["Liger"] = of_liger
        make = partial(inputs, device, 8192, C)
        yield memory_case(f"8192 x {C} {kind}", make, contestants, 8192 * C, device, 3, 5, partial(truth, kind=kind))


def inputs(device: torch.device, N: int, C: int, seed: int) -> tuple[Tensor, ...]:
    return noise(device, seed, N, C), noise(device, seed + 100, N, C)


def builtin(gate: Tensor, up: Tensor, *, kind: str) -> Tensor:
    return (F.silu(gate) if kind == "silu" else F.gelu(gate, approximate="tanh")) * up


def ours(gate: Tensor, up: Tensor, *, kind: str) -> Tensor:
    from minitune_kernels import glu

    return glu(gate, up, kind=kind)


def of_liger(gate: Tensor, up: Tensor) -> Tensor:
    function = liger("swiglu", "LigerSiLUMulFunction")
    assert function is not None
    return function.apply(gate, up)


def truth(gate: Tensor, up: Tensor, *, kind: str) -> list[Tensor]:
    return [builtin(gate[:256].detach().double(), up[:256].detach().double(), kind=kind)]


def shipped() -> dict[str, Callable[[], object]]:
    """Every type and kind, with and without a gate."""
    from minitune_kernels.glu import KINDS

    calls: dict[str, Callable[[], object]] = {}
    for dtype in (torch.bfloat16, torch.float32):
        for kind, number in KINDS.items():
            calls[f"{str(dtype)[6:]} {kind}"] = partial(_meta, dtype, number)
    return calls


def _meta(dtype: torch.dtype, kind: int) -> None:
    from minitune_kernels.glu import glu_backward, glu_forward

    x = torch.empty(4096, 1536, dtype=dtype, device="meta")
    for up in (None, x):
        glu_forward(x, up, kind)
        glu_backward(x, x, up, kind)
