"""Beam search: keep the K likeliest beginnings, and of what they become the text with the best score.

    score(y) = (log p(y_1) + ... + log p(y_n | y_1 .. y_(n-1))) / n^a        n counts the stop id too

Wu et al., arXiv 1609.08144, section 7, with the simpler length penalty n^a; a = 1 is the mean log probability. Nothing
is drawn, so the result is the same every time. Where a search stops, and which candidates count, is as in
``transformers`` (``early_stopping`` False and True), so that both find the same texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minitune.errors import ConfigError
from minitune.models import LanguageModel
from minitune.models.cache import KVCache
from minitune.sample.slots import CHUNK, Finish


@dataclass(frozen=True, slots=True)
class Beam:
    """A text that the search found, its stop id included; ``logprob`` is the sum that ``score`` divides."""

    ids: tuple[int, ...]
    score: float
    logprob: float
    finish: Finish


@torch.inference_mode()
def beam_search(
    model: LanguageModel,
    prompt: Sequence[int],
    *,
    beams: int,
    max_tokens: int,
    stop_ids: Sequence[int] | None = None,
    length_penalty: float = 1.0,
    early_stopping: bool = False,
) -> list[Beam]:
    """The ``beams`` best texts behind ``prompt`` that the search ended, best first.

    It ends when there are as many and no running text has a better score than the worst of them at its present length;
    with ``early_stopping``, as soon as there are as many.
    """
    limit, V = model.config.max_positions, model.config.vocab_size
    if beams < 1:
        raise ConfigError(f"--beams is {beams}; it must be at least 1")
    if not 0 < len(prompt) < limit:
        raise ConfigError(f"the prompt has {len(prompt)} tokens; this model takes 1 to {limit - 1}")
    stops = set(model.stop_ids if stop_ids is None else stop_ids)
    capacity = min(limit, len(prompt) + max_tokens)
    device = model.embed.weight.device
    cache = KVCache(model.config, beams, capacity, device=device, dtype=model.compute_dtype, chunk=CHUNK)
    logits = _feed_prompt(model, cache, prompt)  # (1, V)
    running: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    ended: list[Beam] = []
    for made in range(1, max_tokens + 1):
        sums = torch.tensor([total for _, total in running], device=device)[:, None]
        totals = (torch.log_softmax(logits.float(), -1) + sums).flatten()  # (beams * V,)
        # Even if every likeliest candidate ends its text, enough are left to go on with.
        best = totals.topk(min(max(2, 1 + len(stops)) * beams, len(totals)))
        full: Finish | None = "length" if made == max_tokens else None
        if full is None and len(prompt) + made > limit:
            full = "context"
        sources: list[int] = []
        going: list[tuple[tuple[int, ...], float]] = []
        for rank, (total, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            source, token = divmod(place, V)
            ids = (*running[source][0], token)
            finish: Finish | None = "stop" if token in stops else full
            if finish and rank < beams:
                ended.append(Beam(ids, total / made**length_penalty, total, finish))
            elif not finish and len(going) < beams:
                going.append((ids, total))
                sources.append(source)
        ended = sorted(ended, key=lambda beam: -beam.score)[:beams]
        if not going:
            break
        if len(ended) == beams and (early_stopping or going[0][1] / made**length_penalty <= ended[-1].score):
            break
        running = going
        logits = _feed_tokens(model, cache, sources, [ids[-1] for ids, _ in running])  # (beams, V)
    return ended


def _feed_prompt(model: LanguageModel, cache: KVCache, prompt: Sequence[int]) -> Tensor:
    """Fill row 0 with the prompt and return the logits ``(1, V)`` behind it."""
    ids = torch.tensor([list(prompt)], device=cache.device)
    hidden = ids
    for chunk in ids.split(CHUNK, dim=1):
        hidden = model(chunk, plan=cache.plan(chunk.shape[1], [0]), cache=cache)
        cache.advance(chunk.shape[1], [0])
    return model.logits(hidden[:, -1])


def _feed_tokens(model: LanguageModel, cache: KVCache, sources: list[int], tokens: list[int]) -> Tensor:
    """Let row i go on from what row ``sources[i]`` was with ``tokens[i]``, and return the logits ``(rows, V)``."""
    moved = [row for row, source in enumerate(sources) if row != source]
    if moved:
        cache.copy([sources[row] for row in moved], moved)
    rows = range(len(tokens))
    hidden = model(torch.tensor(tokens, device=cache.device)[:, None], plan=cache.plan(1, rows), cache=cache)
    cache.advance(1, rows)
    return model.logits(hidden[:, -1])
