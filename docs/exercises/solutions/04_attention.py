"""Exercise 4: causal attention with grouped heads.

Each token asks with a query q, is found by its key k, and gives its value v:

    s[t, s'] = q[t] . k[s'] / sqrt(D)         for s' <= t; a token does not see what comes after it
    p[t]     = softmax of s[t]                (all keys that are not seen have p = 0)
    y[t]     = sum over s' of p[t, s'] v[s']

There are H query heads and K key/value heads, H a multiple of K: the first H / K query heads use key/value head 0, the
next H / K use head 1, and so on.

Reading: docs/math/05-attention.md, minitune/ops/attention.py
Check:   python docs/exercises/check.py 4
"""

import math

import numpy as np


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """``y (T, H, D)`` of ``q (T, H, D)`` and ``k, v (T, K, D)``."""
    T, H, D = q.shape
    y = np.zeros_like(q)
    for h in range(H):
        kv = h * k.shape[1] // H  # the key/value head of query head h
        s = q[:, h] @ k[:, kv].T / math.sqrt(D)  # (T, T)
        s = np.where(np.tri(T, dtype=bool), s, -np.inf)  # with -inf where a key must not be seen
        p = np.exp(s - s.max(-1, keepdims=True))
        y[:, h] = p / p.sum(-1, keepdims=True) @ v[:, kv]
    return y
