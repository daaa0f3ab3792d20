"""The published families as data: their ``config.json`` and weight names, there and back.

A configuration is taken over only when every key in it is understood: a key that changes the mathematics and is not
built is refused by name, and a key that nobody knows is refused as well, since guessing gives a wrong model in silence.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from minitune.config import ModelConfig
from minitune.errors import CheckpointError, ConfigError, nearest

# Keys that say nothing about the mathematics of a trained decoder in inference or fine-tuning.
_SILENT = frozenset({
    "_attn_implementation", "_name_or_path", "_from_model_config", "architectures", "attention_dropout",
    "bos_token_id", "dtype", "eos_token_id", "initializer_range", "is_llama_config", "model_type", "output_attentions",
    "output_hidden_states", "pad_token_id", "pretraining_tp", "return_dict", "torch_dtype", "transformers.js_config",
    "transformers_version", "use_cache",
})  # fmt: skip
# Keys that would change the mathematics; harmless only at these values.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "rope_scaling": (None,),
    "quantization_config": (None,),
    "sliding_window": (None,),
    "use_sliding_window": (False,),
    "is_encoder_decoder": (False,),
    "rope_interleaved": (False,),
}
_LLAMA_KEYS = {
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
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
}
_LLAMA_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
# Published name of each module; %d is the layer.
_LLAMA_OUTER = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_LLAMA_BLOCK = {
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


def model_config(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Our configuration from a parsed ``config.json``, in either dialect (``rope_theta`` or ``rope_parameters``).

    ``where`` names the file in messages. Raises CheckpointError for a family, an option or a key that is not
    supported, and for a value that is missing or out of range.
    """
    kind = raw.get("model_type")
    if kind != "llama":
        raise CheckpointError(f"{where}: model_type is {kind!r}; this version loads 'llama'")
    known = set(_LLAMA_KEYS) | set(_HARMLESS) | _SILENT | {"rope_theta", "rope_parameters"}
    for key, value in raw.items():
        if key not in known:
            raise CheckpointError(f"{where}: unknown key {key!r}{nearest(key, known)}; it may change the mathematics")
        if key in _HARMLESS and value not in _HARMLESS[key]:
            allowed = " or ".join(repr(v) for v in _HARMLESS[key])
            raise CheckpointError(f"{where}: {key} is {value!r}, which is not supported; supported is {allowed}")
    values = _LLAMA_DEFAULTS | {k: v for k, v in raw.items() if k in _LLAMA_KEYS and v is not None}
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if key not in values:
            raise CheckpointError(f"{where}: {key!r} is missing")
    try:
        values.setdefault("num_key_value_heads", values["num_attention_heads"])
        values.setdefault("head_dim", values["hidden_size"] // values["num_attention_heads"])
        ours = {_LLAMA_KEYS[key]: value for key, value in values.items()}
        return ModelConfig(**ours, rope_theta=_rope_theta(raw, where))
    except (ConfigError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{where}: {error}") from None


def raw_config(config: ModelConfig) -> dict[str, Any]:
    """A ``config.json`` for ``config`` that ``model_config`` and the reference library read back."""
    raw: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    raw |= {theirs: getattr(config, ours) for theirs, ours in _LLAMA_KEYS.items()}
    # The older dialect, which every release of the reference reads.
    return raw | {"rope_theta": config.rope_theta, "rope_scaling": None}


def module_names(config: ModelConfig) -> dict[str, str]:
    """Published name of every module of the decoder, by our name, in the order of the data."""
    names = {"embed": _LLAMA_OUTER["embed"]}
    for layer in range(config.num_layers):
        for ours, theirs in _LLAMA_BLOCK.items():
            names[f"blocks.{layer}.{ours}"] = f"model.layers.{layer}.{theirs}"
    return names | {"norm": _LLAMA_OUTER["norm"], "head": _LLAMA_OUTER["head"]}


def weight_names(config: ModelConfig, ours: Iterator[str] | list[str]) -> dict[str, str]:
    """Published name of each of our parameters: ``blocks.0.attention.q_proj.weight`` -> ``model.layers.0.self_...``."""
    modules = module_names(config)
    names = {}
    for name in ours:
        module, _, leaf = name.rpartition(".")
        names[name] = f"{modules[module]}.{leaf}"
    return names


def _rope_theta(raw: Mapping[str, Any], where: str) -> float:
    """Base frequency in either dialect; any other kind of rotary scaling is refused by name."""
    nested = raw.get("rope_parameters")
    if nested is None:
        return float(raw.get("rope_theta") or 10000.0)
    if not isinstance(nested, Mapping):
        raise CheckpointError(f"{where}: rope_parameters is {nested!r}; it must be an object")
    kind = nested.get("rope_type", "default")
    unknown = set(nested) - {"rope_type", "rope_theta"}
    if kind != "default" or unknown:
        what = f"rope_type {kind!r}" if kind != "default" else f"rope_parameters key {min(unknown)!r}"
        raise CheckpointError(f"{where}: {what} is not supported; this version has 'default'")
    return float(nested.get("rope_theta") or raw.get("rope_theta") or 10000.0)
