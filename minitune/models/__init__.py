"""Decoders written by hand, and what they share: the Linear seam, norms, the key/value cache, the published names."""

import torch

from minitune.config import ModelConfig
from minitune.models.base import LanguageModel
from minitune.models.decoder import Decoder
from minitune.models.gpt import GPT
from minitune.ops import BUILTIN, Ops

__all__ = ["FORMS", "GPT", "Decoder", "LanguageModel", "build"]

FORMS = {"llama": Decoder, "gpt": GPT}
"""The module of each form. An encoder-decoder (T5) will stand beside these."""


def build(config: ModelConfig, ops: Ops = BUILTIN, compute_dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model of the form that ``config`` names, its weights not yet filled."""
    return FORMS[config.form](config, ops, compute_dtype)
