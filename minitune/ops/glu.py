"""Gated linear units (Shazeer, arXiv 2002.05202): one half of the MLP decides how much of the other half passes.

    y = act(gate) * up
    dgate = dy * up * act'(gate)         dup = dy * act(gate)

    silu(a) = a s          s = 1 / (1 + exp(-a))          silu'(a) = s (1 + a (1 - s))
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from minitune.ops.precision import wide

Kind = Literal["silu", "gelu", "gelu_tanh"]
LATER = "this version has 'silu' (SwiGLU)"


def glu(gate: Tensor, up: Tensor, *, kind: Kind) -> Tensor:
    """``act(gate) * up`` elementwise, ``(..., F)``; computed in float32 and rounded once."""
    _check(kind)
    a = gate.to(wide(gate.dtype))
    return (a * torch.sigmoid(a) * up).to(gate.dtype)


def glu_backward(dy: Tensor, gate: Tensor, up: Tensor, *, kind: Kind) -> tuple[Tensor, Tensor]:
    """Gradients ``(dgate, dup)`` of ``glu``, in closed form."""
    _check(kind)
    a = gate.to(wide(gate.dtype))
    s = torch.sigmoid(a)
    dgate = dy * up * s * (1 + a * (1 - s))
    dup = dy * a * s
    return dgate.to(gate.dtype), dup.to(up.dtype)


def glu_builtin(gate: Tensor, up: Tensor, *, kind: Kind) -> Tensor:
    """``glu`` by ``torch.nn.functional.silu``."""
    _check(kind)
    return F.silu(gate) * up


def _check(kind: str) -> None:
    if kind != "silu":
        raise ValueError(f"glu: kind {kind!r} is not built yet; {LATER}")
