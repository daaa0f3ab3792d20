"""An adapter and its base become one plain folder, with the difference that this makes measured on rows."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from minitune.adapters import load_adapter, merge_adapter, merge_token_rows
from minitune.adapters.peft_layout import base_weights_of
from minitune.chat import template_for
from minitune.checkpoint import GENERATION, load_checkpoint, save_checkpoint, weights_fingerprint
from minitune.config import SFTConfig, from_mapping
from minitune.data.sources import read_sources
from minitune.device import pick_device
from minitune.errors import ConfigError, DataError, MinituneError
from minitune.jobs.dataset import data_specs, recipe_of
from minitune.jobs.encode import Encoder
from minitune.jobs.load import Source, resolve, tokenizer_of
from minitune.jobs.outfit import CHAT_TEMPLATE
from minitune.models import LanguageModel
from minitune.tokenizer import Tokenizer

STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LOGITS_BYTES = 256 * 2**20
"""Logits of the unmerged pair that are kept to compare with."""
_TEXTS = (
    "Once upon a time there was a small house by the river, and in it lived",
    "从前有一座山，山里有一座小房子，房子里住着",
    "The sum of two and three is five. The sum of four and five is",
    "Question: What is the capital of France?\nAnswer:",
)
"""What is compared on where an adapter names no rows of its own."""
_BESIDE = (GENERATION, CHAT_TEMPLATE)
"""What a run put beside its adapter: it goes along with the merged weights."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What was written, and how far it is from the unmerged pair, both computed in float32.

    trained_tokens    tokens whose rows of embedding and head the adapter trains
    max_difference    the largest difference of a logit
    largest_logit     the largest logit, to hold it against
    kl                mean Kullback-Leibler divergence of the next token, pair from merged, in nats
    top1              share of positions at which both find the same token the likeliest
    checked_base      whether the adapter named the weights that it was trained on, and these are they
    """

    out: str
    base: str
    adapter: str
    dtype: str
    layers: int
    trained_tokens: int
    compared_on: str
    tokens: int
    max_difference: float
    largest_logit: float
    kl: float
    top1: float
    checked_base: bool


def merge(
    model: str,
    adapter: str,
    out: str,
    *,
    dtype: str = "stored",
    rows: int = 16,
    device: str = "auto",
    force: bool = False,
) -> Merged:
    """Write ``base + adapter`` as a plain folder ``out``, then load that and compare its logits with the pair's.

    ``dtype`` is the type it is stored in, by itself the base's own; the sum is made in float32 and rounded once.
    ``adapter`` is an adapter folder or a run folder; of a run, ``rows`` of its own rows are compared on. Raises
    CheckpointError or ConfigError in one line, also where the adapter was trained on other weights than these.
    """
    source = _sources(model, adapter)
    assert source.adapter is not None
    target = Path(out).expanduser()
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise ConfigError(f"--out {out} is not empty; choose a new folder")
    if dtype != "stored" and dtype not in STORED:
        raise ConfigError(f"--dtype is {dtype!r}; it must be one of: stored, {', '.join(STORED)}")
    trained_on = base_weights_of(source.adapter)
    if trained_on and trained_on != weights_fingerprint(source.base) and not force:
        raise ConfigError(
            f"{source.adapter}: was trained on other weights than those in {source.base}; name its own base, or pass "
            "--force to merge all the same"
        )
    where, _ = pick_device(device)
    pair = load_checkpoint(source.base, device=where)
    load_adapter(pair.model, source.adapter)
    tokenizer = tokenizer_of(pair, source)
    named, texts = _texts(source.adapter, pair.model, tokenizer, rows)
    wanted = _logits(pair.model.eval(), texts)
    layers, tokens = merge_adapter(pair.model), merge_token_rows(pair.model)
    beside = {
        name: (source.adapter / name).read_text(encoding="utf-8")
        for name in _BESIDE
        if (source.adapter / name).is_file()
    }
    save_checkpoint(
        pair.model,
        target,
        source=source.base,
        dtype=STORED.get(dtype),
        tokenizer_files=tokenizer.files,
        beside=beside,
    )
    written = load_checkpoint(target, device=where)
    found = _logits(written.model.eval(), texts)
    stored = ", ".join(written.certificate.dtypes)
    return Merged(
        out=str(target),
        base=str(source.base),
        adapter=str(source.adapter),
        dtype=stored,
        layers=layers,
        trained_tokens=tokens,
        compared_on=named,
        tokens=sum(len(one) for one in wanted),
        checked_base=bool(trained_on),
        **_difference(wanted, found),
    )


def _sources(model: str, adapter: str) -> Source:
    """Where base and adapter are; ConfigError where one of the two is not what it is named as."""
    base = resolve(model)
    if base.adapter is not None:
        raise ConfigError(f"{model} is an adapter itself; the first name is the base model, the second the adapter")
    folder = Path(adapter).expanduser()
    if (folder / "adapter").is_dir():
        folder = folder / "adapter"
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(f"{adapter} holds no adapter_config.json; expected an adapter folder or the folder of a run")
    return Source(base=base.base, adapter=folder)


def _texts(adapter: Path, model: LanguageModel, tokenizer: Tokenizer, rows: int) -> tuple[str, list[list[int]]]:
    """What to compare on, in words and as ids: rows of the run that the adapter comes from, else a few sentences."""
    most = _LOGITS_BYTES // (4 * model.config.vocab_size)
    found: list[list[int]] = []
    named = ""
    if (adapter.parent / "config.toml").is_file():
        try:
            found = _rows_of_run(adapter.parent / "config.toml", model, tokenizer, rows)
            named = f"{len(found)} rows that it was trained on"
        except MinituneError:
            found = []  # its files were moved: the sentences below will do
    if not found:
        bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        found = [bos + tokenizer.encode(text) for text in _TEXTS]
        named = f"{len(found)} plain sentences (the adapter brings no rows)"
    kept: list[list[int]] = []
    for ids in found:
        room = min(most, model.config.max_positions)
        if room < 1:
            break
        kept.append(ids[:room])
        most -= len(kept[-1])
    return named, kept


def _rows_of_run(path: Path, model: LanguageModel, tokenizer: Tokenizer, rows: int) -> list[list[int]]:
    config = from_mapping(SFTConfig, tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    template, _ = template_for(tokenizer, config.template or None)
    recipe = recipe_of(config, template, model.stop_ids, model.config.max_positions, named=bool(config.template))
    encoder = Encoder(tokenizer, recipe)
    mixed = read_sources(data_specs(config.data), columns=config.columns, limit=rows)
    fitted = (encoder.row(row) for row in mixed.good)
    found = [example.ids for one in fitted for example in one.examples]
    if not found:
        raise DataError(f"{path}: none of the first {rows} rows fits")
    return list(islice(found, rows))


@torch.no_grad()
def _logits(model: LanguageModel, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits (T, V) of each text, in float32 on the CPU."""
    device = model.embed.weight.device
    return [model.logits(model(torch.tensor([ids], device=device)))[0].float().cpu() for ids in texts]


def _difference(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> dict[str, float]:
    """Of the merged logits ``found`` from the pair's ``wanted``, over all positions of all texts."""
    tokens = sum(len(one) for one in wanted)
    kl = same = 0.0
    largest = apart = 0.0
    for ours, theirs in zip(wanted, found, strict=True):
        p, q = F.log_softmax(ours.double(), dim=-1), F.log_softmax(theirs.double(), dim=-1)
        kl += float((p.exp() * (p - q)).sum())
        same += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
        largest = max(largest, float(ours.abs().max()))
        apart = max(apart, float((ours - theirs).abs().max()))
    return {"max_difference": apart, "largest_logit": largest, "kl": max(0.0, kl / tokens), "top1": same / tokens}
