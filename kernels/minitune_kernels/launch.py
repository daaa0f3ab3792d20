"""How every kernel of this package is started: one function, so that a launch can be run, named or only recorded.

A kernel is a ``triton.jit`` function; ``launch`` gives it its grid and arguments. Inside ``recording()`` nothing runs:
each launch is kept with its arguments instead, and tensors on the ``meta`` device will do. So a compiler can be shown
exactly what ships, for a GPU that this machine does not have (``python -m bench.compiled``).

``operator`` makes a function known to PyTorch under ``torch.ops.minitune``, so that ``torch.compile`` keeps it whole.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton

TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
LIBRARY = torch.library.Library("minitune", "DEF")
HOPPER_PROCESSORS = 132
"""Streaming multiprocessors of an H100 or H200 SXM: what is assumed where there is no GPU to ask."""


@dataclass(frozen=True)
class Launch:
    """One start of a kernel: what was asked for."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    meta: dict[str, Any]


_recorded: list[Launch] | None = None
_assumed: tuple[int, int] = (9, 0)
_last: dict[str, str] = {}


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Start ``kernel`` on ``grid``; an empty grid starts nothing. ``meta`` holds constants, num_warps, num_stages."""
    if 0 in grid:
        return
    meta = {"enable_fp_fusion": True, **meta}  # a multiply and an add as one; not left to the compiler's default
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, args, meta))
    else:
        kernel[grid](*args, **meta)


@contextmanager
def recording(capability: tuple[int, int] = (9, 0)) -> Iterator[list[Launch]]:
    """Keep the launches made inside, in order, instead of running them. Not for several threads at once.

    ``capability`` is that of the GPU which tensors on the ``meta`` device are taken to be on.
    """
    global _recorded, _assumed
    before = _recorded, _assumed
    _recorded, _assumed = [], capability
    try:
        yield _recorded
    finally:
        _recorded, _assumed = before


def chose(operation: str, variant: str) -> None:
    """Note which of its kernels an operation picked."""
    _last[operation] = variant


def ran() -> dict[str, str]:
    """Which kernel each operation picked last, such as ``{"attention": "plain"}``."""
    return dict(_last)


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU. Triton reads this once, at its import."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU: how many programs a persistent grid holds."""
    if device.type == "cuda":
        return _processors(device.index if device.index is not None else torch.cuda.current_device())
    return HOPPER_PROCESSORS if device.type == "meta" else 4


@cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def memory(device: torch.device) -> int:
    """Bytes of a GPU's memory; those of an H100 where there is no GPU to ask."""
    if device.type == "cuda":
        return _memory(device.index if device.index is not None else torch.cuda.current_device())
    return 80 << 30


@cache
def _memory(index: int) -> int:
    return torch.cuda.get_device_properties(index).total_memory


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability, such as (9, 0) for Hopper; (0, 0) on a CPU, in the interpreter."""
    if device.type == "cuda":
        return _capability(device.index if device.index is not None else torch.cuda.current_device())
    return _assumed if device.type == "meta" else (0, 0)


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def operator(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as ``torch.ops.minitune.<name>`` of ``schema``, and hand back the operator.

    ``fake`` has the same arguments and returns empty tensors of the right shape and type; ``torch.compile`` traces
    with it. The operator has no gradient of its own: a ``torch.autograd.Function`` composes forward and backward.
    Tensors on the ``meta`` device meet ``fake``, except inside ``recording()``, where ``f`` itself is called.
    """

    def register(f: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.split("(")[0]
        LIBRARY.define(schema)
        LIBRARY.impl(name, f, "CompositeExplicitAutograd")

        def traced(*args: Any, **kwargs: Any) -> Any:
            return fake(*args, **kwargs) if _recorded is None else f(*args, **kwargs)

        torch.library.register_fake(f"minitune::{name}", traced, lib=LIBRARY)
        return getattr(torch.ops.minitune, name).default

    return register


def cdiv(a: int, b: int) -> int:
    """How many pieces of size ``b`` cover ``a``."""
    return -(-a // b)


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least ``n`` and at least ``least``."""
    return max(least, 1 << (n - 1).bit_length()) if n > 0 else least
