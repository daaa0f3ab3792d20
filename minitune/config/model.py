"""What a model is: its shape and its switches, checked on construction.

The letters in brackets are the legend of the whole house (docs/conventions.md): ``hidden_size`` is C in every shape.
"""

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any, Literal

from minitune.errors import ConfigError

ScalingKind = Literal["linear", "llama3", "yarn", "longrope"]

# What each kind needs beside its factor, and what it may have.
_ROPE_NEEDS: dict[str, set[str]] = {
    "linear": set(),
    "llama3": {"original_max_positions", "low_freq_factor", "high_freq_factor"},
    "yarn": {"original_max_positions"},
    "longrope": {"original_max_positions", "short_factor", "long_factor"},
}
_ROPE_MAY_HAVE: dict[str, set[str]] = {
    "linear": set(),
    "llama3": set(),
    "yarn": {"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "attention_factor"},
    "longrope": {"attention_factor"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How the frequencies of a model differ from those of its pretraining; the letters of ops/rope.py.

    None is "not given", which for an option takes the value in brackets. Raises ConfigError for an unknown kind, for
    what a kind needs and does not get, and for what it gets and would ignore.
    """

    kind: ScalingKind
    factor: float
    """f: how many times longer the texts became."""
    original_max_positions: int | None = None
    """P: positions of the pretraining (llama3, yarn, longrope)."""
    low_freq_factor: float | None = None
    """low: turns within P below which a pair is slowed by f (llama3)."""
    high_freq_factor: float | None = None
    """high: turns within P above which a pair stays (llama3)."""
    beta_fast: float | None = None
    """Turns within P above which a pair stays (yarn) [32]."""
    beta_slow: float | None = None
    """Turns within P below which a pair is slowed by f (yarn) [1]."""
    mscale: float | None = None
    """Strength of m in the factor of cos and sin; counts only together with ``mscale_all_dim`` (yarn)."""
    mscale_all_dim: float | None = None
    """What m is divided by (yarn)."""
    truncate: bool | None = None
    """Widen the ramp to whole pairs (yarn) [True]."""
    attention_factor: float | None = None
    """The factor of cos and sin itself, in place of the formula's (yarn, longrope)."""
    short_factor: tuple[float, ...] | None = None
    """What each pair is divided by up to P positions (longrope)."""
    long_factor: tuple[float, ...] | None = None
    """What each pair is divided by beyond P positions (longrope)."""

    def __post_init__(self) -> None:
        if self.kind not in _ROPE_NEEDS:
            why = ", since its frequencies change with every new token" if self.kind == "dynamic" else ""
            known = ", ".join(typing.get_args(ScalingKind))
            raise ConfigError(f"rope scaling {self.kind!r} is not supported{why}; it must be one of: {known}")
        given = {f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None} - {"kind", "factor"}
        if missing := _ROPE_NEEDS[self.kind] - given:
            raise ConfigError(f"rope scaling {self.kind!r} needs {', '.join(sorted(missing))}")
        if foreign := given - _ROPE_NEEDS[self.kind] - _ROPE_MAY_HAVE[self.kind]:
            raise ConfigError(f"rope scaling {self.kind!r} has no {', '.join(sorted(foreign))}")
        numbers = {name: getattr(self, name) for name in given - {"truncate"}} | {"factor": self.factor}
        for name, value in numbers.items():
            each = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(n) and (n > 0 or (n == 0 and name.startswith("mscale"))) for n in each):
                raise ConfigError(f"rope scaling {self.kind!r}: {name} is {value}; it must be above 0")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and low >= high:
            raise ConfigError(f"rope scaling 'llama3': low_freq_factor {low} must be below high_freq_factor {high}")

    @property
    def table_factor(self) -> float:
        """What cos and sin are multiplied by, at every length: 1 for linear and llama3."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1 or self.original_max_positions is None:
            return 1.0
        if self.kind == "longrope":
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_max_positions))  # ROPE-11
        if self.kind == "yarn":
            m = 0.1 * math.log(self.factor)
            if self.mscale and self.mscale_all_dim:
                return (m * self.mscale + 1) / (m * self.mscale_all_dim + 1)  # ROPE-9
            return m + 1  # ROPE-9
        return 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The shape and the switches of a decoder; every published family is a choice of these (models/families.py).

    ``form`` names the module that reads them: ``llama`` (models/decoder.py; Touvron et al., arXiv 2302.13971) or
    ``gpt`` (models/gpt.py; Radford et al., 2019).
    """

    family: str = "llama"
    """The published family, as model_type in config.json: decides names and dialect of the files."""
    form: Literal["llama", "gpt"] = "llama"
    """The module that the blocks are made of."""

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
    max_positions: int = 2048
    """Positions the model was made for."""
    tie_embeddings: bool = False
    """The head is the embedding."""
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    """Inside the MLP."""
    qkv_bias: bool = False
    """q, k and v carry a bias."""
    o_bias: bool = False
    """The output of attention carries a bias."""
    mlp_bias: bool = False
    """The layers of the MLP carry a bias."""

    norm_eps: float = 1e-5
    """Added to the mean square inside a norm."""
    norm_offset: float = 0.0
    """Added to the weight of RMSNorm: 1 in Gemma, whose weights are stored around 0."""
    norm_scale_in_fp32: bool = False
    """RMSNorm scales before it rounds to the compute type, not after."""
    pre_norm: bool = True
    """A norm before attention and MLP."""
    post_norm: bool = False
    """A norm after attention and MLP, before they join the residual stream."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """RMSNorm of q and k: of each head's D channels, or of all heads' channels together."""

    rope_theta: float = 10000.0
    """Base of the rotary frequencies (Su et al., arXiv 2104.09864)."""
    rope_fraction: float = 1.0
    """Share of a head's channels that is rotated."""
    rope_scaling: RopeScaling | None = None
    """How the frequencies are stretched for long texts."""
    learned_positions: bool = False
    """A learned vector for each position instead of rotation."""
    parallel_residual: bool = False
    """gpt form: attention and MLP read the same residual stream, side by side."""

    windows: tuple[int, ...] = ()
    """Keys each layer sees, its own included; 0 is all of them. Empty: all, in every layer."""
    attention_scale: float | None = None
    """Factor on q.k; 1 / sqrt(D) by itself."""
    attention_softcap: float | None = None
    """Scores are capped smoothly: c tanh(s / c)."""
    logit_softcap: float | None = None
    """The same for the logits."""
    embed_scale: float = 1.0
    """Factor on the embedding, rounded to the compute type."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_field(field.name, field.type, getattr(self, field.name))
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_heads} query heads do not divide among {self.num_kv_heads} key/value heads; "
                "num_heads must be a multiple of num_kv_heads"
            )
        if self.head_dim % 2 or self.rope_channels % 2:
            raise ConfigError(
                f"head_dim is {self.head_dim}, rotated {self.rope_channels}; rotary embedding needs an even number"
            )
        if min(self.norm_eps, self.rope_theta, self.embed_scale) <= 0 or not 0 < self.rope_fraction <= 1:
            raise ConfigError(
                f"norm_eps {self.norm_eps}, rope_theta {self.rope_theta} and embed_scale {self.embed_scale} must be "
                f"above 0, and rope_fraction {self.rope_fraction} in (0, 1]"
            )
        for name in ("attention_scale", "attention_softcap", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value!r}; it must be above 0, or nothing")
        if self.windows and (len(self.windows) != self.num_layers or min(self.windows) < 0):
            raise ConfigError(f"windows is {self.windows}; it must have a number of 0 or more for each layer")

    @property
    def rope_channels(self) -> int:
        """Channels of a head that are rotated."""
        return int(self.head_dim * self.rope_fraction)

    def window(self, layer: int) -> int | None:
        """Keys that ``layer`` sees, or None for all."""
        return (self.windows[layer] or None) if self.windows else None


# No published model comes near; a number beyond it is damage, and building that many layers would never end.
_LARGEST = {"num_layers": 4096, "num_heads": 65536, "num_kv_heads": 65536, "head_dim": 65536}


def _check_field(name: str, kind: Any, value: Any) -> None:
    """A number is a finite number, a whole number at least 1 and below 2^31, a switch true or false."""
    if kind in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ConfigError(f"{name} is {value!r}; it must be a number")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}; it must be finite")
    if kind is bool and not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it must be true or false")
    if kind is int and (not isinstance(value, int) or not 1 <= value <= _LARGEST.get(name, 2**31 - 1)):
        raise ConfigError(f"{name} is {value!r}; it must be a whole number from 1 to {_LARGEST.get(name, 2**31 - 1)}")
