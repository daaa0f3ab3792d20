"""Chapter 4: the turn as a product of complex numbers, its gradient by autograd, the scalings written another way."""

import math

import pytest
import torch
from math_cases import by_autograd, numbers, same
from torch import Tensor

from minitune.config import RopeScaling
from minitune.ops.rope import rope, rope_backward, rope_frequencies, rope_tables

D, THETA = 8, 10000.0
POSITIONS = torch.tensor([[0, 1, 5, 3], [7, 8, 100, 9]])


def tables(positions: Tensor = POSITIONS, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    return rope_tables(positions, rope_frequencies(D, THETA), torch.float64, factor)


def complex_turn(x: Tensor, positions: Tensor) -> Tensor:
    z = torch.complex(x[..., : D // 2], x[..., D // 2 :])
    angle = positions[..., None] * torch.tensor([THETA ** (-2 * i / D) for i in range(D // 2)], dtype=torch.float64)
    z = z * torch.polar(torch.ones_like(angle), angle)[:, :, None]
    return torch.cat((z.real, z.imag), -1)


def test_the_turn_is_a_complex_product() -> None:
    """ROPE-1, ROPE-2, ROPE-3."""
    q, k = numbers(2, 4, 3, D), numbers(2, 4, 1, D, seed=1)
    same(rope_frequencies(D, THETA), torch.tensor([1, 0.1, 0.01, 0.001], dtype=torch.float64))
    same(rope(q, k, *tables()), (complex_turn(q, POSITIONS), complex_turn(k, POSITIONS)))


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_the_backward_turns_back(factor: float) -> None:
    """ROPE-12: by autograd, with a factor too; and without one, back is where it came from."""
    q, k = numbers(2, 4, 3, D), numbers(2, 4, 1, D, seed=1)
    dq, dk = numbers(2, 4, 3, D, seed=2), numbers(2, 4, 1, D, seed=3)
    cos, sin = tables(factor=factor)
    same(rope_backward(dq, dk, cos, sin), by_autograd(lambda a, b: rope(a, b, cos, sin), [q, k], dq, dk))
    turned = rope_backward(*rope(q, k, cos, sin), cos, sin)
    same(turned, (q * factor**2, k * factor**2))


def test_only_the_distance_counts() -> None:
    """ROPE-3: scores of a query and a key that both move on by 1,000 places, and their lengths."""
    q, k = numbers(1, 1, 1, D), numbers(1, 1, 1, D, seed=1)

    def score(p: int, s: int) -> float:
        at_p, at_s = tables(torch.tensor([[p]])), tables(torch.tensor([[s]]))
        return float((rope(q, k, *at_p)[0] * rope(q, k, *at_s)[1]).sum())

    for p, s in ((5, 0), (7, 7), (2, 9)):
        same(score(p + 1000, s + 1000), score(p, s))
        assert abs(score(p + 1, s) - score(p, s)) > 1e-3
    same(rope(q, k, *tables(torch.tensor([[77]])))[0].norm(), q.norm())


def test_linear_and_longrope_divide() -> None:
    """ROPE-4, ROPE-10: the second by its list for short texts, or for long ones."""
    plain = rope_frequencies(D, THETA)
    same(rope_frequencies(D, THETA, scaling=RopeScaling(kind="linear", factor=4.0)), plain / 4)
    short, long = (1.0, 1.5, 2.0, 3.0), (1.0, 4.0, 8.0, 9.0)
    scaling = RopeScaling(kind="longrope", factor=4.0, original_max_positions=100, short_factor=short, long_factor=long)
    for length, by in ((100, short), (101, long)):
        got = rope_frequencies(D, THETA, scaling=scaling, length=length)
        same(got, torch.tensor([float(w) / f for w, f in zip(plain, by, strict=True)], dtype=torch.float64))


@pytest.mark.parametrize("P", [50, 1000, 8192])
def test_llama3_by_wavelengths(P: int) -> None:
    """ROPE-5, ROPE-6: the same rule said in positions a turn instead of turns."""
    low, high, f = 1.0, 4.0, 8.0
    scaling = RopeScaling(kind="llama3", factor=f, original_max_positions=P, low_freq_factor=low, high_freq_factor=high)
    want = []
    for w in rope_frequencies(D, THETA).tolist():
        wavelength = 2 * math.pi / w
        if wavelength < P / high:
            want.append(w)
        elif wavelength > P / low:
            want.append(w / f)
        else:
            smooth = (P / wavelength - low) / (high - low)
            want.append((1 - smooth) * w / f + smooth * w)
    same(rope_frequencies(D, THETA, scaling=scaling), torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("P", [200, 1000, 100_000])
def test_yarn_ramps_between_two_pairs(P: int) -> None:
    """ROPE-7, ROPE-8: its ends are the pairs that make 32 turns and one, found here by bisection."""

    def pair_of(turns: float) -> float:
        low, high = -100.0, 100.0  # turns fall with the pair
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if P * THETA ** (-2 * middle / D) / (2 * math.pi) > turns else (low, middle)
        return low

    for truncate in (False, True):
        first, last = pair_of(32.0), pair_of(1.0)
        if truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, D - 1)
        scaling = RopeScaling(kind="yarn", factor=4.0, original_max_positions=P, truncate=truncate)
        want = []
        for i, w in enumerate(rope_frequencies(D, THETA).tolist()):
            r = min(1.0, max(0.0, (i - first) / (last - first)))
            want.append((1 - r) * w + r * w / 4)
        same(rope_frequencies(D, THETA, scaling=scaling), torch.tensor(want, dtype=torch.float64), 1e-9)


def test_factors_of_cosine_and_sine() -> None:
    """ROPE-9, ROPE-11: and a score grows by the square of the factor."""
    yarn = RopeScaling(kind="yarn", factor=4.0, original_max_positions=100)
    same(yarn.table_factor, 1 + 0.1 * math.log(4))
    both = RopeScaling(kind="yarn", factor=4.0, original_max_positions=100, mscale=0.7, mscale_all_dim=0.3)
    same(both.table_factor, (1 + 0.07 * math.log(4)) / (1 + 0.03 * math.log(4)))
    ones = (1.0,) * 4
    long = RopeScaling(kind="longrope", factor=16.0, original_max_positions=4, short_factor=ones, long_factor=ones)
    same(long.table_factor, math.sqrt(3.0))  # ln 16 / ln 4 = 2
    q, k = numbers(2, 4, 1, D), numbers(2, 4, 1, D, seed=1)
    plain, scaled = rope(q, k, *tables()), rope(q, k, *tables(factor=yarn.table_factor))
    same((scaled[0] * scaled[1]).sum(-1), (plain[0] * plain[1]).sum(-1) * yarn.table_factor**2)
