"""Frozen settings, checked on construction: what a model is, and what a fine-tuning run does.

The letters in brackets are the legend of the whole house (docs/conventions.md): ``hidden_size`` is C in every shape.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from minitune.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The shape and the switches of a decoder in Llama form (Touvron et al., arXiv 2302.13971)."""

    vocab_size: int
    """V: rows of the embedding, as stored."""
    hidden_size: int
    """C: channels of the residual stream."""
    intermediate_size: int
    """F: channels inside the MLP."""
    num_layers: int
    """L: blocks."""
    num_heads: int
    """H: query heads."""
    num_kv_heads: int
    """K: key/value heads; each serves H / K query heads (Ainslie et al., arXiv 2305.13245)."""
    head_dim: int
    """D: channels per head; not always C / H."""
    norm_eps: float = 1e-5
    """Added to the mean square inside RMSNorm."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies (Su et al., arXiv 2104.09864)."""
    max_positions: int = 2048
    """Positions the model was made for."""
    tie_embeddings: bool = False
    """The head is the embedding."""
    attention_bias: bool = False
    """q, k, v and o carry a bias."""
    mlp_bias: bool = False
    """gate, up and down carry a bias."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, float) and not (isinstance(value, (int, float)) and math.isfinite(value)):
                raise ConfigError(f"{field.name} is {value!r}; it must be a number")
            if field.type is bool and not isinstance(value, bool):
                raise ConfigError(f"{field.name} is {value!r}; it must be true or false")
            if field.type is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{field.name} is {value!r}; it must be a whole number of at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_heads} query heads do not divide among {self.num_kv_heads} key/value heads; "
                "num_heads must be a multiple of num_kv_heads"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary embedding needs an even number")
        if self.norm_eps <= 0 or self.rope_theta <= 0:
            raise ConfigError(f"norm_eps {self.norm_eps} and rope_theta {self.rope_theta} must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTConfig:
    """Masked supervised fine-tuning: the prompt is read, only the answer is trained."""

    model: str
    """Model folder as published (config.json, *.safetensors, tokenizer files), or `tiny`."""
    data: str
    """Instruction file: JSON or JSONL with instruction, input, output."""
    out: str
    """Run folder to write; must be new or empty (see --force)."""
    val: str = "0.05"
    """Validation rows: a fraction of the data (0.05), a count (200), another file, or 0 for none."""
    rows: int = 0
    """Use only the first so many rows of the data; 0 uses all."""
    on_bad: Literal["error", "drop"] = "error"
    """A row that cannot be used: stop with its line and reason, or leave it out and count it."""

    method: Literal["lora", "full"] = "lora"
    """lora trains small matrices beside the frozen weights; full trains every weight."""
    rank: int = 8
    """R: rank of the LoRA matrices."""
    alpha: float = 16.0
    """LoRA scale: the update is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the input of the LoRA matrices."""
    targets: str = "all-linear"
    """Layers that get LoRA: all-linear, or names such as q_proj,v_proj."""

    epochs: float = 1.0
    """Passes over the training rows."""
    max_steps: int = 0
    """Optimizer steps; when above 0 it decides instead of --epochs."""
    batch_size: int = 8
    """Rows an optimizer step."""
    micro_batch: int = 0
    """Rows at a time; 0 means the whole batch. batch-size / micro-batch is the gradient accumulation."""
    max_length: int = 0
    """Tokens a row may have; 0 takes what the model was made for, at most 2048."""
    on_long: Literal["error", "drop"] = "error"
    """A row longer than --max-length: stop with its line, or leave it out and count it."""

    lr: float | None = None
    """Peak learning rate; by itself 2e-4 for lora and 2e-5 for full."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate after the warm-up."""
    warmup: float = 0.03
    """Warm-up: optimizer steps, or a fraction of all steps when below 1."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); not applied to norms and biases."""
    clip: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""

    eval_every: int = 0
    """Optimizer steps between validations; 0 validates before the first step and after the last."""
    template: Literal["alpaca"] = "alpaca"
    """How a row becomes text."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; trainable weights are kept in float32 all the same. auto chooses and says why."""
    ops: Literal["auto", "builtin", "reference"] = "auto"
    """Implementation of the mathematics: torch's own functions, or the readable formulas."""
    seed: int = 0
    """Decides the validation rows, the order of the rows and the start of the LoRA matrices."""
    force: bool = False
    """Replace what an earlier run left in --out."""
    json: bool = False
    """Print one JSON document as the last line of standard output; everything for people goes to standard error."""
    quiet: bool = False
    """Print no progress."""

    def __post_init__(self) -> None:
        at_least = {"rows": 0, "rank": 1, "max_steps": 0, "batch_size": 1, "micro_batch": 0, "max_length": 0}
        at_least |= {"eval_every": 0, "warmup": 0, "weight_decay": 0, "clip": 0}
        for name, least in at_least.items():
            value = getattr(self, name)
            if not math.isfinite(value) or value < least:
                raise ConfigError(f"{flag(name)} is {value}; it must be at least {least}")
        for name in ("model", "data", "out"):
            if not getattr(self, name):
                raise ConfigError(f"{flag(name)} is empty")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"--dropout is {self.dropout}; it must lie in [0, 1)")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"--alpha is {self.alpha}; it must be above 0")
        if not math.isfinite(self.epochs) or self.epochs <= 0:
            raise ConfigError(f"--epochs is {self.epochs}; it must be above 0")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"--lr is {self.lr}; it must be above 0")
        if self.micro_batch > self.batch_size:
            raise ConfigError(
                f"--micro-batch {self.micro_batch} is larger than --batch-size {self.batch_size}; "
                "a batch is cut into micro-batches"
            )


def flag(name: str) -> str:
    """The command-line spelling of a field: ``max_length`` is ``--max-length``."""
    return "--" + name.replace("_", "-")


T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build the settings ``cls`` from a parsed TOML or JSON table, checking names and types.

    ``where`` is put before every message. Raises ConfigError for an unknown key (with the nearest name), a missing
    one, or a value of another type; a whole number is accepted where a float is expected, text never is (so that
    ``lr = "1e-5"`` cannot pass for a number).
    """
    kinds = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    given: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(name, fields)}")
        given[name] = _checked(value, kinds[name], f"{where}: {key}")
    missing = [n for n, f in fields.items() if n not in given and f.default is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} must be given")
    try:
        return cls(**given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _checked(value: Any, kind: Any, where: str) -> Any:
    """``value`` if it is of the annotated ``kind`` (int, float, str, bool, Literal, or a union of these)."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        if value not in typing.get_args(kind):
            allowed = ", ".join(map(str, typing.get_args(kind)))
            raise ConfigError(f"{where} is {value!r}; it must be one of: {allowed}")
        return value
    if origin is types.UnionType:
        kinds = typing.get_args(kind)
    else:
        kinds = (kind,)
    if type(value) in kinds:
        return value
    if float in kinds and type(value) is int:
        return float(value)
    names = " or ".join("nothing" if k is types.NoneType else k.__name__ for k in kinds)
    raise ConfigError(f"{where} is {value!r} ({type(value).__name__}); it must be {names}")


def to_toml(settings: Any) -> str:
    """The settings as a TOML document that ``from_mapping`` reads back to an equal value (None is left out)."""
    lines = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value is None:
            continue
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, str):
            text = _toml_string(value)
        else:
            text = repr(value)
        lines.append(f"{field.name} = {text}\n")
    return "".join(lines)


def _toml_string(text: str) -> str:
    """A basic TOML string: backslash, quote and control characters escaped."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(f"\\u{ord(c):04X}" if ord(c) < 32 or ord(c) == 127 else c for c in escaped) + '"'
