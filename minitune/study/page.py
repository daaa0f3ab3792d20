"""A trace as one HTML file: the numbers as JSON inside a page that draws them, with no other file and no network."""

import json
from html import escape
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from minitune.study.trace import Trace, by_layer, texts_of

MARK = "<!doctype html><!-- minitune study trace -->"
"""How a page starts, by which one is known."""
UNIT = 10_000
"""Attention probabilities are whole numbers of 1 / UNIT, which is shorter to write."""


def page(found: Trace) -> str:
    """The whole page as text."""
    template = files("minitune.study").joinpath("trace.html").read_text(encoding="utf-8")
    # In a script element only "<" could end it; JSON may write it as a number.
    data = json.dumps(document(found), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    title = "".join(token.text for token in found.tokens)[:80]
    text = MARK + template.replace("{{title}}", escape(title)).replace("{{data}}", data)
    return text.encode("utf-8", "replace").decode()


def document(found: Trace) -> dict[str, Any]:
    """Every number of the page.

    ``attention[layer][head]`` holds the rows of the pattern one behind the other, row t its t + 1 probabilities up to
    the query's own place, in units of 1 / UNIT. ``loss``, ``p`` and ``next_p`` stand at the token that they are about.
    """
    config = found.model.config
    kinds, layers, outside = by_layer(found.gradients, config.num_layers)
    T = len(found.tokens)
    lower = torch.tril_indices(T, T)
    packed = (found.patterns[:, :, lower[0], lower[1]] * UNIT).round().int()  # (L, H, T (T + 1) / 2)
    loss = [None, *numbers(found.loss)]
    return {
        "unit": UNIT,
        "family": config.family,
        "parameters": sum(w.numel() for w in found.model.parameters()),
        "shape": {
            "L": config.num_layers,
            "H": config.num_heads,
            "K": config.num_kv_heads,
            "D": config.head_dim,
            "C": config.hidden_size,
            "F": config.intermediate_size,
            "V": config.vocab_size,
        },
        "template": found.template,
        "mean_loss": number(found.mean_loss),
        "tokens": [
            {
                "id": t.id,
                "text": t.text,
                "role": t.role,
                "part": t.part,
                "trained": t.trained,
                "why": t.rule,
                "loss": nll,
            }
            for t, nll in zip(found.tokens, loss, strict=True)
        ],
        "stream": numbers(found.stream),
        "attention_writes": numbers(found.attention_writes),
        "mlp_writes": numbers(found.mlp_writes),
        "attention": packed.tolist(),
        "texts": texts_of(found.lens_ids.flatten().tolist(), found.tokenizer),
        "lens": {"ids": found.lens_ids.tolist(), "p": numbers(found.lens_p)},
        "next_p": [[None, *row] for row in numbers(found.next_p)],
        "gradients": {
            "kinds": kinds,
            "layers": [[None if norm is None else number(norm) for norm in row] for row in layers],
            "outside": {name: number(norm) for name, norm in outside.items()},
        },
    }


def numbers(tensor: Tensor) -> list[Any]:
    """Nested lists of numbers with five digits."""
    rows = tensor.tolist()

    def short(value: Any) -> Any:
        return [short(v) for v in value] if isinstance(value, list) else number(value)

    return short(rows)


def number(value: float) -> float:
    """The value with five digits, which is more than a screen shows."""
    return float(f"{value:.5g}")
