"""The loss mask as proof: every token of a row with the rule that decided, and the assertions over whole files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minitune.chat import Encoded, rendered_text, template_for, terminator
from minitune.checkpoint import read_config, stop_ids_of, vocabulary_rows
from minitune.config import SFTConfig
from minitune.data.formats import Row
from minitune.data.sources import parse_source
from minitune.errors import CheckpointError, ConfigError, DataError
from minitune.jobs.dataset import data_specs, recipe_of
from minitune.jobs.encode import Encoder
from minitune.jobs.load import resolve
from minitune.jobs.prepared import Preparation, Prepared, Progress, rows_of
from minitune.tokenizer import Tokenizer, load_tokenizer

SMALL = 0.3
"""A row of a table shorter than this share of the median row looks as if it was never trained."""


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
    """What was found about the rows of some files, as a model would be trained on them."""

    model: str
    files: tuple[str, ...]
    template: str
    why_template: str
    terminator: tuple[int, str]
    stop_ids: tuple[int, ...]
    max_length: int
    prepared: Prepared
    shown: list[Shown]
    warnings: list[str]

    @property
    def refused(self) -> list[str]:
        """Why ``sft`` would not start on these rows by itself; nothing where it would."""
        report, found = self.prepared.report, []
        if report.failures:
            found.append(f"{report.failures.total():,} assertions failed")
        if self.prepared.bad_rows:
            found.append(f"{self.prepared.bad_rows:,} bad rows (--on-bad drop leaves them out)")
        if self.prepared.long_rows:
            found.append(f"{self.prepared.long_rows:,} rows over {self.max_length} tokens (see --on-long)")
        return found


def inspect(config: SFTConfig, *, row: int, show: int, progress: Progress | None = None) -> Inspection:
    """Prepare the rows that ``config`` names as ``sft`` would, and show ``show`` of them from number ``row`` on.

    Of the model only its configuration, its tokenizer and its vocabulary's tables are read. Rows are counted from 1,
    bad ones left out. Raises ConfigError, DataError, CheckpointError or TokenizerError with one line.
    """
    folder = resolve(config.model).base
    shape, raw = read_config(folder)
    tokenizer = load_tokenizer(folder)
    template, why = template_for(tokenizer, config.template or None)
    stop_id = terminator(template, tokenizer)
    known = stop_ids_of(folder, raw, shape.vocab_size)
    if tokenizer.eos_id is not None:
        known = (*known, tokenizer.eos_id)
    stop_ids = tuple(dict.fromkeys((*known, stop_id)))
    recipe = recipe_of(config, template, stop_ids, shape.max_positions, named=bool(config.template))
    files = [parse_source(spec).name for spec in data_specs(config.data)]
    prepared = Preparation(config, tokenizer, folder, recipe, progress).run(files, limit=config.rows)
    total = prepared.report.rows + prepared.long_rows
    if show and not 1 <= row <= total:
        raise ConfigError(f"--row is {row}; the files have {total:,} good rows")
    encoder = Encoder(tokenizer, recipe)
    numbers = list(range(row - 1, min(row - 1 + show, total)))
    shown = [show_row(one, encoder) for one in rows_of(prepared, numbers, config.columns)]
    warnings = []
    if stop_id not in known:
        warnings.append(
            f"answers end with {tokenizer.token(stop_id)!r} (id {stop_id}), which the model's folder does not list among "
            f"the ids to stop on {sorted(known)}; a run stops on it too, other tools must be told"
        )
    used = control_ids_of(prepared, tokenizer)
    return Inspection(
        model=config.model,
        files=tuple(files),
        template=template.name,
        why_template=why,
        terminator=(stop_id, tokenizer.token(stop_id)),
        stop_ids=stop_ids,
        max_length=recipe.max_length,
        prepared=prepared,
        shown=shown,
        warnings=warnings + untrained_rows(folder, tokenizer, used),
    )


def show_row(row: Row, encoder: Encoder) -> Shown:
    """A row, token by token."""
    fitted = encoder.row(row)
    notes = []
    if fitted.tokens:
        return Shown(row.where, [], [f"{fitted.tokens} tokens: too long, see --on-long"])
    if fitted.shortened:
        notes.append("its oldest turns are left out, to fit")
    if fitted.cut:
        notes.append("its last answer is cut to fit, and gets no end")
    if len(fitted.examples) > 1:
        notes.append("its template writes earlier turns otherwise in later prompts: one example for each answer")
    if len(fitted.examples) == 1 and not (fitted.shortened or fitted.cut) and _joined_otherwise(row, encoder):
        notes.append(
            "encoded as one text it would have other ids: here an answer is encoded by itself, as it is generated"
        )
    return Shown(row.where, [tokens_of(example, encoder.tokenizer) for example in fitted.examples], notes)


def _joined_otherwise(row: Row, encoder: Encoder) -> bool:
    template = encoder.recipe.template_of(row)
    example = encoder.row(row).examples[0]
    try:
        text = rendered_text(row.messages, template, encoder.tokenizer, header=False)
    except DataError:
        return False
    ids = encoder.tokenizer.encode(text, control=True)
    mine = example.ids
    bos = encoder.tokenizer.bos_id
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


def control_ids_of(prepared: Prepared, tokenizer: Tokenizer, most: int = 2000) -> list[int]:
    """The control ids that stand in the first examples, in ascending order."""
    control = tokenizer.control_ids
    found: set[int] = set()
    for place in range(min(len(prepared.store), most)):
        found |= control.intersection(prepared.store[place].ids.tolist())
    return sorted(found)


def untrained_rows(folder: Path, tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What to say of control ids whose row of the embedding or the head looks as if it was never trained (B12)."""
    try:
        tables = vocabulary_rows(folder, read_config(folder)[0])
    except CheckpointError as error:
        return [f"the vocabulary's rows were not looked at ({error})"]
    if not tables:
        return ["the vocabulary's rows were not looked at: the folder holds none under their published names"]
    warnings = []
    for name, table in tables.items():
        norms = _norms(table)
        median = float(norms.median())
        for token in ids:
            if token >= len(norms):
                warnings.append(f"{tokenizer.token(token)!r} (id {token}) has no row in {name}")
                continue
            norm = float(norms[token])
            below = 100 * float((norms < norm).float().mean())
            if norm < SMALL * median:
                warnings.append(
                    f"{tokenizer.token(token)!r} (id {token}) looks untrained in {name}: its row has a norm of {norm:.3g}, "
                    f"the median is {median:.3g} ({below:.1f} % of rows are shorter); a template without it would do "
                    "better, or train its row"
                )
    return warnings


def _norms(table: Tensor) -> Tensor:
    return torch.cat([part.float().norm(dim=1) for part in table.split(16_384)])
