"""The loss mask as proof: every token of a row with the rule that decided, and the assertions over whole files."""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from minitune.adapters.peft_layout import trained_tokens_of
from minitune.chat import Encoded, rendered_text, terminator
from minitune.checkpoint import read_config, stop_ids_of, vocabulary_rows
from minitune.config import SFTConfig
from minitune.data.formats import Row
from minitune.data.sources import parse_source
from minitune.errors import CheckpointError, ConfigError, DataError
from minitune.jobs.conversation import template_of
from minitune.jobs.dataset import data_specs, recipe_of, refusals
from minitune.jobs.encode import Encoder
from minitune.jobs.load import resolve, tokenizer_folder
from minitune.jobs.prepared import Preparation, Prepared, Progress, rows_of
from minitune.jobs.train_tokens import control_ids_of, with_template_tokens
from minitune.mask_report import RULES
from minitune.models.vocabulary import SMALL, row_norms
from minitune.tokenizer import Tokenizer, load_tokenizer

SAMPLED = 200
"""Rows that are encoded once more, as one text each, to tell how many would have other ids."""


class Token(NamedTuple):
    """One token of an example as a reader sees it."""

    position: int
    id: int
    text: str
    turn: int
    role: str
    part: str
    trained: bool
    weight: float
    rule: str


@dataclass(frozen=True)
class Shown:
    """One row, token by token; ``notes`` say what is worth knowing about it."""

    where: str
    examples: list[list[Token]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Inspection:
    """What was found about the rows of some files, as a model would be trained on them.

    ``refused``: why ``sft`` with the same settings would not start; nothing where it would. ``otherwise``: of the first
    ``sampled`` rows, those whose ids would be others if prompt and answer were encoded as one text.
    """

    model: str
    files: tuple[str, ...]
    template: str
    why_template: str
    terminator: tuple[int, str]
    stop_ids: tuple[int, ...]
    max_length: int
    prepared: Prepared
    shown: list[Shown]
    refused: list[str]
    warnings: list[str]
    sampled: int
    otherwise: int

    def as_json(self) -> dict[str, Any]:
        """Everything by its name: the report with its rules, then the rows that are shown."""
        prepared = self.prepared
        names = ("model", "files", "template", "why_template", "terminator", "stop_ids", "max_length")
        names += ("refused", "warnings", "sampled", "otherwise")
        found = {"ok": not self.refused} | {name: getattr(self, name) for name in names}
        found |= prepared.report.as_json() | {"rules": RULES}
        found |= {name: getattr(prepared, name) for name in ("bad_rows", "long_rows", "bad", "long")}
        shown = [
            {"where": row.where, "notes": row.notes, "examples": [[t._asdict() for t in e] for e in row.examples]}
            for row in self.shown
        ]
        return found | {"shown": shown}


def inspect(config: SFTConfig, *, row: int, show: int, progress: Progress | None = None) -> Inspection:
    """Prepare the rows that ``config`` names as ``sft`` would, and show ``show`` of them from number ``row`` on.

    Of the model only its configuration, its tokenizer and its vocabulary's tables are read. Rows are counted from 1,
    those that cannot be read left out. Raises ConfigError, DataError, CheckpointError or TokenizerError with one line.
    """
    source = resolve(config.model)
    folder, place = source.base, tokenizer_folder(source)
    shape, raw = read_config(folder)
    tokenizer = load_tokenizer(place)
    template, why = template_of(config.template, tokenizer, config.model)
    if config.train_tokens:
        tokenizer, place = with_template_tokens(tokenizer, template, place)
    stop_id = terminator(template, tokenizer)
    known = stop_ids_of(folder, raw, shape.vocab_size)
    if tokenizer.eos_id is not None:
        known = (*known, tokenizer.eos_id)
    stop_ids = tuple(dict.fromkeys((*known, stop_id)))
    recipe = recipe_of(config, template, stop_ids, shape.max_positions, named=bool(config.template))
    files = [parse_source(spec).name for spec in data_specs(config.data)]
    prepared = Preparation(config, tokenizer, place, recipe, progress).run(files, limit=config.rows)
    if show and not 1 <= row <= prepared.readable:
        raise ConfigError(f"--row is {row}; the files have {prepared.readable:,} rows that can be read")
    encoder = Encoder(tokenizer, recipe)
    trained = trained_tokens_of(source.adapter) if source.adapter is not None else set[int]()
    rows_said = [] if config.train_tokens else untrained_rows(folder, tokenizer, [prepared], but=trained)
    sampled, wanted = min(SAMPLED, prepared.readable), range(row - 1, min(row - 1 + show, prepared.readable))
    numbers = list(dict.fromkeys([*range(sampled), *wanted]))
    rows = dict(zip(numbers, rows_of(prepared, numbers, config.columns), strict=True))
    return Inspection(
        model=config.model,
        files=tuple(files),
        template=template.name,
        why_template=why,
        terminator=(stop_id, tokenizer.token(stop_id)),
        stop_ids=stop_ids,
        max_length=recipe.max_length,
        prepared=prepared,
        shown=[show_row(rows[number], encoder) for number in wanted],
        refused=refusals(prepared, config, recipe, shape.max_positions),
        warnings=[*stop_warnings(stop_id, known, tokenizer), *rows_said],
        sampled=sampled,
        otherwise=sum(joined_otherwise(rows[number], encoder) for number in range(sampled)),
    )


def stop_warnings(stop_id: int, known: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """What to say where a model's folder does not say that generations stop on what ends an answer."""
    if stop_id in known:
        return []
    return [
        f"answers end with {tokenizer.token(stop_id)!r} (id {stop_id}), which the model's folder does not list "
        f"among the ids to stop on {sorted(set(known))}; generations of a run stop on it too, other tools must be told"
    ]


def show_row(row: Row, encoder: Encoder) -> Shown:
    """A row, token by token."""
    try:
        fitted = encoder.row(row)
    except DataError as error:
        return Shown(row.where, [], [f"bad: {error}"])
    if fitted.tokens:
        return Shown(row.where, [], [f"{fitted.tokens} tokens: too long, see --on-long"])
    notes = [] if fitted.examples else ["no answer of this row is trained"]
    if fitted.shortened:
        notes.append("its oldest turns are left out, to fit")
    if fitted.cut:
        notes.append("its last answer is cut to fit, and gets no end")
    if len(fitted.examples) > 1:
        notes.append("its template writes earlier turns otherwise in later prompts: one example for each answer")
    if joined_otherwise(row, encoder):
        notes.append(
            "encoded as one text it would have other ids: here an answer is encoded by itself, as it is generated"
        )
    return Shown(row.where, [tokens_of(example, encoder.tokenizer) for example in fitted.examples], notes)


def joined_otherwise(row: Row, encoder: Encoder) -> bool:
    """Whether the row would have other ids if all of it were encoded as one text, as many tools do (B7)."""
    try:
        fitted = encoder.row(row)
        if len(fitted.examples) != 1 or fitted.shortened or fitted.cut:
            return False
        text = rendered_text(row.messages, encoder.recipe.template_of(row), encoder.tokenizer, header=False)
    except DataError:
        return False
    ids, mine, bos = encoder.tokenizer.encode(text, control=True), fitted.examples[0].ids, encoder.tokenizer.bos_id
    if mine[:1] == [bos] and ids[:1] != [bos]:
        mine = mine[1:]
    return ids[: len(mine)] != mine


def tokens_of(example: Encoded, tokenizer: Tokenizer) -> list[Token]:
    """The tokens of an example; of a character that is cut into several, each shows the bytes it has."""
    found = []
    for span in example.spans:
        for place in range(span.start, span.end):
            token = example.ids[place]
            text = tokenizer.decode([token], continues=True)
            if "\ufffd" in text and token not in tokenizer.control_ids:
                text = tokenizer.token(token)
            found.append(
                Token(place, token, text, span.turn, span.role, span.part, span.trained, span.weight, span.rule)
            )
    return found


def untrained_rows(
    folder: Path, tokenizer: Tokenizer, prepared: Sequence[Prepared], *, but: Container[int] = ()
) -> list[str]:
    """What to say of control ids whose row of the embedding or the head looks as if it was never trained (B12).

    Nothing of the ids in ``but``, whose rows are trained elsewhere.
    """
    try:
        tables = vocabulary_rows(folder, read_config(folder)[0])
    except CheckpointError as error:
        return [f"the vocabulary's rows were not looked at ({error})"]
    if not tables:
        return ["the vocabulary's rows were not looked at: the folder holds none under their published names"]
    warnings, ids = [], [id for id in control_ids_of(prepared, tokenizer) if id not in but]
    for name, table in tables.items():
        norms = row_norms(table)
        median = float(norms.median())
        for token in ids:
            title = f"{tokenizer.token(token)!r} (id {token})"
            norm = float(norms[token]) if token < len(norms) else math.inf
            below = 100 * float((norms < norm).float().mean())
            if token >= len(norms):
                warnings.append(f"{title} has no row in {name}")
            elif norm < SMALL * median:
                warnings.append(
                    f"{title} looks untrained in {name}: its row has a norm of {norm:.3g}, the median is {median:.3g} "
                    f"({below:.1f} % of rows are shorter); add --train-tokens, which trains its row, or choose a "
                    "template without it"
                )
    return warnings
