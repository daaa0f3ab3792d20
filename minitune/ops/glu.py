"""Activations, and gated linear units (Shazeer, arXiv 2002.05202): one half of the MLP decides how much of the other
half passes.

    activation(a) = a g(a)                       glu(a, up) = a g(a) * up
    da = dy * (g + a g')                         da = dy * up * (g + a g')         dup = dy * a g

    silu        g = 1 / (1 + exp(-a))        g' = g (1 - g)                        (Elfwing et al., arXiv 1702.03118)
    gelu        g = P(a), the normal         g' = exp(-a^2 / 2) / sqrt(2 pi)     (Hendrycks, Gimpel, arXiv 1606.08415)
                distribution function
    gelu_tanh   g = (1 + tanh u) / 2         g' = 2 u' g (1 - g)                u = sqrt(2 / pi) (a + 0.044715 a^3)

P(a) is taken as erfc(-a / sqrt 2) / 2, where 1 + erf would cancel the digits of a gate that is nearly shut; and in g'
the sigmoid of the negative stands for 1 - g, which would cancel those of one nearly open ((1 + tanh u) / 2 is the
sigmoid of 2 u).
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from minitune.ops.precision import wide

Kind = Literal["silu", "gelu", "gelu_tanh"]
CUBIC = 0.044715


def glu(gate: Tensor, up: Tensor, *, kind: Kind) -> Tensor:
    """``act(gate) * up`` elementwise, ``(..., F)``; computed in float32 and rounded once.

    Raises ValueError for an unknown kind.
    """
    a = gate.to(wide(gate.dtype))
    return (a * _gate(a, kind) * up).to(gate.dtype)  # GLU-2


def glu_backward(dy: Tensor, gate: Tensor, up: Tensor, *, kind: Kind) -> tuple[Tensor, Tensor]:
    """Gradients ``(dgate, dup)`` of ``glu``, in closed form."""
    a = gate.to(wide(gate.dtype))
    g, dg = _gate(a, kind), _gate_slope(a, kind)
    dgate = (g + a * dg) * up * dy  # GLU-7
    dup = a * g * dy  # GLU-7
    return dgate.to(gate.dtype), dup.to(up.dtype)


def activation(x: Tensor, *, kind: Kind) -> Tensor:
    """``act(x)`` elementwise, ``(..., F)``: the MLP without a gate; computed in float32 and rounded once.

    Raises ValueError for an unknown kind.
    """
    a = x.to(wide(x.dtype))
    return (a * _gate(a, kind)).to(x.dtype)  # GLU-1


def activation_backward(dy: Tensor, x: Tensor, *, kind: Kind) -> Tensor:
    """Gradient ``dx`` of ``activation``, in closed form."""
    a = x.to(wide(x.dtype))
    g, dg = _gate(a, kind), _gate_slope(a, kind)
    return ((g + a * dg) * dy).to(x.dtype)  # GLU-6


def _gate(a: Tensor, kind: Kind) -> Tensor:
    """How much passes: ``g(a)`` of the table above."""
    if kind == "silu":
        return torch.sigmoid(a)  # GLU-3
    if kind == "gelu":
        return torch.erfc(a * -math.sqrt(0.5)) / 2  # GLU-4
    if kind == "gelu_tanh":
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + CUBIC * a**3))) / 2  # GLU-5
    raise _unknown(kind)


def _gate_slope(a: Tensor, kind: Kind) -> Tensor:
    """``g'(a)`` of the table above."""
    if kind == "silu":
        return torch.sigmoid(a) * torch.sigmoid(-a)  # GLU-8
    if kind == "gelu":
        return torch.exp(-a * a / 2) / math.sqrt(2 * math.pi)  # GLU-9
    root = math.sqrt(2 / math.pi)
    u = root * (a + CUBIC * a**3)
    return 2 * root * (1 + 3 * CUBIC * a * a) * torch.sigmoid(2 * u) * torch.sigmoid(-2 * u)  # GLU-10


def glu_builtin(gate: Tensor, up: Tensor, *, kind: Kind) -> Tensor:
    """``glu`` by ``torch.nn.functional``."""
    return activation_builtin(gate, kind=kind) * up


def activation_builtin(x: Tensor, *, kind: Kind) -> Tensor:
    """``activation`` by ``torch.nn.functional``."""
    if kind == "silu":
        return F.silu(x)
    if kind == "gelu":
        return F.gelu(x)
    if kind == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    raise _unknown(kind)


def _unknown(kind: str) -> ValueError:
    return ValueError(f"activation {kind!r} is not known; it must be one of: {', '.join(get_args(Kind))}")
