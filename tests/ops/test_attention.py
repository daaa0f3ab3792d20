"""Attention: gradients in closed form, accuracy, and who may look at whom."""

import pytest
import torch
from ops_cases import SCALES, assert_as_accurate, assert_close64, autograd, randn
from torch import Tensor

from minitune.ops import BUILTIN, REFERENCE, AttentionPlan, Ops, rows_plan
from minitune.ops.attention import attention, attention_backward

TABLES = [REFERENCE, BUILTIN]


def qkv(B: int, T: int, S: int, H: int, K: int, D: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return (
        randn(B, T, H, D, dtype=dtype),
        randn(B, S, K, D, seed=1, dtype=dtype),
        randn(B, S, K, D, seed=2, dtype=dtype),
    )


def packed_plan(*lengths: int) -> AttentionPlan:
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    longest = max(lengths)
    return AttentionPlan(
        positions=positions, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=longest, max_seqlen_k=longest
    )


def by_loops(q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
    """The definition, one query and one head at a time; ``sees (B, T, S)``."""
    y = torch.zeros_like(q)
    B, T, H, D = q.shape
    group = H // k.shape[2]
    for b in range(B):
        for t in range(T):
            for h in range(H):
                keys = sees[b, t].nonzero().flatten()
                if len(keys):
                    p = torch.softmax(k[b, keys, h // group] @ q[b, t, h] / D**0.5, 0)
                    y[b, t, h] = p @ v[b, keys, h // group]
    return y


PLANS = {
    "rows": (None, 5, 5),
    "one query": (None, 1, 5),
    "chunk": (rows_plan(2, 3, "cpu", 4), 3, 7),
    "unequal rows": (rows_plan(2, 2, "cpu", torch.tensor([1, 4])), 2, 7),
}


def sight(plan: AttentionPlan | None, T: int, S: int) -> Tensor:
    """Who sees whom, said independently: query t of row b stands at offset + t."""
    offset = torch.full((2,), S - T) if plan is None else torch.as_tensor(plan.offset).expand(2)
    return torch.stack([torch.arange(S)[None, :] <= (torch.arange(T)[:, None] + o) for o in offset])


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_attention_is_its_definition(ops: Ops, name: str, heads: tuple[int, int]) -> None:
    plan, T, S = PLANS[name]
    q, k, v = qkv(2, T, S, *heads, 6)
    assert_close64([ops.attention(q, k, v, plan=plan)], [by_loops(q, k, v, sight(plan, T, S))])
    everyone = torch.ones(2, T, S, dtype=torch.bool)
    if plan is None:
        assert_close64([ops.attention(q, k, v, causal=False)], [by_loops(q, k, v, everyone)])


@pytest.mark.parametrize("name", PLANS)
def test_attention_backward_is_autograd(name: str) -> None:
    plan, T, S = PLANS[name]
    q, k, v = qkv(2, T, S, 4, 2, 6)
    dy = randn(2, T, 4, 6, seed=5)

    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, plan=plan)

    assert_close64(attention_backward(dy, q, k, v, plan=plan), autograd(f, [q, k, v], [dy]))
    assert torch.autograd.gradcheck(f, [t.requires_grad_() for t in (q, k, v)])


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_packed_documents_are_as_if_alone(ops: Ops) -> None:
    lengths = (3, 1, 5)
    q, k, v = qkv(1, 9, 9, 4, 2, 6)
    packed = ops.attention(q, k, v, plan=packed_plan(*lengths))
    alone = [ops.attention(*(t[:, a : a + n] for t in (q, k, v))) for a, n in zip((0, 3, 4), lengths, strict=True)]
    assert_close64([packed], [torch.cat(alone, 1)])


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_the_future_and_other_documents_change_no_bit(ops: Ops) -> None:
    q, k, v = qkv(1, 9, 9, 4, 2, 6, torch.float32)
    plan = packed_plan(4, 5)
    before = ops.attention(q, k, v, plan=plan)
    for changed, kept in ((slice(0, 4), slice(4, 9)), (slice(4, 9), slice(0, 4)), (slice(8, 9), slice(0, 8))):
        k2, v2 = k.clone(), v.clone()
        k2[:, changed], v2[:, changed] = 1e4, -1e4
        assert torch.equal(ops.attention(q, k2, v2, plan=plan)[:, kept], before[:, kept])


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_weights_sum_to_one_and_ignore_a_shift_of_the_scores(ops: Ops) -> None:
    q, k, _ = qkv(2, 5, 5, 4, 2, 6)
    ones = torch.ones(2, 5, 2, 6, dtype=torch.float64)
    assert_close64([ops.attention(q, k, ones)], [torch.ones(2, 5, 4, 6, dtype=torch.float64)])
    v = randn(2, 5, 2, 6, seed=9)
    assert_close64([ops.attention(q, k + randn(1, 1, 1, 6, seed=7), v)], [ops.attention(q, k, v)])


def test_a_query_that_sees_nothing_gives_zero_and_takes_no_gradient() -> None:
    q, k, v = (t.requires_grad_() for t in qkv(1, 2, 3, 2, 1, 4))
    plan = rows_plan(1, 2, "cpu", -1)  # the first query stands before all keys
    y = attention(q, k, v, plan=plan)
    assert torch.equal(y[:, 0], torch.zeros(1, 2, 4, dtype=torch.float64))
    dq, dk, dv = torch.autograd.grad(y[:, 0].sum(), (q, k, v))
    assert not dq.any()
    assert not dk.any()
    assert not dv.any()
    assert all(t.isfinite().all() for t in attention_backward(torch.ones_like(y), q, k, v, plan=plan))


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_attention_is_as_accurate_as_eager(ops: Ops, dtype: torch.dtype, scale: float) -> None:
    q, k, v = qkv(2, 17, 17, 4, 2, 20, dtype)
    q = q * scale
    mask = torch.ones(17, 17, dtype=torch.bool).tril()
    kk, vv = (t.repeat_interleave(2, dim=2).transpose(1, 2) for t in (k, v))
    s = (q.transpose(1, 2) @ kk.transpose(2, 3) / 20**0.5).masked_fill(~mask, -torch.inf)
    eager = (torch.softmax(s, -1, dtype=torch.float32).to(dtype) @ vv).transpose(1, 2)
    truth = attention(q.double(), k.double(), v.double())
    assert_as_accurate(ops.attention(q, k, v), eager, truth)


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
@pytest.mark.parametrize("option", [{"window": 4}, {"softcap": 50.0}, {"bias": torch.zeros(1)}], ids=str)
def test_an_option_that_is_not_built_is_refused_by_name(ops: Ops, option: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        ops.attention(*qkv(1, 2, 2, 2, 1, 4), **option)


def test_shapes_that_do_not_fit_are_refused() -> None:
    q, k, v = qkv(1, 3, 3, 4, 3, 6)
    with pytest.raises(ValueError, match="multiple of K"):
        attention(q, k, v)
