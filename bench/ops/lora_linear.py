"""The linear layer with LoRA: products. Forward 2 N C_in C_out, backward the same (the weight is frozen), and the
adapter's small ones, which are not counted.

On a CPU a contestant's memory is its process's: ``python -m bench.ops.lora_linear NAME`` measures one alone.
"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.measure import process_peak_bytes, reset_process_peak
from bench.ops import Case
from bench.ops.peers import compiled, noise

SHAPES = {"SmolLM2-135M gate": (576, 1536), "Llama-3.2-1B gate": (2048, 8192), "Llama-3-8B gate": (4096, 14336)}
RANK = 8


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """The widest layers of real models, rank 8."""
    gpu = device.type == "cuda"
    N = 8192 if gpu else 1024
    for model, (C, F_) in SHAPES.items():
        if (quick or not gpu) and model != "SmolLM2-135M gate":
            continue
        product = 2.0 * N * C * F_
        contestants: dict[str, Callable[..., Tensor]] = {"eager": eager, "ours": ours}
        if gpu:
            contestants["torch.compile"] = compiled(eager)
        yield Case(
            name=f"{model} N{N} {C} -> {F_} rank {RANK}",
            inputs=partial(inputs, device, N, C, F_),
            contestants=contestants,
            unit="flops",
            work={"forward": product, "backward": product, "both": 2 * product},
            truth=truth,
            part=lambda outputs: [outputs[0][:64]],
        )


def inputs(device: torch.device, N: int, C: int, F_: int, seed: int) -> tuple[Tensor, ...]:
    return (
        noise(device, seed, N, C),
        noise(device, seed + 1, F_, C, scale=C**-0.5, grad=False),
        noise(device, seed + 2, RANK, C, scale=C**-0.5),
        noise(device, seed + 3, F_, RANK),
    )


def eager(x: Tensor, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return F.linear(x, weight) + 2.0 * F.linear(F.linear(x, A), B)


def ours(x: Tensor, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
    from minitune.adapters.lora_linear import lora_linear

    return lora_linear(x, weight, None, A, B, 2.0)


def truth(x: Tensor, weight: Tensor, A: Tensor, B: Tensor) -> list[Tensor]:
    return [eager(*(t.detach().double() for t in (x[:64], weight, A, B)))]


def shipped() -> dict[str, Callable[[], object]]:
    """No kernel of ours: the products are the BLAS's."""
    return {}


def main() -> None:
    """What one contestant adds to its process at its highest, forward and backward, in bytes."""
    f = {"eager": eager, "ours": ours}[sys.argv[1]]
    made = inputs(torch.device("cpu"), 4096, 576, 1536, 0)
    dy = torch.ones(4096, 1536)
    leaves = [t for t in made if t.requires_grad]
    torch.autograd.grad(f(*(t[:64] if t is made[0] else t for t in made)), leaves, dy[:64])
    before = reset_process_peak()
    torch.autograd.grad(f(*made), leaves, dy)
    print(json.dumps({"contestant": sys.argv[1], "peak_bytes": process_peak_bytes() - before}))


if __name__ == "__main__":
    main()
