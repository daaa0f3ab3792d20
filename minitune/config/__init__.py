"""Frozen settings, checked on construction: what a model is, and what a run of training does."""

from minitune.config.checks import checked_types, flag, from_mapping, to_toml
from minitune.config.model import ModelConfig, RopeScaling, ScalingKind
from minitune.config.run import PretrainConfig, RunConfig, SFTConfig, TrainConfig

__all__ = [
    "ModelConfig",
    "PretrainConfig",
    "RopeScaling",
    "RunConfig",
    "SFTConfig",
    "ScalingKind",
    "TrainConfig",
    "checked_types",
    "flag",
    "from_mapping",
    "to_toml",
]
