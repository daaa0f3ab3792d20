"""Norm and rotation of each head: the closed form is autograd's, tables agree, and Qwen3's own module says the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from ops_cases import SCALES, assert_as_accurate, assert_close64, autograd, randn
from torch import Tensor

from minitune.config import ModelConfig
from minitune.models import Decoder
from minitune.ops import BUILTIN, REFERENCE, Ops, rope_frequencies, rope_tables
from minitune.ops.qk_norm_rope import qk_norm_rope, qk_norm_rope_backward

TABLES = [REFERENCE, BUILTIN]


def tables(T: int, channels: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return rope_tables(torch.arange(T)[None], rope_frequencies(channels, 10000.0), dtype)


@pytest.mark.parametrize("channels", [6, 4], ids=["all channels turn", "some stay"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_backward_is_autograd(channels: int, offset: float) -> None:
    q, k, wq, wk = inputs = randn(2, 5, 4, 6), randn(2, 5, 2, 6, seed=1), randn(6, seed=2), randn(6, seed=3)
    dq, dk = randn(2, 5, 4, 6, seed=4), randn(2, 5, 2, 6, seed=5)
    cos, sin = tables(5, channels)

    def f(q: Tensor, k: Tensor, wq: Tensor, wk: Tensor) -> tuple[Tensor, Tensor]:
        return qk_norm_rope(q, k, wq, wk, cos, sin, eps=1e-6, offset=offset)

    closed = qk_norm_rope_backward(dq, dk, q, k, wq, wk, cos, sin, eps=1e-6, offset=offset)
    assert_close64(closed, autograd(f, inputs, [dq, dk]))
    assert torch.autograd.gradcheck(f, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_it_is_the_reference_librarys(ops: Ops) -> None:
    """An independent statement: the norm and the rotation of Transformers' Qwen3."""
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

    q, k = randn(2, 7, 4, 8, dtype=torch.float32), randn(2, 7, 2, 8, seed=1, dtype=torch.float32)
    norms = [Qwen3RMSNorm(8, eps=1e-6) for _ in range(2)]
    for i, norm in enumerate(norms):
        norm.weight.data.copy_(randn(8, seed=2 + i))
    cos, sin = tables(7, 8, torch.float32)
    c, s = (torch.cat((t, t), -1) for t in (cos, sin))
    want: Any = apply_rotary_pos_emb(norms[0](q).transpose(1, 2), norms[1](k).transpose(1, 2), c, s)
    got = ops.qk_norm_rope(q, k, norms[0].weight, norms[1].weight, cos, sin, eps=1e-6)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_as_accurate_as_eager(ops: Ops, dtype: torch.dtype, scale: float) -> None:
    q, k = randn(2, 33, 3, 20, dtype=dtype) * scale, randn(2, 33, 1, 20, seed=1, dtype=dtype) * scale
    wq, wk = weights = [randn(20, seed=i, dtype=dtype) for i in (2, 3)]
    exact = qk_norm_rope(q.double(), k.double(), wq.double(), wk.double(), *tables(33, 20), eps=1e-6)
    cos, sin = tables(33, 20, dtype)
    c, s = (torch.cat((t, t), -1)[:, :, None].to(dtype) for t in (cos, sin))
    got = ops.qk_norm_rope(q, k, wq, wk, cos, sin, eps=1e-6)
    for ours, x, w, truth in zip(got, (q, k), weights, exact, strict=True):
        n = torch.nn.functional.rms_norm(x, (20,), w, 1e-6)
        assert_as_accurate(ours, n * c + torch.cat((-n[..., 10:], n[..., :10]), -1) * s, truth)


@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
def test_the_length_of_a_head_does_not_count(ops: Ops) -> None:
    """A head and its double are the same after the norm, and rotation keeps lengths: each is sqrt(D)."""
    q, k, one = randn(1, 9, 2, 8), randn(1, 9, 1, 8, seed=1), torch.ones(8, dtype=torch.float64)
    first = ops.qk_norm_rope(q, k, one, one, *tables(9, 8), eps=0.0)
    assert_close64(ops.qk_norm_rope(2 * q, 0.5 * k, one, one, *tables(9, 8), eps=0.0), first)
    assert_close64([first[0].norm(dim=-1)], [torch.full((1, 9, 2), 8**0.5, dtype=torch.float64)])


def test_a_model_with_a_norm_by_head_asks_for_it() -> None:
    """The model's way goes through the table's one function where heads have norms of their own, and not elsewhere."""
    asked: list[str] = []

    def counted(name: str) -> Any:
        f = getattr(REFERENCE, name)

        def call(*args: Any, **options: Any) -> Any:
            asked.append(name)
            return f(*args, **options)

        return call

    ops = replace(REFERENCE, rope=counted("rope"), qk_norm_rope=counted("qk_norm_rope"))
    shape: dict[str, Any] = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_layers": 1}
    shape |= {"num_heads": 2, "num_kv_heads": 1, "head_dim": 4}
    for qk_norm, wanted in (("head", ["qk_norm_rope"]), ("all", ["rope"]), ("none", ["rope"])):
        changes: dict[str, Any] = {"qk_norm": qk_norm}
        model = Decoder(ModelConfig(**shape | changes), ops)
        model.initialize(seed=0)
        asked.clear()
        model(torch.arange(5)[None])
        assert asked == wanted
