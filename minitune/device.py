"""Where to compute and in which type: every automatic choice comes with its reason."""

import importlib
import sys
import time

import torch

from minitune.errors import ConfigError
from minitune.ops import BUILTIN, REFERENCE, Ops

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(name: str) -> tuple[torch.device, str]:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``mps``, and why; ConfigError where it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        found = next(kind for kind, present in there.items() if present)
        return torch.device(found), "a GPU is there" if found != "cpu" else "no GPU was found"
    if name not in there:
        raise ConfigError(f"device is {name!r}; it must be one of: auto, cpu, cuda, mps")
    if not there[name]:
        raise ConfigError(f"device {name!r} is not there on this machine; use --device cpu or auto")
    return torch.device(name), "asked for"


def pick_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The compute type for ``auto``, ``float32`` or ``bfloat16`` on ``device``, and why.

    A GPU that has bfloat16 gets it. On a CPU it is measured: many multiply bfloat16 in software, a hundred times
    slower than float32.
    """
    if name in _DTYPES:
        return _DTYPES[name], "asked for"
    if name != "auto":
        raise ConfigError(f"dtype is {name!r}; it must be one of: auto, {', '.join(_DTYPES)}")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU computes in bfloat16"
        return torch.float32, "this GPU has no bfloat16"
    if device.type == "cpu":
        slower = _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)
        if slower > 0.8:
            return torch.float32, f"on this CPU a bfloat16 product takes {slower:.1f} times a float32 one"
        return torch.bfloat16, f"on this CPU a bfloat16 product takes {slower:.2f} times a float32 one"
    return torch.float32, "the safe choice on this device"


def pick_ops(name: str) -> tuple[Ops, str]:
    """The table of operations for ``auto``, ``builtin`` or ``reference``, and why."""
    if name == "reference":
        return REFERENCE, "asked for"
    return BUILTIN, "asked for" if name == "builtin" else "torch's own functions"


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: the GPU allocator's, or the whole process's on a CPU; 0 where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    resource = importlib.import_module("resource")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _product_seconds(dtype: torch.dtype, size: int = 256) -> float:
    """Seconds of one ``size`` cubed product on the CPU, the best of three."""
    a = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return best
