"""Norms, rotary positions, activations: as accurate as PyTorch at every type, gradients included."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import INTERPRETED, assert_as_accurate, randn
from minitune_kernels import activation, add_rms_norm, glu, layer_norm, qk_norm_rope, rms_norm, rope
from torch import Tensor

from minitune.ops import BUILTIN, REFERENCE

BIG = pytest.mark.skipif(INTERPRETED, reason="real sizes need a GPU")
KINDS = ("silu", "gelu", "gelu_tanh")


def check(
    ours: Callable[..., Any],
    eager: Callable[..., Any],
    truth: Callable[..., Any],
    inputs: list[Tensor],
    slack: float = 0.0,
) -> None:
    """Outputs, and gradients for noise from above, of three implementations of one operation."""

    def run(f: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        outs = f(*leaves)
        outs = outs if isinstance(outs, tuple) else (outs,)
        ups = [randn(*out.shape, seed=50 + i, dtype=out.dtype, device=out.device) for i, out in enumerate(outs)]
        ups = [up.to(inputs[0].dtype) for up in ups]
        return [*(out.detach() for out in outs), *torch.autograd.grad(outs, leaves, ups)]

    wide = [x.double() for x in inputs]
    for mine, theirs, true in zip(run(ours, inputs), run(eager, inputs), run(truth, wide), strict=True):
        floor = 2**-24 * float(true.abs().max()) if true.numel() else 0.0
        assert_as_accurate(mine, theirs, true, slack=floor + slack)


# ---- norms


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 3, 33), (5, 300), (0, 8)])
@pytest.mark.parametrize(("offset", "late"), [(0.0, False), (1.0, True)])
def test_rms_norm(shape: tuple[int, ...], offset: float, late: bool, dtype: torch.dtype, device: torch.device) -> None:
    def use(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w: f(x, w, eps=1e-5, offset=offset, scale_in_fp32=late)

    x, w = randn(*shape, dtype=dtype, device=device), randn(shape[-1], seed=1, dtype=dtype, device=device)
    # Of one channel only the sign comes through, so that its gradient is a difference of equals.
    slack = 4e-7 if shape == (1, 1) else 0.0
    check(use(rms_norm), use(BUILTIN.rms_norm), use(REFERENCE.rms_norm), [x, w], slack)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_rms_norm_scales_and_strides(scale: float, dtype: torch.dtype, device: torch.device) -> None:
    def use(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w: f(x, w, eps=1e-5)

    wide = randn(6, 100, dtype=dtype, device=device) * scale
    w = randn(40, seed=1, dtype=dtype, device=device)
    check(use(rms_norm), use(BUILTIN.rms_norm), use(REFERENCE.rms_norm), [wide[:, 30:70], w])
    heads = randn(2, 3, 4, 40, dtype=dtype, device=device).transpose(1, 2)
    check(use(rms_norm), use(BUILTIN.rms_norm), use(REFERENCE.rms_norm), [heads, w])


@pytest.mark.parametrize(
    ("N", "C", "kind"),
    [
        (3, 17000, torch.float32), (37, 9000, torch.float32), (5, 17000, torch.float16),  # in pieces
        (3, 16384, torch.float16), (2, 16000, torch.float16), (5, 4096, torch.float32),  # the widest in registers
    ],
)  # fmt: skip
@pytest.mark.parametrize("residual", [False, True])
def test_rms_norm_of_wide_rows(N: int, C: int, kind: torch.dtype, residual: bool, device: torch.device) -> None:
    """Guards rows too long for the registers, more of them than a grid has programs, and those that just fit."""

    def use(f: Callable[..., Tensor]) -> Callable[..., Any]:
        if residual:
            return lambda x, w, r: (x + r, f(x + r, w, eps=1e-5))
        return lambda x, w: f(x, w, eps=1e-5)

    inputs = [randn(N, C, dtype=kind, device=device), randn(C, seed=1, dtype=kind, device=device)]
    ours: Callable[..., Any] = use(rms_norm)
    if residual:
        inputs.append(randn(N, C, seed=2, dtype=kind, device=device))
        ours = lambda x, w, r: add_rms_norm(x, r, w, eps=1e-5)  # noqa: E731 - a name for one of two
    check(ours, use(BUILTIN.rms_norm), use(REFERENCE.rms_norm), inputs)


def test_the_order_of_rounding_is_the_familys(device: torch.device) -> None:
    """Llama rounds before it scales, Gemma after; the bits differ and must be right."""
    x, w = randn(16, 64, dtype=torch.float16, device=device), randn(64, seed=1, dtype=torch.float16, device=device)
    for options in ({}, {"offset": 1.0, "scale_in_fp32": True}):
        ours, reference = rms_norm(x, w, eps=1e-6, **options), REFERENCE.rms_norm(x, w, eps=1e-6, **options)
        # A sum in another order may move rstd by its last bit, and a tie with it.
        assert (ours != reference).float().mean() < 0.01
        assert torch.allclose(ours.float(), reference.float(), rtol=2e-3)


def test_residual_and_norm_in_one_pass(dtype: torch.dtype, device: torch.device) -> None:
    x, r = (randn(7, 40, seed=i, dtype=dtype, device=device) for i in (0, 1))
    w = randn(40, seed=2, dtype=dtype, device=device)

    def apart(f: Callable[..., Tensor]) -> Callable[..., Any]:
        return lambda x, r, w: ((x + r), f(x + r, w, eps=1e-5))

    check(
        lambda x, r, w: add_rms_norm(x, r, w, eps=1e-5), apart(BUILTIN.rms_norm), apart(REFERENCE.rms_norm), [x, r, w]
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 3, 33), (5, 300), (0, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(shape: tuple[int, ...], bias: bool, dtype: torch.dtype, device: torch.device) -> None:
    def use(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w, b=None: f(x, w, b, eps=1e-5)

    inputs = [randn(*shape, dtype=dtype, device=device), randn(shape[-1], seed=1, dtype=dtype, device=device)]
    inputs += [randn(shape[-1], seed=2, dtype=dtype, device=device)] if bias else []
    # Of one channel nothing comes through: its gradient is a difference of equals, times 1 / sqrt(eps).
    slack = 2**-24 * 316 if shape == (1, 1) else 0.0
    check(use(layer_norm), use(BUILTIN.layer_norm), use(REFERENCE.layer_norm), inputs, slack)


# ---- rotary positions


@pytest.mark.parametrize(("H", "K", "D", "pairs"), [(2, 1, 16, 8), (3, 3, 10, 5), (4, 2, 20, 3), (1, 1, 2, 1)])
@pytest.mark.parametrize("rows", [1, 2])
def test_rope(H: int, K: int, D: int, pairs: int, rows: int, dtype: torch.dtype, device: torch.device) -> None:
    angle = randn(rows, 5, pairs, seed=3, device=device)

    def use(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(q: Tensor, k: Tensor) -> Any:
            kind = torch.promote_types(q.dtype, torch.float32)
            return f(q, k, angle.cos().float().to(kind), angle.sin().float().to(kind))

        return call

    q, k = randn(2, 5, H, D, dtype=dtype, device=device), randn(2, 5, K, D, seed=1, dtype=dtype, device=device)
    check(use(rope), use(BUILTIN.rope), use(REFERENCE.rope), [q, k])
    strided = randn(2, 5, (H + K) * D, seed=2, dtype=dtype, device=device)
    q, k = (x.unflatten(-1, (-1, D)) for x in strided.split([H * D, K * D], -1))
    check(use(rope), use(BUILTIN.rope), use(REFERENCE.rope), [q, k])


# ---- norm and rotation of each head at once


def tables_of(rows: int, T: int, pairs: int, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """cos and sin of random angles, in the type that belongs to a tensor's."""
    angle = randn(rows, T, pairs, seed=3, device=device)

    def of(x: Tensor) -> tuple[Tensor, Tensor]:
        kind = torch.promote_types(x.dtype, torch.float32)
        return angle.cos().float().to(kind), angle.sin().float().to(kind)

    return of


@pytest.mark.parametrize(("H", "K", "D", "pairs"), [(2, 1, 16, 8), (3, 3, 10, 5), (4, 2, 20, 3), (1, 1, 2, 1)])
@pytest.mark.parametrize(("offset", "late"), [(0.0, False), (1.0, True)])
def test_qk_norm_rope(
    H: int, K: int, D: int, pairs: int, offset: float, late: bool, dtype: torch.dtype, device: torch.device
) -> None:
    """Outputs and all four gradients, channels that stay included, of whole tensors and of slices of a projection."""
    tables = tables_of(2, 5, pairs, device)

    def use(f: Callable[..., Any]) -> Callable[..., Any]:
        options: dict[str, Any] = {"eps": 1e-5, "offset": offset, "scale_in_fp32": late}
        return lambda q, k, wq, wk: f(q, k, wq, wk, *tables(q), **options)

    weights = [randn(D, seed=i, dtype=dtype, device=device) for i in (4, 5)]
    q, k = randn(2, 5, H, D, dtype=dtype, device=device), randn(2, 5, K, D, seed=1, dtype=dtype, device=device)
    ours, eager, truth = use(qk_norm_rope), use(BUILTIN.qk_norm_rope), use(REFERENCE.qk_norm_rope)
    # A head of two channels nearly equal in size has a gradient that is a difference of equals.
    slack = 4e-7 if D == 2 else 0.0
    check(ours, eager, truth, [q, k, *weights], slack)
    strided = randn(2, 5, (H + K) * D, seed=2, dtype=dtype, device=device)
    q, k = (x.unflatten(-1, (-1, D)) for x in strided.split([H * D, K * D], -1))
    check(ours, eager, truth, [q, k, *weights], slack)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_qk_norm_rope_at_other_scales(scale: float, dtype: torch.dtype, device: torch.device) -> None:
    """More tokens than the backward's grid has programs, so that each walks over several."""
    tables = tables_of(1, 41, 8, device)
    q, k = (randn(2, 41, heads, 16, seed=heads, dtype=dtype, device=device) * scale for heads in (4, 2))
    weights = [randn(16, seed=i, dtype=dtype, device=device) for i in (4, 5)]

    def use(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda q, k, wq, wk: f(q, k, wq, wk, *tables(q), eps=1e-6)

    check(use(qk_norm_rope), use(BUILTIN.qk_norm_rope), use(REFERENCE.qk_norm_rope), [q, k, *weights])


def test_fused_is_what_the_two_kernels_are(device: torch.device) -> None:
    """In 16 bits the normalised head is rounded on the way as the family rounds it, though it stays in registers."""
    q, k = (randn(2, 9, heads, 16, seed=heads, dtype=torch.float16, device=device) for heads in (4, 2))
    wq, wk = (randn(16, seed=i, dtype=torch.float16, device=device) for i in (4, 5))
    tables = tables_of(1, 9, 8, device)(q)
    fused = qk_norm_rope(q, k, wq, wk, *tables, eps=1e-6)
    apart = rope(rms_norm(q, wq, eps=1e-6), rms_norm(k, wk, eps=1e-6), *tables)
    for mine, theirs in zip(fused, apart, strict=True):
        # A sum in another order may move rstd by its last bit, and a tie with it.
        assert (mine != theirs).float().mean() < 0.01


def test_frozen_weights_of_heads_get_no_gradient(device: torch.device) -> None:
    """Guards LoRA: no partial sums where both weights are frozen, the same gradient of q and k."""
    q, k = (randn(1, 5, heads, 8, seed=heads, dtype=torch.float32, device=device) for heads in (2, 1))
    w, tables = randn(8, seed=4, dtype=torch.float32, device=device), tables_of(1, 5, 4, device)(q)
    found = []
    for train in (True, False):
        a, b = q.clone().requires_grad_(), k.clone().requires_grad_()
        wq, wk = w.clone().requires_grad_(train), w.clone().requires_grad_(train)
        turned, turned_k = qk_norm_rope(a, b, wq, wk, *tables, eps=1e-6)
        (turned.square().sum() + turned_k.square().sum()).backward()
        assert all((weight.grad is not None) == train for weight in (wq, wk))
        found.append([a.grad, b.grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# ---- activations


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 8.0])
def test_activations(kind: str, scale: float, dtype: torch.dtype, device: torch.device) -> None:
    def use(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *x: f(*x, kind=kind)

    a, b = (randn(3, 101, seed=i, dtype=dtype, device=device) for i in (0, 1))
    a = (a.float() * scale).to(dtype)
    check(use(glu), use(REFERENCE.glu), use(REFERENCE.glu), [a, b])
    check(use(activation), use(REFERENCE.activation), use(REFERENCE.activation), [a])
    check(use(glu), use(REFERENCE.glu), use(REFERENCE.glu), [a.T, b.T])


@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_nearly_shut_keeps_its_digits(kind: str, device: torch.device) -> None:
    """Guards the tail: at -5 what passes is 1e-6, of which 1 + erf in float32 would know one digit."""
    a = torch.linspace(-6, -2, 41, device=device)
    truth = REFERENCE.activation(a.double(), kind=kind)
    error = (activation(a, kind=kind).double() - truth).abs() / truth.abs()
    assert error.max() < 2e-5 if kind == "gelu_tanh" else error.max() < 4e-6


def test_what_the_kernels_do_not_serve_is_refused(device: torch.device) -> None:
    x = torch.zeros(2, 4, dtype=torch.float64, device=device)
    w = x[0]
    tables = x.reshape(1, 2, 1, 4)
    for call in (
        lambda: rms_norm(x, w, eps=1e-5),
        lambda: layer_norm(x, w, None, eps=1e-5),
        lambda: glu(x, x, kind="silu"),
        lambda: activation(x, kind="silu"),
        lambda: rope(tables, tables, tables[..., 0, :2], tables[..., 0, :2]),
        lambda: qk_norm_rope(tables, tables, w, w, tables[..., 0, :2], tables[..., 0, :2], eps=1e-5),
    ):
        with pytest.raises(ValueError, match="float64"):
            call()
    with pytest.raises(ValueError, match="relu"):
        activation(x.float(), kind="relu")


# Dynamo makes an instance of an autograd function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_one_graph_for_the_compiler(device: torch.device) -> None:
    x, w = randn(4, 16, dtype=torch.float32, device=device), randn(16, seed=1, dtype=torch.float32, device=device)
    heads = randn(1, 4, 2, 8, dtype=torch.float32, device=device)
    table = randn(1, 4, 4, seed=2, dtype=torch.float32, device=device)

    def f(x: Tensor, w: Tensor, heads: Tensor) -> Tensor:
        q, k = rope(heads, 2 * heads, table.cos(), table.sin())
        q, k = qk_norm_rope(q, k, w[:8], w[8:], table.cos(), table.sin(), eps=1e-5)
        s, y = add_rms_norm(x, rms_norm(x, w, eps=1e-5), w, eps=1e-5)
        return (glu(s, layer_norm(y, w, 2 * w, eps=1e-5), kind="gelu") + activation(x, kind="silu")).sum() + (
            q * k
        ).sum()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    made = []
    for g in (f, compiled):
        leaves = [t.clone().requires_grad_() for t in (x, w, heads)]
        made.append(torch.autograd.grad(g(*leaves), leaves))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*made, strict=True))


# ---- real sizes


@BIG
@pytest.mark.parametrize("C", [64, 128, 576, 2048, 4096, 8192, 16384])
def test_norms_at_real_sizes(C: int, device: torch.device) -> None:
    N = (1 << 23) // C
    x, w = randn(N, C, dtype=torch.bfloat16, device=device), randn(C, seed=1, dtype=torch.bfloat16, device=device)
    for ours, name in ((rms_norm, "rms_norm"), (lambda x, w, eps: layer_norm(x, w, None, eps=eps), "layer_norm")):
        eager, truth = (
            (lambda x, w, t=table: t.rms_norm(x, w, eps=1e-5))
            if name == "rms_norm"
            else (lambda x, w, t=table: t.layer_norm(x, w, None, eps=1e-5))
            for table in (BUILTIN, REFERENCE)
        )
        check(lambda x, w, f=ours: f(x, w, eps=1e-5), eager, truth, [x, w])


@BIG
def test_more_than_two_billion_elements(device: torch.device) -> None:
    """Guards 32-bit offsets of norms and activations: the last rows against float64."""
    x = torch.randn(270_000, 8192, device=device, dtype=torch.bfloat16)
    w = torch.ones(8192, device=device, dtype=torch.bfloat16)
    last = x[-2:].double()
    assert torch.allclose(
        rms_norm(x, w, eps=1e-5)[-2:].double(), REFERENCE.rms_norm(last, w.double(), eps=1e-5), rtol=1e-2
    )
    got = activation(x, kind="silu")[-2:].double()
    assert torch.allclose(got, REFERENCE.activation(last, kind="silu"), rtol=1e-2, atol=1e-6)
