"""Chapters 5 to 7: attention a query at a time, its gradients by autograd, and the walk over tiles against both."""

import math
from typing import Any

import pytest
import torch
from math_cases import by_autograd, numbers, same, softmax
from torch import Tensor

from minitune.ops.attention import attention, attention_backward
from minitune.ops.plan import in_sight
from minitune.ops.tiled import (
    Partial,
    absorb,
    finish,
    merge,
    nothing_seen,
    tiled_attention,
    tiled_attention_backward,
    visible_tiles,
)

B, T, S, H, K, D = 2, 5, 7, 4, 2, 3
BIAS = numbers(B, H, T, S, seed=9)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"causal": False},
    {"scale": 0.4},
    {"window": 3},
    {"softcap": 1.5},
    {"bias": BIAS},
    {"scale": 0.7, "window": 2, "softcap": 2.0, "bias": BIAS},
]
NAMES = ["plain", "not causal", "scale", "window", "softcap", "bias", "all"]
EACH = pytest.mark.parametrize("given", OPTIONS, ids=NAMES)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return numbers(B, T, H, D), numbers(B, S, K, D, seed=1), numbers(B, S, K, D, seed=2)


def by_numbers(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The chapter, one query of one head at a time."""
    y = torch.zeros_like(q)
    beta = 1 / math.sqrt(D) if scale is None else scale
    for b in range(B):
        for h in range(H):
            for t in range(T):
                i, scores, seen = t + S - T, [], []
                for j in range(S):
                    if (causal and j > i) or (window is not None and j <= i - window):
                        continue
                    r = beta * float(q[b, t, h] @ k[b, j, h // (H // K)])
                    s = r if softcap is None else softcap * math.tanh(r / softcap)
                    scores.append(s + (0.0 if bias is None else float(bias[b, h, t, j])))
                    seen.append(j)
                for p, j in zip(softmax(scores), seen, strict=True):
                    y[b, t, h] += p * v[b, j, h // (H // K)]
    return y


@EACH
def test_attention_is_the_chapter_by_numbers(given: dict[str, Any]) -> None:
    """ATT-1, ATT-2, ATT-3, ATT-5, ATT-6."""
    same(attention(*inputs(), **given), by_numbers(*inputs(), **given))


@pytest.mark.parametrize("window", [None, 1, 3])
def test_what_is_visible(window: int | None) -> None:
    """ATT-4: pair by pair; with it attention of values that are one-hot shows who was seen."""
    places = torch.arange(6)
    want = [[j <= i and (window is None or j > i - window) for j in range(6)] for i in range(6)]
    assert in_sight(places, places, True, window).tolist() == want
    q, one_hot = numbers(1, 6, 1, 6), torch.eye(6, dtype=torch.float64)[None, :, None]
    p = attention(q, numbers(1, 6, 1, 6, seed=1), one_hot, window=window)[0, :, 0]
    assert (p > 0).tolist() == want
    same(p.sum(-1), torch.ones(6, dtype=torch.float64))


@EACH
def test_gradients_are_autograd(given: dict[str, Any]) -> None:
    """ATT-7, ATT-8, ATT-9, ATT-10, ATT-11, ATT-12."""
    tensors, dy = list(inputs()), numbers(B, T, H, D, seed=3)
    others = {name: value for name, value in given.items() if name != "bias"}
    if "bias" in given:
        tensors.append(given["bias"])

    def f(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return attention(q, k, v, bias=bias, **others)

    same(attention_backward(dy, *inputs(), **given), by_autograd(f, tensors, dy))


def test_a_row_of_score_gradients_sums_to_zero() -> None:
    """ATT-9, ATT-10: by a bias that is one number a row, whose gradient is that sum."""
    dy = numbers(B, T, H, D, seed=3)
    *_, dbias = attention_backward(dy, *inputs(), bias=torch.zeros(B, H, T, 1, dtype=torch.float64))
    same(dbias, torch.zeros(B, H, T, 1, dtype=torch.float64))


# ---- chapter 6


def states(pieces: list[int]) -> tuple[Tensor, Tensor, list[Partial]]:
    """Scores of 3 queries and values of 8 keys, and the state after each piece of the keys alone."""
    s, v = 5 * numbers(3, 8), numbers(8, D, seed=1)
    parts = zip(s.split(pieces, -1), v.split(pieces), strict=True)
    return s, v, [absorb(nothing_seen(numbers(3, D)), a, b) for a, b in parts]


@pytest.mark.parametrize("pieces", [[8], [1] * 8, [3, 5], [2, 2, 4]], ids=str)
def test_a_walk_is_the_softmax(pieces: list[int]) -> None:
    """TILE-1, TILE-2, TILE-3, TILE-4: after each piece m, l, acc are the sums; in the end y and lse."""
    s, v, _ = states(pieces)
    state, seen = nothing_seen(numbers(3, D)), 0
    for a, b in zip(s.split(pieces, -1), v.split(pieces), strict=True):
        state, seen = absorb(state, a, b), seen + a.shape[-1]
        largest = s[:, :seen].amax(-1)
        e = (s[:, :seen] - largest[:, None]).exp()
        same((state.m, state.l, state.acc), (largest, e.sum(-1), e @ v[:seen]))
    same(finish(state), (s.softmax(-1) @ v, s.logsumexp(-1)))


def test_states_put_together_in_any_order() -> None:
    """TILE-5: associative, in any order, with the empty state as its zero."""
    s, v, parts = states([2, 1, 5])
    want = (s.softmax(-1) @ v, s.logsumexp(-1))
    a, b, c = parts
    for state in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(c, merge(a, b))):
        same(finish(state), want)
    empty = nothing_seen(numbers(3, D))
    for state in (merge(a, empty), merge(empty, a)):
        same((state.m, state.l, state.acc), (a.m, a.l, a.acc))
    assert not merge(empty, empty).acc.any()


@pytest.mark.parametrize("window", [None, 1, 3, 6])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (3, 8), (8, 5)])
def test_tiles_are_those_with_something_visible(queries: int, keys: int, window: int | None) -> None:
    """TILE-6: against the mask, cut into tiles."""
    for causal in (True, False) if window is None else (True,):
        at_q = torch.arange(keys - queries, keys)
        mask = in_sight(at_q, torch.arange(keys), causal, window)
        for tile_t, tile_s in ((2, 3), (1, 1), (3, 2), (10, 10)):
            got = list(visible_tiles(queries, keys, tile_t, tile_s, causal=causal, window=window))
            want = [
                (t, s)
                for t in range(0, queries, tile_t)
                for s in range(0, keys, tile_s)
                if mask[t : t + tile_t, s : s + tile_s].any()
            ]
            assert [(at.start, by.start) for at, by in got] == want


@pytest.mark.parametrize("tiles", [(1, 1), (2, 3), (4, 2), (64, 64)], ids=str)
@EACH
def test_tiles_are_attention(given: dict[str, Any], tiles: tuple[int, int]) -> None:
    """TILE-4, ATB-1, ATB-2, ATB-3, ATB-4, ATB-5: values, lse and gradients as without tiles, and as by autograd."""
    if {"softcap", "bias"} & set(given):
        return  # the readable walk has neither; the kernels have softcaps
    size: dict[str, Any] = {"tile_t": tiles[0], "tile_s": tiles[1]}
    y, lse = tiled_attention(*inputs(), **size, **given)
    same(y, by_numbers(*inputs(), **given))
    q, k, _ = inputs()
    s = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(H // K, 2)) * given.get("scale", D**-0.5)
    seen = in_sight(torch.arange(S - T, S), torch.arange(S), given.get("causal", True), given.get("window"))
    same(lse, s.masked_fill(~seen, -torch.inf).logsumexp(-1))
    dy = numbers(B, T, H, D, seed=3)
    got = tiled_attention_backward(dy, *inputs(), y, lse, **size, **given)
    same(got, attention_backward(dy, *inputs(), **given))
    same(got, by_autograd(lambda *t: attention(*t, **given), inputs(), dy))


def test_delta_is_the_rows_average() -> None:
    """ATB-2: the sum over keys of p dp, from the output alone."""
    q, k, v = (numbers(1, 4, 1, D, seed=n) for n in range(3))
    dy = numbers(1, 4, 1, D, seed=3)
    one_hot = torch.eye(4, dtype=torch.float64)[None, :, None]
    p = attention(torch.nn.functional.pad(q, (0, 1)), torch.nn.functional.pad(k, (0, 1)), one_hot, scale=D**-0.5)
    dp = dy[0, :, 0] @ v[0, :, 0].T
    y, lse = tiled_attention(q, k, v, tile_t=2, tile_s=2)
    same((p[0, :, 0] * dp).sum(-1), (dy * y).sum((0, 2, 3)))
    same(tiled_attention_backward(dy, q, k, v, y, lse), attention_backward(dy, q, k, v))


def test_a_query_that_sees_nothing() -> None:
    """TILE-4, ATB-1 at their edge: more queries than keys, so the first see none."""
    q, k, v = numbers(1, 5, 2, D), numbers(1, 3, 1, D, seed=1), numbers(1, 3, 1, D, seed=2)
    dy = numbers(1, 5, 2, D, seed=3)
    for tile in (1, 2, 8):
        y, lse = tiled_attention(q, k, v, tile_t=tile, tile_s=tile)
        same(y, attention(q, k, v))
        assert not y[:, :2].any()
        assert (lse[:, :, :2] == -torch.inf).all()
        same(tiled_attention_backward(dy, q, k, v, y, lse, tile_t=tile), attention_backward(dy, q, k, v))
