"""The forward of causal attention from its formula to a kernel, for one head. docs/kernels.md tells why.

Each step takes ``q, k, v (T, D)`` and gives ``y (T, D)``.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    T, D = q.shape
    s = (q @ k.T) / math.sqrt(D)  # (T, T)
    s = s.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -torch.inf)
    return torch.softmax(s, -1) @ v


@triton.jit
def row_kernel(q_ptr, k_ptr, v_ptr, y_ptr, T, scale, D: tl.constexpr, BLOCK_S: tl.constexpr):
    t = tl.program_id(0)
    at_d = tl.arange(0, D)
    q = tl.load(q_ptr + t * D + at_d)  # (D,)
    m, l = float("-inf"), 0.0
    acc = tl.zeros((D,), tl.float32)
    for n in range(0, T, BLOCK_S):
        at_s = n + tl.arange(0, BLOCK_S)
        tile = at_s[:, None] * D + at_d[None, :]
        k = tl.load(k_ptr + tile, (at_s < T)[:, None], other=0.0)  # (BLOCK_S, D)
        v = tl.load(v_ptr + tile, (at_s < T)[:, None], other=0.0)
        s = tl.sum(q[None, :] * k, 1) * scale  # (BLOCK_S,)
        s = tl.where(at_s <= t, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 0))
        p = tl.exp(s - m_new)
        alpha = tl.exp(m - m_new)
        l = l * alpha + tl.sum(p, 0)
        acc = acc * alpha + tl.sum(p[:, None] * v, 0)
        m = m_new
    tl.store(y_ptr + t * D + at_d, acc / l)


def row(q: Tensor, k: Tensor, v: Tensor, block_s: int = 32) -> Tensor:
    y, (T, D) = torch.empty_like(q), q.shape
    row_kernel[(T,)](q, k, v, y, T, 1 / math.sqrt(D), D=D, BLOCK_S=block_s)
    return y


@triton.jit
def walk(q, k_ptr, v_ptr, acc, m, l, begin, stop, at_t, T, scale, D: tl.constexpr, BLOCK_S: tl.constexpr,
         MASKED: tl.constexpr):  # fmt: skip
    """Take the keys from begin to stop into acc, m and l."""
    at_d = tl.arange(0, D)
    for n in range(begin, stop, BLOCK_S):
        at_s = n + tl.arange(0, BLOCK_S)
        tile = at_s[:, None] * D + at_d[None, :]
        k = tl.load(k_ptr + tile, (at_s < T)[:, None], other=0.0)  # (BLOCK_S, D)
        v = tl.load(v_ptr + tile, (at_s < T)[:, None], other=0.0)
        s = tl.dot(q, tl.trans(k)) * scale  # (BLOCK_T, BLOCK_S)
        if MASKED:
            s = tl.where(at_s[None, :] <= at_t[:, None], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - m_new[:, None])
        alpha = tl.exp2(m - m_new)
        l = l * alpha + tl.sum(p, 1)
        acc = tl.dot(p, v, acc * alpha[:, None])
        m = m_new
    return acc, m, l


@triton.jit
def tile_kernel(q_ptr, k_ptr, v_ptr, y_ptr, T, scale, D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
                CAUSAL_STOP: tl.constexpr, WHOLE_APART: tl.constexpr):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T
    at_t = t + tl.arange(0, BLOCK_T)
    at_d = tl.arange(0, D)
    rows = at_t[:, None] * D + at_d[None, :]
    q = tl.load(q_ptr + rows, (at_t < T)[:, None], other=0.0)  # (BLOCK_T, D)
    acc = tl.zeros((BLOCK_T, D), tl.float32)
    m = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_T,), tl.float32)
    stop = tl.minimum(t + BLOCK_T, T) if CAUSAL_STOP else T
    whole = t // BLOCK_S * BLOCK_S if WHOLE_APART else 0
    acc, m, l = walk(q, k_ptr, v_ptr, acc, m, l, 0, whole, at_t, T, scale, D, BLOCK_S, False)
    acc, m, l = walk(q, k_ptr, v_ptr, acc, m, l, whole, stop, at_t, T, scale, D, BLOCK_S, True)
    tl.store(y_ptr + rows, acc / l[:, None], (at_t < T)[:, None])


def tile(q: Tensor, k: Tensor, v: Tensor, block_t: int = 32, block_s: int = 32, *, stop: bool, apart: bool) -> Tensor:
    y, (T, D) = torch.empty_like(q), q.shape
    tile_kernel[(triton.cdiv(T, block_t),)](q, k, v, y, T, LOG2_E / math.sqrt(D), D=D, BLOCK_T=block_t,
                                            BLOCK_S=block_s, CAUSAL_STOP=stop, WHOLE_APART=apart)  # fmt: skip
    return y
