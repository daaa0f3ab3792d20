"""One block in Llama form, forward and backward, made of nothing but the closed forms of the operations.

    h = x + attention(norm(x)) W_o^T          y = h + glu(norm(h) W_gate^T, norm(h) W_up^T) W_down^T

The backward is the same lines from the last to the first. A sum sends its gradient to both terms, so what comes from
above goes past each layer unchanged, and the layer's own gradient is added to it.
"""

from dataclasses import dataclass

from torch import Tensor

from minitune.ops.attention import attention, attention_backward
from minitune.ops.glu import Kind, glu, glu_backward
from minitune.ops.linear import linear, linear_backward
from minitune.ops.norms import rms_norm, rms_norm_backward
from minitune.ops.rope import rope, rope_backward


@dataclass(frozen=True, kw_only=True)
class BlockWeights:
    """The weights of a block, or their gradients: norms ``(C,)``, matrices ``(out, in)``."""

    attention_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    mlp_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


def block(
    x: Tensor, w: BlockWeights, cos: Tensor, sin: Tensor, *, channels: int, eps: float, kind: Kind = "silu"
) -> Tensor:
    """``x (B, T, C)`` through the block, causal; ``channels`` is D, ``cos, sin`` as in ``rope``."""
    return _forward(x, w, cos, sin, channels, eps, kind)[-1]


def block_backward(
    dy: Tensor, x: Tensor, w: BlockWeights, cos: Tensor, sin: Tensor, *, channels: int, eps: float, kind: Kind = "silu"
) -> tuple[Tensor, BlockWeights]:
    """Gradients for ``x`` and the weights of ``block``, in closed form; what is between is computed again."""
    n1, q, k, v, a, h, n2, gate, up, m, _ = _forward(x, w, cos, sin, channels, eps, kind)

    dm, ddown, _ = linear_backward(dy, m, w.down)
    dgate, dup = glu_backward(dm, gate, up, kind=kind)
    dn2_gate, dw_gate, _ = linear_backward(dgate, n2, w.gate)
    dn2_up, dw_up, _ = linear_backward(dup, n2, w.up)
    dh, dmlp_norm = rms_norm_backward(dn2_gate + dn2_up, h, w.mlp_norm, eps=eps)  # RES-9
    dh = dy + dh  # RES-8

    da, do, _ = linear_backward(dh, a.flatten(-2), w.o)
    dq, dk, dv = attention_backward(da.view(a.shape), q, k, v)
    dq, dk = rope_backward(dq, dk, cos, sin)
    dn1_q, dw_q, _ = linear_backward(dq.flatten(-2), n1, w.q)
    dn1_k, dw_k, _ = linear_backward(dk.flatten(-2), n1, w.k)
    dn1_v, dw_v, _ = linear_backward(dv.flatten(-2), n1, w.v)
    dx, dattention_norm = rms_norm_backward(dn1_q + dn1_k + dn1_v, x, w.attention_norm, eps=eps)  # RES-9
    return dh + dx, BlockWeights(  # RES-8
        attention_norm=dattention_norm,
        q=dw_q,
        k=dw_k,
        v=dw_v,
        o=do,
        mlp_norm=dmlp_norm,
        gate=dw_gate,
        up=dw_up,
        down=ddown,
    )


def _forward(
    x: Tensor, w: BlockWeights, cos: Tensor, sin: Tensor, channels: int, eps: float, kind: Kind
) -> tuple[Tensor, ...]:
    """Every value on the way, in order; the last is the output."""
    n1 = rms_norm(x, w.attention_norm, eps=eps)  # (B, T, C)
    q, k, v = (linear(n1, weight).unflatten(-1, (-1, channels)) for weight in (w.q, w.k, w.v))  # (B, T, heads, D)
    q, k = rope(q, k, cos, sin)
    a = attention(q, k, v)  # (B, T, H, D)
    h = x + linear(a.flatten(-2), w.o)  # RES-2
    n2 = rms_norm(h, w.mlp_norm, eps=eps)
    gate, up = linear(n2, w.gate), linear(n2, w.up)  # (B, T, F)
    m = glu(gate, up, kind=kind)
    return n1, q, k, v, a, h, n2, gate, up, m, h + linear(m, w.down)  # RES-3
