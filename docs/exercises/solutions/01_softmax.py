"""Exercise 1: softmax.

A model gives a score z_i to each of n choices. Softmax makes probabilities of them:

    p_i = exp(z_i) / sum over j of exp(z_j)

exp(710) is already infinite in float64, and exp(89) in float32. But adding one number c to every score changes no
probability, since exp(c) stands above and below the line. So take a c with which nothing can overflow.

Reading: docs/math/05-attention.md, minitune/by_hand.py (attention)
Check:   python docs/exercises/check.py 1
"""

import numpy as np


def softmax(z: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis of ``z (..., n)``; scores of any size, and -inf for a choice that is out."""
    shifted = np.exp(z - z.max(-1, keepdims=True))
    answer = shifted / shifted.sum(-1, keepdims=True)
    return answer
