"""What a piece of code moves and computes, counted while it runs.

A kernel runs in Triton's interpreter, on the CPU; every load, store, product and exponential that it does passes
through one object of Triton's, whose methods are wrapped here. A formula in PyTorch runs as it is; each operation that
it is made of reads its inputs from memory and writes its result, which is what it costs on a GPU too.

What a GPU's caches save is not counted: two programs that read the same number count twice.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from triton.runtime.interpreter import interpreter_builder


@dataclass
class Counts:
    """Bytes, floating-point operations of products (2 a multiply-add), elements through exp, elements masked."""

    read_bytes: int = 0
    written_bytes: int = 0
    product_flops: int = 0
    exponentials: int = 0
    masked: int = 0


@contextlib.contextmanager
def counted_kernels() -> Iterator[Counts]:
    """Count what the kernels started inside do, in the interpreter."""
    counts = Counts()

    def load(ptrs: Any, mask: Any, *rest: Any) -> None:
        counts.read_bytes += int(mask.data.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8

    def store(ptrs: Any, value: Any, mask: Any, *rest: Any) -> None:
        counts.written_bytes += int(mask.data.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8

    def atomic(operation: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> None:
        load(ptrs, mask)  # the old value is read and the sum written, wherever that happens
        store(ptrs, value, mask)

    def product(a: Any, b: Any, *rest: Any) -> None:
        counts.product_flops += 2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1]

    def exponential(x: Any) -> None:
        counts.exponentials += np.size(x.data)

    def select(condition: Any, *rest: Any) -> None:
        counts.masked += np.size(condition.data)

    seen = {
        "create_masked_load": load,
        "create_masked_store": store,
        "create_atomic_rmw": atomic,
        "create_dot": product,
        "create_exp": exponential,
        "create_exp2": exponential,
        "create_select": select,
    }
    for name, count in seen.items():
        setattr(interpreter_builder, name, _both(count, getattr(interpreter_builder, name)))
    try:
        yield counts
    finally:
        for name in seen:
            delattr(interpreter_builder, name)  # the class's own method is there again


def _both(count: Callable[..., None], do: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **options: Any) -> Any:
        count(*args, **options)
        return do(*args, **options)

    return counted


class _Operations(TorchDispatchMode):
    """Counts what each operation of PyTorch reads and writes; a view moves nothing."""

    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [x for x in args if isinstance(x, Tensor)]
        if isinstance(result, Tensor) and all(result.data_ptr() != x.data_ptr() for x in given):
            self.counts.read_bytes += sum(map(_bytes_of, given))
            self.counts.written_bytes += _bytes_of(result)
            if "exp" in func.name() and "expand" not in func.name():
                self.counts.exponentials += result.numel()
            if "softmax" in func.name():
                self.counts.exponentials += result.numel()
            if "where" in func.name() or "masked_fill" in func.name():
                self.counts.masked += result.numel()
        return result


def _bytes_of(x: Tensor) -> int:
    """What of a tensor is in memory: an axis that is only repeated is there once."""
    elements = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        elements *= size if stride else 1
    return elements * x.element_size()


@contextlib.contextmanager
def counted_operations() -> Iterator[Counts]:
    """Count what PyTorch does inside, operation by operation."""
    counts = Counts()
    with FlopCounterMode(display=False) as flops, _Operations(counts):
        yield counts
    counts.product_flops = flops.get_total_flops()
