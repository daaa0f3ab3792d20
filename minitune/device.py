"""Where to compute and in which type: every automatic choice comes with its reason."""

import importlib
import sys
import time

import torch

from minitune.errors import ConfigError
from minitune.ops import BUILTIN, REFERENCE, Ops, triton_ops
from minitune.ops.product import product

# bfloat16 halves the digits; it has to save more than half of a product's time to be taken unasked. A processor whose
# vectors hold twice as many of them saves half at best, and of a whole step less; one with tiles for them, most.
WORTH_IT = 0.4
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    """The compute type for ``auto``, ``float32``, ``bfloat16`` or ``float16`` on ``device``, and why.

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
        slower = _bfloat16_cost()
        if slower > WORTH_IT:
            return torch.float32, f"on this CPU a bfloat16 product takes {slower:.1f} times a float32 one"
        return torch.bfloat16, f"on this CPU a bfloat16 product takes {slower:.2f} times a float32 one"
    return torch.float32, "the safe choice on this device"


def pick_ops(name: str, device: torch.device) -> tuple[Ops, str]:
    """The table of operations for ``auto``, ``triton``, ``builtin`` or ``reference`` on ``device``, and why.

    The only choice that is made unasked: on a CUDA device the kernels where they serve everything, else torch's own
    functions. ConfigError where the kernels are asked for and cannot be had.
    """
    if name in ("reference", "builtin"):
        return (REFERENCE if name == "reference" else BUILTIN), "asked for"
    if name == "auto" and device.type != "cuda":
        return BUILTIN, "torch's own functions"
    try:
        return triton_ops(), "asked for" if name == "triton" else "our kernels"
    except RuntimeError as error:
        if name == "triton":
            raise ConfigError(f"--ops triton: {error}; use --ops builtin") from None
        return BUILTIN, f"torch's own functions: {error}"


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: the GPU allocator's, or the whole process's on a CPU; 0 where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    resource = importlib.import_module("resource")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _bfloat16_cost(size: int = 192, times: int = 8) -> float:
    """How many times as long a bfloat16 product takes as a float32 one on this CPU.

    The best of several, in turn and on one thread: threads that wait for each other on a busy machine would hide the
    difference.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    kinds = (torch.float32, torch.bfloat16)
    factors = {kind: torch.ones(size, size, dtype=kind) for kind in kinds}
    best = dict.fromkeys(kinds, float("inf"))
    try:
        for _ in range(times):
            for kind in kinds:
                start = time.perf_counter()
                product(factors[kind], factors[kind])
                best[kind] = min(best[kind], time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return best[torch.bfloat16] / best[torch.float32]
