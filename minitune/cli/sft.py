"""``minitune sft``."""

from minitune.cli.parse import parse, together, with_toml
from minitune.config import SFTConfig


def run(args: list[str]) -> int:
    """Train, showing what is trained on, how far it is, and what changed."""
    from minitune.cli import training

    if any(word == "--resume" or word.startswith("--resume=") for word in args):
        return training.resume("sft", args)
    return training.start(parse(SFTConfig, "sft", with_toml(SFTConfig, together(args, "--data"))))
