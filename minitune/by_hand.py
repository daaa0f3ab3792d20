"""The whole training step of a small model in Llama form, in plain NumPy: no autograd, no library of layers.

    ids -> embedding -> [ norm -> attention -> + ; norm -> gated MLP -> + ] x L -> norm -> head -> loss

Read it from the top: each operation is one function, its backward stands right below it, and both are what the
chapters of ``docs/math`` derive. Then come the block, the model, the loss, and AdamW, which are nothing but these
functions in a row, and in the backward the same row from its end. ``python -m minitune.by_hand`` trains with it.

A backward function takes ``dy``, the gradient of the loss with respect to what its forward returned, and returns the
gradients with respect to what the forward was given, in that order.

Shapes: B rows, T tokens, C residual channels, H query and K key/value heads of D channels, F channels in the MLP,
V vocabulary. Numbers are of the type of the weights; in float64 all of it equals PyTorch's to 1e-10.
"""

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Weights = dict[str, Array]
"""Name, as in the published files of the Llama family -> array. Gradients and AdamW's moments are such tables too."""

IGNORE = -100
"""The target of a position that is not trained."""


@dataclass(frozen=True)
class Shape:
    """What the weights do not say about a model."""

    layers: int
    heads: int
    kv_heads: int
    eps: float
    theta: float


# ---- operations


def embedding(ids: Array, table: Array) -> Array:
    """A row of the table for each id: ``ids (B, T)``, ``table (V, C)`` -> ``(B, T, C)``."""
    return table[ids]


def embedding_backward(dy: Array, ids: Array, table: Array) -> Array:
    """An id that stands at several places gets the sum of their gradients: ``dtable (V, C)``."""
    dtable = np.zeros_like(table)
    np.add.at(dtable, ids, dy)
    return dtable


def linear(x: Array, w: Array) -> Array:
    """``y = x W^T``: ``x (..., in)``, ``w (out, in)`` -> ``(..., out)``."""
    return x @ w.T


def linear_backward(dy: Array, x: Array, w: Array) -> tuple[Array, Array]:
    """``dx = dy W`` and ``dW = dy^T x``, summed over all tokens."""
    dw = dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])  # (out, N) (N, in)
    return dy @ w, dw


def rms_norm(x: Array, w: Array, eps: float) -> Array:
    """``y = w * x_hat`` with ``x_hat = x / sqrt(mean(x^2) + eps)``, over the last axis."""
    return w * x * _rstd(x, eps)


def rms_norm_backward(dy: Array, x: Array, w: Array, eps: float) -> tuple[Array, Array]:
    """``dx = rstd (g - x_hat mean(g x_hat))`` with ``g = dy w``; ``dw`` is the sum of ``dy x_hat`` over all tokens.

    The second term takes away what points along x: the norm removes the length again, so changing it changes nothing.
    """
    rstd = _rstd(x, eps)
    x_hat, g = x * rstd, dy * w
    dx = rstd * (g - x_hat * (g * x_hat).mean(-1, keepdims=True))
    dw = (dy * x_hat).reshape(-1, len(w)).sum(0)
    return dx, dw


def _rstd(x: Array, eps: float) -> Array:
    return 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def rope_tables(T: int, D: int, theta: float) -> tuple[Array, Array]:
    """``cos, sin (T, 1, D/2)`` of ``angle[t, i] = t theta^(-2i/D)``; the axis of length 1 stands for the heads."""
    angle = np.arange(T)[:, None] * theta ** (-np.arange(0, D, 2) / D)  # (T, D/2)
    return np.cos(angle)[:, None], np.sin(angle)[:, None]


def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Turn channels i and i + D/2 of ``x (B, T, heads, D)``, as a point in a plane, by the angle of the token."""
    x1, x2 = np.split(x, 2, axis=-1)
    return np.concatenate((x1 * cos - x2 * sin, x2 * cos + x1 * sin), axis=-1)


def rope_backward(dy: Array, cos: Array, sin: Array) -> Array:
    """The transpose of a rotation is the rotation back."""
    return rope(dy, cos, -sin)


def attention(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """Causal attention: ``q (B, T, H, D)``, ``k, v (B, T, K, D)`` -> ``y (B, T, H, D)``, and ``p (B, K, G, T, T)``.

    scores s = q k^T / sqrt(D),  p = softmax(s over the keys up to the query's own),  y = p v

    Query heads come in K groups of G = H / K, and the heads of a group share a key/value head.
    """
    T, D = q.shape[1], q.shape[3]
    s = np.einsum("btkgd,bskd->bkgts", _grouped(q, k), k) / math.sqrt(D)
    s = np.where(np.tri(T, dtype=bool), s, -np.inf)  # query t sees key s where s <= t
    p = np.exp(s - s.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    y = np.einsum("bkgts,bskd->btkgd", p, v)
    return y.reshape(q.shape), p


def attention_backward(dy: Array, q: Array, k: Array, v: Array, p: Array) -> tuple[Array, Array, Array]:
    """``dv = p^T dy``; ``ds = p (dp - sum over keys of dp p)`` with ``dp = dy v^T``; ``dq = ds k``, ``dk = ds^T q``.

    dk and dv sum over the query heads of their group. A hidden key has p = 0, and so ds = 0: no mask is needed here.
    """
    dy = _grouped(dy, k)
    dv = np.einsum("bkgts,btkgd->bskd", p, dy)
    dp = np.einsum("btkgd,bskd->bkgts", dy, v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / math.sqrt(q.shape[3])
    dq = np.einsum("bkgts,bskd->btkgd", ds, k).reshape(q.shape)
    dk = np.einsum("bkgts,btkgd->bskd", ds, _grouped(q, k))
    return dq, dk, dv


def _grouped(q: Array, k: Array) -> Array:
    """``(B, T, H, D)`` as ``(B, T, K, G, D)``."""
    return q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])


def swiglu(gate: Array, up: Array) -> Array:
    """``silu(gate) * up`` with ``silu(a) = a sigmoid(a)``, elementwise."""
    return gate * _sigmoid(gate) * up


def swiglu_backward(dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    """``dup = dy silu(gate)``; ``dgate = dy up (g + gate g (1 - g))`` with ``g = sigmoid(gate)``."""
    g = _sigmoid(gate)
    return dy * up * (g + gate * g * (1 - g)), dy * gate * g


def _sigmoid(a: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * a))  # 1 / (1 + exp(-a)), which would overflow at a = -1000


def cross_entropy(logits: Array, targets: Array) -> tuple[float, int]:
    """The sum of ``-log p[target]`` over the positions that are trained, and their number.

    ``logits (N, V)``, ``targets (N,)``; p = softmax(logits), so that -log p[y] = log sum exp z - z[y].
    """
    z, y = logits[targets != IGNORE], targets[targets != IGNORE]
    z = z - z.max(-1, keepdims=True)  # a shift changes nothing, and exp cannot overflow
    nll = np.log(np.exp(z).sum(-1)) - z[np.arange(len(y)), y]
    return float(nll.sum()), len(y)


def cross_entropy_backward(logits: Array, targets: Array) -> Array:
    """Gradient ``(N, V)`` of the sum: ``p - onehot(target)``, and 0 where nothing is trained."""
    kept = targets != IGNORE
    z = logits[kept]
    p = np.exp(z - z.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    p[np.arange(len(p)), targets[kept]] -= 1
    dlogits = np.zeros_like(logits)
    dlogits[kept] = p
    return dlogits


# ---- the block


class Kept(NamedTuple):
    """What a block keeps of its forward, for its backward."""

    x: Array  # (B, T, C), and so each array but for these:
    a: Array
    q: Array  # (B, T, H, D), rotated; k and v (B, T, K, D)
    k: Array
    v: Array
    p: Array  # (B, K, G, T, T)
    y: Array
    x_mid: Array
    m: Array
    gate: Array  # (B, T, F), and so up and h
    up: Array
    h: Array


def block(x: Array, w: Mapping[str, Array], shape: Shape, tables: tuple[Array, Array]) -> tuple[Array, Kept]:
    """``x = x + attention(norm(x)); x = x + mlp(norm(x))``: the stream ``(B, T, C)`` goes straight through."""
    B, T, _ = x.shape
    a = rms_norm(x, w["input_layernorm"], shape.eps)
    q = rope(linear(a, w["self_attn.q_proj"]).reshape(B, T, shape.heads, -1), *tables)
    k = rope(linear(a, w["self_attn.k_proj"]).reshape(B, T, shape.kv_heads, -1), *tables)
    v = linear(a, w["self_attn.v_proj"]).reshape(B, T, shape.kv_heads, -1)
    y, p = attention(q, k, v)
    y = y.reshape(B, T, -1)  # (B, T, H*D)
    x_mid = x + linear(y, w["self_attn.o_proj"])

    m = rms_norm(x_mid, w["post_attention_layernorm"], shape.eps)
    gate, up = linear(m, w["mlp.gate_proj"]), linear(m, w["mlp.up_proj"])
    h = swiglu(gate, up)
    return x_mid + linear(h, w["mlp.down_proj"]), Kept(x, a, q, k, v, p, y, x_mid, m, gate, up, h)


def block_backward(
    dy: Array, w: Mapping[str, Array], kept: Kept, shape: Shape, tables: tuple[Array, Array]
) -> tuple[Array, Weights]:
    """From the gradient of what the block returned to that of its ``x``, and those of its weights.

    Where the forward splits a value into branches, the backward adds up what comes back through each of them.
    """
    x, a, q, k, v, p, y, x_mid, m, gate, up, h = kept
    B, T, _ = x.shape
    dw: Weights = {}
    dh, dw["mlp.down_proj"] = linear_backward(dy, h, w["mlp.down_proj"])
    dgate, dup = swiglu_backward(dh, gate, up)
    dm_gate, dw["mlp.gate_proj"] = linear_backward(dgate, m, w["mlp.gate_proj"])
    dm_up, dw["mlp.up_proj"] = linear_backward(dup, m, w["mlp.up_proj"])
    dmlp, dw["post_attention_layernorm"] = rms_norm_backward(
        dm_gate + dm_up, x_mid, w["post_attention_layernorm"], shape.eps
    )
    dx_mid = dy + dmlp

    dattention, dw["self_attn.o_proj"] = linear_backward(dx_mid, y, w["self_attn.o_proj"])
    dq, dk, dv = attention_backward(dattention.reshape(q.shape), q, k, v, p)
    dq, dk = rope_backward(dq, *tables), rope_backward(dk, *tables)
    da_q, dw["self_attn.q_proj"] = linear_backward(dq.reshape(B, T, -1), a, w["self_attn.q_proj"])
    da_k, dw["self_attn.k_proj"] = linear_backward(dk.reshape(B, T, -1), a, w["self_attn.k_proj"])
    da_v, dw["self_attn.v_proj"] = linear_backward(dv.reshape(B, T, -1), a, w["self_attn.v_proj"])
    da, dw["input_layernorm"] = rms_norm_backward(da_q + da_k + da_v, x, w["input_layernorm"], shape.eps)
    return dx_mid + da, dw


# ---- the model and its loss


def forward(w: Weights, shape: Shape, ids: Array) -> tuple[Array, list[Kept], Array]:
    """``logits (B, T, V)``, what each block kept, and the residual stream that the last norm reads, ``(B, T, C)``."""
    x = embedding(ids, w["model.embed_tokens.weight"])
    tables = rope_tables(ids.shape[1], _head_channels(w, shape), shape.theta)
    kept = []
    for layer in range(shape.layers):
        x, of_block = block(x, _of_layer(w, layer), shape, tables)
        kept.append(of_block)
    hidden = rms_norm(x, w["model.norm.weight"], shape.eps)
    return linear(hidden, w["model.embed_tokens.weight"]), kept, x  # the head is the embedding ("tied")


def loss_and_gradients(w: Weights, shape: Shape, ids: Array, targets: Array) -> tuple[float, Weights]:
    """The mean loss over the trained positions, and its gradient with respect to every weight.

    ``ids`` and ``targets`` ``(B, T)``: ``targets[b, t]`` is the id that position t has to predict, or ``IGNORE``.
    """
    logits, kept, x = forward(w, shape, ids)
    flat, flat_targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    loss_sum, trained = cross_entropy(flat, flat_targets)

    dlogits = cross_entropy_backward(flat, flat_targets).reshape(logits.shape) / trained
    table, norm = w["model.embed_tokens.weight"], w["model.norm.weight"]
    gradients: Weights = {}
    dhidden, dtable_as_head = linear_backward(dlogits, rms_norm(x, norm, shape.eps), table)
    dx, gradients["model.norm.weight"] = rms_norm_backward(dhidden, x, norm, shape.eps)
    tables = rope_tables(ids.shape[1], _head_channels(w, shape), shape.theta)
    for layer in reversed(range(shape.layers)):
        dx, dw = block_backward(dx, _of_layer(w, layer), kept[layer], shape, tables)
        gradients |= {f"model.layers.{layer}.{name}.weight": d for name, d in dw.items()}
    # The table is used twice, at the bottom and at the top: its gradient is the sum of both.
    gradients["model.embed_tokens.weight"] = embedding_backward(dx, ids, table) + dtable_as_head
    return loss_sum / trained, gradients


def _of_layer(w: Weights, layer: int) -> Weights:
    """The weights of one block by their short names, such as ``mlp.up_proj``."""
    start = f"model.layers.{layer}."
    return {name.removeprefix(start).removesuffix(".weight"): v for name, v in w.items() if name.startswith(start)}


def _head_channels(w: Weights, shape: Shape) -> int:
    return len(w["model.layers.0.self_attn.q_proj.weight"]) // shape.heads


# ---- the optimizer


def clip(gradients: Weights, limit: float) -> float:
    """The norm of the whole gradient, as one long vector; above ``limit`` all of it is scaled down to that."""
    norm = math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
    for g in gradients.values():
        g *= min(1.0, limit / (norm + 1e-6))
    return norm


class AdamW:
    """The weights, and for each of them a running mean ``m`` of its gradient and ``v`` of the gradient's square.

    w = w - lr decay w;  w = w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    """

    def __init__(self, w: Weights, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, decay: float = 0.0):
        self.w, self.b1, self.b2, self.eps, self.decay, self.t = w, b1, b2, eps, decay, 0
        self.m = {name: np.zeros_like(array) for name, array in w.items()}
        self.v = {name: np.zeros_like(array) for name, array in w.items()}

    def step(self, gradients: Weights, lr: float) -> None:
        """Move every weight, in place; matrices decay, norms do not."""
        self.t += 1
        for name, g in gradients.items():
            w, m, v = self.w[name], self.m[name], self.v[name]
            m += (1 - self.b1) * (g - m)
            v += (1 - self.b2) * (g * g - v)
            if w.ndim > 1:
                w -= lr * self.decay * w
            # Both means start at 0; divided by the share of them that is gradients by now, they are not too small.
            m_hat, v_hat = m / (1 - self.b1**self.t), v / (1 - self.b2**self.t)
            w -= lr * m_hat / (np.sqrt(v_hat) + self.eps)


def train_step(optimizer: AdamW, shape: Shape, ids: Array, targets: Array, lr: float, limit: float = 1.0) -> float:
    """One training step: loss, gradient, clipping, AdamW. Returns the loss before the step."""
    loss, gradients = loss_and_gradients(optimizer.w, shape, ids, targets)
    clip(gradients, limit)
    optimizer.step(gradients, lr)
    return loss


# ---- a run


def read_model(folder: Path) -> tuple[Weights, Shape]:
    """A model of the Llama family with a tied head from its folder as published, in float64."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = {name: w.astype(np.float64) for name, w in load_file(folder / "model.safetensors").items()}
    return weights, Shape(
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        eps=config["rms_norm_eps"],
        theta=config["rope_parameters"]["rope_theta"],
    )


def next_ids(ids: list[int], trained: list[bool]) -> tuple[Array, Array]:
    """``ids (1, T)`` and ``targets (1, T)``: each position has to predict the id behind it, where that is trained."""
    targets = [after if t else IGNORE for after, t in zip(ids[1:], trained[1:], strict=True)]
    return np.array([ids[:-1]]), np.array([targets])


def main() -> None:
    """Teach the small model inside the package one answer, and print the loss of every step."""
    from minitune.chat import Message, render, template_for, terminator
    from minitune.tokenizer import load_tokenizer

    parser = argparse.ArgumentParser(prog="python -m minitune.by_hand", description=main.__doc__)
    parser.add_argument("--question", default="What is the opposite of hot?")
    parser.add_argument("--answer", default="The opposite of hot is cold.")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    folder = Path(__file__).parent / "assets" / "tiny"
    weights, shape = read_model(folder)
    tokenizer = load_tokenizer(folder)
    template, _ = template_for(tokenizer)
    turns = [Message("user", options.question), Message("assistant", options.answer)]
    row = render(turns, template, tokenizer, terminator(template, tokenizer))
    ids, targets = next_ids(row.ids, row.trained)
    print(f"{len(row.ids)} tokens, {row.trained_tokens} trained; {sum(w.size for w in weights.values()):,} weights")
    optimizer = AdamW(weights)
    for step in range(options.steps):
        print(f"step {step + 1:>3}   loss {train_step(optimizer, shape, ids, targets, options.lr):.6f}")


if __name__ == "__main__":
    main()
