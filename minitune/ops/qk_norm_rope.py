"""The norm of every query and key head, then its rotation, as one operation: Qwen3 (arXiv 2505.09388) has both.

    q = rope(rms_norm(q)),  k = rope(rms_norm(k))          each head of D channels by itself, one weight (D,) for q's
                                                           heads and one for k's

The backward turns the gradient back, then goes through the norm; each weight's gradient sums over tokens and heads. It
is a composition and nothing more. It is an operation since a kernel that does both at once need not write the
normalised heads to memory and read them again.
"""

from torch import Tensor

from minitune.ops.norms import rms_norm, rms_norm_backward, rms_norm_builtin
from minitune.ops.rope import rope, rope_backward, rope_builtin


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    offset: float = 0.0,
    scale_in_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """``rope`` of the ``rms_norm`` of each head of ``q (B, T, H, D)`` and ``k (B, T, K, D)``, scaled by weights (D,).

    ``cos, sin (B or 1, T, pairs)``; ``eps``, ``offset`` and ``scale_in_fp32`` as of ``rms_norm``.
    """
    q = rms_norm(q, q_weight, eps=eps, offset=offset, scale_in_fp32=scale_in_fp32)
    k = rms_norm(k, k_weight, eps=eps, offset=offset, scale_in_fp32=scale_in_fp32)
    return rope(q, k, cos, sin)


def qk_norm_rope_backward(
    dq: Tensor,
    dk: Tensor,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients ``(dq, dk, dq_weight, dk_weight)`` of ``qk_norm_rope``, in closed form."""
    dq, dk = rope_backward(dq, dk, cos, sin)
    dq, dq_weight = rms_norm_backward(dq, q, q_weight, eps=eps, offset=offset)
    dk, dk_weight = rms_norm_backward(dk, k, k_weight, eps=eps, offset=offset)
    return dq, dk, dq_weight, dk_weight


def qk_norm_rope_builtin(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    offset: float = 0.0,
    scale_in_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """``qk_norm_rope`` of the builtin norm and rotation."""
    q = rms_norm_builtin(q, q_weight, eps=eps, offset=offset, scale_in_fp32=scale_in_fp32)
    k = rms_norm_builtin(k, k_weight, eps=eps, offset=offset, scale_in_fp32=scale_in_fp32)
    return rope_builtin(q, k, cos, sin)
