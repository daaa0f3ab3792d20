"""How many bytes a training step needs, term by term, before it is taken.

The terms are the formulas of docs/math/16-costs.md (bytes): weights, gradients and moments, what
the blocks keep for their backward, and the loss. Head and loss are one operation here, which holds a chunk of logits at
a time and not all of them. What a GPU's own kernels keep is less: the gate its two halves only.
"""

from dataclasses import dataclass

import torch

from minitune.models import LanguageModel
from minitune.ops.costs import activation_numbers

LOSS_CHUNK = 2048
"""Rows of logits that the loss holds at a time, at most."""


@dataclass(frozen=True)
class Term:
    """One part of the memory of a step."""

    name: str
    bytes: int
    why: str


def memory_plan(model: LanguageModel, *, tokens: int, trained_tokens: int | None = None) -> list[Term]:
    """The terms of one training step of ``tokens`` tokens at a time, of which ``trained_tokens`` have a target."""
    config, width = model.config, model.compute_dtype.itemsize
    weights = list(model.parameters())
    trained = sum(w.numel() for w in weights if w.requires_grad)
    kept = sum(w.numel() * w.element_size() for w in weights if w.requires_grad)
    frozen = sum(w.numel() * w.element_size() for w in weights if not w.requires_grad)
    copies = trained * width if any(w.requires_grad and w.dtype != model.compute_dtype for w in weights) else 0
    rows = min(tokens if trained_tokens is None else trained_tokens, LOSS_CHUNK)
    activations = activation_numbers(config, tokens=tokens, trained=0, checkpointing=model.checkpointing)
    how = "one block at a time (checkpointing)" if model.checkpointing else f"{config.num_layers} blocks"
    terms = [
        Term("frozen weights", frozen, "read in every product, never changed"),
        Term("trained weights", kept, "kept in float32"),
        Term("gradients", kept, "one for each trained weight"),
        Term("AdamW's moments", 2 * trained * 4, "two for each trained weight"),
        Term("rounded copies", copies, "of trained weights, in the compute type"),
        Term("inside blocks", activations * width, f"{tokens:,} tokens, {how}"),
        Term("loss", 2 * rows * config.vocab_size * 4, f"logits of {rows:,} rows and their gradient, in float32"),
    ]
    return [term for term in terms if term.bytes]


def total(terms: list[Term]) -> int:
    """Bytes of all terms."""
    return sum(term.bytes for term in terms)


def inference_bytes(model: LanguageModel, dtype: torch.dtype) -> int:
    """Bytes of the weights and of a full cache for one row, in ``dtype``."""
    config = model.config
    cache = 2 * config.num_layers * config.max_positions * config.num_kv_heads * config.head_dim
    return (sum(w.numel() for w in model.parameters()) + cache) * dtype.itemsize
