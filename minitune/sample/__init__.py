"""Sampling: one token after another, with a cache so that each costs one pass over the weights.

    settings.py   what a user can choose
    filters.py    a distribution, and what each setting does to it
    noise.py      the one random number of a step, from the seed and the step alone
    slots.py      step(): many texts at once, each with its own length, settings and seed
    graph.py      on a GPU: a token for each text as one CUDA graph
    stops.py      stop strings in a stream
    texts.py      prompts in, text out: generate, generate_batch
    beam.py       beam search

Names are fetched on first use, so that the settings can be read without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minitune.sample.beam import Beam, beam_search
    from minitune.sample.settings import SamplerSettings
    from minitune.sample.slots import Event, Finish, Slots
    from minitune.sample.texts import Completion, Piece, complete, generate, generate_batch, generate_ids, prompt_ids

__all__ = [
    "Beam",
    "Completion",
    "Event",
    "Finish",
    "Piece",
    "SamplerSettings",
    "Slots",
    "beam_search",
    "complete",
    "generate",
    "generate_batch",
    "generate_ids",
    "prompt_ids",
]

_HOMES = {
    "Beam": "beam",
    "beam_search": "beam",
    "SamplerSettings": "settings",
    "Event": "slots",
    "Finish": "slots",
    "Slots": "slots",
} | dict.fromkeys(
    ("Completion", "Piece", "complete", "generate", "generate_batch", "generate_ids", "prompt_ids"), "texts"
)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'minitune.sample' has no attribute {name!r}")
    return getattr(importlib.import_module(f"minitune.sample.{_HOMES[name]}"), name)
