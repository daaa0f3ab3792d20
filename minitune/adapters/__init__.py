"""Small trainable additions to a frozen model."""

from minitune.adapters.lora import LoRAConfig, add_lora, merge_adapter
from minitune.adapters.peft_layout import load_adapter, save_adapter

__all__ = ["LoRAConfig", "add_lora", "load_adapter", "merge_adapter", "save_adapter"]
