"""Head and loss: the products are the roofline, 2 N V C forward and twice that backward (half, for a frozen head).

Counted are the rows that have a target; who multiplies the others as well does more than he must.
"""

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.ops import Case
from bench.ops.peers import compiled, liger, noise, peer

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
        contestants["ours, logit-free"] = ours_logit_free
        contestants["ours, chunks of 2048"] = partial(ours_of_chunks, 2048)
        if liger("fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction") is not None:
            contestants["Liger"] = of_liger
        if peer("cut_cross_entropy", "linear_cross_entropy") is not None:
            contestants["cut cross-entropy"] = of_apple
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


def ours_logit_free(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    from minitune_kernels import logit_free

    return logit_free.linear_cross_entropy(x, head, targets)[0]


def ours_of_chunks(rows: int, x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Ours with a buffer that holds ``rows`` tokens, to see what its bound costs."""
    module: Any = importlib.import_module("minitune_kernels.linear_cross_entropy")
    bound, module.BUFFER_ELEMENTS = module.BUFFER_ELEMENTS, rows * head.shape[0]
    try:
        return module.linear_cross_entropy(x, head, targets)[0]
    finally:
        module.BUFFER_ELEMENTS = bound


def of_apple(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    function = peer("cut_cross_entropy", "linear_cross_entropy")
    assert function is not None
    return function(x, head, targets, reduction="sum")


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
    """The chunks' one kernel is listed with ``cross_entropy``; here the whole operation, and the logit-free form."""
    calls: dict[str, Callable[[], object]] = {"bfloat16": partial(_meta, torch.bfloat16, 576, False)}
    for C in (576, 4096):
        calls[f"bfloat16 C{C} logit-free"] = partial(_meta, torch.bfloat16, C, True)
    calls["bfloat16 C2304 logit-free softcap smoothing"] = partial(_meta, torch.bfloat16, 2304, True, 0.1, 30.0)
    calls["float32 C576 logit-free"] = partial(_meta, torch.float32, 576, True)
    return calls


def _meta(dtype: torch.dtype, C: int, free: bool, smoothing: float = 0.0, softcap: float = 0.0) -> None:
    from minitune_kernels.linear_cross_entropy import linear_cross_entropy_chunks, scaled
    from minitune_kernels.logit_free import head_backward, head_forward

    x = torch.empty(4096, C, dtype=dtype, device="meta")
    head = torch.empty(49_152, C, dtype=dtype, device="meta")
    targets = torch.empty(4096, dtype=torch.int64, device="meta")
    row = torch.empty(4096, device="meta")
    if free:
        head_forward(x, head, None, targets, smoothing, softcap, 0.0)
        head_backward(row, x, head, None, targets, row, row, smoothing, softcap, 0.0, True, False, False)
    else:
        linear_cross_entropy_chunks(x, head, None, targets, None, 0.0, 0.0, 0.0, True, False, False)
        scaled(x, row[0], dtype)
