"""What the exercises are checked with: for each, what is asked of the reader's module, and what minitune says."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minitune import ops
from minitune.ops.cross_entropy import cross_entropy_backward
from minitune.ops.norms import rms_norm_backward
from minitune.optim import AdamW
from minitune.sample.filters import top_p

Asked = Iterator[tuple[str, Any, Any]]
"""What it is, what the reader's code gives, what is right."""


class Skip(Exception):
    """This exercise cannot be checked on this machine."""


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal random numbers, always the same."""
    return np.random.default_rng(seed).standard_normal(shape)


def t(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


def softmax(answer: Any) -> Asked:
    z = numbers(3, 5)
    yield "softmax of (3, 5)", answer.softmax(z.copy()), torch.softmax(t(z), -1)
    yield (
        "of one row",
        answer.softmax(np.array([1.0, 2.0, 3.0])),
        torch.softmax(torch.tensor([1.0, 2.0, 3.0]).double(), -1),
    )
    yield "scores near 1000", answer.softmax(1000 + z), torch.softmax(t(1000 + z), -1)
    yield "a choice that is out", answer.softmax(np.array([0.0, -np.inf, 0.0])), np.array([0.5, 0.0, 0.5])


def rms_norm(answer: Any) -> Asked:
    x, w, dy = numbers(4, 6), numbers(6, seed=1), numbers(4, 6, seed=2)
    for eps in (1e-5, 0.5):
        yield f"y, eps {eps}", answer.rms_norm(x, w, eps), ops.REFERENCE.rms_norm(t(x), t(w), eps=eps)
        dx, dw = rms_norm_backward(t(dy), t(x), t(w), eps=eps)
        got = answer.rms_norm_backward(dy, x, w, eps)
        yield f"dx, eps {eps}", got[0], dx
        yield f"dw, eps {eps}", got[1], dw


def rope(answer: Any) -> Asked:
    T, D = 5, 8
    angle = torch.arange(T).double()[:, None] * ops.rope_frequencies(D, 100.0)
    yield "angles", answer.angles(T, D, 100.0), angle
    yield "(1, 0) by 90 degrees", answer.rope(np.array([[1.0, 0.0]]), np.array([[np.pi / 2]])), np.array([[0.0, 1.0]])
    x = numbers(T, D)
    q = t(x)[None, :, None]
    right, _ = ops.REFERENCE.rope(q, q, angle.cos()[None], angle.sin()[None])
    yield "rope", answer.rope(x, angle.numpy()), right[0, :, 0]


def attention(answer: Any) -> Asked:
    for H, K in ((1, 1), (4, 2), (6, 2), (4, 1)):
        q, k, v = numbers(5, H, 4), numbers(5, K, 4, seed=1), numbers(5, K, 4, seed=2)
        right = ops.REFERENCE.attention(t(q)[None], t(k)[None], t(v)[None])[0]
        yield f"{H} query heads, {K} key/value heads", answer.attention(q, k, v), right


def cross_entropy(answer: Any) -> Asked:
    y = np.array([2, -100, 0, 6, -100])
    for what, z in (("logits (5, 7)", numbers(5, 7)), ("logits near 1000", 1000 + numbers(5, 7))):
        loss_sum, trained = ops.REFERENCE.cross_entropy(t(z), t(y))
        got = answer.cross_entropy(z.copy(), y.copy())
        yield f"loss of {what}", got[0], loss_sum
        yield f"trained tokens of {what}", got[1], trained
        one = torch.ones((), dtype=torch.float64)
        yield (
            f"dz of {what}",
            answer.cross_entropy_backward(z.copy(), y.copy()),
            cross_entropy_backward(one, t(z), t(y)),
        )


def adamw(answer: Any) -> Asked:
    options: dict[str, Any] = {"eps": 1e-3}
    parameter = torch.nn.Parameter(t(numbers(3, 4)))
    right = AdamW({"w": parameter}, betas=(0.8, 0.95), weight_decay=0.1, fused=False, **options)
    w, m, v = numbers(3, 4), np.zeros((3, 4)), np.zeros((3, 4))
    for step in range(1, 4):
        g = numbers(3, 4, seed=step)
        w, m, v = answer.adamw_step(w, g, m, v, step, lr=0.1, b1=0.8, b2=0.95, decay=0.1, **options)
        parameter.grad = t(g)
        right.step(0.1)
        yield f"w after step {step}", w, parameter.detach()
        yield f"m after step {step}", m, right.m["w"]
        yield f"v after step {step}", v, right.v["w"]


def lora(answer: Any) -> Asked:
    x, W, A, B, dy = (numbers(*shape, seed=i) for i, shape in enumerate([(5, 6), (4, 6), (2, 6), (4, 2), (5, 4)]))
    A_, B_ = t(A).requires_grad_(), t(B).requires_grad_()
    y = t(x) @ t(W).T + 8 / 2 * t(x) @ A_.T @ B_.T
    y.backward(t(dy))
    yield "y", answer.lora_linear(x, W, A, B, 8), y.detach()
    yield "merged, for the same x", x @ answer.merged(W, A, B, 8).T, y.detach()
    got = answer.gradients(dy, x, A, B, 8)
    yield "dA", got[0], A_.grad
    yield "dB", got[1], B_.grad


def packing(answer: Any) -> Asked:
    for lengths in ([3, 1, 2], [5], [1, 1], [2, 4, 1, 3]):
        cu = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
        place = np.concatenate([np.arange(length) for length in lengths])
        yield f"positions of {lengths}", answer.positions(lengths), place
        plan = ops.AttentionPlan(positions=t(place)[None], cu_seqlens_q=cu, cu_seqlens_k=cu)
        seen = plan.visible(sum(lengths), causal=True, window=None)[0]
        yield f"who sees whom in {lengths}", answer.visible(lengths), seen
        ids = np.arange(10, 10 + sum(lengths))
        following = np.append(ids[1:], -100)
        following[np.cumsum(lengths) - 1] = -100
        yield f"targets of {lengths}", answer.targets(ids, lengths), following


def sampling(answer: Any) -> Asked:
    probabilities = torch.softmax(2 * t(numbers(9)), -1)
    for p in (0.1, 0.5, 0.8, 0.99):
        right = torch.softmax(top_p(probabilities.log(), p), -1)
        yield f"top-p {p}", answer.top_p(probabilities.numpy(), p), right
    even = np.array([0.25, 0.25, 0.25, 0.25])
    yield "four equal ones, p 0.5", answer.top_p(even, 0.5), np.array([0.5, 0.5, 0.0, 0.0])
    yield "one sure token", answer.top_p(np.array([0.0, 1.0, 0.0]), 0.3), np.array([0.0, 1.0, 0.0])
    q = np.array([0.5, 0.0, 0.25, 0.25])
    for u, token in ((0.0, 0), (0.49, 0), (0.5, 2), (0.74, 2), (0.75, 3), (0.999, 3)):
        yield f"draw with u = {u}", answer.draw(q, u), token


def online_softmax(answer: Any) -> Asked:
    scores, v = 20 * numbers(13), numbers(13, 3, seed=1)
    right = torch.softmax(t(scores), -1) @ t(v)
    for block in (13, 1, 4, 5):
        yield f"blocks of {block}", answer.attend(scores, v, block), right
    yield (
        "rising scores near 1000",
        answer.attend(1000 + np.sort(scores), v, 3),
        torch.softmax(t(np.sort(scores)), -1) @ t(v),
    )


def triton_kernel(answer: Any) -> Asked:
    for n in (64, 1, 63, 65, 200):
        gate, up = t(3 * numbers(n)).float(), t(numbers(n, seed=1)).float()
        right = ops.REFERENCE.glu(gate.double(), up.double(), kind="silu")
        got = answer.swiglu(gate, up).double()
        # float32 has seven digits: what is closer than that is right.
        yield f"{n} elements", torch.where((got - right).abs() < 1e-6 * (1 + right.abs()), right, got), right


CASES: dict[int, Callable[[Any], Asked]] = {
    1: softmax,
    2: rms_norm,
    3: rope,
    4: attention,
    5: cross_entropy,
    6: adamw,
    7: lora,
    8: packing,
    9: sampling,
    10: online_softmax,
    11: triton_kernel,
}


def check_machine(number: int) -> None:
    """Raise Skip for an exercise that this machine has not the libraries for."""
    if number == 11 and importlib.util.find_spec("triton") is None:
        raise Skip("triton is not installed; it is made for Linux")
