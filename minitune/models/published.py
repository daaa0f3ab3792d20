"""Between the published files and our models, by the data in ``families.py``: configurations and tensors, both ways.

A configuration is taken over only when every key in it is understood: one that changes the mathematics and is not built
is refused by name, and one that nobody knows is refused as well, since guessing gives a wrong model in silence.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minitune.config import ModelConfig, RopeScaling
from minitune.errors import CheckpointError, ConfigError, nearest
from minitune.models.families import FAMILIES, Family, Layout

# Keys that say nothing about the mathematics of a trained decoder in inference or fine-tuning.
_SILENT = frozenset({
    "_attn_implementation", "_attn_implementation_internal", "_from_model_config", "_name_or_path", "_num_labels",
    "architectures", "attention_dropout", "attention_probs_dropout_prob", "bad_words_ids", "begin_suppress_tokens",
    "bos_token_id", "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "gradient_checkpointing", "hidden_dropout_prob", "id2label", "initializer_range", "is_llama_config", "label2id",
    "length_penalty", "max_length", "max_sequence_length", "min_length", "model_type", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_labels", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_past", "output_scores", "pad_token_id", "prefix", "pretraining_tp",
    "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers.js_config",
    "transformers_version", "typical_p", "unsloth_version", "use_bfloat16", "use_cache", "use_return_dict",
})  # fmt: skip
_ROPE_KEYS = frozenset({
    "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "rotary_pct", "rotary_emb_base",
})  # fmt: skip
_WINDOW_KEYS = {
    "none": frozenset[str](),
    "all": frozenset({"sliding_window"}),
    "alternate": frozenset({"sliding_window", "sliding_window_size", "layer_types"}),
    "upper": frozenset({"sliding_window", "layer_types", "use_sliding_window", "max_window_layers"}),
}
_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip
_SCALING_KEYS = {
    "factor": "factor", "original_max_position_embeddings": "original_max_positions",
    **{name: name for name in (
        "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
        "attention_factor", "short_factor", "long_factor",
    )},
}  # fmt: skip
_NEEDED = ("vocab_size", "hidden_size", "num_layers", "num_heads")
_HARMLESS = {
    "add_cross_attention": (False,), "is_decoder": (False, True), "is_encoder_decoder": (False,),
    "quantization_config": (None,), "tie_encoder_decoder": (False,), "use_mrope": (False,),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """One published tensor: ``parts`` of ours, joined along their first axis, in a layout."""

    name: str
    parts: tuple[str, ...]
    layout: Layout = "plain"


def family_of(raw: Mapping[str, Any], where: str) -> Family:
    """The family of a parsed ``config.json``; CheckpointError where it is not supported."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        hint = nearest(kind, FAMILIES) if isinstance(kind, str) else ""
        raise CheckpointError(f"{where}: model_type is {kind!r}{hint}; supported are {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def model_config(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Our configuration from a parsed ``config.json``, in either dialect (``rope_theta`` or ``rope_parameters``).

    ``where`` names the file in messages. Raises CheckpointError for a family, an option or a key that is not
    supported, and for a value that is missing or out of range.
    """
    family = family_of(raw, where)
    _refuse_unknown(raw, family, where)
    values: dict[str, Any] = dict(family.defaults) | dict(raw)
    ours: dict[str, Any] = dict(family.fixed)
    for key, fields in family.keys.items():
        if key in values:
            ours |= dict.fromkeys((fields,) if isinstance(fields, str) else fields, values[key])
    for name in _NEEDED:
        key, value = _key_of(family, name), ours.get(name)
        if value is None:
            raise CheckpointError(f"{where}: {key!r} is missing")
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{where}: {key} is {value!r}; it must be a whole number of at least 1")
    try:
        _fill_in(ours, values, family)
        ours["activation"] = _one_of(_ACTIVATIONS, values.get(family.activation), family.activation)
        ours["windows"] = _windows(values, family, ours["num_layers"])
        ours |= _rope(raw, values, family, ours["max_positions"])
        return ModelConfig(family=family.model_type, form=family.form, **ours)
    except (ConfigError, TypeError, ValueError, OverflowError, ZeroDivisionError, KeyError) as error:
        raise CheckpointError(f"{where}: {error}") from None


def raw_config(config: ModelConfig) -> dict[str, Any]:
    """A ``config.json`` for ``config`` that ``model_config`` and the reference library read back to the same."""
    family = FAMILIES[config.family]
    raw: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.model_type}
    for key, fields in family.keys.items():
        raw[key] = getattr(config, fields if isinstance(fields, str) else fields[0])
    usual = family.defaults[family.activation]
    written = {value: key for key, value in reversed(_ACTIVATIONS.items())}
    raw[family.activation] = usual if _ACTIVATIONS[usual] == config.activation else written[config.activation]
    if "query_pre_attn_scalar" in family.defaults:
        scalar = 1 / (config.attention_scale or config.head_dim**-0.5) ** 2
        raw["query_pre_attn_scalar"] = round(scalar) if math.isclose(scalar, round(scalar)) else scalar
    if family.windows != "none":
        raw["sliding_window"] = max(config.windows, default=0) or None
    if family.windows in ("alternate", "upper"):
        layers = range(config.num_layers)
        raw["layer_types"] = ["sliding_attention" if config.window(i) else "full_attention" for i in layers]
    if family.windows == "upper":
        raw["use_sliding_window"] = bool(config.windows)
    if not config.learned_positions:
        raw |= _raw_rope(config)
    return raw


def stored_tensors(config: ModelConfig, parameters: Iterable[str]) -> list[Stored]:
    """How the family publishes our ``parameters``: one canonical list, in the order given."""
    joined: dict[str, list[str]] = {}
    layouts: dict[str, Layout] = {}
    for parameter in parameters:
        module, _, leaf = parameter.rpartition(".")
        published, layout = published_module(config, module)
        name = f"{published}.{leaf}"
        joined.setdefault(name, []).append(parameter)
        # A bias has one axis: there is nothing to transpose.
        layouts[name] = "plain" if leaf == "bias" and layout == "transposed" else layout
    return [Stored(name=name, parts=tuple(parts), layout=layouts[name]) for name, parts in joined.items()]


def published_module(config: ModelConfig, module: str) -> tuple[str, Layout]:
    """Published name and layout of one of our modules: ``blocks.3.mlp.up_proj`` -> ``model.layers.3.mlp.up_proj``."""
    family = FAMILIES[config.family]
    if not module.startswith("blocks."):
        return family.outer[module], "plain"
    _, layer, inside = module.split(".", 2)
    return family.block_prefix % int(layer) + family.block[inside], family.layouts.get(inside, "plain")


def from_layout(tensor: Tensor, layout: Layout, config: ModelConfig) -> Tensor:
    """A stored tensor as ours, as a view where that can be."""
    if layout == "transposed":
        return tensor.T
    if layout == "by_head":  # (H, 3, D, ...) -> (3, H, D, ...)
        return tensor.unflatten(0, (config.num_heads, 3, config.head_dim)).transpose(0, 1).flatten(0, 2)
    return tensor


def to_layout(tensor: Tensor, layout: Layout, config: ModelConfig) -> Tensor:
    """Our tensor as the family stores it; the inverse of ``from_layout``."""
    if layout == "transposed":
        return tensor.T
    if layout == "by_head":
        return tensor.unflatten(0, (3, config.num_heads, config.head_dim)).transpose(0, 1).flatten(0, 2)
    return tensor


def stored_shape(stored: Stored, shapes: Mapping[str, torch.Size], config: ModelConfig) -> tuple[int, ...]:
    """The shape that a published tensor must have, from the ``shapes`` of our parameters."""
    parts = [shapes[name] for name in stored.parts]
    shape = (sum(part[0] for part in parts), *parts[0][1:])
    return shape[::-1] if stored.layout == "transposed" else shape


def _refuse_unknown(raw: Mapping[str, Any], family: Family, where: str) -> None:
    harmless = _HARMLESS | dict(family.harmless)
    known = set(family.keys) | set(harmless) | _SILENT | family.silent | _WINDOW_KEYS[family.windows]
    known |= {family.activation, *family.defaults} | (set() if family.fixed.get("learned_positions") else _ROPE_KEYS)
    for key, value in raw.items():
        if key not in known:
            raise CheckpointError(f"{where}: unknown key {key!r}{nearest(key, known)}; it may change the mathematics")
        if key in harmless and value not in harmless[key]:
            allowed = " or ".join(map(repr, harmless[key]))
            raise CheckpointError(f"{where}: {key} is {value!r}, which is not supported; supported is {allowed}")


def _fill_in(ours: dict[str, Any], values: Mapping[str, Any], family: Family) -> None:
    """Fields that follow from others where the file does not say them."""
    C, H = ours["hidden_size"], ours["num_heads"]
    for name, value in (("num_kv_heads", H), ("head_dim", C // H), ("tie_embeddings", False), ("max_positions", 2048)):
        if ours.get(name) is None:
            ours[name] = value
    if ours.get("intermediate_size") is None:
        if family.form != "gpt":
            raise ConfigError("'intermediate_size' is missing")
        ours["intermediate_size"] = 4 * C
    if family.form == "gpt" and ours["head_dim"] * H != C:
        raise ConfigError(f"hidden size {C} is not a multiple of {H} heads")
    if values.get("query_pre_attn_scalar") is not None:
        ours["attention_scale"] = values["query_pre_attn_scalar"] ** -0.5
    if family.scales_embedding:
        ours["embed_scale"] = math.sqrt(C)


def _windows(values: Mapping[str, Any], family: Family, layers: int) -> tuple[int, ...]:
    """Keys that each layer sees, 0 for all; nothing where no layer has a window."""
    width = values.get("sliding_window")
    off = family.windows == "upper" and not values.get("use_sliding_window")
    if family.windows == "none" or width is None or off:
        return ()
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ConfigError(f"sliding_window is {width!r}; it must be a whole number of at least 1, or null")
    _agreed("sliding_window", [width, values.get("sliding_window_size", width)], None)
    kinds = values.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise ConfigError(f"layer_types must list {layers} layers")
        allowed = {"sliding_attention": width, "full_attention": 0}
        return tuple(_one_of(allowed, kind, "layer_types") for kind in kinds)
    if layers > 4096:
        raise ConfigError(f"the number of layers is {layers}; it must be at most 4096")
    first = values.get("max_window_layers", 0) if family.windows == "upper" else 0
    step = 2 if family.windows == "alternate" else 1
    return tuple(width if layer >= first and layer % step == 0 else 0 for layer in range(layers))


def _one_of(choices: Mapping[str, Any], value: Any, key: str) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{key} is {value!r}, which is not supported; supported are {', '.join(choices)}")
    return choices[value]


def _key_of(family: Family, name: str) -> str:
    return next(key for key, fields in family.keys.items() if fields == name)


def _rope(raw: Mapping[str, Any], values: Mapping[str, Any], family: Family, max_positions: int) -> dict[str, Any]:
    """Rotary fields from either dialect: flat ``rope_theta`` + ``rope_scaling``, or ``rope_parameters``."""
    objects = [values[key] for key in ("rope_parameters", "rope_scaling") if values.get(key)]
    if len(objects) == 2 and objects[0] != objects[1]:
        raise ConfigError("rope_parameters and rope_scaling are both given, and differ")
    nested = objects[0] if objects else {}
    if not isinstance(nested, Mapping):
        raise ConfigError(f"rope_parameters is {nested!r}; it must be an object")
    nested = dict(nested)
    kinds = [nested.pop(key) for key in ("rope_type", "type") if nested.get(key) is not None]
    kind = _agreed("rope_type", kinds, "default")
    said = (nested.pop("rope_theta", None), values.get("rope_theta"), values.get("rotary_emb_base"))
    thetas = [theta for theta in said if theta is not None]
    for theta in thetas:
        if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < math.inf:
            raise ConfigError(f"rope_theta is {theta!r}; it must be a number above 0")
    fractions = [nested.pop("partial_rotary_factor", None), raw.get("rotary_pct"), raw.get("partial_rotary_factor")]
    usual = family.defaults.get("partial_rotary_factor", 1.0)
    fraction = _agreed("partial_rotary_factor", [f for f in fractions if f is not None], usual)
    if usual == 1.0 and fraction != 1.0:
        raise ConfigError(f"partial_rotary_factor is {fraction!r}; models of this family rotate the whole head")
    scaling = None
    if kind != "default":
        nested.setdefault("original_max_position_embeddings", values.get("original_max_position_embeddings"))
        scaling = _scaling(kind, nested, max_positions)
    elif nested:
        raise ConfigError(f"rope_parameters has an unknown key {min(nested)!r}")
    theta = float(_agreed("rope_theta", thetas, 10000.0))
    return {"rope_theta": theta, "rope_fraction": fraction, "rope_scaling": scaling}


def _agreed(key: str, said: list[Any], usual: Any) -> Any:
    """The one value that a file says in several places, or the usual one; ConfigError where the places differ."""
    for other in said[1:]:
        if other != said[0]:
            raise ConfigError(f"{key} is given as {said[0]} and as {other}")
    return said[0] if said else usual


def _scaling(kind: Any, values: Mapping[str, Any], max_positions: int) -> RopeScaling:
    """The scaling that an object of ``rope_parameters`` describes."""
    unknown = set(values) - set(_SCALING_KEYS)
    if unknown:
        raise ConfigError(f"rope_parameters has an unknown key {min(unknown)!r}{nearest(min(unknown), _SCALING_KEYS)}")
    fields: dict[str, Any] = {_SCALING_KEYS[key]: value for key, value in values.items() if value is not None}
    fields["kind"] = kind
    for name in ("short_factor", "long_factor"):
        if name in fields:
            fields[name] = tuple(map(float, fields[name]))
    original = fields.get("original_max_positions")
    if kind == "longrope" and "factor" not in fields and original:
        fields["factor"] = max_positions / original
    if kind in ("linear", "dynamic"):
        fields.pop("original_max_positions", None)
    return RopeScaling(**fields)


def _raw_scaling(scaling: RopeScaling) -> dict[str, Any]:
    """The same as published keys."""
    values = {key: getattr(scaling, name) for key, name in _SCALING_KEYS.items()}
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return {"rope_type": scaling.kind} | {key: value for key, value in values.items() if value is not None}


def _raw_rope(config: ModelConfig) -> dict[str, Any]:
    """The rotary fields as the newer dialect has them."""
    nested: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_fraction != 1.0 or config.form == "gpt":
        nested["partial_rotary_factor"] = config.rope_fraction
    if config.rope_scaling is not None:
        nested |= _raw_scaling(config.rope_scaling)
    return {"rope_parameters": nested}
