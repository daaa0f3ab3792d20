"""The published families as data: what each one's ``config.json`` and weights are called, and what it always has.

A family is one ``Family``: no code of the models knows its name. Facts are those of the families' own modelling code in
Transformers 5.23, confirmed against it on random configurations (``python -m bench.parity``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Layout = Literal["plain", "transposed", "by_head"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One published family, as data."""

    model_type: str
    architecture: str
    """The name in ``architectures``."""
    form: Literal["llama", "gpt"]
    keys: Mapping[str, str | tuple[str, ...]]
    """Key of config.json -> our field, or fields, that take its value as it is."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the family's own class assumes where a key is missing."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Our fields that have one value in the whole family."""
    activation: str = "hidden_act"
    """The key that names the activation."""
    windows: Literal["none", "all", "alternate", "upper"] = "none"
    """Which layers have the sliding window where ``layer_types`` does not say it: all, those of even index, or those
    from ``max_window_layers`` on and only under ``use_sliding_window``."""
    scales_embedding: bool = False
    """The embedding is multiplied by sqrt(C)."""
    harmless: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys that would change the mathematics, and the values at which they do not."""
    silent: frozenset[str] = frozenset()
    """Further keys that say nothing about the mathematics."""
    outer: Mapping[str, str]
    """Our module -> published module, outside the blocks."""
    block_prefix: str
    """Published name of a block; %d is the layer."""
    block: Mapping[str, str]
    """Our module -> published module, inside a block."""
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """Modules whose weight is stored otherwise: ``transposed`` (in, out), or ``by_head``, q, k and v of each head
    together where ours has all of q, then k, then v."""
    body_prefix: str
    """What a file that holds the body without the head leaves out of its names."""
    recomputed: tuple[str, ...] = (".rotary_emb.inv_freq",)
    """Endings of stored buffers that follow from the configuration."""
    float16: bool = True
    """Whether float16 is known to be wide enough; otherwise activations are known to overflow it."""


_COMMON = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps",
    "max_position_embeddings": "max_positions",
    "tie_word_embeddings": "tie_embeddings",
}
_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}
_QK_NORM = {"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"}

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    form="llama",
    keys=_COMMON | {"attention_bias": ("qkv_bias", "o_bias"), "mlp_bias": "mlp_bias"},
    defaults={"rms_norm_eps": 1e-6, "hidden_act": "silu"},
    # Keys that some files of the family carry without meaning anything at these values.
    harmless={"sliding_window": (None,), "use_sliding_window": (False,), "rope_interleaved": (False,)},
    outer={"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"},
    block_prefix="model.layers.%d.",
    block=_BLOCK,
    body_prefix="model.",
)
MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    architecture="MistralForCausalLM",
    keys=_COMMON,
    defaults={
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "num_key_value_heads": 8, "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    windows="all",
    harmless={},
)  # fmt: skip
QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    keys=_COMMON,
    defaults={
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "num_key_value_heads": 32, "max_position_embeddings": 32768,
        "sliding_window": 4096, "max_window_layers": 28,
    },
    fixed={"qkv_bias": True},
    windows="upper",
    harmless={},
    float16=False,
)  # fmt: skip
QWEN3 = replace(
    QWEN2,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    keys=LLAMA.keys,
    defaults={**QWEN2.defaults, "head_dim": 128},
    fixed={"qk_norm": "head"},
    block=_BLOCK | _QK_NORM,
)
GEMMA2 = replace(
    LLAMA,
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    keys=_COMMON | {
        "attention_bias": ("qkv_bias", "o_bias"), "attn_logit_softcapping": "attention_softcap",
        "final_logit_softcapping": "logit_softcap",
    },
    defaults={
        "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 8192, "tie_word_embeddings": True, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    },
    fixed={"norm_offset": 1.0, "norm_scale_in_fp32": True, "post_norm": True},
    activation="hidden_activation",
    windows="alternate",
    scales_embedding=True,
    harmless={"use_bidirectional_attention": (None, False)},
    silent=frozenset({"hidden_act", "cache_implementation"}),
    block=_BLOCK | {
        "attention_post_norm": "post_attention_layernorm", "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
    float16=False,
)  # fmt: skip
OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    keys=_COMMON | {"attention_bias": ("qkv_bias", "o_bias")},
    defaults={"rms_norm_eps": 1e-5, "hidden_act": "silu"},
    fixed={"norm_scale_in_fp32": True, "pre_norm": False, "post_norm": True, "qk_norm": "all"},
    harmless={},
    block={ours: theirs for ours, theirs in _BLOCK.items() if "norm" not in ours}
    | _QK_NORM
    | {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"},
)
GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    form="gpt",
    keys={
        "vocab_size": "vocab_size", "n_embd": "hidden_size", "n_inner": "intermediate_size", "n_layer": "num_layers",
        "n_head": "num_heads", "n_positions": "max_positions", "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "n_positions": 1024, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
        "activation_function": "gelu_new",
    },
    fixed={"learned_positions": True, "qkv_bias": True, "o_bias": True, "mlp_bias": True},
    activation="activation_function",
    harmless={
        "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
    },
    silent=frozenset({
        "attn_pdrop", "embd_pdrop", "n_ctx", "n_special", "predict_special_tokens", "reorder_and_upcast_attn",
        "resid_pdrop", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
        "summary_use_proj",
    }),
    outer={"embed": "transformer.wte", "positions": "transformer.wpe", "norm": "transformer.ln_f", "head": "lm_head"},
    block_prefix="transformer.h.%d.",
    block={
        "attention_norm": "ln_1", "attention.qkv_proj": "attn.c_attn", "attention.o_proj": "attn.c_proj",
        "mlp_norm": "ln_2", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj",
    },
    layouts=dict.fromkeys(("attention.qkv_proj", "attention.o_proj", "mlp.up_proj", "mlp.down_proj"), "transposed"),
    body_prefix="transformer.",
    recomputed=(".attn.bias", ".attn.masked_bias"),
)  # fmt: skip
GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    form="gpt",
    keys={
        "vocab_size": "vocab_size", "hidden_size": "hidden_size", "intermediate_size": "intermediate_size",
        "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads",
        "max_position_embeddings": "max_positions", "layer_norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_embeddings", "attention_bias": ("qkv_bias", "o_bias"),
        "use_parallel_residual": "parallel_residual",
    },
    defaults={
        "layer_norm_eps": 1e-5, "hidden_act": "gelu", "attention_bias": True, "use_parallel_residual": True,
        "partial_rotary_factor": 0.25,
    },
    fixed={"mlp_bias": True},
    silent=frozenset({"classifier_dropout", "hidden_dropout"}),
    outer={
        "embed": "gpt_neox.embed_in", "norm": "gpt_neox.final_layer_norm", "head": "embed_out",
    },
    block_prefix="gpt_neox.layers.%d.",
    block={
        "attention_norm": "input_layernorm", "attention.qkv_proj": "attention.query_key_value",
        "attention.o_proj": "attention.dense", "mlp_norm": "post_attention_layernorm",
        "mlp.up_proj": "mlp.dense_h_to_4h", "mlp.down_proj": "mlp.dense_4h_to_h",
    },
    layouts={"attention.qkv_proj": "by_head"},
    body_prefix="gpt_neox.",
    recomputed=(".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"),
)  # fmt: skip

FAMILIES = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, OLMO2, GPT2, GPT_NEOX)}
