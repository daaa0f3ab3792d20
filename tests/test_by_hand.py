"""The training step written by hand equals PyTorch's: loss, every gradient and ten optimizer steps, in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from minitune import by_hand
from minitune.by_hand import AdamW, Shape, Weights, loss_and_gradients, read_model, train_step
from minitune.checkpoint import load_checkpoint, published_tensors
from minitune.config import ModelConfig
from minitune.jobs.load import TINY
from minitune.models import LanguageModel, build
from minitune.ops import BUILTIN, IGNORE
from minitune.optim import AdamW as TorchAdamW
from minitune.optim import clip_gradients

Made = tuple[LanguageModel, Weights, Shape]


def tiny() -> Made:
    """The real weights of the model inside the package, read by both sides on their own."""
    weights, shape = read_model(TINY)
    return load_checkpoint(TINY, dtype=torch.float64, ops=BUILTIN).model.train(), weights, shape


def odd() -> Made:
    """A random model whose every size differs from every other, with norms that are not 1."""
    config = ModelConfig(
        vocab_size=29, hidden_size=20, intermediate_size=27, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=8,
        norm_eps=1e-3, rope_theta=100.0, tie_embeddings=True,
    )  # fmt: skip
    model = build(config, ops=BUILTIN, compute_dtype=torch.float64).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for w in model.parameters():
            w.copy_(torch.randn(w.shape, generator=generator, dtype=torch.float64) * 0.3 + (w.ndim == 1))
    weights = {name: t.detach().numpy().copy() for name, t in published_tensors(model).items()}
    return model, weights, Shape(layers=2, heads=6, kv_heads=2, eps=1e-3, theta=100.0)


def batch(vocabulary: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of 23 ids, an id more than once among them, about half of the targets masked, unequally by row."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, min(vocabulary, 500), (2, 23))
    ids[:, 5:8] = ids[0, 0]
    targets = random.integers(0, vocabulary, (2, 23))
    targets[random.random((2, 23)) < [[0.7], [0.3]]] = IGNORE
    return ids, targets


def torch_gradients(model: LanguageModel, ids: np.ndarray, targets: np.ndarray) -> tuple[float, Weights]:
    """Loss and gradients by autograd, under the published names."""
    model.zero_grad()
    loss_sum, trained = model.loss(model(torch.tensor(ids)), torch.tensor(targets))
    loss = loss_sum / trained
    loss.backward()
    names = {w.data_ptr(): name for name, w in published_tensors(model).items()}
    gradients = {}
    for w in model.parameters():
        assert w.grad is not None
        gradients[names[w.data_ptr()]] = w.grad.numpy()
    return loss.item(), gradients


def farthest(a: Weights, b: Weights) -> float:
    """The largest difference, beside the size of the array that it stands in."""
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max() / max(1.0, np.abs(b[name]).max())) for name in a)


@pytest.mark.parametrize("make", [tiny, odd])
def test_loss_and_every_gradient_equal_autograd(make: Callable[[], Made]) -> None:
    """Guards each forward and each backward of the file, the sum at the tied head, and the division by the mask."""
    model, weights, shape = make()
    ids, targets = batch(model.config.vocab_size, seed=1)
    loss, gradients = loss_and_gradients(weights, shape, ids, targets)
    expected, by_autograd = torch_gradients(model, ids, targets)
    assert loss == pytest.approx(expected, abs=1e-10, rel=0)
    assert farthest(gradients, by_autograd) < 1e-10
    # None of them is small enough to be right by being 0.
    assert min(float(np.abs(g).max()) for g in by_autograd.values()) > 1e-4


@pytest.mark.parametrize("limit", [0.5, 1e9], ids=["clipped", "free"])
@pytest.mark.parametrize("make", [tiny, odd])
def test_ten_steps_of_adamw_equal_torchs(make: Callable[[], Made], limit: float) -> None:
    """Guards the optimizer: both moments, their corrections, decay of matrices alone, and the clipping."""
    model, weights, shape = make()
    start = {name: w.copy() for name, w in weights.items()}
    mine = AdamW(weights, b2=0.95, decay=0.1)
    theirs = TorchAdamW(dict(model.named_parameters()), betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(10):
        ids, targets = batch(model.config.vocab_size, seed=step)
        lr = 1e-3 * (step + 1)
        loss = train_step(mine, shape, ids, targets, lr, limit)
        expected, _ = torch_gradients(model, ids, targets)
        norm = clip_gradients(model.parameters(), limit)
        assert (norm > limit) == (limit < 1)
        theirs.step(lr)
        assert loss == pytest.approx(expected, abs=1e-9, rel=0)
    after = {name: t.detach().numpy() for name, t in published_tensors(model).items()}
    assert farthest(weights, after) < 1e-9
    assert farthest(weights, start) > 1e-2


def test_a_hidden_token_changes_nothing() -> None:
    """Guards the causal mask: an id behind the last trained position has no say in the loss, and takes no gradient."""
    weights, shape = read_model(TINY)
    ids, targets = batch(1000, seed=3)
    targets[:, 12:] = IGNORE
    other = ids.copy()
    ids[:, 13:], other[:, 13:] = 700, 800
    loss, gradients = loss_and_gradients(weights, shape, ids, targets)
    other_loss, other_gradients = loss_and_gradients(weights, shape, other, targets)
    assert loss == other_loss
    for name, g in gradients.items():  # the row of 700 has its gradient as a row of the head, and no other
        np.testing.assert_allclose(g, other_gradients[name], atol=1e-14, rtol=0)


def test_it_runs_by_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the command in the file's first lines: the tiny model learns the answer that it is shown."""
    monkeypatch.setattr("sys.argv", ["by_hand", "--steps", "6"])
    by_hand.main()
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert len(losses) == 6
    assert losses[-1] < losses[0] / 10
