"""Exercise 10: attention in one pass over the keys, a block at a time.

A query's scores are too many to keep. So walk over the keys in blocks and keep three things of what was seen so far:

    m      the largest score
    l      the sum of exp(score - m)
    acc    the sum of exp(score - m) v

A block may bring a larger score. Then everything that was summed with the old m must be brought to the new one: times
exp(m_old - m_new). At the end y = acc / l. This is the inner loop of every fast attention kernel.

Reading: docs/math/06-online-softmax.md, kernels/minitune_kernels/attention_forward.py
Check:   python docs/exercises/check.py 10
"""

import numpy as np


def attend(scores: np.ndarray, v: np.ndarray, block: int) -> np.ndarray:
    """``y (D,)``, the softmax of ``scores (S,)`` times ``v (S, D)``, seeing at most ``block`` scores at a time."""
    m, l, acc = -np.inf, 0.0, np.zeros(v.shape[1])
    for start in range(0, len(scores), block):
        s, values = scores[start : start + block], v[start : start + block]
        m_new = max(m, s.max())
        p = np.exp(s - m_new)
        scale = ...  # what the sums so far are multiplied by
        l = ...
        acc = ...
        m = m_new
    return acc / l
