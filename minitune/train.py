"""The loop of supervised fine-tuning: a generator of step reports.

One optimizer step works on one or several micro-batches. Each gives a loss *sum*; the divisor is the trained tokens
of the whole step, counted before the first backward, so that eight rows at once, four and four, or one by one are the
same step, whatever their lengths.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minitune.data.batch import Batch
from minitune.device import peak_memory_bytes
from minitune.errors import TrainingError
from minitune.models import LanguageModel
from minitune.optim import AdamW, clip_gradients

Objective = Callable[[LanguageModel, Batch], tuple[Tensor, Tensor]]
"""``(model, batch) -> (loss_sum, denominator)``"""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Total negative log-likelihood over all validation tokens; no mean of means."""

    nll: float
    tokens: float

    @property
    def loss(self) -> float:
        """Nats per trained token."""
        return self.nll / self.tokens


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one optimizer step did. ``loss`` is in nats per trained token; ``grad_norm`` is before clipping."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    trained_tokens: int
    tokens: int
    seconds: float
    peak_memory_bytes: int
    validation: Validation | None = None


class NonFinite(TrainingError):
    """The loss or the gradient of a step is not a finite number; ``batches`` are the ones that made it."""

    def __init__(self, message: str, step: int, batches: Sequence[Batch]):
        super().__init__(message)
        self.step, self.batches = step, batches


def next_token_loss(model: LanguageModel, batch: Batch, *, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """The objective of fine-tuning: cross-entropy of every trained next token, with label smoothing where asked for."""
    hidden = model(batch.ids, plan=batch.plan)  # (B, T, C)
    return model.loss(hidden, batch.targets, token_weight=batch.token_weight, smoothing=smoothing)


def train(
    model: LanguageModel,
    optimizer: AdamW,
    steps: Iterable[Sequence[Batch]],
    *,
    lr: Callable[[int], float],
    clip: float = 1.0,
    objective: Objective = next_token_loss,
    validate: Callable[[int], Validation | None] | None = None,
    start: int = 0,
) -> Iterator[StepReport]:
    """Train on ``steps``, each a sequence of micro-batches, and yield a report after each.

    ``lr(step)`` is the rate of step 0, 1, ...; ``validate(done)`` is called with the steps done. ``start``: the number
    of the first step, where a run goes on. Raises NonFinite before a number that is not finite reaches the weights.
    """
    device = model.embed.weight.device
    model.train()
    for index, batches in enumerate(steps, start):
        began = time.perf_counter()
        rate = lr(index)
        loss = accumulate(model, batches, objective)
        norm = float(clip_gradients(optimizer.parameters.values(), clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            message = f"step {index + 1}: loss {loss}, gradient norm {norm}; the weights were not touched"
            raise NonFinite(message, index + 1, batches)
        optimizer.step(rate)
        optimizer.zero_grad()
        seconds = time.perf_counter() - began
        yield StepReport(
            step=index + 1,
            loss=loss,
            grad_norm=norm,
            lr=rate,
            trained_tokens=sum(batch.trained_tokens for batch in batches),
            tokens=sum(batch.tokens for batch in batches),
            seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(device),
            validation=validate(index + 1) if validate else None,
        )


def accumulate(model: LanguageModel, batches: Sequence[Batch], objective: Objective = next_token_loss) -> float:
    """Add the gradient of the step's mean loss to ``.grad`` and return that loss.

    The mean is over the trained tokens of all micro-batches. Raises TrainingError where there is none; a single
    micro-batch without one adds zero.
    """
    total = sum(batch.denominator for batch in batches)
    if total <= 0:
        raise TrainingError("a step has no trained token; a row without an answer cannot be trained on")
    loss = 0.0
    for batch in batches:
        loss_sum, _ = objective(model, batch)
        (loss_sum / total).backward()  # OPT-1
        loss += float(loss_sum.detach())
    return loss / total


@torch.no_grad()
def evaluate(model: LanguageModel, batches: Iterable[Batch], objective: Objective = next_token_loss) -> Validation:
    """Total loss and total tokens over ``batches``, without dropout."""
    was_training = model.training
    model.eval()
    nll = tokens = 0.0
    for batch in batches:
        loss_sum, denominator = objective(model, batch)
        nll, tokens = nll + float(loss_sum), tokens + float(denominator)
    model.train(was_training)
    return Validation(nll=nll, tokens=tokens)
