"""Triton kernels for training and sampling decoders: importable on their own, with torch and triton only.

Each function has the name, arguments and result of the one in ``minitune.ops``, which holds the mathematics in the
open; ``add_rms_norm`` is one more. ``minitune_kernels.launch.ran()`` names the kernel that an operation picked last.
"""

from minitune_kernels.attention import attention
from minitune_kernels.cross_entropy import cross_entropy
from minitune_kernels.glu import activation, glu
from minitune_kernels.layer_norm import layer_norm
from minitune_kernels.linear_cross_entropy import linear_cross_entropy, token_logprobs
from minitune_kernels.qk_norm_rope import qk_norm_rope
from minitune_kernels.rms_norm import add_rms_norm, rms_norm
from minitune_kernels.rope import rope

__all__ = [
    "activation",
    "add_rms_norm",
    "attention",
    "cross_entropy",
    "glu",
    "layer_norm",
    "linear_cross_entropy",
    "qk_norm_rope",
    "rms_norm",
    "rope",
    "token_logprobs",
]
