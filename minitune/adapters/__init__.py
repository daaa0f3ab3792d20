"""Small trainable additions to a frozen model."""

from minitune.adapters.lora import LoRAConfig, add_lora, merge_adapter
from minitune.adapters.peft_layout import load_adapter, save_adapter
from minitune.adapters.token_rows import add_token_rows, merge_token_rows

__all__ = [
    "LoRAConfig",
    "add_lora",
    "add_token_rows",
    "load_adapter",
    "merge_adapter",
    "merge_token_rows",
    "save_adapter",
]
