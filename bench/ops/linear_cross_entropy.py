"""Head and loss: the products are the roofline, 2 N V C forward and twice that backward (half, for a frozen head).

Counted are the rows that have a target; who multiplies the others as well does more than he must.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.ops import Case
from bench.ops.peers import compiled, liger, noise

HEADS = {  # C, V
    "SmolLM2-135M": (576, 49_152),
    "Qwen2.5-0.5B": (896, 151_936),
    "Llama-3.2-1B": (2048, 128_256),
    "Llama-3-8B": (4096, 128_256),
}


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """8,192 tokens; the head trained or frozen; all rows with a target or, as in instruction data, 30 % of them."""
    gpu = device.type == "cuda"
    N = 8192 if gpu else 512
    for model, (C, V) in HEADS.items():
        if (quick or not gpu) and model != "SmolLM2-135M":
            continue
        for frozen in (False, True):
            yield case(device, model, N, C, V, frozen, 1.0)
        yield case(device, model, N, C, V, False, 0.3)


def case(device: torch.device, model: str, N: int, C: int, V: int, frozen: bool, share: float) -> Case:
    trained = round(share * N)
    product = 2.0 * trained * V * C
    contestants: dict[str, Callable[..., Tensor]] = {"eager": eager, "torch.compile": compiled(eager)}
    if device.type == "cuda":
        contestants["ours"] = ours
        if liger("fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction") is not None:
            contestants["Liger"] = of_liger
    else:
        contestants["BUILTIN (rows dropped)"] = builtin
    if hasattr(F, "linear_cross_entropy"):
        contestants["F.linear_cross_entropy"] = of_torch
    back = product if frozen else 2 * product
    return Case(
        name=f"{model} N{N} C{C} V{V} {'frozen head' if frozen else 'full'} {round(100 * share)} % trained",
        inputs=partial(inputs, device, N, C, V, frozen, trained),
        contestants=contestants,
        unit="flops",
        work={"forward": product, "backward": back, "both": product + back},
        directions=("both", "forward"),
        truth=truth,
        part=lambda outputs: [outputs[1][:64]] if len(outputs) > 1 else [],
    )


def inputs(device: torch.device, N: int, C: int, V: int, frozen: bool, trained: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator(device).manual_seed(seed)
    targets = torch.randint(0, V, (N,), generator=generator, device=device)
    targets[torch.randperm(N, generator=generator, device=device)[trained:]] = -100
    return noise(device, seed, N, C), noise(device, seed + 100, V, C, scale=2 / C**0.5, grad=not frozen), targets


def eager(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((x @ head.T).float(), targets, reduction="sum")


def ours(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    from minitune_kernels import linear_cross_entropy

    return linear_cross_entropy(x, head, targets)[0]


def builtin(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    from minitune.ops import BUILTIN

    return BUILTIN.linear_cross_entropy(x, head, targets)[0]


def of_torch(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.linear_cross_entropy(x, head, targets, reduction="sum")


def of_liger(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    function = liger("fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction")
    assert function is not None
    result = function.apply(x, head, targets, None, None, -100, 0.0, 0.0, "sum")
    return result[0] if isinstance(result, tuple) else result


def truth(x: Tensor, head: Tensor, targets: Tensor) -> list[Tensor]:
    from minitune.ops.linear_cross_entropy import linear_cross_entropy_backward

    one = torch.ones((), dtype=torch.float64, device=x.device)
    return [linear_cross_entropy_backward(one, x[:64].detach().double(), head.detach().double(), targets[:64])[0]]


def shipped() -> dict[str, Callable[[], object]]:
    """Its one kernel is listed with ``cross_entropy``; here through the whole operation."""
    return {"bfloat16": _meta}


def _meta() -> None:
    from minitune_kernels.linear_cross_entropy import linear_cross_entropy_chunks

    x, head = (torch.empty(4096, 576, dtype=torch.bfloat16, device="meta") for _ in range(2))
    targets = torch.empty(4096, dtype=torch.int64, device="meta")
    linear_cross_entropy_chunks(x, head, None, targets, None, 0.0, 0.0, 0.0, True, False, False)
