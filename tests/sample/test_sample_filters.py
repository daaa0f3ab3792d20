"""Each filter against the definition, against transformers, and in 100,000 draws."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sample_cases import reference
from torch import Tensor

from minitune.errors import ConfigError
from minitune.sample import SamplerSettings
from minitune.sample.filters import choose, distribution, draw, top_k
from minitune.sample.noise import GOLDEN, mix, uniform

DRAWS = 100_000
LOGITS = [2.0, 1.5, 1.5, 0.7, 0.0, -0.3, -1.0, -2.5, 1.9, 0.2]


def random_logits(rows: int = 40, V: int = 97, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---- the definitions, in plain Python


def softmax(z: list[float]) -> list[float]:
    e = [math.exp(value - max(z)) for value in z]
    return [value / sum(e) for value in e]


def renormalised(p: list[float], kept: set[int]) -> list[float]:
    total = sum(p[i] for i in kept)
    return [p[i] / total if i in kept else 0.0 for i in range(len(p))]


def in_falling_order(p: list[float]) -> list[int]:
    return sorted(range(len(p)), key=lambda i: -p[i])


def by_top_p(p: list[float], limit: float) -> list[float]:
    kept: set[int] = set()
    for i in in_falling_order(p):
        kept.add(i)
        if sum(p[j] for j in kept) >= limit:
            break
    return renormalised(p, kept)


def penalised(z: list[float], seen: set[int], r: float) -> list[float]:
    return [(v / r if v > 0 else v * r) if i in seen else v for i, v in enumerate(z)]


P = softmax(LOGITS)
SEEN = {0, 4, 7}
EXPECTED: dict[str, tuple[dict[str, Any], list[float]]] = {
    "nothing": ({"temperature": 1.0}, P),
    "cold": ({"temperature": 0.5}, softmax([z / 0.5 for z in LOGITS])),
    "hot": ({"temperature": 2.0}, softmax([z / 2.0 for z in LOGITS])),
    "top_k": ({"temperature": 1.0, "top_k": 4}, renormalised(P, set(in_falling_order(P)[:4]))),
    "top_p": ({"temperature": 1.0, "top_p": 0.6}, by_top_p(P, 0.6)),
    "min_p": (
        {"temperature": 1.0, "min_p": 0.3},
        renormalised(P, {i for i, p in enumerate(P) if p >= 0.3 * max(P)}),
    ),
    "penalty": ({"temperature": 1.0, "repetition_penalty": 1.7}, softmax(penalised(LOGITS, SEEN, 1.7))),
    # Top-p after the temperature, on what top-k has left, renormalised.
    "order": (
        {"temperature": 2.0, "top_k": 6, "top_p": 0.7},
        by_top_p(renormalised(softmax([z / 2 for z in LOGITS]), set(in_falling_order(P)[:6])), 0.7),
    ),
}


@pytest.mark.parametrize("case", EXPECTED)
def test_draws_follow_the_definition(case: str) -> None:
    """Guards filters, their order and the draw together (B43): a wrong set or weight is far outside chi-square.

    Half of the draws are many steps of one seed, half are many seeds at one step, as texts have them.
    """
    changes, expected = EXPECTED[case]
    settings = SamplerSettings(**changes)
    assert sum(p > 0 for p in expected) >= 3
    half = DRAWS // 2
    u = torch.tensor([uniform(0, i) for i in range(half)] + [uniform(i, 3) for i in range(half)], dtype=torch.float64)
    seen = torch.tensor([i in SEEN for i in range(len(LOGITS))])
    ids = torch.cat(
        [choose(torch.tensor([LOGITS]).expand(len(part), -1), settings, part, seen) for part in u.split(5000)]
    )
    counts = torch.bincount(ids, minlength=len(LOGITS)).double()
    p = torch.tensor(expected, dtype=torch.float64)
    assert counts[p == 0].sum() == 0
    there = p > 0
    chi_square = float((((counts - DRAWS * p) ** 2)[there] / (DRAWS * p)[there]).sum())
    assert chi_square < LIMITS[int(there.sum()) - 1]


# The 0.999 quantile of chi-square, by degrees of freedom.
LIMITS = {2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32, 8: 26.12, 9: 27.88}


def theirs(changes: dict[str, Any], logits: Tensor, ids: Tensor) -> Tensor:
    """The probabilities that the reference library makes of logits, by its own order of processors."""
    import transformers

    values = {key: value for key, value in changes.items() if key not in ("top_k", "top_p")}
    config = transformers.GenerationConfig(
        do_sample=True, top_k=changes.get("top_k", 0), top_p=changes.get("top_p", 1.0), **values
    )
    processors = reference("llama, linear rope")._get_logits_processor(config, input_ids_seq_length=ids.shape[1])
    return torch.softmax(processors(ids, logits), -1)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 0.05},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.0, "repetition_penalty": 1.3},
        {"temperature": 1.0, "repetition_penalty": 0.8},
        {"temperature": 1.7, "top_k": 30, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
        {"temperature": 0.3, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_distributions_are_those_of_transformers(changes: dict[str, Any]) -> None:
    """Guards each formula and the order, in float64 and to rounding, on many rows at once."""
    for scale in (1.0, 3.0, 10.0):
        logits = random_logits(scale=scale)
        ids = torch.randint(0, logits.shape[1], (len(logits), 12), generator=torch.Generator().manual_seed(2))
        seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)
        expected = theirs(changes, logits.clone(), ids)
        found = distribution(logits, SamplerSettings(**changes), seen)
        assert torch.equal(found > 0, expected > 0)
        assert (found - expected).abs().max() < 1e-12


def test_top_k_of_equal_tokens_keeps_exactly_k_and_the_first() -> None:
    """Guards bfloat16 logits, where equal values are common: top-k 1 must be what greedy takes."""
    z = torch.tensor([[1.0, 3.0, 3.0, 3.0, 2.0, 3.0]])
    assert (top_k(z, 1) > -math.inf).nonzero()[:, 1].tolist() == [1]
    assert (top_k(z, 3) > -math.inf).nonzero()[:, 1].tolist() == [1, 2, 3]
    assert (top_k(z, 5) > -math.inf).nonzero()[:, 1].tolist() == [1, 2, 3, 4, 5]
    assert torch.equal(top_k(z, 6), z)


NARROW: list[Callable[[], SamplerSettings]] = [
    lambda: SamplerSettings(temperature=1.0, top_k=1),
    lambda: SamplerSettings(temperature=1.0, top_p=0.0),
    lambda: SamplerSettings(temperature=1.0, top_p=1e-12),
    lambda: SamplerSettings(temperature=0.0, top_k=7),
    lambda: SamplerSettings(),
]


@pytest.mark.parametrize("settings", NARROW, ids=["k1", "p0", "tiny_p", "zero_with_k", "greedy"])
def test_the_narrowest_setting_is_the_likeliest_token(settings: Callable[[], SamplerSettings]) -> None:
    """Guards the ends (B43): the best token always stays, and alone, whatever is drawn."""
    z = random_logits(rows=50).round(decimals=1)
    for u in (0.0, 0.5, 1 - 2.0**-53):
        ids = choose(z, settings(), torch.full((50,), u, dtype=torch.float64))
        assert torch.equal(ids, z.argmax(-1))
    assert torch.equal(distribution(z, settings()).argmax(-1), z.argmax(-1))


def test_the_coldest_temperature_is_a_number() -> None:
    """Guards against an infinite logit, whose softmax is not a number; equally likely tokens share."""
    p = distribution(torch.tensor([[900.0, -900.0, 900.0]], dtype=torch.float64), SamplerSettings(temperature=1e-300))
    assert p.tolist() == [[0.5, 0.0, 0.5]]


def test_greedy_with_a_penalty_takes_the_penalised_best() -> None:
    z = torch.tensor([[3.0, 2.9, -1.0]])
    seen = torch.tensor([[True, False, False]])
    assert choose(z, SamplerSettings(repetition_penalty=1.2), torch.zeros(1), seen).tolist() == [1]


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    """Guards the ends of the cumulative sum, with zeros at the front, inside and behind."""
    p = torch.tensor([0.0, 0.0, 0.3, 0.0, 0.1, 0.6, 0.0, 0.0], dtype=torch.float64)
    for total in (1.0, 0.75, 1 + 2.0**-52, 3.3):
        u = torch.tensor([0.0, 0.2999999, 0.3 + 1e-9, 0.4 + 1e-9, 1 - 2.0**-53], dtype=torch.float64)
        assert draw((total * p).expand(5, -1), u).tolist() == [2, 2, 4, 5, 5]


# ---- the noise


def test_the_mixer_is_the_published_one() -> None:
    """Guards what a seed means for ever: the first outputs of SplitMix64 from 1234567, as published."""
    state, found = 1234567, []
    for _ in range(5):
        state = (state + GOLDEN) % 2**64
        found.append(mix(state))
    assert found == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param([uniform(5, step) for step in range(DRAWS)], id="steps"),
        pytest.param([uniform(seed, 0) for seed in range(DRAWS)], id="seeds"),
        pytest.param([uniform(seed << 32, 7) for seed in range(DRAWS)], id="high_bits_of_the_seed"),
        pytest.param([uniform(i, DRAWS - i) for i in range(DRAWS)], id="seed_plus_step"),
    ],
)
def test_noise_is_even_and_neighbours_know_nothing_of_each_other(numbers: list[float]) -> None:
    """Guards neighbouring seeds, which are the samples of one prompt: pairs must fill the square evenly."""
    u = torch.tensor(numbers, dtype=torch.float64)
    assert u.min() >= 0
    assert u.max() < 1
    assert len(u.unique()) > DRAWS - 3
    cells = (u[:-1] * 16).long() * 16 + (u[1:] * 16).long()
    counts = torch.bincount(cells, minlength=256).double()
    expected = (DRAWS - 1) / 256
    assert float(((counts - expected) ** 2 / expected).sum()) < 330.5  # 255 degrees of freedom, 0.999


# ---- the settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": -0.1}, "--temperature is -0.1; it must be a number, at least 0"),
        ({"temperature": math.nan}, "--temperature is nan"),
        ({"temperature": "1"}, "--temperature is '1'; it must be a number"),
        ({"top_p": 1.1}, "--top-p is 1.1; it must be a number, at least 0 and at most 1"),
        ({"min_p": -1}, "--min-p is -1"),
        ({"top_k": 2.5}, "--top-k is 2.5; it must be a whole number"),
        ({"top_k": -1}, "--top-k is -1"),
        ({"max_tokens": 0}, "--max-tokens is 0; it must be a whole number, at least 1"),
        ({"max_tokens": True}, "--max-tokens is True"),
        ({"repetition_penalty": 0}, "--repetition-penalty is 0; it must be above 0"),
        ({"stop": ("",)}, "every stop string must be text, and not empty"),
        ({"stop": (3,)}, "every stop string must be text"),
        ({"logprobs": -1}, "--logprobs is -1"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SamplerSettings(**changes)
    assert said in str(caught.value)


def test_one_stop_string_may_stand_alone() -> None:
    assert SamplerSettings(stop="###").stop == ("###",)  # pyright: ignore[reportArgumentType]
