"""``torch.compile`` for training, where it can work."""

import shutil

import torch

from minitune.errors import ConfigError
from minitune.models import LanguageModel


def compile_blocks(model: LanguageModel) -> None:
    """Let torch compile the blocks, when the first step needs them; a layer takes some seconds.

    Raises ConfigError where the C++ compiler is missing that code for a CPU is made with.
    """
    device = model.embed.weight.device
    if device.type == "cpu":
        refuse_without_compiler()
    # Each layer is a program of its own, and one more where its input needs a gradient and where it does not (the first
    # layer of a frozen base, validation). Beyond its limit torch would run the rest uncompiled, with a warning only.
    limit = 8 + 4 * len(model.blocks)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    for block in model.blocks:
        block.compile(dynamic=True)


def refuse_without_compiler() -> None:
    """Raise ConfigError where no C++ compiler is found: torch would end in pages of its own errors."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        compiler = get_cpp_compiler()
    except Exception as error:  # torch has several kinds for it, none of them public
        raise ConfigError(
            "--compile on a CPU needs a C++ compiler (g++ or clang), and none was found; install one, or leave "
            f"--compile out ({type(error).__name__})"
        ) from None
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"--compile on a CPU needs a C++ compiler, and {compiler} is not there; install one, or leave --compile out"
        )
    torch._dynamo.reset()
