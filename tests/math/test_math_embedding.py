"""Chapter 2: the look-up as a product with one-hot rows, its gradient by autograd, and how fresh weights are spread."""

import torch
from math_cases import by_autograd, numbers, same, small_config

from minitune.models.base import LanguageModel
from minitune.models.decoder import Decoder
from minitune.models.gpt import GPT
from minitune.models.layers import Embedding
from minitune.ops.embedding import embedding, embedding_backward

V, C = 7, 3
IDS = torch.tensor([[2, 0, 2, 5], [5, 5, 6, 2]])


def test_a_look_up_is_a_product() -> None:
    """EMB-1: by one-hot rows, of the operation and of the model's layer."""
    E = numbers(V, C)
    one_hot = torch.nn.functional.one_hot(IDS, V).double()
    for scale in (1.0, 2.5):
        same(embedding(IDS, E, scale=scale), scale * one_hot @ E)
        layer = Embedding(V, C, scale).double()
        layer.weight.data.copy_(E)
        same(layer(IDS, torch.float64), scale * one_hot @ E)


def test_the_table_gets_the_sum() -> None:
    """EMB-4: by autograd, by the transposed product, and by a loop; rows without a token get exactly 0."""
    E, dx = numbers(V, C), numbers(2, 4, C, seed=1)
    dE = embedding_backward(dx, IDS, V, scale=2.5)
    same(dE, by_autograd(lambda e: embedding(IDS, e, scale=2.5), [E], dx)[0])
    same(dE, 2.5 * torch.nn.functional.one_hot(IDS.flatten(), V).double().T @ dx.flatten(0, 1))
    loop = torch.zeros(V, C, dtype=torch.float64)
    for n, v in enumerate(IDS.flatten().tolist()):
        loop[v] += 2.5 * dx.flatten(0, 1)[n]
    same(dE, loop)
    assert not dE[[1, 3, 4]].any()


def test_learned_positions_are_added() -> None:
    """EMB-2: with no block in between, the norm's input is the sum of the two rows; so is its gradient."""
    model = GPT(small_config(form="gpt", learned_positions=True), compute_dtype=torch.float64).double()
    model.initialize(0)
    model.blocks = torch.nn.ModuleList()
    assert model.positions is not None
    E, P = model.embed.weight, model.positions.weight
    want = model.norm(E[IDS] + P[torch.arange(4)])
    same(model(IDS), want)
    dy = numbers(2, 4, 8)
    got = torch.autograd.grad(model(IDS), (E, P), dy)
    x = (E[IDS] + P[torch.arange(4)]).detach().requires_grad_()
    (dx,) = torch.autograd.grad(model.norm(x), x, dy)
    same(got[0], embedding_backward(dx, IDS, V))
    same(got[1], embedding_backward(dx, torch.arange(4).expand(2, 4), 16))


def test_fresh_weights_are_normal() -> None:
    """EMB-3: mean 0 and a spread of 0.02, by 200,000 of them; norms 1; the same for a seed."""
    model: LanguageModel = Decoder(small_config(vocab_size=4000, hidden_size=50, head_dim=4))
    model.initialize(seed=3)
    E = model.embed.weight.detach().double()
    assert abs(float(E.mean())) < 5 * 0.02 / E.numel() ** 0.5
    assert abs(float(E.std()) / 0.02 - 1) < 5 / (2 * E.numel()) ** 0.5
    assert torch.equal(model.norm.weight, torch.ones(50))
    again: LanguageModel = Decoder(small_config(vocab_size=4000, hidden_size=50, head_dim=4))
    again.initialize(seed=3)
    assert torch.equal(again.embed.weight, model.embed.weight)


def test_mimetic_weights_let_like_attend_to_like() -> None:
    """A query head starts as the key head of its group, so that W_q^T W_k is d / C times the identity on average."""
    config = small_config(hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16)
    C, d = config.hidden_size, config.head_dim
    plain, model = Decoder(config), Decoder(config)
    plain.initialize(seed=3)
    model.initialize(seed=3, mimetic=True)
    weights, others = dict(model.named_parameters()), dict(plain.named_parameters())
    for layer in range(config.num_layers):
        name = f"blocks.{layer}.attention."
        q = weights[name + "q_proj.weight"].detach().double().view(4, d, C)
        k = weights[name + "k_proj.weight"].detach().double().view(2, d, C)
        assert torch.equal(q, k[[0, 0, 1, 1]])
        product = torch.einsum("hdc,hde->ce", q[::2], k) / 2
        assert abs(float(product.diagonal().mean()) / (d / C) - 1) < 0.15
        assert abs(float((product - torch.diag(product.diagonal())).mean())) < 0.01
        assert torch.equal(weights[name + "v_proj.weight"], others[name + "v_proj.weight"]), "all else is as it was"
