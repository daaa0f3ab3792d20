"""The attention kernels: as accurate as PyTorch at every type, over the grid of options; who can look at whom."""

import math
from typing import Any

import pytest
import torch
from kernel_cases import INTERPRETED, assert_as_accurate, gradients, randn, rms
from minitune_kernels import attention
from minitune_kernels import intervals as intervals_module
from minitune_kernels.intervals import intervals
from minitune_kernels.launch import ran
from torch import Tensor

from minitune.ops import REFERENCE, AttentionPlan, rows_plan

BIG = pytest.mark.skipif(INTERPRETED, reason="real sizes need a GPU")


def qkv(
    B: int, T: int, S: int, H: int, K: int, D: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0
) -> tuple[Tensor, ...]:
    shapes = ((B, T, H, D), (B, S, K, D), (B, S, K, D))
    return tuple(randn(*shape, seed=i, dtype=dtype, device=device) * scale for i, shape in enumerate(shapes))


def packed_plan(
    *lengths: int, keys: tuple[int, ...] | None = None, rest: int = 0, device: torch.device | str = "cpu"
) -> AttentionPlan:
    """Documents of so many queries each, at the end of so many ``keys`` each, and ``rest`` queries behind the end."""
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    cu_k = cu if keys is None else torch.tensor([0, *keys]).cumsum(0).to(torch.int32)
    keys = lengths if keys is None else keys
    positions = [torch.arange(s - t, s) for t, s in zip(lengths, keys, strict=True)] + [torch.arange(rest)]
    return AttentionPlan(
        positions=torch.cat(positions)[None].to(device),
        cu_seqlens_q=cu.to(device),
        cu_seqlens_k=cu_k.to(device),
        max_seqlen_q=max(lengths),
        max_seqlen_k=max(keys),
    )


def check(inputs: tuple[Tensor, ...], **options: Any) -> None:
    """Output and gradients against float64, as accurate as the formula at the same type."""
    q = inputs[0]
    dy = randn(*q.shape, seed=9, dtype=q.dtype, device=q.device)
    ours = gradients(lambda *x: attention(*x, **options), inputs, dy)
    eager = gradients(lambda *x: eager_attention(*x, **options), inputs, dy)
    truth = gradients(lambda *x: REFERENCE.attention(*x, **options), [x.double() for x in inputs], dy.double())
    for mine, theirs, true in zip(ours, eager, truth, strict=True):
        # A gradient may be a difference of two equal sums, exactly 0 or not by the order they are taken in; and what
        # is lost by computing the probabilities again is some units in the last place of the largest score.
        slack = 1e-6 * float(rms(dy)) + 2**-20 * largest_score(inputs, options) * float(rms(true))
        assert_as_accurate(mine, theirs, true, slack=slack)
    with torch.no_grad():
        assert_as_accurate(attention(*inputs, **options), eager[0], truth[0], slack=product_slack(truth[0], q.dtype))


def product_slack(y: Tensor, dtype: torch.dtype) -> float:
    """Products of float32 are three of TF32 on a GPU, 22 bits: seen where the formula has next to nothing to round."""
    return 2**-21 * float(rms(y)) if dtype == torch.float32 else 0.0


def largest_score(inputs: tuple[Tensor, ...], options: dict[str, Any]) -> float:
    """The largest score, by the norms of queries and keys, in powers of 2."""
    q, k = (x.float().norm(dim=-1).max() for x in inputs[:2])
    scale = options.get("scale")
    return float(q * k) * abs(inputs[0].shape[-1] ** -0.5 if scale is None else scale) * 1.44


def eager_attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """The formula as people write it: products in the type of the inputs, the softmax in float32, rounded before v."""
    plan, window, softcap = options.get("plan"), options.get("window"), options.get("softcap")
    T, S, group = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    scale = options.get("scale")
    s = torch.einsum("bthd,bshd->bhts", q, k) * (q.shape[3] ** -0.5 if scale is None else scale)
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    plan = rows_plan(q.shape[0], T, q.device, S - T) if plan is None else plan
    sees = plan.visible(S, causal=options.get("causal", True), window=window)[:, None]
    s = s.float().masked_fill(~sees, -torch.inf)
    nothing = (~sees).all(-1, keepdim=True)
    p = torch.softmax(s.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0).to(q.dtype)
    return torch.einsum("bhts,bshd->bthd", p, v)


# ---- the three questions of every operation: the truth is minitune.ops, whose backward equals autograd in float64

SHAPES = {  # B, T, S, H, K, D
    "one": (1, 1, 1, 1, 1, 16),
    "odd": (2, 17, 17, 2, 1, 20),
    "two tiles": (1, 131, 131, 2, 2, 16),
    "whole tiles": (1, 128, 128, 1, 1, 32),
    "cached": (2, 33, 70, 4, 2, 16),
    "more queries than keys": (1, 40, 23, 1, 1, 16),
    "d80": (1, 40, 40, 1, 1, 80),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str, dtype: torch.dtype, device: torch.device) -> None:
    check(qkv(*SHAPES[name], dtype, device))


@pytest.mark.parametrize(
    "options",
    [
        {"causal": False},
        {"scale": 0.37},
        {"scale": -0.2},
        {"window": 9},
        {"softcap": 0.8},
        {"window": 40, "softcap": 3.0},
    ],
    ids=str,
)
def test_options(options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    check(qkv(1, 75, 75, 2, 1, 16, dtype, device), **options)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_scales(scale: float, dtype: torch.dtype, device: torch.device) -> None:
    """At 30 the softmax is one key; at 1e-3 it is even."""
    check(qkv(1, 50, 50, 1, 1, 16, dtype, device, scale))


@pytest.mark.parametrize(
    "lengths",
    [(5, 40, 1, 20), (0, 33, 0, 7), (64,), (16, 16, 32)],
    ids=str,
)
def test_packed(lengths: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Documents of any length, empty ones too, and what stands behind their end."""
    T = sum(lengths) + 3
    plan = packed_plan(*lengths, rest=3, device=device)
    check(qkv(1, T, T, 2, 1, 16, dtype, device), plan=plan)
    check(qkv(1, T, T, 2, 2, 16, dtype, device), plan=plan, window=6)


def test_packed_chunks_after_cached_keys(dtype: torch.dtype, device: torch.device) -> None:
    plan = packed_plan(3, 20, 1, keys=(20, 20, 33), device=device)
    check(qkv(1, 24, 75, 2, 1, 16, dtype, device), plan=plan)
    check(qkv(1, 24, 75, 2, 1, 16, dtype, device), plan=plan, causal=False)


def test_rows_of_unequal_caches(dtype: torch.dtype, device: torch.device) -> None:
    plan = rows_plan(3, 2, device, torch.tensor([1, 60, 30], device=device))
    check(qkv(3, 2, 64, 4, 2, 16, dtype, device), plan=plan)
    check(qkv(3, 2, 64, 4, 2, 16, dtype, device), plan=plan, window=7)


def test_queries_that_see_nothing_give_zero_and_take_no_gradient(dtype: torch.dtype, device: torch.device) -> None:
    inputs = qkv(1, 40, 70, 2, 1, 16, dtype, device)
    plan = rows_plan(1, 40, device, -35)
    check(inputs, plan=plan)
    y, dq, _, _ = gradients(lambda *x: attention(*x, plan=plan), inputs, torch.ones_like(inputs[0]))
    assert not y[:, :35].any()
    assert not dq[:, :35].any()
    assert y[:, 35:].any(-1).all()
    none = rows_plan(1, 40, device, -40)
    for tensor in gradients(lambda *x: attention(*x, plan=none), inputs, torch.ones_like(inputs[0])):
        assert not tensor.any()


def test_strided_inputs(dtype: torch.dtype, device: torch.device) -> None:
    """Queries, keys and values as slices of one projection, and heads first."""
    qkv_row = randn(2, 35, 4 * 16, dtype=dtype, device=device)
    q, k, v = (x.unflatten(-1, (-1, 16)) for x in qkv_row.split([32, 16, 16], -1))
    check((q, k, v))
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    check((q, k, v))


# ---- the decoding kernel


@pytest.mark.parametrize(("T", "H", "K"), [(1, 4, 2), (1, 1, 1), (3, 6, 2), (2, 8, 1)])
def test_few_queries_over_a_long_cache(T: int, H: int, K: int, dtype: torch.dtype, device: torch.device) -> None:
    S = 131 if INTERPRETED else 1000
    inputs = qkv(2, T, S, H, K, 16, dtype, device)
    for options in (
        {},
        {"window": 50},
        {"softcap": 2.0},
        {"causal": False},
        {"plan": rows_plan(2, T, device, torch.tensor([5, S - T], device=device))},
        {"plan": rows_plan(2, T, device, torch.tensor([-4, 70], device=device))},
    ):
        with torch.no_grad():
            got = attention(*inputs, **options)
            assert ran()["attention"] == "split keys"
            truth = REFERENCE.attention(*(x.double() for x in inputs), **options)
            assert_as_accurate(got, eager_attention(*inputs, **options), truth, slack=product_slack(truth, dtype))


# ---- who can look at whom, bit for bit


def test_the_future_and_other_documents_change_no_bit(dtype: torch.dtype, device: torch.device) -> None:
    q, k, v = qkv(1, 60, 60, 2, 1, 16, dtype, device)
    later = [x.clone() for x in (q, k, v)]
    for x in later:
        x[:, 40:] = 3 * x[:, 40:] + 1
    a, b = attention(q, k, v), attention(*later)
    assert torch.equal(a[:, :40], b[:, :40])
    assert not torch.equal(a[:, 40:], b[:, 40:])
    plan = packed_plan(20, 20, 20, device=device)
    dy = randn(1, 60, 2, 16, seed=9, dtype=dtype, device=device)
    one = gradients(lambda *x: attention(*x, plan=plan), (q, k, v), dy)
    other = gradients(lambda *x: attention(*x, plan=plan), tuple(later), dy)
    for x, z in zip(one, other, strict=True):
        assert torch.equal(x[:, :40], z[:, :40])


def test_the_deterministic_backward_repeats_itself(dtype: torch.dtype, device: torch.device) -> None:
    B, H, K, D, runs = (1, 2, 1, 16, 2) if INTERPRETED else (2, 4, 2, 64, 3)
    inputs = qkv(B, 70, 70, H, K, D, dtype, device)
    dy = randn(B, 70, H, D, seed=9, dtype=dtype, device=device)
    torch.use_deterministic_algorithms(True)
    try:
        found = [gradients(attention, inputs, dy) for _ in range(runs)]
        assert ran()["attention_backward"].endswith("split")
    finally:
        torch.use_deterministic_algorithms(False)
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


# ---- exact inputs: an assembler that reuses registers of a product under way shows in whole numbers


@pytest.mark.parametrize("D", [16, 64, 128])
def test_whole_numbers_come_out_whole(D: int, dtype: torch.dtype, device: torch.device) -> None:
    """Scores of 0 make every probability 1/n with n a power of two, so that the mean of whole numbers is exact."""
    T, S = (64, 64) if INTERPRETED else (256, 256)
    if dtype == torch.float32 and not INTERPRETED:
        pytest.skip("float32 products are sums of rounded parts")
    v = torch.randint(-8, 9, (1, S, 1, D), generator=torch.Generator().manual_seed(D)).to(dtype)
    zero = torch.zeros(1, T, 1, D, dtype=dtype)
    q, k, v = (x.to(device) for x in (zero, zero[:, :S], v))
    got = gradients(lambda *x: attention(*x, causal=False), (q, k, v), torch.full_like(q, 16.0))
    assert torch.equal(got[0].float(), v.float().mean(1, keepdim=True).expand_as(got[0]).to(dtype).float())
    assert torch.equal(got[3].float(), torch.full_like(v, 16.0 * T / S).float())
    assert not got[1].any()
    assert not got[2].any()


# ---- intervals


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("causal", [True, False])
def test_intervals_are_the_masks(window: int | None, causal: bool) -> None:
    """Guards that the kernels' two vectors say what the mask of ``minitune.ops`` says, both ways round."""
    if window is not None and not causal:
        return
    plans = {
        "rows": (None, 7, 7),
        "end of keys": (None, 3, 9),
        "offset": (rows_plan(2, 4, "cpu", 3), 4, 12),
        "before": (rows_plan(1, 6, "cpu", -3), 6, 5),
        "each": (rows_plan(3, 2, "cpu", torch.tensor([0, 8, -2])), 2, 9),
        "packed": (packed_plan(3, 0, 5, 1, rest=2), 11, 11),
        "packed chunks": (packed_plan(2, 3, 0, keys=(5, 1, 4), rest=1), 6, 12),
    }
    for name, (plan, T, S) in plans.items():
        found = intervals(plan, T, S, causal=causal, window=window, device=torch.device("cpu"))
        key, query = torch.arange(S), torch.arange(T)
        seen = (key >= found.first[..., None]) & (key < found.end[..., None])  # (B or 1, T, S)
        back = (query >= found.seen_first[..., None]) & (query < found.seen_end[..., None])  # (B or 1, S, T)
        shown = (rows_plan(1, T, "cpu", S - T) if plan is None else plan).visible(S, causal=causal, window=window)
        assert torch.equal(seen, shown), name
        assert torch.equal(back.transpose(1, 2) & seen, shown), name
        assert (found.first.diff() >= 0).all(), name
        assert (found.end.diff() >= 0).all(), name


def test_intervals_belong_to_their_plan(device: torch.device) -> None:
    """Guards what is kept from call to call: plans that share their positions, and plans that are gone."""
    positions = torch.arange(4, device=device).expand(2, -1)
    inputs = qkv(2, 4, 9, 2, 1, 16, torch.float32, device)
    for offsets in ([0, 5], [5, 0], [2, 3]):
        plan = AttentionPlan(positions=positions, offset=torch.tensor(offsets, device=device))
        truth = REFERENCE.attention(*(x.double() for x in inputs), plan=plan)
        assert torch.allclose(attention(*inputs, plan=plan).double(), truth, atol=1e-5)
    kept = len(intervals_module._of_plans)
    del plan
    assert len(intervals_module._of_plans) < kept


def test_what_sampling_made_can_be_trained_on(device: torch.device) -> None:
    """Guards samples between training steps: a tensor of inference mode cannot be kept for a backward."""
    q, k, v = qkv(1, 43, 43, 2, 1, 16, torch.float32, device)
    plan = packed_plan(20, 23, device=device)
    with torch.inference_mode():
        attention(q, k, v)
        attention(q, k, v, plan=plan)
    q.requires_grad_()
    (attention(q, k, v) + attention(q, k, v, plan=plan)).sum().backward()
    assert q.grad is not None


def test_what_the_kernels_do_not_serve_is_refused(device: torch.device) -> None:
    q, k, v = qkv(1, 4, 4, 1, 1, 16, torch.float32, device)
    with pytest.raises(ValueError, match=r"BUILTIN\.attention"):
        attention(q, k, v, bias=torch.zeros(1, device=device))
    with pytest.raises(ValueError, match="float64"):
        attention(q.double(), k.double(), v.double())
    with pytest.raises(ValueError, match=r"torch\.float16"):
        attention(q, k.half(), v)
    with pytest.raises(ValueError, match="300 channels"):
        attention(*qkv(1, 4, 4, 1, 1, 300, torch.float32, device))
    with pytest.raises(ValueError, match="softcap"):
        attention(q, k, v, softcap=0.0)


# Dynamo makes an instance of an autograd function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_one_graph_for_the_compiler(device: torch.device) -> None:
    """Guards torch.compile(fullgraph=True): the operators are opaque, and nothing around them breaks the graph."""
    q, k, v = qkv(1, 40, 40, 2, 1, 16, torch.float32, device)
    plan = packed_plan(15, 25, device=device)

    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, plan=plan) + attention(q, k, v, window=8)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    dy = randn(1, 40, 2, 16, seed=9, dtype=torch.float32, device=device)
    for a, b in zip(gradients(compiled, (q, k, v), dy), gradients(f, (q, k, v), dy), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


# ---- real sizes


@BIG
@pytest.mark.parametrize("D", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 300}, {"softcap": 20.0}], ids=str)
def test_real_head_sizes(D: int, options: dict[str, Any], device: torch.device) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        check(qkv(2, 1000, 1000, 4, 2, D, dtype, device), **options)


@BIG
@pytest.mark.parametrize("D", [64, 128])
def test_packed_documents_of_real_lengths(D: int, device: torch.device) -> None:
    lengths = (300, 0, 1, 129, 700, 64, 500, 17)
    plan = packed_plan(*lengths, rest=40, device=device)
    T = sum(lengths) + 40
    for dtype in (torch.bfloat16, torch.float16):
        check(qkv(1, T, T, 4, 2, D, dtype, device), plan=plan)
        check(qkv(1, T, T, 4, 2, D, dtype, device), plan=plan, window=100)


@BIG
@pytest.mark.parametrize(("B", "T", "H", "K", "D"), [(1, 32768, 32, 8, 128), (3, 131072, 48, 1, 128)])
def test_long_rows_and_more_than_two_billion_elements(B: int, T: int, H: int, K: int, D: int) -> None:
    """Guards 32-bit offsets: the last queries of the last head of the last row against float64."""
    device = torch.device("cuda")
    big = B * T * H * D > 2**31
    q, k, v = (torch.randn(B, T, h, D, device=device, dtype=torch.bfloat16) for h in (H, K, K))
    for leaf in (q, k, v):
        leaf.requires_grad_()
    y = attention(q, k, v, window=1000 if big else None)
    n = 64
    a, b, c = (x[-1:, -n if i == 0 else 0 :, -1:].detach().double() for i, x in enumerate((q, k, v)))
    truth = REFERENCE.attention(a, b, c, window=1000 if big else None)
    mine = y[-1:, -n:, -1:].detach()
    assert (mine.double() - truth).abs().max() <= 2e-2 * truth.abs().max()
    assert math.sqrt((mine.double() - truth).square().mean()) <= 4e-3 * math.sqrt(truth.square().mean())
    if not big:
        (dq,) = torch.autograd.grad(y[-1:, -n:, -1:].float().sum(), q)
        a.requires_grad_()
        (true,) = torch.autograd.grad(REFERENCE.attention(a, b, c).sum(), a)
        assert math.sqrt((dq[-1:, -n:, -1:].double() - true).square().mean()) <= 1e-2 * math.sqrt(true.square().mean())
        assert not dq[-1:, : -n - 128, -1:].any()


@BIG
def test_hopper_is_named_where_it_ran(device: torch.device) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs compute capability 9.0")
    inputs = qkv(1, 512, 512, 4, 2, 128, torch.bfloat16, device)
    with torch.no_grad():
        attention(*inputs)
        assert ran()["attention"] == "hopper"
        attention(*inputs, softcap=10.0)
        assert ran()["attention"] == "plain"
