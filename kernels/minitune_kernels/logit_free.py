# A kernel is Triton's dialect of Python, of which a type checker knows too little.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
"""Head and loss without a buffer of logits: what ``linear_cross_entropy`` does in chunks, in the other way.

A program multiplies a tile of hidden states with one tile of the head after the other, and keeps of the logits
(BLOCK_N, BLOCK_V), which never leave its registers, three numbers a row: m = max z, sum e^(z - m), and z[y]. The
backward multiplies again, in the same steps, so the logits are the same to the last bit, and turns each tile into dz
where it stands; dx = dz W and dW = dz^T x are the BLAS's, in chunks of tokens.

That is one product more than the chunks need, four for three (a frozen head: three for two), against three passes over
the logits. For the forward alone, validation and log-probabilities, it is the same one product, and no memory but the
three numbers. The upstream gradient of each row meets dz before anything is rounded. The idea is Apple's
(arXiv 2411.09009), whose backward adds dx and dW up by atomics instead; here the same call gives the same bits.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minitune_kernels.cross_entropy import IGNORE, LN_2, LOG2_E, LOWEST, capped, check_options, check_types
from minitune_kernels.launch import capability, cdiv, chose, interpreted, launch, operator, processors
from minitune_kernels.linear_cross_entropy import add_product, chunk_rows, trained_rows


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
    """``(loss_sum, denominator)``; arguments and refusals as in ``minitune_kernels.linear_cross_entropy``."""
    check_options(smoothing, softcap, z_loss)
    check_types("linear_cross_entropy", x)
    kept = targets != IGNORE
    w = kept.float() if token_weight is None else token_weight.float() * kept
    losses = _HeadLosses.apply(x, weight, bias, targets, float(smoothing), float(softcap or 0), float(z_loss))
    return (losses * w).sum(), w.sum()


def token_logprobs(
    x: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """``log p(target)`` of each row ``(N,)``, float32, 0 where there is no target."""
    check_options(0.0, softcap, 0.0)
    check_types("token_logprobs", x)
    return -_HeadLosses.apply(x, weight, bias, targets, 0.0, float(softcap or 0), 0.0)


class _HeadLosses(torch.autograd.Function):
    """Losses (N,) of the rows, 0 where there is no target."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float, softcap: float,
        z_loss: float,
    ) -> Tensor:  # fmt: skip
        losses, m, log2_l = head_forward(x, weight, bias, targets, smoothing, softcap, z_loss)
        ctx.save_for_backward(x, weight, bias, targets, m, log2_l)
        ctx.options = smoothing, softcap, z_loss
        return losses

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        wanted = [bool(needed) for needed in ctx.needs_input_grad[:3]]
        made = head_backward(dlosses, *ctx.saved_tensors, *ctx.options, *wanted)
        return *(g if needed else None for g, needed in zip(made, wanted, strict=True)), None, None, None, None


# ---- kernels


@triton.jit
def _place(rows, columns, GROUP: tl.constexpr):
    """Which block of rows and which of columns a program has: GROUP blocks of rows go through the head together."""
    i = tl.program_id(0)
    first = i // (GROUP * columns) * GROUP
    inside = i % (GROUP * columns)
    height = tl.minimum(rows - first, GROUP)
    return first + inside % height, inside // height


@triton.jit
def _logits(
    x_ptr, weight_ptr, bias_ptr, n, v, M, V, C, stride_x, stride_w, cap,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """The tile (BLOCK_N, BLOCK_V) of logits in float32; -inf beyond V. Rows beyond M repeat the last one.

    ``WHOLE``: C is a multiple of BLOCK_C.
    """
    c = tl.arange(0, BLOCK_C)
    x_at = x_ptr + tl.minimum(n, M - 1).to(tl.int64)[:, None] * stride_x + c[None, :]
    w_at = weight_ptr + tl.minimum(v, V - 1).to(tl.int64)[None, :] * stride_w + c[:, None]
    z = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for left in tl.range(C, 0, -BLOCK_C):
        if WHOLE:
            x, w = tl.load(x_at), tl.load(w_at)
        else:
            x = tl.load(x_at, mask=c[None, :] < left, other=0.0)
            w = tl.load(w_at, mask=c[:, None] < left, other=0.0)
        z = tl.dot(x, w, z, input_precision="ieee")
        x_at += BLOCK_C
        w_at += BLOCK_C
    if bias_ptr is not None:
        z += tl.load(bias_ptr + v, mask=v < V, other=0.0).to(tl.float32)[None, :]
    z = capped(z, cap, SOFTCAP)
    return tl.where((v < V)[None, :], z, float("-inf"))


@triton.jit
def head_statistics_kernel(
    x_ptr, weight_ptr, bias_ptr, targets_ptr, parts_ptr, M, V, C, pieces, piece, stride_x, stride_w, cap,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr, SOFTCAP: tl.constexpr,
    SMOOTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """``parts (4, pieces, M)`` of a block of rows and one piece of the head: m, sum e^(z - m), sum (z - m), z[y]."""
    block, i = _place(tl.cdiv(M, BLOCK_N), pieces, GROUP)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    y = tl.load(targets_ptr + n, mask=n < M, other=-1)
    m = tl.full((BLOCK_N,), LOWEST, tl.float32)
    l = tl.zeros((BLOCK_N,), tl.float32)
    fall = tl.zeros((BLOCK_N,), tl.float32)
    z_y = tl.zeros((BLOCK_N,), tl.float32)
    begin = i * piece
    stop = tl.minimum(begin + piece, V)
    for first in tl.range(begin, stop, BLOCK_V, num_stages=1):
        v = first + tl.arange(0, BLOCK_V)
        z = _logits(x_ptr, weight_ptr, bias_ptr, n, v, M, V, C, stride_x, stride_w, cap, BLOCK_N, BLOCK_V, BLOCK_C,
                    WHOLE, SOFTCAP)  # fmt: skip
        z_y += tl.sum(tl.where(v[None, :] == y[:, None], z, 0.0), 1)
        m_new = tl.maximum(m, tl.max(z, 1))
        if SMOOTH:
            fall += (first - begin) * (m - m_new) + tl.sum(tl.where((v < V)[None, :], z - m_new[:, None], 0.0), 1)
        l = l * tl.exp2((m - m_new) * LOG2_E) + tl.sum(tl.exp2((z - m_new[:, None]) * LOG2_E), 1)
        m = m_new
    plane = pieces * M
    to = parts_ptr + i * M + n
    tl.store(to, m, mask=n < M)
    tl.store(to + plane, l, mask=n < M)
    tl.store(to + 2 * plane, fall, mask=n < M)
    tl.store(to + 3 * plane, z_y, mask=n < M)


@triton.jit
def head_gradient_kernel(
    x_ptr, weight_ptr, bias_ptr, targets_ptr, up_ptr, m_ptr, log2_l_ptr, dz_ptr, M, V, C, stride_x, stride_w, cap,
    smoothing, z_loss,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr, SOFTCAP: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """One tile of ``dz (M, V)``: the logits once more, and what the loss makes of them."""
    block, i = _place(tl.cdiv(M, BLOCK_N), tl.cdiv(V, BLOCK_V), GROUP)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    v = i * BLOCK_V + tl.arange(0, BLOCK_V)
    z = _logits(x_ptr, weight_ptr, bias_ptr, n, v, M, V, C, stride_x, stride_w, cap, BLOCK_N, BLOCK_V, BLOCK_C, WHOLE,
                SOFTCAP)  # fmt: skip
    y = tl.load(targets_ptr + n, mask=n < M, other=-1)
    up = tl.load(up_ptr + n, mask=n < M, other=0.0)
    up = tl.where((y >= 0) & (y < V), up, float("nan"))  # a target that is no column
    m = tl.load(m_ptr + n, mask=n < M, other=0.0)
    log2_l = tl.load(log2_l_ptr + n, mask=n < M, other=0.0)
    p = tl.exp2((z - m[:, None]) * LOG2_E - log2_l[:, None])
    dz = p * (up * (1.0 + 2.0 * z_loss * (m + log2_l * LN_2)))[:, None] - (up * (smoothing / V))[:, None]
    dz -= tl.where(v[None, :] == y[:, None], (up * (1.0 - smoothing))[:, None], 0.0)
    if SOFTCAP:
        t = tl.maximum(z / cap, -1.0)  # a column that is not there has -inf
        dz *= 1.0 - t * t
    to = dz_ptr + n.to(tl.int64)[:, None] * V + v[None, :]
    tl.store(to, dz.to(dz_ptr.dtype.element_ty), mask=(n < M)[:, None] & (v < V)[None, :])


# ---- the operators


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float, softcap: float, z_loss: float
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(len(x), dtype=torch.float32) for _ in range(3))


@operator(
    "head_forward(Tensor x, Tensor weight, Tensor? bias, Tensor targets, float smoothing, float softcap, "
    "float z_loss) -> (Tensor, Tensor, Tensor)",
    _forward_fake,
)
def head_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float, softcap: float, z_loss: float
) -> tuple[Tensor, ...]:
    """``losses``, ``m`` and ``log2 l``, each (N,); 0 in a row without a target."""
    chose("linear_cross_entropy", "logit-free")
    kept, y = trained_rows(targets)
    own, head = x[kept], _rows(weight.to(x.dtype))
    (M, C), V = own.shape, len(head)
    tile = tiles(x, C)
    columns = tile["BLOCK_V"]
    blocks = cdiv(M, tile["BLOCK_N"])
    # Whole waves of programs, four of them, so that no processor waits for the last.
    pieces = max(1, min(cdiv(V, columns), 4 * processors(x.device) // max(1, blocks)))
    piece = cdiv(cdiv(V, pieces), columns) * columns
    pieces = cdiv(V, piece)
    parts = x.new_empty((4, pieces, M), dtype=torch.float32)
    launch(head_statistics_kernel, (blocks * pieces,), own, head, bias, y, parts, M, V, C, pieces, piece,
           own.stride(0), head.stride(0), softcap, SOFTCAP=softcap > 0, SMOOTH=smoothing > 0, **tile)  # fmt: skip
    m = parts[0].amax(0)  # (M,)
    lower = parts[0] - m
    log_l = (parts[1] * lower.exp()).sum(0).log()
    z_y = parts[3].sum(0).masked_fill((y < 0) | (y >= V), torch.nan)
    losses = log_l + (1 - smoothing) * (m - z_y) + z_loss * (m + log_l).square()
    if smoothing:
        widths = torch.full((pieces, 1), float(piece), device=x.device)
        widths[-1] = V - (pieces - 1) * piece
        losses -= smoothing * (parts[2] + widths * lower).sum(0) / V
    made = losses, m, log_l / LN_2.value
    return tuple(torch.zeros(len(x), device=x.device).index_copy_(0, kept, one) for one in made)


def _backward_fake(
    dlosses: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, m: Tensor, log2_l: Tensor,
    smoothing: float, softcap: float, z_loss: float, to_x: bool, to_weight: bool, to_bias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if to_x else x.new_empty(0)
    dweight = weight.new_empty(weight.shape if to_weight else 0)
    return dx, dweight, x.new_empty(0) if bias is None else bias.new_empty(len(bias) if to_bias else 0)


@operator(
    "head_backward(Tensor dlosses, Tensor x, Tensor weight, Tensor? bias, Tensor targets, Tensor m, Tensor log2_l, "
    "float smoothing, float softcap, float z_loss, bool to_x, bool to_weight, bool to_bias) "
    "-> (Tensor, Tensor, Tensor)",
    _backward_fake,
)
def head_backward(
    dlosses: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, m: Tensor, log2_l: Tensor,
    smoothing: float, softcap: float, z_loss: float, to_x: bool, to_weight: bool, to_bias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients asked for, in the types of their inputs; empty where not asked for."""
    kept, y = trained_rows(targets)
    head = _rows(weight.to(x.dtype))
    V, C = head.shape
    dx = torch.zeros_like(x, memory_format=torch.contiguous_format) if to_x else x.new_empty(0)
    dweight = torch.zeros(head.shape if to_weight else 0, device=x.device)
    dbias = torch.zeros(V if to_bias else 0, device=x.device)
    tile = tiles(x, C, gradient=True)
    rows = chunk_rows(len(kept), V, x)
    buffer = x.new_empty((min(rows, len(kept)), V))
    for begin in range(0, len(kept), rows):
        part = kept[begin : begin + rows]
        M = len(part)
        own, dz = x[part], buffer[:M]
        grid = (cdiv(M, tile["BLOCK_N"]) * cdiv(V, tile["BLOCK_V"]),)
        launch(head_gradient_kernel, grid, own, head, bias, y[begin : begin + M], dlosses[part], m[part],
               log2_l[part], dz, M, V, C, own.stride(0), head.stride(0), softcap, smoothing, z_loss,
               SOFTCAP=softcap > 0, **tile)  # fmt: skip
        if to_x:
            dx[part] = dz @ head
        if to_weight:
            add_product(dweight, dz, own, first=begin == 0)
        if to_bias:
            dbias += dz.sum(0, dtype=torch.float32)
    return dx, dweight.to(weight.dtype), dbias.to(x.dtype if bias is None else bias.dtype)


def tiles(x: Tensor, C: int, *, gradient: bool = False) -> dict[str, Any]:
    """The tile of a direction. BLOCK_C is the same in both: so are the steps of the sums, and the logits to the bit."""
    if interpreted():
        tile = {"BLOCK_N": 16, "BLOCK_V": 32, "BLOCK_C": 16, "num_warps": 4}
    elif x.dtype == torch.float32:
        tile = {"BLOCK_N": 64, "BLOCK_V": 64, "BLOCK_C": 32, "num_warps": 4, "num_stages": 2}
    elif capability(x.device) >= (9, 0):
        # What dz needs beside its logits leaves no registers for 256 columns.
        tile = {"BLOCK_N": 128, "BLOCK_V": 128 if gradient else 256, "BLOCK_C": 64, "num_warps": 8, "num_stages": 3}
    else:
        tile = {"BLOCK_N": 128, "BLOCK_V": 128, "BLOCK_C": 32, "num_warps": 8, "num_stages": 3}
    return {**tile, "WHOLE": C % tile["BLOCK_C"] == 0, "GROUP": 16}


def _rows(weight: Tensor) -> Tensor:
    return weight if weight.stride(-1) == 1 else weight.contiguous()
