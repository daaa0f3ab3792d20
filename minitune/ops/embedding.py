"""A row of a table for each id, and what comes back to the table.

    x[n] = s E[id[n]]            dE[v] = s sum of dx[n] over the n with id[n] = v

The look-up is the product of a one-hot row with the table, written without the zeros; so is its backward.
"""

import torch
from torch import Tensor

from minitune.ops.precision import wide


def embedding(ids: Tensor, weight: Tensor, *, scale: float = 1.0) -> Tensor:
    """``scale`` times the rows of ``weight (V, C)`` that ``ids (...)`` name: ``(..., C)``."""
    return weight[ids] * scale  # EMB-1


def embedding_backward(dx: Tensor, ids: Tensor, rows: int, *, scale: float = 1.0) -> Tensor:
    """Gradient ``dweight (rows, C)`` of ``embedding``, in closed form; summed in float32 or wider.

    A row that no id names gets 0, and one that is named often the sum.
    """
    flat = dx.flatten(0, -2)  # (N, C)
    dweight = torch.zeros(rows, flat.shape[-1], dtype=wide(dx.dtype), device=dx.device)
    dweight.index_add_(0, ids.flatten(), flat.to(dweight.dtype) * scale)  # EMB-4
    return dweight.to(dx.dtype)
