"""A CUDA graph without a GPU: what a graph would record of some work, done again by torch on the CPU.

    recorded = Recorded(work)        runs the work, and keeps every operation on tensors with the tensors it had
    recorded()                       does just these operations again, on the same memory

As with a graph, no Python of the work runs again: a number that it took from the host, a mask that it found ready, a
tensor that it made of a list are for ever what they were. So a step that may not be captured gives wrong results here.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorded(TorchDispatchMode):
    """The operations of ``work``, in order."""

    def __init__(self, work: Callable[[], None]):
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        with self:
            work()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {place(x) for x in tensors((args, kwargs))}
        self.calls.append((func, args, kwargs, [x for x in tensors(result) if place(x) not in given]))
        return result

    @property
    def names(self) -> list[str]:
        """What was done, such as ``aten.mm.default``."""
        return [str(func) for func, *_ in self.calls]

    @torch.inference_mode()
    def __call__(self) -> None:
        for func, args, kwargs, made in self.calls:
            given = {place(x) for x in tensors((args, kwargs))}
            again = [x for x in tensors(func(*args, **kwargs)) if place(x) not in given]
            for x, new in zip(made, again, strict=True):
                x.copy_(new)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def place(x: Tensor) -> int:
    """Tells tensors that share memory from those that do not."""
    return x.untyped_storage()._cdata
