"""Cross-entropy of logits: memory is the roofline. One reading forward, one reading and one writing backward."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.ops import Case
from bench.ops.peers import compiled, liger, noise, peer

VOCABULARIES = (32_000, 49_152, 128_256, 151_936, 262_144)


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """4,096 rows of every vocabulary."""
    N = 4096 if device.type == "cuda" else 256
    for V in VOCABULARIES[:1] if quick else VOCABULARIES:
        size = 2 if device.type == "cuda" else 4
        contestants: dict[str, Callable[..., Tensor]] = {"eager": eager, "torch.compile": compiled(eager)}
        if device.type == "cuda":
            contestants["ours"] = ours
            if liger("cross_entropy", "LigerCrossEntropyFunction") is not None:
                contestants["Liger (spoils its logits)"] = of_liger
            if peer("quack", "cross_entropy") is not None:
                contestants["QuACK"] = of_quack
        yield Case(
            name=f"N{N} V{V}",
            inputs=partial(inputs, device, N, V),
            contestants=contestants,
            unit="bytes",
            work={"forward": size * N * V, "backward": 2 * size * N * V, "both": 3 * size * N * V},
            truth=truth,
            part=lambda outputs: [outputs[1][:64]] if len(outputs) > 1 else [],
        )


def inputs(device: torch.device, N: int, V: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator(device).manual_seed(seed)
    return noise(device, seed, N, V, scale=2.0), torch.randint(0, V, (N,), generator=generator, device=device)


def eager(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def ours(logits: Tensor, targets: Tensor) -> Tensor:
    from minitune_kernels import cross_entropy

    return cross_entropy(logits, targets)[0]


def of_liger(logits: Tensor, targets: Tensor) -> Tensor:
    """It writes the gradient over the logits it was given, so it gets a copy of its own: not part of its time."""
    function = liger("cross_entropy", "LigerCrossEntropyFunction")
    assert function is not None
    result = function.apply(logits, targets, None, -100, 0.0, 0.0, "sum")
    return result[0] if isinstance(result, tuple) else result


def of_quack(logits: Tensor, targets: Tensor) -> Tensor:
    function = peer("quack", "cross_entropy")
    assert function is not None
    return function(logits, targets, reduction="sum")


def truth(logits: Tensor, targets: Tensor) -> list[Tensor]:
    from minitune.ops.cross_entropy import cross_entropy_backward

    one = torch.ones((), dtype=torch.float64, device=logits.device)
    return [cross_entropy_backward(one, logits[:64].detach().double(), targets[:64])]


def shipped() -> dict[str, Callable[[], object]]:
    """Every type, both sizes of a block, with and without softcap."""
    calls: dict[str, Callable[[], object]] = {}
    for dtype in (torch.bfloat16,):
        for V in (1000, 128_256):
            for softcap in (0.0, 30.0):
                calls[f"{str(dtype)[6:]} V{V}" + (" softcap" if softcap else "")] = partial(_meta, dtype, V, softcap)
    return calls


def _meta(dtype: torch.dtype, V: int, softcap: float) -> None:
    from minitune_kernels.cross_entropy import cross_entropy_backward, cross_entropy_forward, in_place

    logits = torch.empty(4096, V, dtype=dtype, device="meta")
    targets = torch.empty(4096, dtype=torch.int64, device="meta")
    row = torch.empty(4096, device="meta")
    cross_entropy_forward(logits, targets, 0.1, softcap, 0.0)
    cross_entropy_backward(row, logits, targets, row, row, 0.1, softcap, 0.0)
    in_place(logits, targets, row, smoothing=0.1, softcap=softcap, z_loss=0.0, gradient=True)
    in_place(logits, targets, row, smoothing=0.0, softcap=softcap, z_loss=0.0, gradient=False)
