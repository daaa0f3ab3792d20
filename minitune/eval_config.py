"""Frozen settings of ``minitune eval``, checked on construction."""

from dataclasses import dataclass
from typing import Literal

from minitune.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Loss and perplexity per trained token, and what the model answers by itself.

    minitune eval runs/first --data test.jsonl
    """

    model: str
    """Model folder, adapter folder, run folder, or `tiny`."""
    data: str
    """Instruction files with the wanted answers, as for sft."""
    rows: int = 0
    """Use only the first so many rows; 0 uses all."""
    columns: str = ""
    """Names of columns that are not the usual ones: instruction=question,output=answer."""
    on_bad: Literal["error", "drop"] = "error"
    """A row that cannot be used: stop with its line and reason, or leave it out and count it."""
    on_long: Literal["error", "drop"] = "error"
    """A row longer than --max-length: stop with its line, or leave it out and count it."""
    max_length: int = 0
    """Tokens a row may have; 0 takes what the model was made for, at most 2048."""
    template: str = ""
    """A template by name; else what a run was trained with, or the model's own."""
    metrics: str = "auto"
    """exact, labels, bleu, rouge, several with commas; none measures the loss alone; auto looks at the answers."""
    max_tokens: int = 256
    """Tokens an answer may have."""
    temperature: float = 0.0
    """0 takes the likeliest token; above 0 draws (see --seed)."""
    seed: int = 0
    """What the draws are made from."""
    batch_size: int = 8
    """Rows at a time; the numbers do not depend on it."""
    predictions: str = ""
    """File to write every answer into, as JSON Lines."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of weights and compute."""
    ops: Literal["auto", "triton", "builtin", "reference"] = "auto"
    """Implementation of the mathematics."""
    json: bool = False
    """Print one JSON document instead."""

    def __post_init__(self) -> None:
        for name, least in (("rows", 0), ("max_length", 0), ("max_tokens", 1), ("batch_size", 1), ("temperature", 0)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is {getattr(self, name)}; it must be at least {least}")
