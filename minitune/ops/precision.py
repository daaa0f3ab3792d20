"""The type a sum is taken in."""

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32 for anything narrower; float64 stays float64, so that every formula can be checked in it."""
    return torch.promote_types(dtype, torch.float32)
