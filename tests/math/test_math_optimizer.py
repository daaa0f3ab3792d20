"""Chapter 12: AdamW by plain numbers and by torch's own, schedules by their corners, accumulation and clipping."""

import math

import pytest
import torch
from math_cases import numbers, same, small_config
from torch import nn

from minitune.data.batch import Batch
from minitune.models.decoder import Decoder
from minitune.ops import IGNORE, REFERENCE, rows_plan
from minitune.optim import AdamW, Schedule, clip_gradients, learning_rate
from minitune.train import accumulate


def by_numbers(w: float, gradients: list[float], lr: float, decay: float, b1: float, b2: float, eps: float) -> float:
    """The chapter, one weight at a time, with m and v as the sums that they unroll to."""
    for t in range(1, len(gradients) + 1):
        past = gradients[:t]
        m = (1 - b1) * sum(b1 ** (t - i) * g for i, g in enumerate(past, 1))
        v = (1 - b2) * sum(b2 ** (t - i) * g * g for i, g in enumerate(past, 1))
        w = w - lr * decay * w
        w = w - lr * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
    return w


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_ten_steps(fused: bool, decay: float) -> None:
    """OPT-3, OPT-4, OPT-5, OPT-6: by numbers, and by torch.optim.AdamW."""
    start, gradients = numbers(3, 2), [numbers(3, 2, seed=n) for n in range(1, 11)]
    given = {"betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": decay}
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = AdamW({"w": ours}, fused=fused, **given)
    reference = torch.optim.AdamW([theirs], lr=0.03, **given)
    for g in gradients:
        ours.grad, theirs.grad = g.clone(), g.clone()
        optimizer.step(0.03)
        reference.step()
    same(ours, theirs)
    for i in range(3):
        for j in range(2):
            own = [float(g[i, j]) for g in gradients]
            same(float(ours[i, j].detach()), by_numbers(float(start[i, j]), own, 0.03, decay, 0.8, 0.95, 1e-5))


def test_the_first_step_is_a_sign_and_vectors_do_not_decay() -> None:
    """OPT-6: as long as the rate, whatever the gradient's size; OPT-5: norms and biases keep their size."""
    for size in (1e-3, 1.0, 1e6):
        w = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        optimizer = AdamW({"w": w}, fused=False, weight_decay=0.5)
        w.grad = size * torch.tensor([1.0, -1.0, 2.0, 0.0], dtype=torch.float64)
        optimizer.step(0.1)
        same(w, torch.tensor([-0.1, 0.1, -0.1, 0.0], dtype=torch.float64), 1e-4)
    w = nn.Parameter(torch.ones(4, dtype=torch.float64))
    optimizer = AdamW({"w": w}, fused=False, weight_decay=0.5)
    w.grad = torch.zeros(4, dtype=torch.float64)
    optimizer.step(0.1)
    assert torch.equal(w, torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e9])
def test_clipping(limit: float) -> None:
    """OPT-2: one factor for all weights, none below the limit; the length that is returned is the one before."""
    weights = [nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (3, 5)]
    for n, w in enumerate(weights):
        w.grad = numbers(*w.shape, seed=n)
    whole = torch.cat([w.grad for w in weights])  # pyright: ignore[reportArgumentType]
    norm = math.sqrt(sum(float(g) ** 2 for g in whole))
    same(clip_gradients(weights, limit), norm)
    factor = min(1.0, limit / (norm + 1e-6)) if limit else 1.0
    same(torch.cat([w.grad for w in weights]), factor * whole)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("steps", [10, 37])
def test_schedules_at_their_corners(steps: int) -> None:
    """OPT-7, OPT-8, OPT-9, OPT-10: ends, middle, sums; never 0, never above the peak."""
    u, peak = 3, 2.0
    rates: dict[Schedule, list[float]] = {
        kind: [learning_rate(i, steps, peak=peak, warmup=u, schedule=kind) for i in range(steps)]
        for kind in ("constant", "linear", "cosine", "wsd")
    }
    for kind, found in rates.items():
        same(found[:u], [peak / 3, 2 * peak / 3, peak])
        same(found[u], peak)
        assert all(0 < rate <= peak for rate in found), kind
        assert all(a >= b - 1e-15 for a, b in zip(found[u:], found[u + 1 :], strict=False))
    n = steps - u
    same(rates["linear"][u:], [peak * (n - k) / n for k in range(n)])
    # Half a cosine is a square: (1 + cos 2a) / 2 = cos^2 a.
    same(rates["cosine"][u:], [peak * math.cos(math.pi * k / (2 * n)) ** 2 for k in range(n)])
    fall = math.ceil(steps / 5)
    assert rates["wsd"][: steps - fall] == rates["constant"][: steps - fall]
    same(rates["wsd"][steps - fall :], [peak * (fall - k) / fall for k in range(fall)])


def test_micro_batches_are_one_batch() -> None:
    """OPT-1: loss and every gradient of two uneven micro-batches are those of all rows at once."""
    model = Decoder(small_config(), REFERENCE, torch.float64).double()
    model.initialize(0)
    ids = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1], [6, 5, 4, 6]])
    targets = torch.tensor([[IGNORE, 3, 4, 5], [3, IGNORE, IGNORE, IGNORE], [5, 4, 6, 0]])

    def batch(rows: slice) -> Batch:
        part = ids[rows]
        return Batch(ids=part, targets=targets[rows], plan=rows_plan(len(part), 4, "cpu"), tokens=part.numel())

    found = []
    for parts in ([slice(0, 3)], [slice(0, 1), slice(1, 3)], [slice(0, 1), slice(1, 2), slice(2, 3)]):
        model.zero_grad()
        loss = accumulate(model, [batch(rows) for rows in parts])
        found.append((loss, [w.grad.clone() for w in model.parameters() if w.grad is not None]))
    logp = torch.log_softmax(model.logits(model(ids)), -1)
    kept = targets != IGNORE
    mean = -logp[kept].gather(-1, targets[kept][:, None]).mean()
    for loss, gradients in found:
        same(loss, float(mean.detach()))
        same(gradients, list(torch.autograd.grad(mean, list(model.parameters()), retain_graph=True)))
