"""Chapter 3: the norms a channel at a time, their gradients by autograd, and the directions that they take away."""

import math

import pytest
import torch
from math_cases import by_autograd, numbers, same
from torch import Tensor

from minitune.ops.norms import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward

EPS = 1e-3
SHAPES = [(1, 4), (3, 5), (2, 3, 8)]


def rms_by_numbers(x: Tensor, w: Tensor, offset: float) -> Tensor:
    y = torch.zeros_like(x)
    for row, out in zip(x.flatten(0, -2), y.view(-1, x.shape[-1]), strict=True):
        r = 1 / math.sqrt(sum(float(a) ** 2 for a in row) / len(row) + EPS)
        for c in range(len(row)):
            out[c] = (offset + float(w[c])) * float(row[c]) * r
    return y


def layer_by_numbers(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for row, out in zip(x.flatten(0, -2), y.view(-1, x.shape[-1]), strict=True):
        mean = sum(map(float, row)) / len(row)
        variance = sum((float(a) - mean) ** 2 for a in row) / len(row)
        for c in range(len(row)):
            out[c] = float(w[c]) * (float(row[c]) - mean) / math.sqrt(variance + EPS) + float(b[c])
    return y


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(shape: tuple[int, ...], offset: float) -> None:
    """NORM-1, NORM-2, NORM-3 a channel at a time; NORM-6, NORM-7 by autograd."""
    x, w, dy = numbers(*shape), numbers(shape[-1], seed=1), numbers(*shape, seed=2)
    for late in (False, True):
        same(rms_norm(x, w, eps=EPS, offset=offset, scale_in_fp32=late), rms_by_numbers(x, w, offset))
    got = rms_norm_backward(dy, x, w, eps=EPS, offset=offset)
    same(got, by_autograd(lambda a, b: rms_norm(a, b, eps=EPS, offset=offset), [x, w], dy))


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm(shape: tuple[int, ...]) -> None:
    """NORM-4, NORM-5 a channel at a time; NORM-8, NORM-9 by autograd."""
    x, w, b = numbers(*shape), numbers(shape[-1], seed=1), numbers(shape[-1], seed=3)
    dy = numbers(*shape, seed=2)
    same(layer_norm(x, w, b, eps=EPS), layer_by_numbers(x, w, b))
    got = layer_norm_backward(dy, x, w, eps=EPS)
    same(got, by_autograd(lambda *t: layer_norm(*t, eps=EPS), [x, w, b], dy))


def test_a_normalised_row_has_mean_square_one() -> None:
    """NORM-2, NORM-4: without eps, whatever the length of the row was; and a longer row gives the same."""
    x, one = numbers(4, 6), torch.ones(6, dtype=torch.float64)
    for y in (rms_norm(x, one, eps=0), layer_norm(x, one, None, eps=0)):
        same(y.square().mean(-1), torch.ones(4, dtype=torch.float64))
    same(rms_norm(7 * x, one, eps=0), rms_norm(x, one, eps=0))
    same(layer_norm(7 * x + 3, one, None, eps=0), layer_norm(x, one, None, eps=0))


def test_gradients_are_across_what_is_taken_away() -> None:
    """NORM-7, NORM-9: orthogonal to the row, and for LayerNorm to (1, ..., 1) too."""
    x, w, dy = numbers(4, 6), numbers(6, seed=1), numbers(4, 6, seed=2)
    zero = torch.zeros(4, dtype=torch.float64)
    dx, _ = rms_norm_backward(dy, x, w, eps=0)
    same((dx * x).sum(-1), zero)
    dx, _, _ = layer_norm_backward(dy, x, w, eps=0)
    same((dx * x).sum(-1), zero)
    same(dx.sum(-1), zero)
