"""Exercise 2: RMSNorm and its backward.

    rstd = 1 / sqrt(mean(x^2) + eps)          x_hat = rstd x          y = w x_hat          (over the C channels)

Let dy be the gradient of the loss with respect to y, and g = dy w. x stands twice in y_i: itself, and inside rstd,
where every channel has its part. From d rstd / d x_j = -rstd^3 x_j / C follows

    dx_j = rstd g_j - (something) x_hat_j

Work the something out. A check by thought: the norm takes the length of x away, so a step along x changes y by
(almost) nothing; with eps = 0, dx is at right angles to x.

Reading: docs/math/03-norms.md, minitune/ops/norms.py
Check:   python docs/exercises/check.py 2
"""

import numpy as np


def rms_norm(x: np.ndarray, w: np.ndarray, eps: float) -> np.ndarray:
    """``y (N, C)`` of ``x (N, C)`` and ``w (C,)``."""
    rstd = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    y = w * x * rstd
    return y


def rms_norm_backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """``dx (N, C)`` and ``dw (C,)``; every one of the N rows has used the same w."""
    rstd = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    x_hat, g = x * rstd, dy * w
    dx = rstd * (g - x_hat * (g * x_hat).mean(-1, keepdims=True))
    dw = (dy * x_hat).sum(0)
    return dx, dw
