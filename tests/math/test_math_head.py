"""Chapter 10: the head by a loop over words, its gradients by autograd, and a matrix that is used at both ends."""

import torch
from math_cases import by_autograd, numbers, same, small_config

from minitune.models.base import LanguageModel
from minitune.models.decoder import Decoder
from minitune.ops import REFERENCE
from minitune.ops.cross_entropy import IGNORE, cross_entropy
from minitune.ops.embedding import embedding_backward
from minitune.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_backward

N, V, C = 5, 7, 4
TARGETS = torch.tensor([0, IGNORE, 6, 2, 2])
ONE = torch.ones((), dtype=torch.float64)


def test_logits_word_by_word() -> None:
    """HEAD-1: through the loss, which sees nothing else, and of a model."""
    x, W, b = numbers(N, C), numbers(V, C, seed=1), numbers(V, seed=2)
    z = torch.stack([x @ row for row in W], -1) + b
    same(linear_cross_entropy(x, W, TARGETS, bias=b), cross_entropy(z, TARGETS))
    model: LanguageModel = Decoder(small_config(), REFERENCE, torch.float64).double()
    model.initialize(0)
    hidden = numbers(2, 3, 8)
    same(model.logits(hidden), torch.stack([hidden @ row for row in model.head.weight], -1))


def test_gradients() -> None:
    """HEAD-3, HEAD-4: by autograd; rows without a target get 0."""
    x, W, b = numbers(N, C), numbers(V, C, seed=1), numbers(V, seed=2)
    got = linear_cross_entropy_backward(ONE, x, W, TARGETS, bias=b)
    same(got, by_autograd(lambda *t: linear_cross_entropy(t[0], t[1], TARGETS, bias=t[2])[0], [x, W, b]))
    assert not got[0][1].any()


def test_a_tied_matrix_gets_both_gradients() -> None:
    """HEAD-2, HEAD-5: that of an untied head and that of an untied embedding, added."""
    ids, targets = torch.tensor([[1, 4, 4, 2]]), torch.tensor([[4, 4, IGNORE, 6]])
    tied: LanguageModel = Decoder(small_config(tie_embeddings=True), REFERENCE, torch.float64).double()
    tied.initialize(0)
    tied.tie()
    assert tied.head.weight is tied.embed.weight
    free = Decoder(small_config(), REFERENCE, torch.float64).double()
    free.load_state_dict(tied.state_dict())
    loss, _ = tied.loss(tied(ids), targets)
    (dE,) = torch.autograd.grad(loss, tied.embed.weight)
    other, _ = free.loss(free(ids), targets)
    same(loss, other)
    at_bottom, at_top = torch.autograd.grad(other, (free.embed.weight, free.head.weight))
    same(dE, at_bottom + at_top)
    # the bottom one is the look-up's: no gradient for ids that are not there
    dx = torch.zeros(1, 4, 8, dtype=torch.float64)
    for t, v in enumerate(ids[0].tolist()):
        dx[0, t] = at_bottom[v] / int((ids == v).sum())
    same(embedding_backward(dx, ids, 7), at_bottom)
