"""What the kernels over rows of channels share: which types they take, how much a program holds, and the last sum.

A tensor ``(..., C)`` is N rows of C channels. A program holds a tile of ``rows x block`` elements in registers, where
``block`` is the power of two that covers C; longer rows than ``LONGEST`` go through in pieces of ``PIECE``.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from minitune_kernels.launch import cdiv, launch, power_of_two, processors

LONGEST = 16384
"""Channels of the longest row that is held in registers."""
PIECE = 4096
"""Channels of a piece of a longer row."""
TYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Tile:
    """What one program holds, and how many programs share a processor in a persistent grid."""

    rows: int
    block: int
    warps: int
    stages: int = 1  # tiles of the loop that are on their way at once
    per_processor: int = 1


def tiles(C: int, dtype: torch.dtype) -> Tile:
    """The tile of a forward: about 32 elements a thread, so 4 (float32: 8) loads of 16 bytes are under way in each.

    Up to 256 channels several rows share a warp; up to 1024 a warp has a row of its own, and no sum leaves it.
    """
    block = power_of_two(C, least=16)
    if block <= 256:
        return Tile(rows=4096 // block, block=block, warps=4)
    return Tile(rows=max(1, 1024 // block), block=block, warps=max(1, block // 1024))


def backward_tiles(C: int, dtype: torch.dtype, inputs: int = 2) -> Tile:
    """The tile of a backward with a persistent grid, whose loop reads ``inputs`` tensors.

    Large tiles in few programs: each of P programs writes C partial sums, which is P / N of the work. The next tiles
    are fetched to shared memory while one is worked on: as many as fit in 96 KiB, so that two programs share a
    processor.
    """
    block = power_of_two(C, least=16)
    elements = 8192 if dtype.itemsize == 2 else 4096
    rows, warps = max(1, elements // block), 16 if block == LONGEST else 8
    stage = rows * block * dtype.itemsize * inputs
    stages = max(2, min(4, (96 << 10) // stage))
    return Tile(rows, block, warps, stages, per_processor=1 if block * dtype.itemsize * inputs > 32 << 10 else 2)


def in_registers(C: int, dtype: torch.dtype, *, backward: bool = False) -> bool:
    """Whether a row is held in registers, or goes through in pieces. A backward also holds the partial sums."""
    return (LONGEST // 2 if backward and dtype.itemsize == 4 else LONGEST) >= C


def programs(x: Tensor, N: int, tile: Tile) -> int:
    """How many programs share N rows in a persistent grid."""
    return min(processors(x.device) * tile.per_processor, cdiv(N, tile.rows))


def rows_of(x: Tensor) -> Tensor:
    """``x (..., C)`` as ``(N, C)`` whose channels lie side by side: a view where the strides allow it, else a copy."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def check_types(operation: str, **tensors: Tensor | None) -> None:
    """Refuse what is neither float32, bfloat16 nor float16."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in TYPES:
            raise ValueError(
                f"{operation}: {name} is {tensor.dtype}; the kernels take float32, bfloat16 and float16. "
                "The tables REFERENCE and BUILTIN of minitune.ops take float64 too"
            )


def sum_partials(partials: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over P of ``partials (..., P, C)`` in float32, as ``dtype``: always in the same order."""
    P, C = partials.shape[-2:]
    out = torch.empty(*partials.shape[:-2], C, dtype=dtype, device=partials.device)
    # Narrow columns while there are few, so that enough programs share the work.
    block = 16 if C <= 2048 else 32
    grid = (cdiv(C, block), math.prod(partials.shape[:-2]))
    launch(_sum_partials, grid, partials, out, P, C, ROWS=128, BLOCK=block, num_warps=4)
    return out


@triton.jit
def _sum_partials(partials_ptr, out_ptr, P, C, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    which = tl.program_id(1)
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for start in range(0, P, ROWS):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < P)[:, None] & (cols < C)[None, :]
        total += tl.load(partials_ptr + (which * P + rows)[:, None].to(tl.int64) * C + cols[None, :], mask, other=0.0)
    tl.store(out_ptr + which * C + cols, tl.sum(total, 0), mask=cols < C)
