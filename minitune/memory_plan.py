"""How many bytes a training step needs, term by term, before it is taken.

With P parameters, of which P_t are trained (in float32), b bytes a number of the compute type, N tokens at a time, and
the letters of docs/conventions.md, what a step holds at once is

    frozen weights    b (P - P_t)                       trained weights   4 P_t
    gradients         4 P_t                             AdamW's moments   8 P_t
    residual stream   L N C b                           inside blocks     L N I b, of one block with checkpointing
    loss              2 chunk V 4

I counts the channels that one block keeps for its backward: two normalised copies of the residual stream, q, k, v and
the result of attention, gate, up and what stands between them and the down projection. Layers with LoRA keep R channels
more. On a CPU, attention without a fused kernel keeps H N S numbers a layer besides; torch's own does not.
"""

from dataclasses import dataclass

import torch

from minitune.config import ModelConfig
from minitune.models import LanguageModel

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
    blocks = 1 if model.checkpointing else config.num_layers
    rows = min(tokens if trained_tokens is None else trained_tokens, LOSS_CHUNK)
    terms = [
        Term("frozen weights", frozen, "read in every product, never changed"),
        Term("trained weights", kept, "kept in float32"),
        Term("gradients", kept, "one for each trained weight"),
        Term("AdamW's moments", 2 * trained * 4, "two for each trained weight"),
        Term("rounded copies", copies, "of trained weights, in the compute type"),
        Term("residual stream", config.num_layers * tokens * config.hidden_size * width, f"{tokens:,} tokens a layer"),
        Term(
            "inside blocks",
            blocks * tokens * block_channels(config) * width,
            "of one block at a time (checkpointing)" if model.checkpointing else f"{config.num_layers} blocks",
        ),
        Term("loss", 2 * rows * config.vocab_size * 4, f"logits of {rows:,} rows and their gradient, in float32"),
    ]
    return [term for term in terms if term.bytes]


def block_channels(config: ModelConfig) -> int:
    """I: channels that one block keeps for its backward."""
    C, F, D = config.hidden_size, config.intermediate_size, config.head_dim
    H, K = config.num_heads, config.num_kv_heads
    norms = 2 * C * (config.pre_norm + config.post_norm) + C  # before and behind a norm, the sum between
    attention = 2 * (H + K) * D + K * D + H * D  # q and k before and behind the rotation, v, the result
    return norms + attention + 3 * F


def total(terms: list[Term]) -> int:
    """Bytes of all terms."""
    return sum(term.bytes for term in terms)


def inference_bytes(model: LanguageModel, dtype: torch.dtype) -> int:
    """Bytes of the weights and of a full cache for one row, in ``dtype``."""
    config = model.config
    cache = 2 * config.num_layers * config.max_positions * config.num_kv_heads * config.head_dim
    return (sum(w.numel() for w in model.parameters()) + cache) * dtype.itemsize
