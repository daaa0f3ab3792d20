"""Exercise 9: top-p, and drawing by one random number.

Sort the tokens from the likeliest down and keep the smallest number of them whose probabilities together reach p. The
one that crosses p stays, so there is always at least one. What is kept is scaled up to sum to 1 again.

To draw from probabilities q with one number u, evenly distributed between 0 and 1: walk along the running sum of q and
take the first token whose running sum is above u.

Reading: docs/math/15-sampling.md, minitune/sample/filters.py
Check:   python docs/exercises/check.py 9
"""

import numpy as np


def top_p(probabilities: np.ndarray, p: float) -> np.ndarray:
    """The distribution ``(V,)`` that is left of ``probabilities (V,)``; of equal ones the first goes before."""
    order = np.argsort(-probabilities, kind="stable")
    falling = probabilities[order]
    kept = np.cumsum(falling) - falling < p  # for each place of falling, whether its token stays
    q = np.zeros_like(probabilities)
    q[order] = np.where(kept, falling, 0)
    return q / q.sum()


def draw(q: np.ndarray, u: float) -> int:
    """The token that ``u`` in [0, 1) draws from ``q (V,)``."""
    token = int(np.argmax(np.cumsum(q) > u))
    return token
