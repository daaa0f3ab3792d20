"""Exercise 7: LoRA, its start and its end.

A frozen matrix W (out, in) gets an update of low rank beside it:

    y = x W^T + s (x A^T) B^T          A (R, in), B (out, R), s = alpha / R

Training moves A and B only. The gradient of B is s dy^T (x A^T): with B = 0 the model starts as the base, and B still
has a gradient as long as A is not 0. When training is over, the update can be merged: one matrix that gives the same y
for every x, and costs nothing at inference.

Reading: docs/math/13-lora.md, minitune/adapters/lora.py
Check:   python docs/exercises/check.py 7
"""

import numpy as np


def lora_linear(x: np.ndarray, W: np.ndarray, A: np.ndarray, B: np.ndarray, alpha: float) -> np.ndarray:
    """``y (N, out)`` of ``x (N, in)``, without ever building a matrix of the size of W."""
    s = alpha / len(A)
    y = ...
    return y


def merged(W: np.ndarray, A: np.ndarray, B: np.ndarray, alpha: float) -> np.ndarray:
    """The one matrix ``(out, in)`` that does the same."""
    W_merged = ...
    return W_merged


def gradients(
    dy: np.ndarray, x: np.ndarray, A: np.ndarray, B: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """``dA (R, in)`` and ``dB (out, R)`` for the upstream gradient ``dy (N, out)``."""
    s = alpha / len(A)
    dA = ...
    dB = ...
    return dA, dB
