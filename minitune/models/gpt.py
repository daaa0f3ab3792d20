"""A decoder in GPT form: GPT-2 (Radford et al., 2019) and GPT-NeoX (Black et al., arXiv 2204.06745).

    x = embed(ids) + positions                                  (GPT-2; GPT-NeoX rotates a part of each head instead)
    for each block:   x = x + attention(norm(x));   x = x + mlp(norm(x))
    or, in parallel:  x = x + attention(norm1(x)) + mlp(norm2(x))
    hidden = norm(x);   logits = hidden W_head^T

Norms are LayerNorms with a bias, q, k and v come from one product, and the MLP has no gate.

Shapes: B rows, T tokens, C = H * D residual channels, H heads of D channels, F channels in the MLP.
"""

import torch
from torch import Tensor, nn

from minitune.config import ModelConfig
from minitune.models.base import LanguageModel
from minitune.models.cache import KVCache
from minitune.models.layers import Embedding, LayerNorm, Rotary
from minitune.models.linear import Linear
from minitune.ops import BUILTIN, AttentionPlan, Ops

Rotation = tuple[Tensor, Tensor] | None
"""``cos, sin``, or nothing where positions are learned."""


class GPT(LanguageModel):
    """The whole model: ``model(ids) -> hidden (B, T, C)``; ``model.logits(hidden) -> (B, T, V)``."""

    def __init__(self, config: ModelConfig, ops: Ops = BUILTIN, compute_dtype: torch.dtype = torch.float32):
        super().__init__(config, ops, compute_dtype)
        learned = config.learned_positions
        self.positions = Embedding(config.max_positions, config.hidden_size) if learned else None
        self.rotary = None if learned else Rotary(config, compute_dtype)
        self.blocks = nn.ModuleList(Block(config, ops, layer) for layer in range(config.num_layers))
        self.norm = LayerNorm(config.hidden_size, config, ops)

    def hidden(self, ids: Tensor, plan: AttentionPlan, cache: KVCache | None) -> Tensor:
        x = self.embed(ids, self.compute_dtype)  # (B, T, C)
        if self.positions is not None:
            x = x + self.positions(plan.positions, self.compute_dtype)  # EMB-2
        rotation = None if self.rotary is None else self.rotary(plan.positions)  # (B, T, pairs), twice
        for block in self.blocks:
            x = self.through(block, x, rotation, plan, cache)
        return self.norm(x)


class Block(nn.Module):
    """Attention and MLP, one after the other or side by side."""

    def __init__(self, config: ModelConfig, ops: Ops, layer: int):
        super().__init__()
        self.parallel = config.parallel_residual
        self.attention_norm = LayerNorm(config.hidden_size, config, ops)
        self.attention = Attention(config, ops, layer)
        self.mlp_norm = LayerNorm(config.hidden_size, config, ops)
        self.mlp = MLP(config, ops)

    def forward(self, x: Tensor, rotation: Rotation, plan: AttentionPlan, cache: KVCache | None) -> Tensor:
        y = self.attention(self.attention_norm(x), rotation, plan, cache)  # (B, T, C)
        if self.parallel:
            return x + y + self.mlp(self.mlp_norm(x))  # RES-4
        x = x + y
        return x + self.mlp(self.mlp_norm(x))


class Attention(nn.Module):
    """Causal self-attention with all of q, k and v from one product."""

    def __init__(self, config: ModelConfig, ops: Ops, layer: int):
        super().__init__()
        self.config, self.ops, self.layer = config, ops, layer
        self.qkv_proj = Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.o_proj = Linear(config.hidden_size, config.hidden_size, bias=config.o_bias)

    def forward(self, x: Tensor, rotation: Rotation, plan: AttentionPlan, cache: KVCache | None) -> Tensor:
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.config.num_heads, -1)).unbind(-3)  # (B, T, H, D) each
        if rotation is not None:
            q, k = self.ops.rope(q, k, *rotation)
        if cache is not None:
            k, v, plan = cache.update(self.layer, k, v, plan)  # (B, S, H, D)
        y = self.ops.attention(q, k, v, plan=plan)  # (B, T, H, D)
        return self.o_proj(y.flatten(-2))  # (B, T, C)


class MLP(nn.Module):
    """``down(act(up(x)))``."""

    def __init__(self, config: ModelConfig, ops: Ops):
        super().__init__()
        self.ops, self.kind = ops, config.activation
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.ops.activation(self.up_proj(x), kind=self.kind))  # (B, T, F) -> (B, T, C)
