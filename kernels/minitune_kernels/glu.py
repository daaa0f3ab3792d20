"""Activations and gated linear units (Shazeer, arXiv 2002.05202), elementwise.

    activation(a) = a g(a)                       glu(a, up) = a g(a) * up
    da = dy * (g + a g')                         da = dy * up * (g + a g')         dup = dy * a g

    silu        g = 1 / (1 + e^-a)           g' = g (1 - g)
    gelu        g = P(a), the normal         g' = e^(-a^2 / 2) / sqrt(2 pi)
    gelu_tanh   g = (1 + tanh u) / 2         g' = 2 u' g (1 - g)                 u = sqrt(2 / pi) (a + 0.044715 a^3)

Computed in float32 and rounded once. The backward computes g again from what came in; nothing else is kept. Bytes
that must move: 3 elements forward (2 without a gate), 5 backward (3).

P(a) of a gate that is nearly shut is tiny, and 1 + erf would cancel its digits: the tail is taken by itself.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minitune_kernels.launch import cdiv, interpreted, launch, operator
from minitune_kernels.rows import check_types

KINDS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


def glu(gate: Tensor, up: Tensor, *, kind: str) -> Tensor:
    """``act(gate) * up`` elementwise, ``(..., F)``. Raises ValueError for an unknown kind and for float64."""
    check_types("glu", gate=gate, up=up)
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"glu: gate {tuple(gate.shape)} of {gate.dtype}, up {tuple(up.shape)} of {up.dtype}; expected alike"
        )
    return _Glu.apply(gate, up, _known(kind))


def activation(x: Tensor, *, kind: str) -> Tensor:
    """``act(x)`` elementwise, ``(..., F)``. Raises ValueError for an unknown kind and for float64."""
    check_types("activation", x=x)
    return _Activation.apply(x, _known(kind))


def _known(kind: str) -> int:
    if kind not in KINDS:
        raise ValueError(f"activation {kind!r} is not known; it must be one of: {', '.join(KINDS)}")
    return KINDS[kind]


class _Glu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kind: int) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.kind = kind
        return glu_forward(gate, up, kind)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = ctx.saved_tensors
        return *glu_backward(dy, gate, up, ctx.kind), None


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kind = kind
        return glu_forward(x, None, kind)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return glu_backward(dy, x, None, ctx.kind)[0], None


# ---- the operators


def _fake(gate: Tensor, up: Tensor | None, kind: int) -> Tensor:
    return gate.new_empty(gate.shape)


def _backward_fake(dy: Tensor, gate: Tensor, up: Tensor | None, kind: int) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(0 if up is None else gate.shape)


@operator("glu_forward(Tensor gate, Tensor? up, int kind) -> Tensor", _fake)
def glu_forward(gate: Tensor, up: Tensor | None, kind: int) -> Tensor:
    """``act(gate)``, times ``up`` where there is one; contiguous."""
    y = _fake(gate, up, kind)
    gate, up = gate.contiguous(), None if up is None else up.contiguous()
    launch(_forward, (cdiv(y.numel(), _block()),), gate, up, y, y.numel(), KIND=kind, GATED=up is not None,
           BLOCK=_block(), num_warps=4)  # fmt: skip
    return y


@operator("glu_backward(Tensor dy, Tensor gate, Tensor? up, int kind) -> (Tensor, Tensor)", _backward_fake)
def glu_backward(dy: Tensor, gate: Tensor, up: Tensor | None, kind: int) -> tuple[Tensor, Tensor]:
    """``dgate, dup``; an empty ``dup`` where there was no ``up``."""
    dgate, dup = _backward_fake(dy, gate, up, kind)
    dy, gate, up = dy.contiguous(), gate.contiguous(), None if up is None else up.contiguous()
    launch(_backward, (cdiv(dgate.numel(), _block()),), dy, gate, up, dgate, dup, dgate.numel(), KIND=kind,
           GATED=up is not None, BLOCK=_block(), num_warps=4)  # fmt: skip
    return dgate, dup


def _block() -> int:
    return 64 if interpreted() else 2048


# ---- the kernels


@triton.jit
def _sigmoid(a):
    """1 / (1 + e^-a) without an overflow on either side."""
    e = tl.exp(-tl.abs(a))
    return tl.where(a >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _normal(a):
    """The normal distribution function, its tail with its digits: P(a) = erfc(-a / sqrt 2) / 2.

    erfc(z) = e^(-z^2) t R(t) with t = 1 / (1 + 0.4 z) for z >= 0; R is a least-squares polynomial of degree 10 in t,
    fitted to the scaled erfc in float64 over 0 <= z <= 13, and right to 1e-8 of it there.
    """
    z = tl.abs(a) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.4 * z)
    r = -0.02198474947
    r = r * t + 0.09880074321
    r = r * t - 0.1308586992
    r = r * t - 0.01315447636
    r = r * t + 0.09035996485
    r = r * t + 0.001592812212
    r = r * t + 0.1518274726
    r = r * t + 0.1631809898
    r = r * t + 0.2090068326
    r = r * t + 0.225548278
    r = r * t + 0.225680825
    tail = 0.5 * t * r * tl.exp(-z * z)
    return tl.where(a < 0, tail, 1.0 - tail)


@triton.jit
def _gate(a, KIND: tl.constexpr):
    """``g(a)`` and its slope ``g'(a)``."""
    if KIND == 0:
        g = _sigmoid(a)
        return g, g * _sigmoid(-a)
    if KIND == 1:
        return _normal(a), 0.3989422804014327 * tl.exp(-0.5 * a * a)
    u = 0.7978845608028654 * (a + 0.044715 * a * a * a)
    g = _sigmoid(2.0 * u)
    return g, 2.0 * 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * a * a) * g * _sigmoid(-2.0 * u)


@triton.jit
def _forward(gate_ptr, up_ptr, y_ptr, N, KIND: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(gate_ptr + at, at < N, other=0.0).to(tl.float32)
    g, _ = _gate(a, KIND)
    y = a * g
    if GATED:
        y = y * tl.load(up_ptr + at, at < N, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), at < N)


@triton.jit
def _backward(
    dy_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, N, KIND: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(gate_ptr + at, at < N, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, at < N, other=0.0).to(tl.float32)
    g, slope = _gate(a, KIND)
    da = dy * (g + a * slope)
    if GATED:
        da = da * tl.load(up_ptr + at, at < N, other=0.0).to(tl.float32)
        tl.store(dup_ptr + at, (dy * a * g).to(dup_ptr.dtype.element_ty), at < N)
    tl.store(dgate_ptr + at, da.to(dgate_ptr.dtype.element_ty), at < N)
