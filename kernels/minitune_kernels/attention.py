"""Attention on a GPU, forward and backward, without the (T, S) scores in memory.

    r = scale * q k^T          s = c tanh(r / c) with a softcap c, else r          y = softmax(s over the seen keys) v

The kernels are in ``attention_forward.py`` and ``attention_backward.py``, who sees whom in ``intervals.py``; here is
what a caller meets: the checks, the tile sizes, the operators that ``torch.compile`` sees, and the gradient.

Memory is O(T): the backward holds q, k, v, y, one float a query and head, and the gradients.
"""

import math
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minitune_kernels.attention_backward import (
    attention_backward_keys_kernel,
    attention_backward_queries_kernel,
    delta_kernel,
)
from minitune_kernels.attention_forward import LOG2_E, attention_forward_kernel, in_base_two, precision
from minitune_kernels.decode_attention import decode_attention, decodes
from minitune_kernels.intervals import Intervals, intervals
from minitune_kernels.launch import capability, cdiv, chose, interpreted, launch, operator, power_of_two

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CACHE_BYTES = 32 << 20
"""Keys and values that programs running side by side may share: what fits an H100's second-level cache of 50 MB."""


class Tiles(NamedTuple):
    """How a kernel cuts its work: BLOCK_T queries, BLOCK_S keys, warps a program, stages of loads in flight."""

    t: int
    s: int
    warps: int
    stages: int


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    plan: Any = None,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Let each query gather the values of the keys it sees: ``q (B, T, H, D)``, ``k, v (B, S, K, D)`` -> like ``q``.

    Arguments as in ``minitune.ops.attention``, in float16, bfloat16 or float32, D up to 256. A query that sees nothing
    gives 0 and takes no gradient. Products of 16-bit inputs are exact, their sums in float32. The backward is
    deterministic where ``torch.use_deterministic_algorithms`` asks for it or where that is the faster form.

    Raises ValueError for what the kernels do not serve: a bias, float64, mixed types, D over 256.
    """
    _check(q, k, v, causal, window, softcap, bias)
    _, T, H, D = q.shape
    S, K = k.shape[1], k.shape[2]
    scale = 1.0 / math.sqrt(D) if scale is None else scale
    if scale < 0:  # the running maximum is taken before the scale, which must not turn it round
        q, scale = -q, -scale
    spans = intervals(plan, T, S, causal=causal, window=window, device=q.device)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))):
        if decodes(T, S, H // K):
            chose("attention", "split keys")
            return decode_attention(q, k, v, spans.first, spans.end, scale, softcap or 0.0)
        return attention_forward(q, k, v, spans.first, spans.end, scale, softcap or 0.0)[0]
    return _Attention.apply(q, k, v, spans, scale, softcap or 0.0)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: Intervals, scale: float, softcap: float) -> Tensor:
        y, lse = attention_forward(q, k, v, spans.first, spans.end, scale, softcap)
        ctx.save_for_backward(q, k, v, y, lse, *spans)
        ctx.scale, ctx.softcap = scale, softcap
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, y, lse, *spans = ctx.saved_tensors
        deterministic = torch.are_deterministic_algorithms_enabled()
        dq, dk, dv = attention_backward(dy, q, k, v, y, lse, *spans, ctx.scale, ctx.softcap, deterministic)
        return dq, dk, dv, None, None, None


# ---- the operators


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, first: Tensor, end: Tensor, scale: float, softcap: float) -> Any:
    B, T, H, _ = q.shape
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty((B, H, T), dtype=torch.float32)


@operator(
    "attention_forward(Tensor q, Tensor k, Tensor v, Tensor first, Tensor end, float scale, float softcap) "
    "-> (Tensor, Tensor)",
    _forward_fake,
)
def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor, end: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """``y`` like ``q``, contiguous, and ``lse (B, H, T)`` in base 2, +inf for a query that sees nothing."""
    y, lse = _forward_fake(q, k, v, first, end, scale, softcap)
    hopper = _hopper(q.device)
    if hopper is not None and hopper.serves(q, k, v, softcap):
        chose("attention", "hopper")
        hopper.attention_forward_hopper(q, k, v, y, lse, first, end, scale * LOG2_E, _section(q, k))
        return y, lse
    chose("attention", "plain")
    B, T, H, D = q.shape
    S, K = k.shape[1], k.shape[2]
    tiles = forward_tiles(D, q.dtype, capability(q.device))
    scale, cap = in_base_two(scale, softcap)
    launch(
        attention_forward_kernel, (cdiv(T, tiles.t) * B * H,),
        q, k, v, y, lse, first, end,
        *_strides(q), *_strides(k), *_strides(v), *_strides(y), _row_stride(first),
        T, S, H, H // K, B * H, _section(q, k), scale, cap,
        D=D, BLOCK_D=power_of_two(D, 16), BLOCK_T=tiles.t, BLOCK_S=tiles.s, SOFTCAP=softcap > 0,
        PRECISION=precision(q.dtype), num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return y, lse


def _backward_fake(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor,
    first: Tensor, end: Tensor, seen_first: Tensor, seen_end: Tensor,
    scale: float, softcap: float, deterministic: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


@operator(
    "attention_backward(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor y, Tensor lse, Tensor first, Tensor end, "
    "Tensor seen_first, Tensor seen_end, float scale, float softcap, bool deterministic) -> (Tensor, Tensor, Tensor)",
    _backward_fake,
)
def attention_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor,
    first: Tensor, end: Tensor, seen_first: Tensor, seen_end: Tensor,
    scale: float, softcap: float, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``dq, dk, dv``, contiguous; in the split form where ``deterministic``, else in the faster one."""
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    B, T, H, D = q.shape
    S, K = k.shape[1], k.shape[2]
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    hopper = _hopper_backward(q.device)
    if hopper is not None and not hopper.serves_backward(dy, q, k, v, softcap):
        hopper = None
    fused = hopper is None and not deterministic and fuses(q)
    chose("attention_backward", "hopper split" if hopper is not None else "fused" if fused else "split")
    half = power_of_two(D, 16)
    delta = q.new_empty((B, H, T), dtype=torch.float32)
    block = 128 if half <= 128 else 64
    block = 32 if interpreted() else block
    launch(delta_kernel, (cdiv(T, block), B * H), dy, y, delta, *_strides(dy), *_strides(y), T, H,
           D=D, BLOCK_D=half, BLOCK_T=block, num_warps=4)  # fmt: skip
    if hopper is not None:
        spans = (first, end, seen_first, seen_end)
        sections = (_section(k, q), _section(q, k))
        hopper.attention_backward_hopper(dy, q, k, v, lse, delta, spans, dq, dk, dv, scale, sections)
        return dq, dk, dv
    scale2, cap = in_base_two(scale, softcap)
    total = q.new_zeros((B, T, H, D), dtype=torch.float32) if fused else dq
    tiles = key_tiles(D, q.dtype, capability(q.device), fused)
    if fused:
        _descriptor_scratch(q.device)
    launch(
        attention_backward_keys_kernel, (cdiv(S, tiles.s) * B * K,),
        q, k, v, dy, lse, delta, total, dk, dv, first, end, seen_first, seen_end,
        *_strides(q), *_strides(k), *_strides(v), *_strides(dy), *_strides(dk),
        _row_stride(first), _row_stride(seen_first),
        T, S, H, K, H // K, B * K, _section(k, q), scale2, scale, cap,
        D=D, BLOCK_D=half, BLOCK_T=tiles.t, BLOCK_S=tiles.s, SOFTCAP=softcap > 0, FUSED=fused,
        PRECISION=precision(q.dtype), num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    if fused:
        return torch.mul(total, scale, out=dq), dk, dv
    tiles = query_tiles(D, q.dtype, capability(q.device))
    launch(
        attention_backward_queries_kernel, (cdiv(T, tiles.t) * B * H,),
        q, k, v, dy, lse, delta, dq, first, end,
        *_strides(q), *_strides(k), *_strides(v), *_strides(dy), *_strides(dq), _row_stride(first),
        T, S, H, H // K, B * H, _section(q, k), scale2, scale, cap,
        D=D, BLOCK_D=half, BLOCK_T=tiles.t, BLOCK_S=tiles.s, SOFTCAP=softcap > 0,
        PRECISION=precision(q.dtype), num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return dq, dk, dv


# ---- choices


def forward_tiles(D: int, dtype: torch.dtype, sm: tuple[int, int]) -> Tiles:
    """Tiles of the forward kernel: on Hopper those that were fastest, else the largest that spill no register."""
    if sm == (0, 0):
        return Tiles(32, 16, 4, 1)
    if dtype == torch.float32:
        return Tiles(64, 32, 4, 2) if D <= 128 else Tiles(32, 32, 4, 1)
    if sm < (9, 0):
        return Tiles(64, 64, 4, 3) if D <= 64 else Tiles(64, 32, 4, 3) if D <= 128 else Tiles(64, 32, 8, 2)
    return Tiles(64, 64, 4, 3) if D <= 64 else Tiles(128, 128, 8, 2) if D <= 128 else Tiles(128, 64, 8, 2)


def key_tiles(D: int, dtype: torch.dtype, sm: tuple[int, int], fused: bool) -> Tiles:
    """Tiles of the backward kernel that owns keys; ``Tiles(64, 128, 8, 2)`` spills registers and is the fastest yet."""
    if sm == (0, 0):
        return Tiles(16, 32, 4, 1)
    if dtype == torch.float32:
        return Tiles(32, 32, 4, 1) if D <= 128 else Tiles(16, 32, 8, 1)
    if sm < (9, 0):
        return Tiles(32, 64, 4, 1) if D <= 64 else Tiles(32, 64, 8, 1) if D <= 128 else Tiles(32, 32, 8, 1)
    if D <= 64:
        return Tiles(64, 128, 8, 1)
    return Tiles(64, 128, 8, 2) if D <= 128 else Tiles(32, 32, 8, 1)


def query_tiles(D: int, dtype: torch.dtype, sm: tuple[int, int]) -> Tiles:
    """Tiles of the backward kernel that owns queries."""
    if sm == (0, 0):
        return Tiles(32, 16, 4, 1)
    if dtype == torch.float32:
        return Tiles(32, 32, 4, 1) if D <= 128 else Tiles(32, 16, 8, 1)
    if sm < (9, 0):
        return Tiles(64, 32, 4, 2) if D <= 128 else Tiles(64, 32, 8, 1)
    return Tiles(64, 64, 4, 2) if D <= 128 else Tiles(64, 32, 8, 1)


def fuses(q: Tensor) -> bool:
    """Whether the fused backward serves these queries: 16-bit, on Hopper's copy engine, whole 16-byte rows."""
    return capability(q.device) >= (9, 0) and q.dtype != torch.float32 and q.shape[3] <= 128 and q.shape[3] % 4 == 0


def _hopper(device: torch.device) -> Any:
    """The kernels for compute capability 9.0; None on another device, or where this Triton has no Gluon."""
    return _gluon_kernels("attention_hopper") if capability(device) == (9, 0) else None


def _hopper_backward(device: torch.device) -> Any:
    return _gluon_kernels("attention_hopper_backward") if capability(device) == (9, 0) else None


@cache
def _gluon_kernels(name: str) -> Any:
    try:
        return import_module(f"minitune_kernels.{name}")
    except ImportError:
        return None


def _section(own: Tensor, walked: Tensor) -> int:
    """How many heads are worked on side by side, so that what they walk over fits the second-level cache."""
    _, S, heads, D = walked.shape
    shared = max(1, own.shape[2] // heads)  # query heads that read the same keys
    fit = max(1, CACHE_BYTES // max(1, 2 * S * D * walked.element_size()))
    return max(1, min(own.shape[0] * own.shape[2], fit * shared))


def _strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), x.stride(2)


def _row_stride(x: Tensor) -> int:
    """Between the rows of an interval; 0 where all rows share one."""
    return x.stride(0) if x.shape[0] > 1 else 0


_scratch_set = False


def _descriptor_scratch(device: torch.device) -> None:
    """Give Triton the memory in which a kernel builds its copy-engine descriptors."""
    global _scratch_set
    if not _scratch_set and device.type == "cuda":
        import triton

        def allocate(size: int, alignment: int, stream: int | None) -> Tensor:
            return torch.empty(size, device="cuda", dtype=torch.int8)

        triton.set_allocator(allocate)
        _scratch_set = True


def _check(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, softcap: float | None, bias: Tensor | None
) -> None:
    if (
        q.ndim != 4
        or k.shape != v.shape
        or q.shape[0] != k.shape[0]
        or q.shape[3] != k.shape[3]
        or q.shape[2] % k.shape[2]
    ):
        raise ValueError(
            f"attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit; "
            "expected (B, T, H, D) and twice (B, S, K, D) with H a multiple of K"
        )
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"attention: window {window} with causal={causal}; it must be 1 or more keys, and causal")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"attention: softcap is {softcap}; it must be above 0, or None for no cap")
    if bias is not None:
        raise ValueError("attention: the kernels take no bias; BUILTIN.attention does")
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"attention: the types are {q.dtype}, {k.dtype}, {v.dtype}; the kernels take float16, bfloat16 or float32, "
            "the same for all; BUILTIN.attention takes float64"
        )
    if q.shape[3] > 256:
        raise ValueError(f"attention: {q.shape[3]} channels a head; the kernels take up to 256, BUILTIN.attention more")
