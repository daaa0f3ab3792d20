"""A model on rows with answers: loss and perplexity of the trained tokens, and the answers it gives itself."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minitune.chat import AnyTemplate, render
from minitune.config import SFTConfig
from minitune.data.batch import pad_rows
from minitune.data.formats import Row, rows_or_error
from minitune.data.sources import read_sources
from minitune.errors import DataError
from minitune.eval_config import EvalConfig
from minitune.evaluate import Score, metrics_for, score
from minitune.files import write_text
from minitune.jobs.conversation import stop_on, template_of
from minitune.jobs.dataset import data_specs, recipe_of
from minitune.jobs.encode import Encoder, Recipe
from minitune.jobs.load import load
from minitune.models import LanguageModel
from minitune.sample import generate_batch
from minitune.tokenizer import Tokenizer
from minitune.train import Validation, evaluate

Progress = Callable[[str, int, int], None]
"""``(what, done, of)``"""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What was found; ``nll`` is the total in nats over ``tokens``, the trained tokens of all answers."""

    model: str
    data: str
    rows: int
    left_out: int
    template: str
    nll: float
    tokens: float
    loss: float
    perplexity: float
    generation: dict[str, Any]
    scores: list[Score] = field(default_factory=list)
    predictions: str = ""


def evaluate_model(config: EvalConfig, progress: Progress | None = None) -> Evaluated:
    """Measure a model on rows; raises MinituneError, in one line, for what is wrong with either."""
    show = progress or (lambda what, done, of: None)
    model, tokenizer = load(config.model, device=config.device, dtype=config.dtype, ops=config.ops)
    template, _ = template_of(config.template, tokenizer, config.model)
    stop_on(template, model, tokenizer)
    mixed = read_sources(data_specs(config.data), columns=config.columns, limit=config.rows or None)
    good = rows_or_error(mixed, on_bad=config.on_bad)
    encoder = Encoder(tokenizer, _recipe(config, template, model))
    kept, losses = loss_of(model, encoder, good, config, show)
    wanted = [row.answer for row in kept]
    names = _metrics(config.metrics, wanted)
    generation: dict[str, Any] = {}
    scores: list[Score] = []
    if names:
        generation = {"max_tokens": config.max_tokens, "temperature": config.temperature, "seed": config.seed}
        answers = answers_of(model, tokenizer, encoder, kept, config, show)
        scores = score(answers, wanted, names)
        if config.predictions:
            _write_predictions(Path(config.predictions), kept, answers)
    return Evaluated(
        model=config.model,
        data=config.data,
        rows=len(kept),
        left_out=len(mixed.bad) + len(good) - len(kept),
        template=template.name,
        nll=losses.nll,
        tokens=losses.tokens,
        loss=losses.loss,
        perplexity=math.exp(min(losses.loss, 700.0)),
        generation=generation,
        scores=scores,
        predictions=config.predictions if names else "",
    )


def loss_of(
    model: LanguageModel, encoder: Encoder, rows: Sequence[Row], config: EvalConfig, show: Progress
) -> tuple[list[Row], Validation]:
    """The rows that fit, and the total loss of their answers."""
    kept, examples = [], []
    for row in rows:
        fitted = encoder.row(row)
        if not fitted.examples:
            if config.on_long == "error":
                raise DataError(f"{row.where}: {fitted.tokens} tokens; the limit is {encoder.recipe.max_length}")
            continue
        kept.append(row)
        examples += fitted.examples
    if not kept:
        raise DataError(f"{config.data}: no row fits into {encoder.recipe.max_length} tokens")
    examples.sort(key=lambda example: len(example.ids))
    device, size = model.embed.weight.device, config.batch_size
    nll = tokens = 0.0
    for start in range(0, len(examples), size):
        part = evaluate(model, [pad_rows(examples[start : start + size], device)])
        nll, tokens = nll + part.nll, tokens + part.tokens
        show("loss", min(start + size, len(examples)), len(examples))
    return kept, Validation(nll=nll, tokens=tokens)


def answers_of(
    model: LanguageModel,
    tokenizer: Tokenizer,
    encoder: Encoder,
    rows: Sequence[Row],
    config: EvalConfig,
    show: Progress,
) -> list[str]:
    """What the model answers to the prompt of each row, in their order."""
    prompts = []
    for row in rows:
        template = encoder.recipe.template_of(row)
        stop_id, _ = encoder.stop_and_checks(template)
        start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        prompts.append(render(row.prompt, template, tokenizer, stop_id).ids if row.prompt else start)
    longest = model.config.max_positions
    room = min(config.max_tokens, longest - max(map(len, prompts)))
    if room < 1:
        raise DataError(f"{config.data}: a prompt fills all {longest} positions of this model; no answer fits")
    # Prompts of a length together: less padding; in slices, so that there is progress to show.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts: dict[int, str] = {}
    for start in range(0, len(order), config.batch_size):
        part = order[start : start + config.batch_size]
        made = generate_batch(
            model,
            tokenizer,
            [prompts[i] for i in part],
            max_tokens=room,
            temperature=config.temperature,
            seed=config.seed,
            batch_size=config.batch_size,
        )
        texts |= {i: one.text for i, one in zip(part, made, strict=True)}
        show("answers", len(texts), len(order))
    return [texts[i] for i in range(len(rows))]


def _recipe(config: EvalConfig, template: AnyTemplate, model: LanguageModel) -> Recipe:
    settings = SFTConfig(model=config.model, data=config.data, out="-", max_length=config.max_length, on_long="drop")
    return recipe_of(settings, template, model.stop_ids, model.config.max_positions, named=bool(config.template))


def _metrics(asked: str, wanted: Sequence[str]) -> list[str]:
    if asked == "none":
        return []
    if asked == "auto":
        return metrics_for(wanted)
    return [name.strip() for name in asked.split(",")]


def _write_predictions(path: Path, rows: Sequence[Row], answers: Sequence[str]) -> None:
    lines = (
        {
            "where": row.where,
            "prompt": row.prompt[-1].content if row.prompt else "",
            "context": row.prompt[-1].context if row.prompt else "",
            "expected": row.answer,
            "answer": answer,
            "exact": answer.strip() == row.answer.strip(),
        }
        for row, answer in zip(rows, answers, strict=True)
    )
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
