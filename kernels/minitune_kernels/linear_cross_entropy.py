"""Head and loss in one operation on a GPU: hidden states (N, C) and the head (V, C) in, no logits (N, V) ever.

Rows without a target are dropped first, which is exact: they give no loss and take no gradient. The others are worked
on in chunks of some thousand tokens:

    logits = x W^T + b                         a product, into one buffer that all chunks share
    loss, dlogits                              one kernel, in place of the logits
    dx = dlogits W                             a product
    dW += dlogits^T x                          a product, added up in float32; not at all where the head is frozen

The products are the BLAS's. Chunks are large and fixed: small ones would read and write dW more often than the data.
The gradients are made in the forward for an upstream gradient of 1; since that is one number, multiplying by it later
is exact, and it goes into the pass that rounds them to the types of the inputs (``scaled``).

One wait for the device remains: how many rows have a target decides how much work there is.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minitune_kernels.cross_entropy import IGNORE, check_options, check_types, in_place
from minitune_kernels.launch import cdiv, chose, interpreted, launch, memory, operator

BUFFER_ELEMENTS = 1 << 29
"""Logits of one chunk at most: 1 GiB of 16-bit numbers, and never more than 1/32 of the GPU's memory."""


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    token_weight: Tensor | None = None,
    smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``(loss_sum, denominator)`` of ``x (N, C)`` through the head ``weight (V, C)`` against ``targets (N,)``.

    Arguments and refusals as in ``minitune.ops.linear_cross_entropy``; float64 is refused as well. ``token_weight``
    takes no gradient.
    """
    check_options(smoothing, softcap, z_loss)
    check_types("linear_cross_entropy", x)
    return _LinearCrossEntropy.apply(
        x,
        weight,
        bias,
        targets,
        None if token_weight is None else token_weight.detach(),
        smoothing,
        softcap or 0.0,
        z_loss,
        torch.is_grad_enabled(),
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, token_weight: Tensor | None,
        smoothing: float, softcap: float, z_loss: float, train: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        # Inside, gradients are always off, and what needs one is told whether they were on or not.
        wanted = [train and bool(needed) for needed in ctx.needs_input_grad[:3]]
        loss, denominator, dx, dweight, dbias = linear_cross_entropy_chunks(
            x, weight, bias, targets, token_weight, smoothing, softcap, z_loss, *wanted
        )
        ctx.save_for_backward(dx, dweight, dbias)
        ctx.wanted = wanted
        ctx.types = x.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(denominator)
        return loss, denominator

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = [
            scaled(made, dloss, dtype) if wanted else None
            for made, dtype, wanted in zip(ctx.saved_tensors, ctx.types, ctx.wanted, strict=True)
        ]
        return *gradients, None, None, None, None, None, None


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, token_weight: Tensor | None,
    smoothing: float, softcap: float, z_loss: float, to_x: bool, to_weight: bool, to_bias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    scalar = x.new_empty((), dtype=torch.float32)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if to_x else x.new_empty(0)
    dweight = weight.new_empty(weight.shape if to_weight else 0, dtype=torch.float32)
    dbias = weight.new_empty(weight.shape[0] if to_bias else 0, dtype=torch.float32)
    return scalar, torch.empty_like(scalar), dx, dweight, dbias


@operator(
    "linear_cross_entropy_chunks(Tensor x, Tensor weight, Tensor? bias, Tensor targets, Tensor? token_weight, "
    "float smoothing, float softcap, float z_loss, bool to_x, bool to_weight, bool to_bias) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake,
)
def linear_cross_entropy_chunks(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, token_weight: Tensor | None,
    smoothing: float, softcap: float, z_loss: float, to_x: bool, to_weight: bool, to_bias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Loss sum, denominator, and the gradients asked for at an upstream gradient of 1 (empty where not asked for)."""
    chose("linear_cross_entropy", "chunks")
    kept, targets = trained_rows(targets)
    w = torch.ones(len(kept), device=x.device) if token_weight is None else token_weight[kept].float()
    head = weight.to(x.dtype)
    _, _, dx, dweight, dbias = _fake(
        x, weight, bias, targets, token_weight, smoothing, softcap, z_loss, to_x, to_weight, to_bias
    )
    dx.zero_()
    if len(kept) == 0:
        dweight.zero_()
        dbias.zero_()
    losses = torch.empty(len(kept), device=x.device)
    gradient = to_x or to_weight or to_bias
    rows = chunk_rows(len(kept), head.shape[0], x)
    buffer = x.new_empty((min(rows, len(kept)), head.shape[0]))
    for begin in range(0, len(kept), rows):
        part = kept[begin : begin + rows]
        end = begin + len(part)
        own = x[part]  # (M, C)
        logits = _logits(own, head, bias, buffer[: len(part)])  # (M, V)
        losses[begin:end] = in_place(
            logits, targets[begin:end], w[begin:end], smoothing=smoothing, softcap=softcap, z_loss=z_loss,
            gradient=gradient,
        )  # fmt: skip
        if to_x:
            dx[part] = logits @ head
        if to_weight:
            add_product(dweight, logits, own, first=begin == 0)
        if to_bias:
            total = logits.sum(0, dtype=torch.float32)
            dbias.copy_(total) if begin == 0 else dbias.add_(total)
    return (losses * w).sum(), w.sum(), dx, dweight, dbias


def token_logprobs(
    x: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """``log p(target)`` of each row ``(N,)``, float32, 0 where there is no target; never all logits at once."""
    check_options(0.0, softcap, 0.0)
    check_types("token_logprobs", x)
    return _TokenLogprobs.apply(x, weight, bias, targets, softcap or 0.0)


class _TokenLogprobs(torch.autograd.Function):
    """A log-probability is a loss of weight -1, so each row's upstream gradient is a token weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float) -> Tensor:
        ctx.save_for_backward(x, weight, bias, targets)
        ctx.softcap = softcap
        return token_logprobs_chunks(x, weight, bias, targets, softcap)

    @staticmethod
    def backward(ctx: Any, dlogprobs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, targets = ctx.saved_tensors
        wanted = [bool(needed) for needed in ctx.needs_input_grad[:3]]
        made = linear_cross_entropy_chunks(x, weight, bias, targets, -dlogprobs, 0.0, ctx.softcap, 0.0, *wanted)[2:]
        types = x.dtype, weight.dtype, None if bias is None else bias.dtype
        gradients = [g.to(t) if need else None for g, t, need in zip(made, types, wanted, strict=True)]
        return *gradients, None, None


def _logprobs_fake(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float) -> Tensor:
    return x.new_empty(len(x), dtype=torch.float32)


@operator(
    "token_logprobs_chunks(Tensor x, Tensor weight, Tensor? bias, Tensor targets, float softcap) -> Tensor",
    _logprobs_fake,
)
def token_logprobs_chunks(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float) -> Tensor:
    """``log p(target)`` (N,)."""
    logprobs = torch.zeros(len(x), device=x.device)
    kept, targets = trained_rows(targets)
    head = weight.to(x.dtype)
    rows = chunk_rows(len(kept), head.shape[0], x)
    buffer = x.new_empty((min(rows, len(kept)), head.shape[0]))
    for begin in range(0, len(kept), rows):
        part = kept[begin : begin + rows]
        logits = _logits(x[part], head, bias, buffer[: len(part)])
        losses = in_place(
            logits, targets[begin : begin + rows], logprobs, smoothing=0.0, softcap=softcap, z_loss=0.0, gradient=False
        )
        logprobs[part] = -losses
    return logprobs


def trained_rows(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows have a target, and their targets. On the ``meta`` device, where nobody can tell, all have."""
    if targets.device.type == "meta":
        return torch.empty_like(targets), targets
    kept = (targets != IGNORE).nonzero().squeeze(-1)
    return kept, targets[kept]


def chunk_rows(M: int, V: int, x: Tensor) -> int:
    """Tokens of a chunk of logits like ``x``: at most 4,096, fewer where they would pass the buffer's bound.

    All chunks are alike and a multiple of 128, so that no product leaves the last of its tiles half empty.
    """
    if interpreted():
        return 8
    bound = min(BUFFER_ELEMENTS, memory(x.device) // 32 // x.element_size())
    most = max(256, min(4096, bound // V // 128 * 128))
    return cdiv(cdiv(max(M, 1), cdiv(max(M, 1), most)), 128) * 128


def _logits(x: Tensor, head: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    if bias is None:
        return torch.mm(x, head.T, out=out)
    return torch.addmm(bias.to(x.dtype), x, head.T, out=out)


def add_product(total: Tensor, dlogits: Tensor, x: Tensor, *, first: bool) -> None:
    """``total (V, C) = dlogits^T x``, or ``+=``, in float32: the BLAS's own accumulator goes straight out."""
    if x.dtype == torch.float32 or x.device.type != "cuda":
        left, right = dlogits.T.float(), x.float()
        torch.mm(left, right, out=total) if first else total.addmm_(left, right)
    elif first:
        torch.mm(dlogits.T, x, out_dtype=torch.float32, out=total)
    else:
        torch.addmm(total, dlogits.T, x, out_dtype=torch.float32, out=total)


@triton.jit
def _scaled_kernel(x_ptr, factor_ptr, out_ptr, numel, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < numel, other=0.0).to(tl.float32) * tl.load(factor_ptr).to(tl.float32)
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=at < numel)


@operator(
    "scaled(Tensor x, Tensor factor, ScalarType dtype) -> Tensor",
    lambda x, factor, dtype: torch.empty_like(x, dtype=dtype),
)
def scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` contiguous times the scalar ``factor``, rounded once to ``dtype``.

    Not torch's product: on a GPU that rounds a factor of no dimensions to the type of ``x`` first, an error of up to
    2^-9 that all gradients would share.
    """
    out = torch.empty_like(x, dtype=dtype)
    block = 1024 if interpreted() else 4096
    launch(_scaled_kernel, (cdiv(x.numel(), block),), x, factor, out, x.numel(), BLOCK=block, num_warps=8)
    return out
