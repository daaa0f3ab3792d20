"""``minitune pretrain``."""

from minitune.cli.parse import parse, together, with_toml
from minitune.config import PretrainConfig


def run(args: list[str]) -> int:
    """Train on plain text, every token of it."""
    from minitune.cli import training

    if any(word == "--resume" or word.startswith("--resume=") for word in args):
        return training.resume("pretrain", args)
    return training.start(parse(PretrainConfig, "pretrain", with_toml(PretrainConfig, together(args, "--data"))))
