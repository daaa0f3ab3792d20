"""What the tests of the kernels share."""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    """Normal noise in ``dtype``, the same for a seed and a shape on every machine."""
    generator = torch.Generator().manual_seed(seed + 1000 * sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def gradients(f: Callable[..., Tensor], inputs: Sequence[Tensor], dout: Tensor) -> tuple[Tensor, ...]:
    """``f(*inputs)`` and its gradients with respect to the inputs, for the upstream gradient ``dout``."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = f(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, dout)


def assert_as_accurate(ours: Tensor, eager: Tensor, truth: Tensor, slack: float = 0.0) -> None:
    """As accurate as plain PyTorch at the same type, both against float64.

    RMS error at most 1.25 times, largest error at most 3 times that of the eager formula, plus a floor of one unit in
    the last place of the result's RMS, and ``slack``.
    """
    assert ours.dtype == eager.dtype
    assert ours.shape == eager.shape == truth.shape
    if not ours.numel():
        return
    truth = truth.double().cpu()
    ours_error, eager_error = (ours.double().cpu() - truth).abs(), (eager.double().cpu() - truth).abs()
    assert ours_error.isfinite().all()
    floor = torch.finfo(ours.dtype).eps * rms(truth) + slack
    assert rms(ours_error) <= 1.25 * rms(eager_error) + floor, (rms(ours_error), rms(eager_error), floor)
    assert ours_error.max() <= 3 * eager_error.max() + floor, (ours_error.max(), eager_error.max(), floor)


def rms(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt()
