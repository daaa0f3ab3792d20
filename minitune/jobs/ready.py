"""Everything that a run of training needs, checked and in memory, before the first step; nothing is written yet."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from minitune.adapters import LoRAConfig, add_lora
from minitune.chat import AnyTemplate
from minitune.checkpoint import fingerprint_of, load_checkpoint, read_config
from minitune.config import ModelConfig, PretrainConfig, TrainConfig
from minitune.data.sources import parse_source
from minitune.device import pick_device, pick_dtype, pick_ops
from minitune.errors import CheckpointError, ConfigError
from minitune.files import code_fingerprint, read_json, sha256
from minitune.jobs.conversation import stop_on, template_of
from minitune.jobs.dataset import Dataset, data_specs, prepare, recipe_of
from minitune.jobs.encode import Encoder
from minitune.jobs.feed import Feed
from minitune.jobs.inspect import stop_warnings, untrained_rows
from minitune.jobs.load import resolve, tokenizer_of
from minitune.jobs.prepared import Progress
from minitune.jobs.train_tokens import train_template_rows, with_template_tokens
from minitune.memory_plan import Term, memory_plan
from minitune.models import LanguageModel, build
from minitune.models.published import model_config
from minitune.ops import Ops
from minitune.ops.product import onednn
from minitune.optim import AdamW, learning_rate, warmup_steps
from minitune.storage import weight_files
from minitune.tokenizer import Tokenizer, load_tokenizer


@dataclass
class Base:
    """The model that a run starts from: a folder's, or a new one (``folder`` is None then).

    ``weights``: SHA-256 of each file of the folder's weights.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    folder: Path | None
    tokenizer_path: Path
    weights: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """One hash of all weights; that of nothing for a new model."""
        return fingerprint_of(self.weights.values())


class Ready:
    """A run that could start: device, model, data, optimizer, steps, and what is worth a warning.

    Raises MinituneError, in one line, where the settings, the model or the data are wrong.
    """

    def __init__(self, config: TrainConfig, progress: Progress | None = None):
        self.config = config
        named = [parse_source(spec).name for spec in data_specs(config.data)]
        self.files = [Path(name) for name in (*named, config.val) if Path(name).is_file()]
        self.device, why_device = pick_device(config.device)
        self.compute, why_dtype = pick_dtype(config.dtype, self.device)
        self.ops, why_ops = pick_ops(config.ops, self.device)
        self.choices = {
            "device": (str(self.device), why_device),
            "dtype": (str(self.compute).removeprefix("torch."), why_dtype),
            "ops": (self.ops.name, why_ops),
        }
        self.base = _base(config, self.ops, self.device, self.compute)
        self.model, self.tokenizer = self.base.model, self.base.tokenizer
        self.template: AnyTemplate
        self.template, why_template = template_of(config.template, self.tokenizer, config.model)
        self.choices["template"] = (self.template.name, why_template)
        place = self.base.tokenizer_path
        if config.train_tokens:
            self.tokenizer, place = with_template_tokens(self.tokenizer, self.template, place, self.model)
        known = self.model.stop_ids
        self.stop_id = stop_on(self.template, self.model, self.tokenizer)
        positions = self.model.config.max_positions
        named_template = bool(config.template) and not isinstance(config, PretrainConfig)
        recipe = recipe_of(config, self.template, self.model.stop_ids, positions, named=named_template)
        self.data: Dataset = prepare(config, self.tokenizer, place, recipe, positions, progress)
        self.encoder = Encoder(self.tokenizer, recipe)
        self.feed = Feed(config, self.data)
        self._make_trainable()
        self.steps = config.max_steps or self.feed.steps_of(config.epochs)
        self.warmup = warmup_steps(config.warmup, self.steps)
        self.peak_lr = config.lr if config.lr is not None else config.RATES[config.method]
        self.warnings = stop_warnings(self.stop_id, known, self.tokenizer)
        if self.base.folder is not None and config.method == "lora" and not config.train_tokens:
            self.warnings += untrained_rows(self.base.folder, self.tokenizer, self.data.prepared)

    def _make_trainable(self) -> None:
        config = self.config
        self.lora = LoRAConfig(
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            targets=tuple(config.targets.split(",")),
            rslora=config.rslora,
            dora=config.dora,
        )
        if config.method == "lora":
            add_lora(self.model, self.lora, seed=config.seed)
            if config.train_tokens:
                args = (self.model, self.tokenizer, self.template, self.data.prepared)
                self.choices["tokens"] = train_template_rows(*args)
        self.model.checkpointing = config.checkpointing
        torch.manual_seed(config.seed)  # dropout draws from it
        trainable = {name: w for name, w in self.model.named_parameters() if w.requires_grad}
        self.trainable_parameters = sum(w.numel() for w in trainable.values())
        self.optimizer = AdamW(trainable, betas=(0.9, config.beta2), weight_decay=config.weight_decay)

    @property
    def micro_rows(self) -> int:
        """Rows that are in memory at a time."""
        return self.config.micro_batch or self.config.batch_size

    def rate(self, step: int) -> float:
        """The learning rate of optimizer step 0, 1, ..."""
        schedule = self.config.schedule
        return learning_rate(step, self.steps, peak=self.peak_lr, warmup=self.warmup, schedule=schedule)

    def rate_table(self) -> list[tuple[int, float]]:
        """The learning rate at a few optimizer steps, counted from 1."""
        places = {1, self.warmup, self.warmup + 1, *(round(self.steps * share) for share in (0.25, 0.5, 0.75, 1))}
        return [(step, self.rate(step - 1)) for step in sorted(places) if 1 <= step <= self.steps]

    def memory(self) -> list[Term]:
        """What one step will hold in memory, term by term."""
        rows, packing = self.micro_rows, self.config.packing
        longest = self.data.max_length if packing else int(self.feed.lengths.max(initial=1))
        tokens = rows * longest
        trained = self.data.report.trained_tokens / max(1, self.data.report.tokens)
        return memory_plan(self.model, tokens=tokens, trained_tokens=max(1, round(tokens * trained)))

    def made_of(self) -> dict[str, object]:
        """What decides the bits of a run: hashes of data, weights, tokenizer, template and code, and its settings."""
        config = self.config
        shape = {name: getattr(config, name) for name in ("batch_size", "micro_batch", "packing", "dtype", "method")}
        return {
            "data": {str(file): sha256(file) for file in self.files},
            "weights": self.base.weights,
            "tokenizer": self.tokenizer.fingerprint,
            "template": self.template.fingerprint,
            "code": code_fingerprint(),
            "torch": torch.__version__,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "products": "oneDNN" if onednn() else "torch",  # follows from the processor
            "ops": self.ops.name,
            "max_length": self.data.max_length,
            "steps": self.steps,
            "peak_lr": self.peak_lr,
            "seed": config.seed,
            **shape,
        }


def _base(config: TrainConfig, ops: Ops, device: torch.device, compute: torch.dtype) -> Base:
    """The model of ``--model``, or a new one of ``--shape``.

    Trainable weights are kept in float32 whatever the products are computed in; a frozen base need not be.
    """
    kept = torch.float32 if config.method == "full" else compute
    if isinstance(config, PretrainConfig) and config.shape:
        return _new(config, ops, device, compute)
    source = resolve(config.model)
    if source.adapter is not None:
        raise ConfigError(f"{config.model} is an adapter; tuning one further is not built yet, name its base model")
    checkpoint = load_checkpoint(source.base, device=device, dtype=kept, compute_dtype=compute, ops=ops)
    weights = {file.name: sha256(file) for file in weight_files(source.base)[0]}
    return Base(checkpoint.model, tokenizer_of(checkpoint), source.base, source.base, weights)


def _new(config: PretrainConfig, ops: Ops, device: torch.device, compute: torch.dtype) -> Base:
    """A model of the shape that a config.json says, with random weights and as many rows as its tokenizer has ids."""
    path = Path(config.shape).expanduser()
    if path.is_dir():
        shape, _ = read_config(path)
    else:
        shape = model_config(read_json(path, CheckpointError), str(path))
    tokenizer_path = resolve(config.tokenizer).base
    tokenizer = load_tokenizer(tokenizer_path)
    _check_vocabulary(shape, tokenizer, config)
    with torch.device("meta"):
        model = build(shape, ops, compute)
    model = model.to_empty(device="cpu")
    model.tie()
    with torch.no_grad():
        model.initialize(seed=config.seed, std=config.init_std, mimetic=config.init == "mimetic")
    if tokenizer.eos_id is not None:
        model.stop_ids = (tokenizer.eos_id,)
    return Base(model.to(device), tokenizer, None, tokenizer_path)


def _check_vocabulary(shape: ModelConfig, tokenizer: Tokenizer, config: PretrainConfig) -> None:
    if tokenizer.vocab_size > shape.vocab_size:
        raise ConfigError(
            f"--shape {config.shape} has a vocab_size of {shape.vocab_size}; the tokenizer {config.tokenizer} has "
            f"{tokenizer.vocab_size} ids, so vocab_size must be at least that"
        )
