"""A tokenizer that knows the names of tokens and nothing else: all that a template's text needs of one."""

from pathlib import Path
from typing import Any

# Every control token that a template here names, whatever its model.
NAMES = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
    "<end_of_turn>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|end|>",
)  # fmt: skip


class NamedTokens:
    """The tokens that have a role, by name ("" for none), and ``NAMES``."""

    def __init__(self, bos: str = "<s>", eos: str = "</s>", files: tuple[Path, ...] = ()):
        self.names = [bos, eos, *NAMES]
        self.bos_id = 0 if bos else None
        self.eos_id = 1 if eos else None
        self.pad_id = self.unk_id = None
        self.files = files
        self.control_ids = frozenset(range(len(self.names)))

    def token(self, number: int) -> str:
        return self.names[number]

    def token_id(self, name: str) -> int | None:
        return self.names.index(name) if name in self.names else None


def named(bos: str = "<s>", eos: str = "</s>") -> Any:
    """One as the functions under test expect it."""
    return NamedTokens(bos, eos)
