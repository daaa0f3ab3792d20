"""Exercise 6: one step of AdamW.

    m = b1 m + (1 - b1) g              a running mean of the gradient
    v = b2 v + (1 - b2) g^2            and of its square
    w = w - lr decay w                 decay, apart from the gradient (that is the W)
    w = w - lr m_hat / (sqrt(v_hat) + eps)

m and v start at 0, so after t steps with a steady gradient g they are only a part of it: m = (1 - b1^t) g. m_hat and
v_hat are m and v with this put right. Without it the first steps would be far too long or too short: with b1 = 0.9 and
b2 = 0.999, how far would the first one go?

Reading: docs/math/12-optimizer.md, minitune/optim.py
Check:   python docs/exercises/check.py 6
"""

import numpy as np


def adamw_step(
    w: np.ndarray,
    g: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    t: int,
    *,
    lr: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    decay: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The next ``w, m, v``; ``t`` is 1 in the first step."""
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    w = w - lr * decay * w
    m_hat = m / (1 - b1**t)
    v_hat = v / (1 - b2**t)
    w = w - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w, m, v
