"""Sampling: one token after another, with a cache so that each costs one pass over the weights.

    p = softmax(logits / temperature);  temperature 0 takes the likeliest token
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minitune.errors import ConfigError
from minitune.models import LanguageModel
from minitune.models.cache import KVCache
from minitune.tokenizer import Tokenizer

Finish = Literal["stop", "length", "context"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds: text that is complete characters, the token, and on the last one why it ended.

    ``stop``: the model ended it; ``length``: max_tokens; ``context``: the model has no more positions.
    """

    text: str
    token: int
    finish: Finish | None = None

    def __str__(self) -> str:
        return self.text


def choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """The next id from ``logits (V,)``: the likeliest at temperature 0, else drawn from the tempered distribution."""
    if temperature == 0:
        return int(logits.argmax())
    z = logits.double().cpu()
    # The largest first, so that no temperature, however small, makes an infinite logit.
    p = torch.softmax((z - z.max()) / temperature, dim=-1)
    return int(torch.multinomial(p, 1, generator=generator))


@torch.inference_mode()
def generate_ids(
    model: LanguageModel,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    stop_ids: Sequence[int] | None = None,
) -> Iterator[tuple[int, Finish | None]]:
    """Yield ``(id, finish)`` after the ids of ``prompt``; a stop id (the model's own by itself) is yielded last.

    Raises ConfigError for an empty prompt, one that fills all positions, or settings out of range.
    """
    limit = model.config.max_positions
    if not prompt:
        raise ConfigError("the prompt is empty and this tokenizer has no token to start a text with")
    if len(prompt) >= limit:
        raise ConfigError(f"the prompt has {len(prompt)} tokens; this model has {limit} positions")
    if max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}; it must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"temperature is {temperature}; it must be 0 or above")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed is {seed}; it must be at least 0 and below 2^63")
    stops = frozenset(model.stop_ids if stop_ids is None else stop_ids)
    generator = torch.Generator().manual_seed(seed)
    device = model.embed.weight.device
    capacity = min(len(prompt) + max_tokens, limit)
    cache = KVCache(model.config, 1, capacity, device=device, dtype=model.compute_dtype)
    ids = torch.tensor([list(prompt)], device=device)
    for made in range(1, max_tokens + 1):
        hidden = model(ids, cache=cache)  # (1, T, C)
        cache.advance(ids.shape[1])
        token = choose(model.logits(hidden[0, -1]), temperature, generator)
        finish: Finish | None = None
        if token in stops:
            finish = "stop"
        elif made == max_tokens:
            finish = "length"
        elif cache.lengths[0] == limit:
            finish = "context"
        yield token, finish
        if finish:
            return
        ids = torch.tensor([[token]], device=device)


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    stop_ids: Sequence[int] | None = None,
) -> Iterator[Piece]:
    """Continue ``prompt`` and yield the text as it comes, never half a character.

    A text starts as the model's texts do (with the start token where it has one); ids are taken as they are.
    """
    if isinstance(prompt, str):
        start = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
        prompt = start + tokenizer.encode(prompt)
    # Behind nothing but control tokens the text begins here, and a leading space belongs to the tokenizer.
    stream = tokenizer.stream(continues=not set(prompt) <= tokenizer.control_ids)
    was_training = model.training
    model.eval()
    try:
        for token, finish in generate_ids(
            model, prompt, max_tokens=max_tokens, temperature=temperature, seed=seed, stop_ids=stop_ids
        ):
            text = "" if finish == "stop" else stream.push(token)
            yield Piece(text + (stream.finish() if finish else ""), token, finish)
    finally:
        model.train(was_training)
