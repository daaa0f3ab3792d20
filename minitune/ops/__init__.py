"""The mathematics: each operation as a formula, a plain forward, a closed-form backward, and torch's own version.

A model is given a table of the functions it is made of. ``REFERENCE`` is the math, slow and obvious, the ground truth
of everything else; ``BUILTIN`` is ``torch.nn.functional``, with the formula where torch has none; ``triton_ops()`` is
the kernels of this project. There is no registry and no global:
``dataclasses.replace(BUILTIN, attention=REFERENCE.attention)`` swaps one function.

Capitals and a number at the end of a line, as in the functions here, are an equation of docs/math.

Shapes: B rows, T queries, S keys, H query heads, K key/value heads, D channels a head, C hidden, V vocabulary,
N = B*T tokens.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from minitune.ops.attention import attention, attention_builtin
from minitune.ops.cross_entropy import IGNORE, cross_entropy, cross_entropy_builtin
from minitune.ops.glu import activation, activation_builtin, glu, glu_builtin
from minitune.ops.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_builtin,
    token_logprobs,
    token_logprobs_builtin,
)
from minitune.ops.norms import layer_norm, layer_norm_builtin, rms_norm, rms_norm_builtin
from minitune.ops.plan import AttentionPlan, rows_plan
from minitune.ops.qk_norm_rope import qk_norm_rope, qk_norm_rope_builtin
from minitune.ops.rope import RopeScaling, pick_frequencies, rope, rope_builtin, rope_frequencies, rope_tables

__all__ = [
    "BUILTIN",
    "IGNORE",
    "REFERENCE",
    "AttentionPlan",
    "Ops",
    "RopeScaling",
    "pick_frequencies",
    "rope_frequencies",
    "rope_tables",
    "rows_plan",
    "triton_ops",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ops:
    """The functions a decoder is made of; every implementation of one has the same name, arguments and shapes.

    What an implementation cannot serve it refuses with a ValueError; nothing falls back in silence.
    """

    name: str
    rms_norm: Callable[..., Tensor]
    """(x (..., C), weight (C,), *, eps, offset=0, scale_in_fp32=False) -> (..., C)"""
    layer_norm: Callable[..., Tensor]
    """(x (..., C), weight (C,), bias (C,) or None, *, eps) -> (..., C)"""
    rope: Callable[..., tuple[Tensor, Tensor]]
    """(q (B, T, H, D), k (B, T, K, D), cos, sin (B or 1, T, pairs)) -> q, k; rotates the first 2 * pairs channels"""
    qk_norm_rope: Callable[..., tuple[Tensor, Tensor]]
    """(q, k, q_weight (D,), k_weight (D,), cos, sin, *, as rms_norm) -> q, k: rms_norm of each head, then rope. A table
    with another rms_norm or rope put in keeps its own of both here."""
    glu: Callable[..., Tensor]
    """(gate (..., F), up (..., F), *, kind) -> (..., F); kind is silu, gelu or gelu_tanh"""
    activation: Callable[..., Tensor]
    """(x (..., F), *, kind) -> (..., F), with the kinds of glu"""
    attention: Callable[..., Tensor]
    """(q (B, T, H, D), k, v (B, S, K, D), *, plan=None, causal=True, scale=None, window=None, softcap=None,
    bias=None) -> (B, T, H, D)"""
    cross_entropy: Callable[..., tuple[Tensor, Tensor]]
    """(logits (N, V), targets (N,), *, token_weight=None, smoothing=0, softcap=None, z_loss=0)
    -> (loss_sum, denominator)"""
    linear_cross_entropy: Callable[..., tuple[Tensor, Tensor]]
    """(x (N, C), weight (V, C), targets (N,), *, bias=None, and as cross_entropy) -> (loss_sum, denominator)"""
    token_logprobs: Callable[..., Tensor]
    """(x (N, C), weight (V, C), targets (N,), *, bias=None, softcap=None) -> (N,)"""


REFERENCE = Ops(
    name="reference",
    rms_norm=rms_norm,
    layer_norm=layer_norm,
    rope=rope,
    qk_norm_rope=qk_norm_rope,
    glu=glu,
    activation=activation,
    attention=attention,
    cross_entropy=cross_entropy,
    linear_cross_entropy=linear_cross_entropy,
    token_logprobs=token_logprobs,
)

BUILTIN = Ops(
    name="builtin",
    rms_norm=rms_norm_builtin,
    layer_norm=layer_norm_builtin,
    rope=rope_builtin,
    qk_norm_rope=qk_norm_rope_builtin,
    glu=glu_builtin,
    activation=activation_builtin,
    attention=attention_builtin,
    cross_entropy=cross_entropy_builtin,
    linear_cross_entropy=linear_cross_entropy_builtin,
    token_logprobs=token_logprobs_builtin,
)


def triton_ops() -> Ops:
    """The table of our kernels: every function that ``minitune_kernels`` exports under the name of a field of ``Ops``.

    Raises RuntimeError with the reason where it cannot be had: triton or the kernels are not installed, an operation
    has no kernel, or there is no CUDA device and Triton's interpreter is off. Nothing is filled in from another table;
    the caller who wants a mixture says so.
    """
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("the kernels need triton, which is not installed; it is made for Linux")
    try:
        import minitune_kernels
    except ImportError as error:
        raise RuntimeError(f"the kernels cannot be imported: {error}") from error
    names = [field.name for field in fields(Ops) if field.name != "name"]
    found = {name: getattr(minitune_kernels, name) for name in names if hasattr(minitune_kernels, name)}
    if missing := [name for name in names if name not in found]:
        raise RuntimeError(f"minitune_kernels has no kernel yet for: {', '.join(missing)}")
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("the kernels need a CUDA device, and there is none")
    return Ops(name="triton", **found)
