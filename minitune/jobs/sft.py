"""The main job: a model folder and an instruction file in, a run folder with a tuned model out."""

from minitune.config import PretrainConfig, SFTConfig
from minitune.jobs.prepared import Progress
from minitune.jobs.run import Result, Run, Sample, resumed

__all__ = ["Result", "Run", "Sample", "pretrain", "resumed", "sft"]


def sft(config: SFTConfig, progress: Progress | None = None) -> Run:
    """Make a run of masked supervised fine-tuning ready; iterate over it for step reports, or call ``finish()``."""
    return Run(config, progress)


def pretrain(config: PretrainConfig, progress: Progress | None = None) -> Run:
    """Make a run on plain text ready, every token trained: on with a model, or with a new one of a shape."""
    return Run(config, progress)
