"""Rotary positions: the gradient is the rotation back, lengths stay, and only distances count."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from ops_cases import SCALES, assert_as_accurate, assert_close64, autograd, randn
from torch import Tensor
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from minitune.ops import BUILTIN, REFERENCE, Ops, RopeScaling, pick_frequencies, rope_frequencies, rope_tables
from minitune.ops.rope import rope, rope_backward

TABLES = [REFERENCE, BUILTIN]


def tables(T: int, D: int, dtype: torch.dtype = torch.float64, start: int = 0) -> tuple[Tensor, Tensor]:
    return rope_tables(torch.arange(start, start + T)[None], rope_frequencies(D, 10000.0), dtype)


def test_rope_backward_is_autograd() -> None:
    q, k = randn(2, 5, 4, 6), randn(2, 5, 2, 6, seed=1)
    dq, dk = randn(2, 5, 4, 6, seed=2), randn(2, 5, 2, 6, seed=3)
    for channels in (6, 4):  # all of the head, and a part of it
        cos, sin = tables(5, channels)
        assert_close64(rope_backward(dq, dk, cos, sin), autograd(lambda q, k: rope(q, k, cos, sin), [q, k], [dq, dk]))  # noqa: B023
        assert torch.autograd.gradcheck(lambda q, k: rope(q, k, cos, sin), [q.requires_grad_(), k.requires_grad_()])  # noqa: B023
        q, k = q.detach(), k.detach()


def test_the_builtin_gradient_is_the_rotation_back() -> None:
    """Guards the hand-written backward, on q and k that are slices of one tensor, as from one product."""
    both = randn(2, 5, 6, 8)
    dq, dk = randn(2, 5, 4, 8, seed=2), randn(2, 5, 2, 8, seed=3)
    for channels in (8, 4):
        cos, sin = tables(5, channels)
        turned = autograd(lambda x: BUILTIN.rope(*x.split((4, 2), 2), cos, sin), [both], [dq, dk])  # noqa: B023
        assert_close64(turned, [torch.cat(rope_backward(dq, dk, cos, sin), 2)])


def test_rope_is_a_complex_rotation() -> None:
    """An independent statement of the same thing: channel pairs are complex numbers, multiplied by exp(i * angle)."""
    q = randn(1, 7, 3, 8)
    cos, sin = tables(7, 8)
    angle = torch.arange(7)[:, None] * 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    turned = torch.complex(q[..., :4], q[..., 4:]) * torch.polar(torch.ones_like(angle), angle)[None, :, None]
    assert_close64([rope(q, q, cos, sin)[0]], [torch.cat((turned.real, turned.imag), -1)])


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_rope_keeps_lengths_and_knows_only_distances(ops: Ops) -> None:
    q, k = randn(1, 1, 1, 16).expand(1, 40, 1, 16), randn(1, 1, 1, 16, seed=1).expand(1, 40, 1, 16)
    near, far = (ops.rope(q, k, *tables(40, 16, start=start)) for start in (0, 1000))
    assert_close64([near[0].norm(dim=-1)], [q.norm(dim=-1)])
    score = [torch.einsum("bthd,bshd->bts", q, k) for q, k in (near, far)]
    assert_close64([score[0]], [score[1]])
    # The same everywhere on a diagonal: a function of i - j.
    assert_close64([score[0][0].diagonal(-3)], [score[0][0].diagonal(-3)[:1].expand(37)])


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_rope_leaves_the_channels_behind_its_tables(ops: Ops) -> None:
    q, k = randn(1, 4, 2, 16), randn(1, 4, 2, 16, seed=1)
    q_turned, k_turned = ops.rope(q, k, *tables(4, 4))
    assert torch.equal(q_turned[..., 4:], q[..., 4:])
    assert torch.equal(k_turned[..., 4:], k[..., 4:])
    assert not torch.equal(q_turned[..., :4], q[..., :4])


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_rope_is_as_accurate_as_eager(ops: Ops, dtype: torch.dtype, scale: float) -> None:
    q, k = randn(2, 33, 3, 20, dtype=dtype) * scale, randn(2, 33, 1, 20, seed=1, dtype=dtype) * scale
    cos, sin = tables(33, 20, dtype)
    exact = rope(q.double(), k.double(), *tables(33, 20))
    c, s = (torch.cat((t, t), -1)[:, :, None].to(dtype) for t in (cos, sin))
    for ours, x, truth in zip(ops.rope(q, k, cos, sin), (q, k), exact, strict=True):
        half = torch.cat((-x[..., 10:], x[..., :10]), -1)
        assert_as_accurate(ours, x * c + half * s, truth)


# ---- longer texts: frequencies as the reference library makes them


LONG = tuple(1.118320672**i for i in range(31)) + tuple(32.0 + i / 4 for i in range(17))  # grows like Phi-4-mini's
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
PHI = {"short_factor": [1.0] * 48, "long_factor": list(LONG), "original_max_position_embeddings": 4096}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
DEEPSEEK = {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.707}

# The head's channels, theta, the settings as config.json has them, and the model's positions.
PUBLISHED: dict[str, tuple[int, float, dict[str, Any], int]] = {
    "Llama-3.1-8B": (128, 5e5, {"rope_type": "llama3", "factor": 8.0, **LLAMA3}, 131072),
    "Llama-3.2-1B": (64, 5e5, {"rope_type": "llama3", "factor": 32.0, **LLAMA3}, 131072),
    "Qwen2.5 yarn": (128, 1e6, {"rope_type": "yarn", **YARN}, 131072),
    "yarn betas": (128, 1e4, {"rope_type": "yarn", **YARN, "beta_fast": 24, "beta_slow": 2.5}, 131072),
    "yarn untruncated": (64, 1.5e5, {"rope_type": "yarn", **YARN, "truncate": False}, 131072),
    "yarn one beta": (
        64,
        1e4,
        {"rope_type": "yarn", **YARN, "beta_fast": 8, "beta_slow": 8, "truncate": False},
        131072,
    ),
    "yarn attention_factor": (64, 1e4, {"rope_type": "yarn", **YARN, "attention_factor": 1.25}, 131072),
    "yarn mscale": (64, 1e4, {"rope_type": "yarn", **DEEPSEEK}, 163840),
    "yarn mscale alone": (64, 1e4, {"rope_type": "yarn", **YARN, "mscale": 0.5}, 131072),
    "yarn short texts": (64, 1e4, {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, 32),
    "yarn partial": (80, 1e4, {"rope_type": "yarn", **YARN, "partial_rotary_factor": 0.25}, 131072),
    "Phi-4-mini": (128, 1e4, {"rope_type": "longrope", **PHI, "partial_rotary_factor": 0.75}, 131072),
    "longrope factor": (96, 1e4, {"rope_type": "longrope", **PHI, "factor": 16.0}, 131072),
    "longrope attention_factor": (96, 1e4, {"rope_type": "longrope", **PHI, "attention_factor": 1.5}, 131072),
    "linear 2": (64, 1e4, {"rope_type": "linear", "factor": 2.0}, 4096),
    "Gemma 3 global": (256, 1e6, {"rope_type": "linear", "factor": 8.0}, 131072),
    "linear partial": (64, 1e4, {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5}, 4096),
}
NAMES = {"rope_type": "kind", "original_max_position_embeddings": "original_max_positions"}


def scaling_of(published: dict[str, Any], positions: int) -> RopeScaling:
    """Our settings from the published ones: other names, tuples for lists, longrope's factor from the positions."""
    given: dict[str, Any] = {NAMES.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in published.items()}
    given.pop("partial_rotary_factor", None)
    if given["kind"] == "longrope":
        given.setdefault("factor", positions / published["original_max_position_embeddings"])
    return RopeScaling(**given)


@pytest.mark.parametrize("length", [0, 4096, 4097])
@pytest.mark.parametrize("name", PUBLISHED)
def test_frequencies_are_the_reference_librarys(name: str, length: int) -> None:
    """Guards every kind of scaling, short and long, against the library that the published models were tested with."""
    head_dim, theta, published, positions = PUBLISHED[name]
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=positions,
        rope_parameters={**published, "rope_theta": theta},
    )
    assert config.rope_parameters is not None
    want, factor = ROPE_INIT_FUNCTIONS[published["rope_type"]](config, seq_len=length or None)
    scaling = scaling_of(published, positions)
    channels = int(head_dim * published.get("partial_rotary_factor", 1.0))
    got = rope_frequencies(channels, theta, scaling=scaling, length=length)
    assert got.dtype == torch.float64
    assert got.shape == want.shape == (channels // 2,)
    assert ((got - want) / got).abs().max() < 1e-6
    assert scaling.table_factor == pytest.approx(factor, rel=1e-12)


def test_scaled_frequencies_by_hand() -> None:
    """Guards the formulas with numbers worked out on paper, so that a wrong reference would be seen too."""
    linear = rope_frequencies(4, 10000.0, scaling=RopeScaling(kind="linear", factor=8.0))
    assert linear.tolist() == pytest.approx([1 / 8, 1 / 800], rel=1e-15)
    # Pairs at 1, 0.1, 0.01, 0.001 turn P w / 2 pi = 100, 10, 1, 0.1 times: two stay, the third is at the very end of
    # the ramp from 4 turns to 1, the last lies beyond it.
    P = round(200 * math.pi)
    llama3 = RopeScaling(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=P)
    got = rope_frequencies(8, 10000.0, scaling=llama3)
    assert got.tolist() == pytest.approx([1.0, 0.1, 0.00125, 0.000125], rel=1e-3)
    # In the middle of the ramp, at 2.5 turns: the mean of w and w / 8.
    P = 250 * 2 * math.pi
    middle = rope_frequencies(8, 10000.0, scaling=replace(llama3, original_max_positions=round(P)))
    assert float(middle[2]) == pytest.approx(0.01 * (1 + 1 / 8) / 2, rel=1e-3)
    # yarn: a pair i of 8 channels makes P 10^-i / 2 pi turns, so 32 are made at i = 2 and 1 at about 3.5; truncated
    # the ramp runs from 2 to 4, and pair 3 is in its middle.
    yarn = RopeScaling(kind="yarn", factor=4.0, original_max_positions=round(3200 * 2 * math.pi + 20))
    got = rope_frequencies(8, 10000.0, scaling=yarn)
    assert got.tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001 * (0.5 + 0.5 / 4)], rel=1e-12)
    assert yarn.table_factor == pytest.approx(1.1386294361119891, rel=1e-15)  # 0.1 ln 4 + 1
    phi = scaling_of(PUBLISHED["Phi-4-mini"][2], 131072)
    assert phi.table_factor == pytest.approx(math.sqrt(17 / 12), rel=1e-15)  # ln 32 / ln 4096 = 5 / 12
    assert linear.device == got.device


def test_no_scaling_is_scaling_by_one() -> None:
    plain = rope_frequencies(16, 5e5)
    for scaling in (
        RopeScaling(kind="linear", factor=1.0),
        RopeScaling(kind="llama3", factor=1.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64),
        RopeScaling(kind="yarn", factor=1.0, original_max_positions=64),
        RopeScaling(
            kind="longrope", factor=1.0, original_max_positions=64, short_factor=(1.0,) * 8, long_factor=(1.0,) * 8
        ),
    ):
        assert_close64([rope_frequencies(16, 5e5, scaling=scaling, length=100) / plain], [plain / plain])
        assert scaling.table_factor == 1.0


def test_longrope_is_long_for_the_whole_batch_when_one_text_is() -> None:
    """The published rule: position P is the first of a long text, and then every row gets the long frequencies."""
    short, long = rope_frequencies(8, 10000.0), rope_frequencies(8, 10000.0) / 7
    for last, want in ((5, short), (8, short), (9, long)):
        positions = torch.tensor([[0, 1, 2], [last - 3, last - 2, last - 1]])
        got = pick_frequencies(positions, short, long, torch.bfloat16, above=8)
        assert got.dtype == torch.float32
        assert torch.equal(got, want.float())
    scaling = scaling_of(PUBLISHED["Phi-4-mini"][2], 131072)
    short, long = (rope_frequencies(96, 1e4, scaling=scaling, length=n) for n in (4096, 4097))
    assert not torch.equal(short, long)
    for last, want in ((4095, short), (4096, long)):
        positions = torch.tensor([[0, last]])
        assert torch.equal(pick_frequencies(positions, short, long, torch.float64, above=4096), want)


def test_tables_of_a_long_text_are_the_reference_models() -> None:
    """Guards the whole way of Phi-4-mini: partial rotation, the choice of factors, cos and sin times the factor."""
    _, theta, published, positions = PUBLISHED["Phi-4-mini"]
    config = Phi3Config(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=positions,
        original_max_position_embeddings=4096,
        rope_parameters={**published, "rope_theta": theta},
    )
    module = Phi3RotaryEmbedding(config)
    scaling = scaling_of(published, positions)
    both = [rope_frequencies(96, theta, scaling=scaling, length=n) for n in (0, 5000)]
    for place in (torch.tensor([[0, 1, 7, 200]]), torch.tensor([[0, 1, 7, 4096]])):
        want = module(torch.zeros(1, dtype=torch.float32), place)
        inv_freq = pick_frequencies(place, both[0], both[1], torch.float32, above=4096)
        got = rope_tables(place, inv_freq, torch.float32, factor=scaling.table_factor)
        for ours, theirs in zip(got, want, strict=True):
            assert (ours - theirs[..., :48]).abs().max() < 1e-3  # an angle of 4096 has 2e-4 in float32
            assert (ours - theirs[..., :48])[:, :3].abs().max() < 2e-6


def test_a_factor_scales_what_is_turned_and_its_gradient() -> None:
    q, k, dq, dk = (randn(1, 5, 2, 6, seed=s) for s in range(4))
    place, inv_freq = torch.arange(5)[None], rope_frequencies(6, 10000.0)
    plain = rope_tables(place, inv_freq, torch.float64)
    cos, sin = rope_tables(place, inv_freq, torch.float64, factor=1.19)
    assert_close64([rope(q, k, cos, sin)[0]], [1.19 * rope(q, k, *plain)[0]])
    assert_close64(rope_backward(dq, dk, cos, sin), autograd(lambda q, k: rope(q, k, cos, sin), [q, k], [dq, dk]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "dynamic", "factor": 2.0}, "'dynamic' is not supported.*linear, llama3, yarn, longrope"),
        ({"kind": "ntk", "factor": 2.0}, "'ntk' is not supported"),
        ({"kind": "linear", "factor": 0.0}, "factor is 0.0"),
        ({"kind": "linear", "factor": math.nan}, "factor is nan"),
        ({"kind": "linear", "factor": 2.0, "beta_fast": 32.0}, "'linear' has no beta_fast"),
        ({"kind": "llama3", "factor": 2.0}, "needs high_freq_factor, low_freq_factor, original_max_positions"),
        ({"kind": "yarn", "factor": 2.0}, "'yarn' needs original_max_positions"),
        ({"kind": "longrope", "factor": 2.0, "original_max_positions": 8}, "needs long_factor, short_factor"),
    ],
)
def test_a_scaling_that_cannot_be_is_refused(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RopeScaling(**given)


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="below high_freq_factor"):
        RopeScaling(kind="llama3", factor=8, low_freq_factor=4, high_freq_factor=4, original_max_positions=8)
    three = RopeScaling(
        kind="longrope", factor=2, original_max_positions=8, short_factor=(1.0,) * 3, long_factor=(1.0,) * 4
    )
    assert rope_frequencies(8, 1e4, scaling=three, length=9).shape == (4,)
    with pytest.raises(ValueError, match="3 factors for the 4 pairs"):
        rope_frequencies(8, 1e4, scaling=three)
