"""Exercise 5: cross-entropy with a mask, and its gradient.

Position t has logits z[t] over the V ids and should give the id y[t]. Its loss is -log softmax(z[t])[y[t]]. Positions
whose target is IGNORE are the prompt: read, not trained. The loss of a batch is the *sum* over the trained positions,
with their number beside it, since only the loop knows what to divide by: the trained tokens of the whole step.

Write -log softmax(z)[y] as log sum exp z - z[y], take the largest logit away first, and derive from this form what the
gradient is: d(log sum exp z) / dz_i is a quantity that you know.

Reading: docs/math/11-cross-entropy.md, minitune/ops/cross_entropy.py
Check:   python docs/exercises/check.py 5
"""

import numpy as np

IGNORE = -100


def cross_entropy(z: np.ndarray, y: np.ndarray) -> tuple[float, int]:
    """The loss summed over the trained rows of ``z (N, V)``, and how many there are; targets ``y (N,)``."""
    kept = y != IGNORE
    z = z[kept] - z[kept].max(-1, keepdims=True)
    loss_sum = (np.log(np.exp(z).sum(-1)) - z[np.arange(len(z)), y[kept]]).sum()
    trained = int((y != IGNORE).sum())
    return loss_sum, trained


def cross_entropy_backward(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``dz (N, V)``, the gradient of the sum."""
    kept = y != IGNORE
    p = np.exp(z - z.max(-1, keepdims=True))
    dz = p / p.sum(-1, keepdims=True)
    dz[kept, y[kept]] -= 1
    dz[~kept] = 0
    return dz
