"""Triton kernels for training and sampling decoders: importable on their own, with torch and triton only.

Each function has the name, arguments and result of the one in ``minitune.ops``, which holds the mathematics in the
open. ``minitune_kernels.launch.ran()`` names the kernel that each operation picked last.
"""

from minitune_kernels.attention import attention

__all__ = ["attention"]
