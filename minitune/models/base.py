"""What every decoder of the house is, whatever its blocks are made of."""

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minitune.config import ModelConfig
from minitune.models.cache import KVCache
from minitune.models.layers import Embedding, Head, LayerNorm, RMSNorm
from minitune.models.vocabulary import longer
from minitune.ops import AttentionPlan, Ops, rows_plan


class LanguageModel(nn.Module, ABC):
    """A decoder: ``model(ids) -> hidden (B, T, C)``; ``model.logits(hidden) -> (B, T, V)``.

    A form of decoder (models/decoder.py, models/gpt.py) brings its blocks and ``hidden``; the embedding, the head and
    the loss stand here. An encoder-decoder will be another form, with an encoder's output beside ``ids``.
    """

    blocks: nn.ModuleList
    norm: RMSNorm | LayerNorm

    def __init__(self, config: ModelConfig, ops: Ops, compute_dtype: torch.dtype):
        super().__init__()
        self.config, self.ops, self.compute_dtype = config, ops, compute_dtype
        self.stop_ids: tuple[int, ...] = ()  # ids that end a generation, as the model's folder says
        self.checkpointing = False
        """Keep only the input of each block for the backward, and compute the block again there (arXiv 1604.06174)."""
        self.embed = Embedding(config.vocab_size, config.hidden_size, config.embed_scale)
        self.head = Head(config.hidden_size, config.vocab_size)
        self.tie()

    def forward(self, ids: Tensor, *, plan: AttentionPlan | None = None, cache: KVCache | None = None) -> Tensor:
        """Hidden states ``(B, T, C)`` of ``ids (B, T)``.

        Without a plan each row is one document from position 0, or goes on behind what the cache holds. The caller
        advances the cache.
        """
        if plan is None:
            B, T = ids.shape
            plan = rows_plan(B, T, ids.device) if cache is None else cache.plan(T)
        return self.hidden(ids, plan, cache)

    def through(self, block: nn.Module, x: Tensor, *others: Any) -> Tensor:
        """``block(x, *others)``; with ``checkpointing`` nothing inside it is kept for the backward."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, *others, use_reentrant=False)
        return block(x, *others)

    @abstractmethod
    def hidden(self, ids: Tensor, plan: AttentionPlan, cache: KVCache | None) -> Tensor:
        """The form's own way from ``ids (B, T)`` to ``(B, T, C)``."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token ``(..., V)`` for ``hidden (..., C)``, capped where the model caps them."""
        z = self.head(hidden)  # HEAD-1
        cap = self.config.logit_softcap
        return z if cap is None else cap * torch.tanh(z / cap)

    def loss(
        self, hidden: Tensor, targets: Tensor, *, token_weight: Tensor | None = None, smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """``(loss_sum, denominator)`` of ``hidden (B, T, C)`` against ``targets (B, T)``, without ``(N, V)`` logits.

        ``smoothing``: the share of each target's probability that is spread over all V ids.
        """
        return self.head.loss(
            self.ops,
            hidden.flatten(0, -2),
            targets.flatten(),
            token_weight=None if token_weight is None else token_weight.flatten(),
            smoothing=smoothing,
            softcap=self.config.logit_softcap,
        )

    def tie(self) -> None:
        """Make the head the embedding where the configuration says so (again, after weights were replaced)."""
        if self.config.tie_embeddings:
            self.head.weight = self.embed.weight  # HEAD-2, HEAD-5

    def resize(self, vocab_size: int) -> None:
        """Give embedding and head rows for ids up to ``vocab_size``, which must not be fewer than there are.

        ``longer`` says what is in them. Before adapters are put on, and before an optimizer takes the parameters.
        """
        assert vocab_size >= self.config.vocab_size
        assert self.head.bias is None, "no family has one"
        self.embed.weight = nn.Parameter(longer(self.embed.weight, vocab_size), self.embed.weight.requires_grad)
        if not self.config.tie_embeddings:
            self.head.weight = nn.Parameter(longer(self.head.weight, vocab_size), self.head.weight.requires_grad)
        self.head.out_features = vocab_size
        self.config = dataclasses.replace(self.config, vocab_size=vocab_size)
        self.tie()

    @torch.no_grad()
    def initialize(self, seed: int, std: float = 0.02, *, mimetic: bool = False) -> None:
        """Fill with fresh weights: normal(0, std), with the two projections that end in the residual stream scaled
        by 1 / sqrt(2 L), so that its variance does not grow with depth (Radford et al., GPT-2, section 2.3); norms 1,
        biases 0. The same on every device.

        ``mimetic``: every query head starts as its key head, entries normal(0, 1 / sqrt(C)), so that W_q^T W_k is a
        multiple of the identity on average and like attends to like, as in trained models (after Trockman & Kolter,
        arXiv 2305.09828, who also set values and output: ``docs/decisions.md``).
        """
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0 - self.config.norm_offset)
                continue
            scale = 1.0 / math.sqrt(2 * self.config.num_layers) if "o_proj" in name or "down_proj" in name else 1.0
            weight.copy_(torch.randn(weight.shape, generator=generator) * (std * scale))  # EMB-3, RES-5
        if mimetic:
            weights = dict(self.named_parameters())
            for name in [name for name in weights if name.endswith("q_proj.weight")]:
                query, key = weights[name], weights[name.replace("q_proj", "k_proj")]
                key.div_(std * math.sqrt(key.shape[1]))
                heads = key.view(self.config.num_kv_heads, -1, key.shape[1])
                group = self.config.num_heads // self.config.num_kv_heads
                query.copy_(heads.repeat_interleave(group, dim=0).view_as(query))
