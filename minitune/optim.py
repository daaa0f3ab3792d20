"""AdamW, the learning rate over time, and clipping.

AdamW (Kingma & Ba, arXiv 1412.6980; Loshchilov & Hutter, arXiv 1711.05101), for a gradient g at step t = 1, 2, ...:

    m = b1 m + (1 - b1) g            v = b2 v + (1 - b2) g^2
    w = w - lr * decay * w           w = w - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from minitune.errors import ConfigError


class AdamW:
    """AdamW; state is kept by parameter name, in the type of the parameter.

    parameters     name -> trainable parameter
    betas, eps     as above; eps stands outside the square root of the corrected second moment
    weight_decay   decoupled; applied to matrices only, never to norms and biases
    fused          let torch's one kernel over all parameters take the step, which is the same mathematics
                   (``python -m bench.ops adamw``); else it is written out
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fused: bool = True,
    ):
        if not parameters:
            raise ConfigError("there is no trainable parameter")
        self.parameters = dict(parameters)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.fused = fused
        self.steps = 0
        self.m = {name: torch.zeros_like(w) for name, w in self.parameters.items()}
        self.v = {name: torch.zeros_like(w) for name, w in self.parameters.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move every parameter that has a gradient, at learning rate ``lr``."""
        if self.fused:
            self._fused_step(lr)
        else:
            self._written_step(lr)
        self.steps += 1

    def _written_step(self, lr: float) -> None:
        b1, b2 = self.betas
        m_correction = 1 - b1 ** (self.steps + 1)
        v_correction = 1 - b2 ** (self.steps + 1)
        for name, w in self.parameters.items():
            if w.grad is None:
                continue
            m, v, g = self.m[name], self.v[name], w.grad
            m.lerp_(g, 1 - b1)  # OPT-3
            v.mul_(b2).addcmul_(g, g, value=1 - b2)  # OPT-4
            if self.weight_decay and w.ndim > 1:
                w.mul_(1 - lr * self.weight_decay)  # OPT-5
            w.addcdiv_(m, (v / v_correction).sqrt_().add_(self.eps), value=-lr / m_correction)  # OPT-6

    def _fused_step(self, lr: float) -> None:
        for decays in (True, False):
            names = [name for name, w in self.parameters.items() if w.grad is not None and (w.ndim > 1) == decays]
            if not names:
                continue
            weights = [self.parameters[name] for name in names]
            adamw(
                weights,  # pyright: ignore[reportArgumentType]
                [w.grad for w in weights],  # pyright: ignore[reportArgumentType]
                [self.m[name] for name in names],
                [self.v[name] for name in names],
                [],
                list(torch.full((len(weights),), float(self.steps), device=weights[0].device).unbind()),
                fused=True,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=lr,
                weight_decay=self.weight_decay if decays else 0.0,
                eps=self.eps,
                maximize=False,
            )

    @torch.no_grad()
    def updates(self, lr: float) -> Iterator[tuple[str, Tensor, Tensor]]:
        """``(name, weight, update)`` of each parameter: what a step at ``lr`` with these moments takes away from it."""
        b1, b2 = self.betas
        for name, w in self.parameters.items():
            m, v = self.m[name] / (1 - b1**self.steps), self.v[name] / (1 - b2**self.steps)
            update = m.div_(v.sqrt_().add_(self.eps)).mul_(lr)
            yield name, w, update + lr * self.weight_decay * w if self.weight_decay and w.ndim > 1 else update

    def zero_grad(self) -> None:
        """Forget the gradients, and their memory."""
        for w in self.parameters.values():
            w.grad = None


Schedule = Literal["constant", "linear", "cosine", "wsd"]
WSD_DECAY = 0.2
"""Share of all steps over which ``wsd`` falls."""


def learning_rate(step: int, steps: int, *, peak: float, warmup: int, schedule: Schedule) -> float:
    """The rate of optimizer step ``step`` = 0 .. ``steps`` - 1.

    It rises in equal parts over ``warmup`` steps to ``peak``, which the last of them has; then ``constant`` stays, and
    ``linear`` and ``cosine`` (arXiv 1608.03983) fall from the peak towards 0, which they would reach at ``steps``;
    ``wsd`` (warm-up, stable, decay: arXiv 2404.06395) stays until the last fifth of the run and falls linearly then.
    No step has a rate of 0, which would spend a batch on nothing.
    """
    if step < warmup:
        return peak * (step + 1) / warmup  # OPT-7
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return peak * max(0.0, 1 - done)  # OPT-8
    if schedule == "cosine":
        return peak * max(0.0, 0.5 * (1 + math.cos(math.pi * min(1.0, done))))  # OPT-9
    if schedule == "wsd":
        falls = max(warmup, steps - math.ceil(WSD_DECAY * steps))
        return peak * (1.0 if step < falls else max(0.0, 1 - (step - falls) / max(1, steps - falls)))  # OPT-10
    return peak


def warmup_steps(warmup: float, steps: int) -> int:
    """Warm-up in steps: a number of steps, or a fraction of ``steps`` where it is below 1."""
    return round(warmup * steps) if warmup < 1 else int(warmup)


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Return the norm of the whole gradient (a scalar); where it is above ``limit`` > 0, scale it down to it.

    Pascanu et al., arXiv 1211.5063: g = g * min(1, limit / (norm + 1e-6)).
    """
    grads = [w.grad for w in parameters if w.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
    if limit > 0:
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)  # OPT-2
        for g in grads:
            g.mul_(scale)
    return norm
