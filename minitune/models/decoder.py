"""A decoder in Llama form (Touvron et al., arXiv 2302.13971), top to bottom as the paper reads.

    x = embed(ids)
    for each block:   x = x + attention(norm(x));   x = x + mlp(norm(x))
    hidden = norm(x);   logits = hidden W_head^T

Shapes: B rows, T tokens, C residual channels, H query and K key/value heads of D channels, F channels in the MLP.
"""

import math

import torch
from torch import Tensor, nn

from minitune.config import ModelConfig
from minitune.models.cache import KVCache
from minitune.models.layers import Embedding, RMSNorm
from minitune.models.linear import Linear
from minitune.ops import BUILTIN, AttentionPlan, Ops, rope_frequencies, rope_tables, rows_plan


class Decoder(nn.Module):
    """The whole model: ``model(ids) -> hidden (B, T, C)``; ``model.logits(hidden) -> (B, T, V)``."""

    def __init__(self, config: ModelConfig, ops: Ops = BUILTIN, compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config, self.ops, self.compute_dtype = config, ops, compute_dtype
        self.stop_ids: tuple[int, ...] = ()  # ids that end a generation, as the model's folder says
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, ops, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, ops)
        self.head = Linear(config.hidden_size, config.vocab_size)
        self.tie()
        # Not a buffer: it is not a weight, and must stay real and in float64 whatever becomes of the weights.
        self.inv_freq = rope_frequencies(config.head_dim, config.rope_theta, device="cpu")

    def forward(self, ids: Tensor, *, plan: AttentionPlan | None = None, cache: KVCache | None = None) -> Tensor:
        """Hidden states ``(B, T, C)`` of ``ids (B, T)``.

        Without a plan each row is one document from position 0, or goes on behind what the cache holds. The caller
        advances the cache.
        """
        B, T = ids.shape
        if plan is None:
            plan = rows_plan(B, T, ids.device) if cache is None else cache.plan(T)
        cos, sin = rope_tables(plan.positions, self.inv_freq, self.compute_dtype)  # (B, T, D/2)
        x = self.embed(ids, self.compute_dtype)  # (B, T, C)
        for block in self.blocks:
            x = block(x, cos, sin, plan, cache)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token ``(..., V)`` for ``hidden (..., C)``."""
        return self.head(hidden)

    def loss(self, hidden: Tensor, targets: Tensor, *, token_weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(loss_sum, denominator)`` of ``hidden (B, T, C)`` against ``targets (B, T)``, without ``(N, V)`` logits."""
        weight = None if token_weight is None else token_weight.flatten()
        return self.ops.linear_cross_entropy(
            hidden.flatten(0, -2),
            self.head.dequantize(),
            targets.flatten(),
            bias=self.head.bias,
            token_weight=weight,
        )

    def tie(self) -> None:
        """Make the head the embedding where the configuration says so (again, after weights were replaced)."""
        if self.config.tie_embeddings:
            self.head.weight = self.embed.weight

    @torch.no_grad()
    def initialize(self, seed: int, std: float = 0.02) -> None:
        """Fill with fresh weights: normal(0, std), with the two projections that end in the residual stream scaled
        by 1 / sqrt(2 L), so that its variance does not grow with depth (Radford et al., GPT-2, section 2.3); norms 1,
        biases 0. The same on every device."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            scale = 1.0 / math.sqrt(2 * self.config.num_layers) if "o_proj" in name or "down_proj" in name else 1.0
            weight.copy_(torch.randn(weight.shape, generator=generator) * (std * scale))


class Block(nn.Module):
    """Attention and MLP, each on a normalised copy of the residual stream and added back to it."""

    def __init__(self, config: ModelConfig, ops: Ops, layer: int):
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps, ops)
        self.attention = Attention(config, ops, layer)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps, ops)
        self.mlp = MLP(config, ops)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, plan: AttentionPlan, cache: KVCache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, plan, cache)  # (B, T, C)
        return x + self.mlp(self.mlp_norm(x))


class Attention(nn.Module):
    """Causal self-attention with rotary positions and H / K query heads to each key/value head."""

    def __init__(self, config: ModelConfig, ops: Ops, layer: int):
        super().__init__()
        self.ops, self.layer, self.head_dim = ops, layer, config.head_dim
        C, H, K, D = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        self.q_proj = Linear(C, H * D, bias=config.attention_bias)
        self.k_proj = Linear(C, K * D, bias=config.attention_bias)
        self.v_proj = Linear(C, K * D, bias=config.attention_bias)
        self.o_proj = Linear(H * D, C, bias=config.attention_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, plan: AttentionPlan, cache: KVCache | None) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, H, D)
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, K, D)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, K, D)
        q, k = self.ops.rope(q, k, cos, sin)
        if cache is not None:
            k, v = cache.update(self.layer, k, v, plan)  # (B, S, K, D)
        y = self.ops.attention(q, k, v, plan=plan)  # (B, T, H, D)
        return self.o_proj(y.flatten(-2))  # (B, T, C)


class MLP(nn.Module):
    """SwiGLU (Shazeer, arXiv 2002.05202): ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: ModelConfig, ops: Ops):
        super().__init__()
        self.ops = ops
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ops.glu(self.gate_proj(x), self.up_proj(x), kind="silu")  # (B, T, F)
        return self.down_proj(y)
