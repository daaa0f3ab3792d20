"""AdamW: memory is the roofline. Four tensors read and three written, in float32."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from bench.ops import Case

SHAPES = {  # matrices and vectors of the blocks: how many of each shape
    "SmolLM2-135M": {
        (49_152, 576): 1, (576, 576): 60, (192, 576): 60, (1536, 576): 60, (576, 1536): 30, (576,): 61,
    },
    "LoRA rank 8 on Llama-3.2-1B": {(8, 2048): 16 * 6, (8, 8192): 16, (2048, 8): 16 * 3, (512, 8): 32, (8192, 8): 32},
}  # fmt: skip


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """All the weights of a small model, and the many small ones of an adapter."""
    for name, shapes in SHAPES.items():
        if quick and "LoRA" not in name:
            continue
        sizes = [shape for shape, count in shapes.items() for _ in range(count)]
        elements = sum(torch.Size(size).numel() for size in sizes)
        yield Case(
            name=f"{name}, {elements:,} parameters",
            inputs=partial(inputs, device, sizes),
            contestants={
                "written out": stepper(device, sizes, "written out"),
                "ours": stepper(device, sizes, "ours"),
                "torch, for each": stepper(device, sizes, "foreach"),
                "torch, fused": stepper(device, sizes, "fused"),
            },
            unit="bytes",
            work={"forward": 28.0 * elements},
            directions=("forward",),
        )


def inputs(device: torch.device, sizes: list[tuple[int, ...]], seed: int) -> tuple[Tensor, ...]:
    """A gradient for each weight."""
    generator = torch.Generator(device).manual_seed(seed)
    return tuple(torch.randn(size, generator=generator, device=device) for size in sizes)


def stepper(device: torch.device, sizes: list[tuple[int, ...]], kind: str) -> Callable[..., Tensor]:
    """One optimizer step over weights of its own, made at its first call."""
    made: list[tuple[list[nn.Parameter], Callable[[], object]]] = []

    def step(*gradients: Tensor) -> Tensor:
        if not made:
            made.append(optimizer(device, sizes, kind))
        weights, move = made[0]
        for w, g in zip(weights, gradients, strict=True):
            w.grad = g
        move()
        return weights[0].detach()

    return step


def optimizer(
    device: torch.device, sizes: list[tuple[int, ...]], kind: str
) -> tuple[list[nn.Parameter], Callable[[], object]]:
    from minitune.optim import AdamW

    weights = [nn.Parameter(w) for w in inputs(device, sizes, 99)]
    if kind in ("ours", "written out"):
        named = {str(i): w for i, w in enumerate(weights)}
        mine = AdamW(named, weight_decay=0.1, fused=kind == "ours")
        return weights, lambda: mine.step(1e-3)
    theirs = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.1, fused=kind == "fused", foreach=kind == "foreach")
    return weights, theirs.step


def shipped() -> dict[str, Callable[[], object]]:
    """No kernel of this project's: torch's own fused step is used."""
    return {}
