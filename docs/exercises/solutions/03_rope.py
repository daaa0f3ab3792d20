"""Exercise 3: rotary positions.

Take channel i and channel i + D/2 of a query as a point in a plane, and turn it by the angle

    angle[t, i] = t theta^(-2 i / D)          i = 0 ... D/2 - 1

where t is the position of the token; keys are turned in the same way. A turned query times a turned key is the query
times the key turned by the difference of the angles: the score depends on the distance of the tokens, not on where they
stand. That is all that tells the model of order.

Reading: docs/math/04-rope.md, minitune/ops/rope.py
Check:   python docs/exercises/check.py 3
"""

import numpy as np


def angles(T: int, D: int, theta: float) -> np.ndarray:
    """``angle (T, D/2)`` for the positions 0 ... T - 1."""
    angle = np.arange(T)[:, None] * theta ** (-np.arange(0, D, 2) / D)
    return angle


def rope(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """``x (T, D)``, each row turned by its angles; counter-clockwise: (1, 0) turned by 90 degrees is (0, 1)."""
    half = x.shape[1] // 2
    x1, x2 = x[:, :half], x[:, half:]
    cos, sin = np.cos(angle), np.sin(angle)
    y1 = x1 * cos - x2 * sin
    y2 = x2 * cos + x1 * sin
    return np.concatenate([y1, y2], axis=1)
