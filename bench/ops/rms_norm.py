"""RMSNorm: memory is the roofline. One reading and one writing forward; backward two readings and one writing."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.ops import Case
from bench.ops.peers import compiled, liger, noise

SHAPES = ((8192, 576), (8192, 2048), (8192, 4096), (8192, 8192), (4096, 16384), (131_072, 128))


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Rows of the hidden sizes of real models, and the per-head norm of queries."""
    for N, C in SHAPES[2:3] if quick else SHAPES:
        contestants: dict[str, Callable[..., Tensor]] = {"eager": eager, "builtin": builtin}
        contestants["torch.compile"] = compiled(eager)
        if device.type == "cuda":
            contestants["ours"] = ours
            if liger("rms_norm", "LigerRMSNormFunction") is not None:
                contestants["Liger"] = of_liger
        yield memory_case(f"{N} x {C}", partial(inputs, device, N, C), contestants, N * C, device, 2, 3, truth)


def memory_case(
    name: str,
    make: Callable[[int], tuple[Tensor, ...]],
    contestants: dict[str, Callable[..., Tensor]],
    elements: int,
    device: torch.device,
    forward: float,
    backward: float,
    truth: Callable[..., list[Tensor]],
) -> Case:
    """A case that moves so many tensors of ``elements`` in each direction."""
    moved = (2 if device.type == "cuda" else 4) * elements
    return Case(
        name=name,
        inputs=make,
        contestants=contestants,
        unit="bytes",
        work={"forward": forward * moved, "backward": backward * moved, "both": (forward + backward) * moved},
        truth=truth,
        part=lambda outputs: [outputs[0][:256]],
        input_sets=4,
    )


def inputs(device: torch.device, N: int, C: int, seed: int) -> tuple[Tensor, ...]:
    return noise(device, seed, N, C), noise(device, seed + 100, C)


def eager(x: Tensor, weight: Tensor) -> Tensor:
    from minitune.ops import REFERENCE

    return REFERENCE.rms_norm(x, weight, eps=1e-5)


def builtin(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, 1e-5)


def ours(x: Tensor, weight: Tensor) -> Tensor:
    from minitune_kernels import rms_norm

    return rms_norm(x, weight, eps=1e-5)


def of_liger(x: Tensor, weight: Tensor) -> Tensor:
    function = liger("rms_norm", "LigerRMSNormFunction")
    assert function is not None
    return function.apply(x, weight, 1e-5, 0.0, "llama", False)


def truth(x: Tensor, weight: Tensor) -> list[Tensor]:
    from minitune.ops import REFERENCE

    return [REFERENCE.rms_norm(x[:256].detach().double(), weight.detach().double(), eps=1e-5)]


def shipped() -> dict[str, Callable[[], object]]:
    """The tiles, with and without the residual and the weight's gradient."""
    calls: dict[str, Callable[[], object]] = {}
    dtype = torch.bfloat16
    for C in (128, 4096, 8192, 12288, 16384, 20000):
        calls[f"{str(dtype)[6:]} C{C}"] = partial(_meta, dtype, C)
    return calls


def _meta(dtype: torch.dtype, C: int) -> None:
    from minitune_kernels.rms_norm import _add_rms_norm, _rms_norm, _rms_norm_backward

    x, w = torch.empty(4096, C, dtype=dtype, device="meta"), torch.empty(C, dtype=dtype, device="meta")
    rstd = torch.empty(4096, device="meta")
    _rms_norm(x, w, 1e-5, 0.0, False)
    _add_rms_norm(x, x, w, 1e-5, 0.0, True)
    for residual in (None, x):
        for train in (False, True):
            _rms_norm_backward(x, residual, x, w, rstd, 0.0, False, train)
