"""A linear layer and its gradients: each row of x is a token.

y = x W^T + b          dx = dy W          dW = sum over tokens of dy^T x          db = sum over tokens of dy
"""

from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x (..., in)`` through ``weight (out, in)`` and ``bias (out,)``: ``(..., out)``."""
    y = x @ weight.T  # RES-1
    return y if bias is None else y + bias


def linear_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients ``(dx (..., in), dweight (out, in), dbias (out,))`` of ``linear``, in closed form."""
    dx = dy @ weight  # RES-6
    rows = dy.flatten(0, -2)  # (N, out)
    return dx, rows.T @ x.flatten(0, -2), rows.sum(0)  # RES-7
