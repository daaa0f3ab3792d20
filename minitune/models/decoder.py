"""A decoder in Llama form (Touvron et al., arXiv 2302.13971), top to bottom as the paper reads.

    x = embed(ids)
    for each block:   x = x + attention(norm(x));   x = x + mlp(norm(x))
    hidden = norm(x);   logits = hidden W_head^T

Families differ in what is on the way: a norm behind attention and MLP (Gemma 2, OLMo-2), norms of q and k (Qwen3,
OLMo-2), biases, windows, caps. A norm that a family does not have is ``nn.Identity``, so that the way stays one.

Shapes: B rows, T tokens, C residual channels, H query and K key/value heads of D channels, F channels in the MLP.
"""

import torch
from torch import Tensor, nn

from minitune.config import ModelConfig
from minitune.models.base import LanguageModel
from minitune.models.cache import KVCache
from minitune.models.layers import RMSNorm, Rotary
from minitune.models.linear import Linear, together
from minitune.ops import BUILTIN, AttentionPlan, Ops


class Decoder(LanguageModel):
    """The whole model: ``model(ids) -> hidden (B, T, C)``; ``model.logits(hidden) -> (B, T, V)``."""

    def __init__(self, config: ModelConfig, ops: Ops = BUILTIN, compute_dtype: torch.dtype = torch.float32):
        super().__init__(config, ops, compute_dtype)
        self.blocks = nn.ModuleList(Block(config, ops, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config, ops)
        self.rotary = Rotary(config, compute_dtype)

    def hidden(self, ids: Tensor, plan: AttentionPlan, cache: KVCache | None) -> Tensor:
        cos, sin = self.rotary(plan.positions)  # (B, T, pairs)
        x = self.embed(ids, self.compute_dtype)  # (B, T, C)
        for block in self.blocks:
            x = self.through(block, x, cos, sin, plan, cache)
        return self.norm(x)


class Block(nn.Module):
    """Attention and MLP, each on a normalised copy of the residual stream and added back to it."""

    def __init__(self, config: ModelConfig, ops: Ops, layer: int):
        super().__init__()

        def norm(there: bool) -> nn.Module:
            return RMSNorm(config.hidden_size, config, ops) if there else nn.Identity()

        self.attention_norm = norm(config.pre_norm)
        self.attention = Attention(config, ops, layer)
        self.attention_post_norm = norm(config.post_norm)
        self.mlp_norm = norm(config.pre_norm)
        self.mlp = MLP(config, ops)
        self.mlp_post_norm = norm(config.post_norm)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, plan: AttentionPlan, cache: KVCache | None) -> Tensor:
        y = self.attention(self.attention_norm(x), cos, sin, plan, cache)
        x = x + self.attention_post_norm(y)  # (B, T, C), RES-2
        y = self.mlp(self.mlp_norm(x))
        return x + self.mlp_post_norm(y)  # RES-3


class Attention(nn.Module):
    """Causal self-attention with rotary positions and H / K query heads to each key/value head."""

    same_input = (("q_proj", "k_proj", "v_proj"),)

    def __init__(self, config: ModelConfig, ops: Ops, layer: int):
        super().__init__()
        self.config, self.ops, self.layer = config, ops, layer
        C, H, K, D = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        self.q_proj = Linear(C, H * D, bias=config.qkv_bias)
        self.k_proj = Linear(C, K * D, bias=config.qkv_bias)
        self.v_proj = Linear(C, K * D, bias=config.qkv_bias)
        self.o_proj = Linear(H * D, C, bias=config.o_bias)
        by_head = config.qk_norm == "head"
        self.q_norm = nn.Identity() if config.qk_norm == "none" else RMSNorm(D if by_head else H * D, config, ops)
        self.k_norm = nn.Identity() if config.qk_norm == "none" else RMSNorm(D if by_head else K * D, config, ops)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, plan: AttentionPlan, cache: KVCache | None) -> Tensor:
        config = self.config
        q, k, v = together(x, self.q_proj, self.k_proj, self.v_proj)  # (B, T, H*D), twice (B, T, K*D)
        if config.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.unflatten(-1, (-1, config.head_dim)) for t in (q, k, v))  # (B, T, H, D), twice (B, T, K, D)
        if isinstance(self.q_norm, RMSNorm) and isinstance(self.k_norm, RMSNorm) and config.qk_norm == "head":
            weights = self.q_norm.weight, self.k_norm.weight
            q, k = self.ops.qk_norm_rope(q, k, *weights, cos, sin, **self.q_norm.options)
        else:
            q, k = self.ops.rope(q, k, cos, sin)
        if cache is not None:
            k, v, plan = cache.update(self.layer, k, v, plan)  # (B, S, K, D)
        y = self.ops.attention(
            q,
            k,
            v,
            plan=plan,
            scale=config.attention_scale,
            window=config.window(self.layer),
            softcap=config.attention_softcap,
        )  # (B, T, H, D)
        return self.o_proj(y.flatten(-2))  # (B, T, C)


class MLP(nn.Module):
    """A gated MLP (Shazeer, arXiv 2002.05202): ``down(act(gate(x)) * up(x))``."""

    same_input = (("gate_proj", "up_proj"),)

    def __init__(self, config: ModelConfig, ops: Ops):
        super().__init__()
        self.ops, self.kind = ops, config.activation
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = together(x, self.gate_proj, self.up_proj)  # (B, T, F), twice
        return self.down_proj(self.ops.glu(gate, up, kind=self.kind))
