"""A MODEL as a user names it -> a model and its tokenizer, ready to use."""

from dataclasses import dataclass
from pathlib import Path

from minitune.adapters.lora import merge_adapter
from minitune.adapters.peft_files import ADAPTER_CONFIG
from minitune.adapters.peft_layout import base_of, load_adapter, trained_tokens_of
from minitune.checkpoint import CONFIG, Checkpoint, load_checkpoint
from minitune.device import pick_device, pick_dtype, pick_ops
from minitune.errors import CheckpointError, ConfigError
from minitune.models import LanguageModel
from minitune.models.int8 import quantise as to_int8
from minitune.models.packed import pack
from minitune.tokenizer import Tokenizer, load_tokenizer

TINY = Path(__file__).parents[1] / "assets" / "tiny"
"""The model inside the package, named ``tiny``."""
QUANTISED = ("none", "int8")
"""How the weights can be kept."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The folders that a MODEL means: base weights, and an adapter on top where there is one."""

    base: Path
    adapter: Path | None = None


def resolve(name: str | Path) -> Source:
    """The folders behind ``tiny``, a model folder, an adapter folder or a run folder; CheckpointError where unclear."""
    if str(name) == "tiny":
        return Source(base=TINY)
    folder = Path(name).expanduser()
    if not (folder / CONFIG).is_file():
        if (folder / "model" / CONFIG).is_file():
            return Source(base=folder / "model")
        if (folder / "adapter" / ADAPTER_CONFIG).is_file():
            return resolve(folder / "adapter")
        if (folder / ADAPTER_CONFIG).is_file():
            base = base_of(folder)
            if Path(base).expanduser().resolve() == folder.resolve():
                raise CheckpointError(f"{folder}: names itself as its base model; edit {ADAPTER_CONFIG}")
            found = resolve(base)
            if not found.base.is_dir():
                raise CheckpointError(
                    f"{folder}: its base model {base!r} is not there; put it back or edit {ADAPTER_CONFIG}"
                )
            if found.adapter is not None:
                raise CheckpointError(f"{folder}: its base {base!r} is an adapter itself, which is not supported")
            return Source(base=found.base, adapter=folder)
    return Source(base=folder)


def load(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    ops: str = "auto",
    quantise: str = "none",
    packed: bool = False,
) -> tuple[LanguageModel, Tokenizer]:
    """Load ``(model, tokenizer)`` for inference: weights and compute in ``dtype``, adapters in place, dropout off.

    ``name`` is a model folder as published, an adapter folder, a run folder, or ``tiny``; ``quantise`` is ``none`` or
    ``int8`` (weights only), which merges an adapter first; ``packed`` keeps weights in the order in which this
    processor multiplies fastest, where it has one, and no longer as ``weight``. Raises CheckpointError, TokenizerError
    or ConfigError with one line.
    """
    if quantise not in QUANTISED:
        raise ConfigError(f"quantise is {quantise!r}; it must be one of: {', '.join(QUANTISED)}")
    source = resolve(name)
    where, _ = pick_device(device)
    kind, _ = pick_dtype(dtype, where)
    table, _ = pick_ops(ops, where)
    checkpoint = load_checkpoint(source.base, device=where, dtype=kind, ops=table)
    if source.adapter is not None:
        load_adapter(checkpoint.model, source.adapter)
    if quantise == "int8":
        merge_adapter(checkpoint.model)
        to_int8(checkpoint.model)
    elif packed:
        pack(checkpoint.model)
    return checkpoint.model.eval().requires_grad_(False), tokenizer_of(checkpoint, source)


def tokenizer_folder(source: Source) -> Path:
    """Where the tokenizer of a MODEL is: in its adapter, where that trains tokens and brings them, else in its base."""
    adapter = source.adapter
    if adapter is None or not any((adapter / name).is_file() for name in VOCABULARIES):
        return source.base
    return adapter if trained_tokens_of(adapter) else source.base


def tokenizer_of(checkpoint: Checkpoint, source: Source | None = None) -> Tokenizer:
    """The tokenizer of a loaded folder, or of its adapter; its end-of-text id joins the ids that end a generation."""
    tokenizer = load_tokenizer(checkpoint.folder if source is None else tokenizer_folder(source))
    model = checkpoint.model
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{tokenizer.files[0].parent}: the tokenizer has {tokenizer.vocab_size} ids but the model embeds only "
            f"{model.config.vocab_size}; they do not belong together"
        )
    if tokenizer.eos_id is not None and tokenizer.eos_id not in model.stop_ids:
        model.stop_ids = (*model.stop_ids, tokenizer.eos_id)
    return tokenizer
