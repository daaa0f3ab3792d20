"""minitune: a from-scratch Transformer and supervised fine-tuning engine in plain PyTorch.

    model, tokenizer = minitune.load("models/SmolLM2-135M", device="cpu", dtype="float32")
    logits = model.logits(model(ids))                                  # (B, T, C) -> (B, T, V)
    for piece in minitune.generate(model, tokenizer, "Once upon a time", max_tokens=64, seed=0): ...
    run = minitune.sft(minitune.SFTConfig(model="tiny", data="alpaca.json", out="runs/a"))
    for report in run: ...                                             # or run.finish()

Names are fetched on first use, so that ``import minitune`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minitune.config import ModelConfig, SFTConfig
    from minitune.errors import MinituneError
    from minitune.jobs.load import load
    from minitune.jobs.sft import sft
    from minitune.sample import generate

__version__ = "0.1.0"

__all__ = ["MinituneError", "ModelConfig", "SFTConfig", "generate", "load", "sft"]

_HOMES = {
    "MinituneError": "minitune.errors",
    "ModelConfig": "minitune.config",
    "SFTConfig": "minitune.config",
    "generate": "minitune.sample",
    "load": "minitune.jobs.load",
    "sft": "minitune.jobs.sft",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'minitune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
