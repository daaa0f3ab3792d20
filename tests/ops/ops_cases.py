"""What the tests of the operations share: how two gradients, and two accuracies, are compared."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TABLE_NAMES = ("reference", "builtin")
SCALES = (1e-3, 1.0, 30.0)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal noise in ``dtype``, the same for a seed and a shape."""
    generator = torch.Generator().manual_seed(seed + 1000 * sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def autograd(f: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor], douts: Sequence[Tensor]):
    """Gradients of ``f(*inputs)`` with respect to its inputs by autograd, for the upstream gradients ``douts``."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outs = f(*leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    return torch.autograd.grad(outs, leaves, list(douts))


def assert_close64(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    """Equal to 1e-10 of the largest value: float64, two ways to the same number."""
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        if b.numel():
            assert (a - b).detach().abs().max() <= 1e-10 * max(1.0, float(b.detach().abs().max()))


def assert_as_accurate(ours: Tensor, eager: Tensor, truth: Tensor, lost: Tensor | None = None) -> None:
    """Question two of every operation: as accurate as plain PyTorch at the same type, both against float64.

    RMS error at most 1.25 times, largest error at most 3 times that of the eager formula, plus a floor of one unit in
    the last place of the result's RMS, and what an algorithm that is chosen for its memory is known to have ``lost``.
    """
    assert ours.dtype == eager.dtype
    ours_error, eager_error = (ours.double() - truth).abs(), (eager.double() - truth).abs()
    assert ours_error.isfinite().all()
    lost = torch.zeros_like(truth) if lost is None else lost
    floor = torch.finfo(ours.dtype).eps * rms(truth)
    assert rms(ours_error) <= 1.25 * rms(eager_error) + floor + rms(lost)
    assert ours_error.max() <= 3 * eager_error.max() + floor + lost.max()


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
