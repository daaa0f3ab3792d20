"""The peers' implementations of an operation, where their packages can be imported."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def peer(module: str, function: str) -> Any | None:
    """A function of a module, or None where it is not installed."""
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError):
        return None


def liger(module: str, function: str) -> Any | None:
    """A function of Liger-Kernel's ``liger_kernel.ops.<module>``, or None where it is not installed."""
    return peer(f"liger_kernel.ops.{module}", function)


def compiled(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``f`` through ``torch.compile``, made at its first call."""
    return torch.compile(f, dynamic=False)


def noise(device: torch.device, seed: int, *shape: int, scale: float = 1.0, grad: bool = True) -> Tensor:
    """Normal noise in bfloat16 (float32 on a CPU), a leaf that takes a gradient where ``grad``."""
    generator = torch.Generator(device).manual_seed(seed)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)
    return x.requires_grad_() if grad else x
