"""Exercise 11: a Triton kernel.

The first half of a gated MLP, y = silu(gate) * up with silu(a) = a / (1 + exp(-a)). In PyTorch that is several
passes over memory; here it is one: two numbers read and one written for each element, which is all that must move.

A kernel is a program for BLOCK elements; many copies of it run, and each finds out which elements are its own from its
number, tl.program_id(0). n need not be a multiple of BLOCK: what lies behind the end is masked, both where it is read
and where it is written. Compute in float32, whatever the inputs are. Triton's names: tl.arange(0, BLOCK),
tl.load(pointer + offsets, mask=mask), tl.sigmoid(x), tl.store(pointer + offsets, value, mask=mask).

The check runs in Triton's interpreter, so that no GPU is needed; print works inside the kernel there.

Reading: docs/math/08-glu.md, docs/kernels.md, kernels/minitune_kernels/glu.py
Check:   python docs/exercises/check.py 11
"""

import torch
import triton
import triton.language as tl

BLOCK = 64


@triton.jit
def swiglu_kernel(gate_ptr, up_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = ...  # (BLOCK,): which elements are this program's
    mask = ...  # true where such an element exists
    gate = tl.load(gate_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    y = ...
    tl.store(y_ptr + offsets, y, mask=mask)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up``, elementwise, for contiguous tensors of one shape."""
    y = torch.empty_like(gate)
    n = gate.numel()
    programs = ...  # how many copies of the kernel cover n elements
    swiglu_kernel[(programs,)](gate, up, y, n, BLOCK=BLOCK)
    return y
