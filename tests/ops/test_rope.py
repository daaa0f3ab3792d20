"""Rotary positions: the gradient is the rotation back, lengths stay, and only distances count."""

import pytest
import torch
from ops_cases import SCALES, assert_as_accurate, assert_close64, autograd, randn
from torch import Tensor

from minitune.ops import BUILTIN, REFERENCE, Ops, rope_frequencies, rope_tables
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
