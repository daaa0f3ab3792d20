"""Attention: gradients in closed form, accuracy, and who may look at whom."""

from dataclasses import replace

import pytest
import torch
from ops_cases import SCALES, assert_as_accurate, assert_close64, autograd, randn
from torch import Tensor

from minitune.ops import BUILTIN, REFERENCE, AttentionPlan, Ops, rows_plan
from minitune.ops.attention import attention, attention_backward

TABLES = [REFERENCE, BUILTIN]
BY_NAME = pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)


def qkv(B: int, T: int, S: int, H: int, K: int, D: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return (
        randn(B, T, H, D, dtype=dtype),
        randn(B, S, K, D, seed=1, dtype=dtype),
        randn(B, S, K, D, seed=2, dtype=dtype),
    )


def packed_plan(*lengths: int, keys: tuple[int, ...] | None = None) -> AttentionPlan:
    """Documents of so many queries each, at the end of so many ``keys`` each (as many, where not said)."""
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    cu_k = cu if keys is None else torch.tensor([0, *keys]).cumsum(0).to(torch.int32)
    keys = lengths if keys is None else keys
    positions = torch.cat([torch.arange(s - t, s) for t, s in zip(lengths, keys, strict=True)])[None]
    return AttentionPlan(
        positions=positions, cu_seqlens_q=cu, cu_seqlens_k=cu_k, max_seqlen_q=max(lengths), max_seqlen_k=max(keys)
    )


def by_loops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sees: Tensor,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The definition, one query and one head at a time; ``sees (B, T, S)`` without the window."""
    y = torch.zeros_like(q)
    B, T, H, D = q.shape
    group = H // k.shape[2]
    for b in range(B):
        for t in range(T):
            keys = sees[b, t].nonzero().flatten()
            keys = keys if window is None else keys[-window:]  # causal: the last it sees is its own
            for h in range(H if len(keys) else 0):
                s = k[b, keys, h // group] @ q[b, t, h] * (D**-0.5 if scale is None else scale)
                s = s if softcap is None else softcap * torch.tanh(s / softcap)
                s = s if bias is None else s + bias.expand(B, H, T, k.shape[1])[b, h, t, keys]
                y[b, t, h] = torch.softmax(s, 0) @ v[b, keys, h // group]
    return y


# Plan, T and S of two rows.
PLANS = {
    "rows": (None, 5, 5),
    "one query": (None, 1, 5),
    "chunk": (rows_plan(2, 3, "cpu", 4), 3, 7),
    "cached query": (rows_plan(2, 1, "cpu", 6), 1, 7),
    "unequal rows": (rows_plan(2, 2, "cpu", torch.tensor([1, 4])), 2, 7),
    "more queries than keys": (None, 5, 3),
    "before the keys": (rows_plan(2, 3, "cpu", -1), 3, 4),
}
OPTIONS = ("plain", "scale", "window", "softcap", "bias", "all")


def options(name: str, H: int, T: int, S: int, bias_shape: tuple[int, ...] | None = None) -> dict:
    every = {"scale": 0.37, "window": 2, "softcap": 0.8, "bias": randn(*(bias_shape or (2, H, T, S)), seed=4)}
    return every if name == "all" else {} if name == "plain" else {name: every[name]}


def sight(plan: AttentionPlan | None, T: int, S: int) -> Tensor:
    """Who sees whom, said independently: query t of row b stands at offset + t."""
    offset = torch.full((2,), S - T) if plan is None else torch.as_tensor(plan.offset).expand(2)
    return torch.stack([torch.arange(S)[None, :] <= (torch.arange(T)[:, None] + o) for o in offset])


# ---- what it is, and its gradients


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", PLANS)
@BY_NAME
def test_attention_is_its_definition(ops: Ops, name: str, option: str) -> None:
    plan, T, S = PLANS[name]
    for H, K in ((4, 4), (4, 2), (3, 1)):
        q, k, v = qkv(2, T, S, H, K, 6)
        given = options(option, H, T, S)
        assert_close64([ops.attention(q, k, v, plan=plan, **given)], [by_loops(q, k, v, sight(plan, T, S), **given)])
        if plan is None and "window" not in given:
            everyone = torch.ones(2, T, S, dtype=torch.bool)
            got = ops.attention(q, k, v, causal=False, **given)
            assert_close64([got], [by_loops(q, k, v, everyone, **given)])


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", PLANS)
@BY_NAME
def test_backward_is_autograd_of_every_table(ops: Ops, name: str, option: str) -> None:
    plan, T, S = PLANS[name]
    q, k, v = qkv(2, T, S, 4, 2, 6)
    given = options(option, 4, T, S)
    dy = randn(2, T, 4, 6, seed=5)
    inputs = [q, k, v, *([given.pop("bias")] if "bias" in given else [])]

    def f(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.attention(q, k, v, plan=plan, bias=bias, **given)

    bias = inputs[3] if len(inputs) == 4 else None
    assert_close64(attention_backward(dy, q, k, v, plan=plan, bias=bias, **given), autograd(f, inputs, [dy]))


@pytest.mark.parametrize("option", ["plain", "all"])
@pytest.mark.parametrize("name", ["rows", "unequal rows", "before the keys"])
def test_gradients_are_differences(name: str, option: str) -> None:
    plan, T, S = PLANS[name]
    given = options(option, 2, T, S)
    inputs = [*qkv(2, T, S, 2, 1, 3), *([given.pop("bias")] if "bias" in given else [])]

    def f(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return attention(q, k, v, plan=plan, bias=bias, **given)

    assert torch.autograd.gradcheck(f, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("shape", [(), (1,), (5,), (5, 1), (4, 1, 1), (4, 5, 5), (1, 4, 1, 5), (2, 1, 5, 1)])
@BY_NAME
def test_a_bias_broadcasts_and_its_gradient_is_summed_back(ops: Ops, shape: tuple[int, ...]) -> None:
    q, k, v = qkv(2, 5, 5, 4, 2, 6)
    bias, dy = randn(*shape, seed=4), randn(2, 5, 4, 6, seed=5)
    for causal in (True, False):
        full = bias.expand(2, 4, 5, 5).clone()
        want = ops.attention(q, k, v, bias=full, causal=causal)
        assert_close64([ops.attention(q, k, v, bias=bias, causal=causal)], [want])
        got = attention_backward(dy, q, k, v, bias=bias, causal=causal)
        assert_close64(got, autograd(lambda *t: ops.attention(*t[:3], bias=t[3], causal=causal), [q, k, v, bias], [dy]))  # noqa: B023


# ---- packed documents


DOCUMENTS = {
    "training": ((3, 1, 5), None),
    "empty": ((0, 3, 0, 0, 4, 0), None),
    "cached": ((2, 1, 4), (5, 1, 6)),
    "cross": ((2, 0, 3, 1), (4, 2, 3, 1)),
    "no keys": ((2, 3, 2), (2, 0, 5)),
    "nothing at all": ((0, 0), None),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", DOCUMENTS)
@BY_NAME
def test_packed_documents_are_as_if_alone(ops: Ops, name: str, option: str) -> None:
    """Guards the document mask, empty documents, and chunks of queries behind cached keys, in value and gradient."""
    queries, keys = DOCUMENTS[name]
    plan = packed_plan(*queries, keys=keys)
    keys = queries if keys is None else keys
    T, S = sum(queries), sum(keys)
    q, k, v = (t.requires_grad_() for t in qkv(1, T, S, 4, 2, 6))
    given = options(option, 4, T, S, (1, 4, T, S))
    bias = given.pop("bias", None)
    packed = ops.attention(q, k, v, plan=plan, bias=bias, **given)
    alone, at_q, at_k = [], 0, 0
    for t, s in zip(queries, keys, strict=True):
        of_q, of_k = slice(at_q, at_q + t), slice(at_k, at_k + s)
        part = None if bias is None else bias[:, :, of_q, of_k]
        alone.append(attention(q[:, of_q], k[:, of_k], v[:, of_k], bias=part, **given))
        at_q, at_k = at_q + t, at_k + s
    if T:
        assert_close64([packed], [torch.cat(alone, 1)])
        dy = randn(1, T, 4, 6, seed=5)
        want = torch.autograd.grad(torch.cat(alone, 1), (q, k, v), dy)
        assert_close64(torch.autograd.grad(packed, (q, k, v), dy), want)
        assert_close64(attention_backward(dy, q, k, v, plan=plan, bias=bias, **given)[:3], want)
    else:
        assert packed.shape == (1, 0, 4, 6)


@pytest.mark.parametrize("option", OPTIONS)
@BY_NAME
def test_the_future_and_other_documents_change_no_bit(ops: Ops, option: str) -> None:
    q, k, v = qkv(1, 11, 11, 4, 2, 6, torch.float32)
    plan = replace(packed_plan(4, 5), positions=torch.zeros(1, 11, dtype=torch.int64))  # and two tokens of padding
    given = options(option, 4, 11, 11, (1, 4, 11, 11))
    given |= {name: value.float() for name, value in given.items() if name == "bias"}
    before = ops.attention(q, k, v, plan=plan, **given)
    cuts = (
        (slice(0, 4), slice(4, 9)),
        (slice(4, 9), slice(0, 4)),
        (slice(8, 9), slice(0, 8)),
        (slice(9, 11), slice(0, 9)),
    )
    for changed, kept in cuts:
        k2, v2 = k.clone(), v.clone()
        k2[:, changed], v2[:, changed] = 1e4, -1e4
        assert torch.equal(ops.attention(q, k2, v2, plan=plan, **given)[:, kept], before[:, kept])


def test_padding_behind_the_documents_is_a_document_of_its_own() -> None:
    """Without causality the last document would otherwise look at the padding."""
    plan = packed_plan(2, 3)
    plan = replace(plan, positions=torch.zeros(1, 7, dtype=torch.int64))
    seen = plan.visible(7, causal=False, window=None)[0]
    want = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3), torch.ones(2, 2)).bool()
    assert torch.equal(seen, want)


def test_a_plan_made_from_another_has_masks_of_its_own() -> None:
    plan = rows_plan(1, 2, "cpu", 1)
    assert int(plan.visible(4, causal=True, window=None).sum()) == 5
    assert int(replace(plan, offset=0).visible(4, causal=True, window=None).sum()) == 3
    with pytest.raises(ValueError, match="give both"):
        AttentionPlan(positions=plan.positions, cu_seqlens_q=torch.tensor([0, 2]))


# ---- properties


@BY_NAME
def test_weights_sum_to_one_and_ignore_a_shift_of_the_scores(ops: Ops) -> None:
    q, k, _ = qkv(2, 5, 5, 4, 2, 6)
    ones = torch.ones(2, 5, 2, 6, dtype=torch.float64)
    for option in OPTIONS:
        given = options(option, 4, 5, 5)
        assert_close64([ops.attention(q, k, ones, **given)], [torch.ones(2, 5, 4, 6, dtype=torch.float64)])
    v = randn(2, 5, 2, 6, seed=9)
    for given in ({}, {"window": 2, "bias": randn(2, 4, 5, 5, seed=4)}):
        shifted = ops.attention(q, k + randn(1, 1, 1, 6, seed=7), v, **given)
        assert_close64([shifted], [ops.attention(q, k, v, **given)])


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("queries", [1, 3, 9])
@BY_NAME
def test_a_window_ends_where_it_says(ops: Ops, window: int, queries: int) -> None:
    """A window of W keys includes the query's own: distance W - 1 counts, distance W has a gradient of exactly 0."""
    for plan in (None, rows_plan(1, queries, "cpu", 9 - queries), packed_plan(queries, keys=(9,))):
        q, k, v = (t.requires_grad_() for t in qkv(1, queries, 9, 2, 1, 6))
        y = ops.attention(q, k, v, plan=plan, window=window)
        for gradient in torch.autograd.grad(y[:, -1].sum(), (k, v) if window > 1 else (v,)):
            touched = gradient.abs().sum((0, 2, 3)) > 0
            assert touched.tolist() == [distance < window for distance in range(8, -1, -1)]


@BY_NAME
def test_a_window_as_long_as_the_text_is_none(ops: Ops) -> None:
    for T in (1, 4, 7):
        q, k, v = qkv(1, T, 7, 4, 2, 6)
        for window in (7, 8, 4096):
            assert_close64([ops.attention(q, k, v, window=window)], [ops.attention(q, k, v)])


@BY_NAME
def test_a_softcap_bounds_the_scores(ops: Ops) -> None:
    """With scores in (-c, c) no two weights of a row are further apart than exp(2 c), however long q and k are."""
    q, k, _ = qkv(1, 5, 5, 2, 1, 5)
    one_hot = torch.eye(5, dtype=torch.float64)[None, :, None]  # (B, S, K, D): the output is the weights
    p = ops.attention(q * 1e6, k, one_hot, causal=False, softcap=0.5)
    assert float((p.amax(-1) / p.amin(-1)).max()) == pytest.approx(torch.e, rel=1e-9)
    assert_close64([ops.attention(q, k, one_hot, softcap=1e9)], [ops.attention(q, k, one_hot)])
    # A cap on the score, not on score plus bias: this bias outweighs it.
    bias = torch.tensor([100.0, 0, 0, 0, 0], dtype=torch.float64)
    assert float(ops.attention(q, k, one_hot, causal=False, softcap=0.5, bias=bias)[..., 0].min()) > 1 - 1e-12


BLIND = {
    "more queries than keys": (None, 4, 2, None),
    "before the keys": (rows_plan(1, 2, "cpu", -1), 2, 3, None),
    "one row before the keys": (rows_plan(1, 2, "cpu", torch.tensor([-1])), 2, 3, None),
    "document without keys": (packed_plan(2, 2, keys=(0, 3)), 4, 3, None),
    "hidden by the bias": (None, 3, 3, torch.tensor([[-torch.inf] * 3, [0.0] * 3, [0.0, -torch.inf, 0.0]])),
    "all that is visible hidden": (None, 3, 3, torch.tensor([-torch.inf, -torch.inf, 1.0])),
    "no keys": (None, 2, 0, None),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", BLIND)
@BY_NAME
def test_a_query_that_sees_nothing_gives_zero_and_takes_no_gradient(ops: Ops, name: str, dtype: torch.dtype) -> None:
    """softmax of a row of -inf is NaN; here it is 0, and nothing of it comes back."""
    plan, T, S, bias = BLIND[name]
    bias = None if bias is None else bias.to(dtype)
    blind = {"more queries than keys": 2, "document without keys": 2, "no keys": 2, "all that is visible hidden": 2}
    blind = blind.get(name, 1)
    for softcap in (None, 5.0):
        q, k, v = (t.requires_grad_() for t in qkv(1, T, S, 2, 1, 4, dtype))
        y = ops.attention(q, k, v, plan=plan, bias=bias, softcap=softcap)
        assert torch.equal(y[:, :blind], torch.zeros(1, blind, 2, 4, dtype=dtype))
        assert y[:, blind:].abs().gt(0).all()
        for gradient in torch.autograd.grad(y[:, :blind].sum(), (q, k, v), retain_graph=True):
            assert not gradient.any()
        dy = torch.ones_like(y)
        want = attention_backward(dy, q, k, v, plan=plan, bias=bias, softcap=softcap)
        assert all(t.isfinite().all() for t in want)
        assert not want[0][:, :blind].any()
        assert all(t.isfinite().all() for t in torch.autograd.grad(y, (q, k, v), dy))


@pytest.mark.parametrize("name", BLIND)
def test_no_backend_of_torch_meets_a_row_without_a_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards devices that this machine has not: some kernels give NaN for such a row, and NaN times 0 stays NaN."""
    real = torch.nn.functional.scaled_dot_product_attention
    masks = []

    def spy(q: Tensor, k: Tensor, v: Tensor, **given):
        masks.append(given["attn_mask"])
        return real(q, k, v, **given)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    plan, T, S, bias = BLIND[name]
    BUILTIN.attention(*qkv(1, T, S, 2, 1, 4), plan=plan, bias=None if bias is None else bias.double())
    (mask,) = masks
    seen = mask if mask.dtype == torch.bool else mask > -torch.inf
    assert seen.any(-1).all() or S == 0


def test_no_mask_where_none_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the fast paths: a mask keeps torch from its fastest kernels and costs T times S."""
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, **given):
        seen.append((given["attn_mask"] is not None, given["is_causal"], k.shape[2]))
        return real(q, k, v, **given)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    cached = rows_plan(1, 1, "cpu", 6)
    for T, S, given, *want in (
        (7, 7, {}, (False, True, 7)),
        (7, 7, {"plan": rows_plan(1, 7, "cpu")}, (False, True, 7)),
        (7, 7, {"window": 7}, (False, True, 7)),
        (7, 7, {"causal": False}, (False, False, 7)),
        (3, 7, {"causal": False}, (False, False, 7)),
        (1, 7, {}, (False, False, 7)),
        (1, 7, {"plan": cached}, (False, False, 7)),
        (1, 7, {"plan": cached, "window": 4}, (False, False, 4)),
        (7, 7, {"window": 6}, (True, False, 7)),
        (3, 7, {}, (True, False, 7)),
        (7, 7, {"plan": packed_plan(3, 4)}, (False, True, 3), (False, True, 4)),  # on a CPU one by one
        (7, 7, {"bias": torch.zeros(1, dtype=torch.float64)}, (True, False, 7)),
    ):
        seen.clear()
        BUILTIN.attention(*qkv(1, T, S, 2, 1, 4), **given)
        assert seen == want, (T, S, given)


# ---- accuracy


def scores(q: Tensor, k: Tensor, bias: Tensor | None, window: int | None, softcap: float | None) -> Tensor:
    """Scores (B, H, T, S) at the type of the inputs, -inf where a causal query does not look."""
    T, S, group = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    s = q.transpose(1, 2) @ k.repeat_interleave(group, dim=2).permute(0, 2, 3, 1) * q.shape[3] ** -0.5
    s = s if softcap is None else softcap * torch.tanh(s / softcap)
    s = s if bias is None else s + bias
    seen = torch.ones(T, S, dtype=torch.bool).tril(S - T).triu(S - T - (window or S) + 1)
    return s.masked_fill(~seen, -torch.inf)


def chance(dy: Tensor, q: Tensor, k: Tensor, v: Tensor, s: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """What y, dq, dk, dv and dbias may lose beyond the eager formula: one unit of a float32 score, passed on.

    A score is a sum, and as large as it is, so large is its rounding: which of two implementations sums in the luckier
    order is chance. A backward that makes the weights again from a stored lse (Dao et al., arXiv 2205.14135) carries
    the rounding of lse as well, and the two parts of dp - sum(dp p) do not cancel exactly; hence sums of absolute
    values. Where a gradient is 0 the smallest number of the type is left. All inputs in float64.
    """
    group = q.shape[2] // k.shape[2]
    q, dy = q.transpose(1, 2).abs(), dy.transpose(1, 2)
    k, v = (t.repeat_interleave(group, dim=2).transpose(1, 2) for t in (k.abs(), v))
    p = torch.softmax(s, -1)
    largest = (q @ k.mT).amax(-1, keepdim=True) * q.shape[3] ** -0.5
    unit = torch.finfo(torch.float32).eps * (1 + largest)  # (B, H, T, 1)
    dp = (dy @ v.mT).abs()
    ds = unit * p * (dp + (dp * p).sum(-1, keepdim=True))
    dr = ds * q.shape[3] ** -0.5
    by_key = [(dr.mT @ q).unflatten(1, (-1, group)).sum(2), (p.mT @ (unit * dy.abs())).unflatten(1, (-1, group)).sum(2)]
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return [t + smallest for t in (unit * (p @ v.abs()), dr @ k, *by_key, ds.sum(0))]


@BY_NAME
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 19), (17, 17), (13, 29)])
@pytest.mark.parametrize(
    "given", [{}, {"window": 5, "bias": True}, {"window": 7, "softcap": 2.0, "bias": True}], ids=str
)
def test_values_and_gradients_are_as_accurate_as_eager(
    ops: Ops, dtype: torch.dtype, scale: float, shape: tuple[int, int], given: dict
) -> None:
    T, S = shape
    q, k, v = qkv(2, T, S, 4, 2, 40, dtype)
    q, k = (q * scale)[..., ::2], k.transpose(1, 2).contiguous().transpose(1, 2)[..., :20]  # strided
    v = v[..., 20:]
    bias, dy = randn(4, T, S, seed=3, dtype=dtype), randn(2, T, 4, 20, seed=4, dtype=dtype)
    inputs = [q, k, v, *([bias] if "bias" in given else [])]
    window, softcap = given.get("window"), given.get("softcap")

    def eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        p = torch.softmax(scores(q, k, bias, window, softcap), -1, dtype=torch.float32).to(dtype)
        return (p @ v.repeat_interleave(2, dim=2).transpose(1, 2)).transpose(1, 2)

    def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.attention(q, k, v, bias=bias, window=window, softcap=softcap)

    q, k, v = (t.double() for t in (q, k, v))
    options = {"bias": bias.double() if "bias" in given else None, "window": window, "softcap": softcap}
    y_lost, *lost = chance(dy.double(), q, k, v, scores(q, k, **options), dtype)
    assert_as_accurate(ours(*inputs), eager(*inputs), attention(q, k, v, **options), y_lost.transpose(1, 2))
    truth = attention_backward(dy.double(), q, k, v, **options)
    lost = [lost[0].transpose(1, 2), lost[1].transpose(1, 2), lost[2].transpose(1, 2), lost[3]]
    for a, b, c, less in zip(autograd(ours, inputs, [dy]), autograd(eager, inputs, [dy]), truth, lost, strict=False):
        assert_as_accurate(a, b, c, less)
    closed = attention_backward(
        dy, *inputs[:3], bias=inputs[3] if "bias" in given else None, window=window, softcap=softcap
    )
    for a, b, c, less in zip(closed, autograd(eager, inputs, [dy]), truth, lost, strict=False):
        assert_as_accurate(a, b, c, less)


# ---- what is refused


@BY_NAME
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"window": 0}, "window 0"),
        ({"window": 3, "causal": False}, "causal=False"),
        ({"softcap": 0.0}, "softcap is 0.0"),
        ({"bias": torch.zeros(2, 3)}, r"bias \(2, 3\) does not broadcast to .* \(1, 2, 2, 2\)"),
        ({"bias": torch.zeros(1, 1, 1, 2, 2)}, "does not broadcast"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused(ops: Ops, given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ops.attention(*qkv(1, 2, 2, 2, 1, 4), **given)


def test_shapes_that_do_not_fit_are_refused() -> None:
    q, k, v = qkv(1, 3, 3, 4, 3, 6)
    with pytest.raises(ValueError, match="multiple of K"):
        attention(q, k, v)
