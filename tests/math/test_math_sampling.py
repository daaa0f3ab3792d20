"""Chapter 15: each operation on a distribution in plain Python, what a temperature and a cut do, and the draws."""

import math

import pytest
import torch
from math_cases import numbers, same, softmax
from torch import Tensor

from minitune.sample.filters import distribution, draw, min_p, penalise, temper, top_k, top_p
from minitune.sample.noise import mix, uniform
from minitune.sample.settings import SamplerSettings

V = 12
LOGITS = 2 * numbers(V)
TIED = torch.tensor([1.0, 3.0, 3.0, 0.0, 3.0, 1.0], dtype=torch.float64)


def kept(z: Tensor) -> list[int]:
    return (z > -torch.inf).nonzero().flatten().tolist()


def ranks(z: Tensor) -> list[int]:
    """The place of each token in falling order, of equal ones the first first."""
    order = sorted(range(len(z)), key=lambda i: (-float(z[i]), i))
    return [order.index(i) for i in range(len(z))]


def test_penalty_and_temperature() -> None:
    """SAMP-1, SAMP-2: a token at a time; the temperature as a power of the probabilities."""
    seen = torch.arange(V) % 3 == 0
    want = [(a / 1.3 if a > 0 else a * 1.3) if s else a for a, s in zip(LOGITS.tolist(), seen.tolist(), strict=True)]
    same(penalise(LOGITS, seen, 1.3), torch.tensor(want, dtype=torch.float64))
    assert (penalise(LOGITS, seen, 1.3) <= LOGITS).all()
    p = torch.tensor(softmax(LOGITS.tolist()), dtype=torch.float64)
    for T in (0.3, 1.0, 2.5):
        same(temper(LOGITS, T).softmax(0), p ** (1 / T) / (p ** (1 / T)).sum())
    assert temper(LOGITS, 1e-300).softmax(0).max() == 1


@pytest.mark.parametrize("z", [LOGITS, TIED], ids=["free", "tied"])
def test_cuts(z: Tensor) -> None:
    """SAMP-3, SAMP-4, SAMP-5: which tokens stay, by their rank, the mass before them, and their height."""
    q, rank = softmax(z.tolist()), ranks(z)
    for k in (1, 2, 3, len(z)):
        assert kept(top_k(z, k)) == [i for i in range(len(z)) if rank[i] < k]
    for p in (0.05, 0.3, 0.77, 0.999):
        before = [sum(q[j] for j in range(len(z)) if rank[j] < rank[i]) for i in range(len(z))]
        assert kept(top_p(z, p)) == [i for i in range(len(z)) if before[i] < p]
        assert kept(min_p(z, p)) == [i for i in range(len(z)) if q[i] >= p * max(q)]
        assert kept(min_p(z, p)) == [i for i in range(len(z)) if float(z[i]) >= float(z.max()) + math.log(p) - 1e-12]


def test_what_is_left_is_normalised_in_order() -> None:
    """SAMP-6: and the settings work in the order of the chapter, each on what the one before left."""
    settings = SamplerSettings(temperature=0.8, top_k=7, top_p=0.9, min_p=0.05)
    z = [a / 0.8 for a in LOGITS.tolist()]
    stay = [i for i in range(V) if ranks(LOGITS)[i] < 7]
    mass = sum(math.exp(z[i]) for i in stay)
    q = {i: math.exp(z[i]) / mass for i in stay}
    stay = [i for i in stay if sum(q[j] for j in stay if ranks(LOGITS)[j] < ranks(LOGITS)[i]) < 0.9]
    stay = [i for i in stay if q[i] >= 0.05 * max(q.values())]
    total = sum(q[i] for i in stay)
    want = torch.tensor([q[i] / total if i in stay else 0.0 for i in range(V)], dtype=torch.float64)
    same(distribution(LOGITS, settings), want)
    same(distribution(LOGITS, SamplerSettings(temperature=0.0)), torch.eye(V, dtype=torch.float64)[LOGITS.argmax()])


@pytest.mark.parametrize("T", [0.5, 1.0, 2.0])
def test_entropy_grows_with_the_variance(T: float) -> None:
    """SAMP-2: dH / dT = Var / T^3, by autograd."""
    temperature = torch.tensor(T, dtype=torch.float64, requires_grad=True)
    logq = torch.log_softmax((LOGITS - LOGITS.max()) / temperature, 0)
    (slope,) = torch.autograd.grad(-(logq.exp() * logq).sum(), temperature)
    q = temper(LOGITS, T).softmax(0)
    mean = (q * LOGITS).sum()
    same(slope, (q * (LOGITS - mean).square()).sum() / T**3)


def test_the_price_of_a_cut_is_the_mass_that_went() -> None:
    """SAMP-4, SAMP-6: KL(q' || q) = -log Q, and top-p bounds it."""
    q = LOGITS.softmax(0)
    for cut in (top_k(LOGITS, 3), top_p(LOGITS, 0.7), min_p(LOGITS, 0.2)):
        after = cut.softmax(0)
        stay = after > 0
        price = float((after[stay] * (after[stay] / q[stay]).log()).sum())
        same(price, -math.log(float(q[stay].sum())))
    assert -math.log(float(q[top_p(LOGITS, 0.7) > -torch.inf].sum())) <= -math.log(0.7)


def test_a_draw_is_the_piece_that_u_falls_into() -> None:
    """SAMP-7: by the running sum, at many u; each token as often as it is likely."""
    q = distribution(LOGITS, SamplerSettings(temperature=1.0, top_k=5))
    sums = [math.fsum(q[: i + 1].tolist()) for i in range(V)]
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    got = draw(q.expand(20_000, -1), u)
    want = [next(i for i, s in enumerate(sums) if s > float(a)) for a in u]
    assert got.tolist() == want
    counts = torch.bincount(got, minlength=V) / 20_000
    assert (counts - q).abs().max() <= 1e-4
    assert not counts[q == 0].any()


def test_numbers_of_a_seed() -> None:
    """SAMP-8: the formula in unbounded integers; spread evenly; neighbours of seed and step have nothing in common."""
    golden = round(2**64 / ((1 + math.sqrt(5)) / 2))
    g = 0x9E3779B97F4A7C15
    assert abs(golden - g) < 2**13  # a float64 has 53 of the 64 bits
    for seed in (0, 1, 2**63 - 1):
        for step in (0, 1, 1000):
            want = (mix((mix((seed + g) % 2**64) + (step + 1) * g) % 2**64) // 2**11) / 2**53
            assert uniform(seed, step) == want
    found = torch.tensor([[uniform(seed, step) for step in range(200)] for seed in range(200)], dtype=torch.float64)
    assert float(found.min()) >= 0
    assert float(found.max()) < 1
    share = torch.histc(found.flatten(), bins=10, min=0, max=1) / found.numel()
    assert (share - 0.1).abs().max() < 0.01
    for a, b in ((found[:, 1:], found[:, :-1]), (found[1:], found[:-1])):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.03
