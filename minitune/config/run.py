"""What a run of training does: the settings of ``sft`` and ``pretrain``, which share all but a few."""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from minitune.config.checks import checked, flag
from minitune.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What every run of training is told: data, model, loop, and where it goes."""

    model: str
    """Model folder as published (config.json, *.safetensors, tokenizer files), or `tiny`."""
    data: str
    """Files to train on: JSON, JSON Lines, CSV, Parquet or text, in any layout; several mix by weight (a.json=2)."""
    out: str
    """Run folder to write; must be new or empty (see --force)."""
    val: str = "0.05"
    """Validation rows: a fraction of the data (0.05), a count (200), another file, or 0 for none."""
    rows: int = 0
    """Use only the first so many rows of the data; 0 uses all."""
    columns: str = ""
    """Names of columns that are not the usual ones: instruction=question,output=answer."""
    on_bad: Literal["error", "drop"] = "error"
    """A row that cannot be used: stop with its line and reason, or leave it out and count it."""

    method: Literal["lora", "full"] = "lora"
    """lora trains small matrices beside the frozen weights; full trains every weight."""
    rank: int = 8
    """R: rank of the LoRA matrices."""
    alpha: float = 16.0
    """LoRA scale: the update is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the input of the LoRA matrices."""
    targets: str = "all-linear"
    """Layers that get LoRA: all-linear, names such as q_proj,v_proj, or patterns such as blocks.[01].*."""
    rslora: bool = False
    """Scale the update by alpha / sqrt(rank) (arXiv 2312.03732)."""
    dora: bool = False
    """Learn the length of each row apart from its direction (DoRA, arXiv 2402.09353)."""
    train_tokens: bool = False
    """Train the rows of the template's control tokens in embedding and head, and add those that the tokenizer lacks."""

    epochs: float = 1.0
    """Passes over the training rows."""
    max_steps: int = 0
    """Optimizer steps; when above 0 it decides instead of --epochs."""
    batch_size: int = 8
    """Rows an optimizer step; packed rows, of --max-length tokens each, where packing is on."""
    micro_batch: int = 0
    """Rows at a time; 0 means the whole batch. batch-size / micro-batch is the gradient accumulation."""
    max_length: int = 0
    """Tokens a row may have; 0 takes what the model was made for, at most 2048."""
    packing: bool = True
    """Put short examples behind each other into rows of --max-length tokens; none of them sees another."""

    lr: float | None = None
    """Peak learning rate; by itself 2e-4 for lora and 2e-5 for full."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """Learning rate after the warm-up; wsd stays at the peak and falls over the last fifth of the run."""
    warmup: float = 0.03
    """Warm-up: optimizer steps, or a fraction of all steps when below 1."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); not applied to norms and biases."""
    beta2: float = 0.999
    """AdamW: how long the mean of the squared gradients remembers."""
    clip: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    label_smoothing: float = 0.0
    """Share of each target's probability that is spread over the whole vocabulary; validation counts without it."""
    checkpointing: bool = False
    """Compute each block again in the backward instead of keeping what is inside it: less memory, a third more work."""
    compile: bool = False
    """Let torch.compile make programs of the layers, some seconds each, before the first step; needs a C++ compiler."""

    eval_every: int = 0
    """Optimizer steps between validations; 0 validates before the first step and after the last."""
    patience: int = 0
    """Stop after so many validations in a row that were no better than the best; 0 goes on to the end."""
    save_every: int = 0
    """Optimizer steps between checkpoints to go on from; 0 keeps one only when a run is stopped."""
    keep: int = 1
    """Checkpoints kept, the newest ones."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; trainable weights are kept in float32 all the same. auto chooses and says why."""
    ops: Literal["auto", "triton", "builtin", "reference"] = "auto"
    """Implementation of the mathematics: our kernels, torch's own functions, or the readable formulas."""
    seed: int = 0
    """Decides the validation rows, the order of the rows and the start of the LoRA matrices."""
    force: bool = False
    """Replace what an earlier run left in --out; with --resume, go on although data, code or settings have changed."""
    json: bool = False
    """Print one JSON document as the last line of standard output; everything for people goes to standard error."""
    quiet: bool = False
    """Print no progress."""
    tensorboard: bool = False
    """Write the curves for TensorBoard too, into the run folder (pip install tensorboard)."""
    dry_run: bool = False
    """Print the plan (rows, trained tokens, steps, learning rates, memory term by term) and train nothing."""

    COMMAND: ClassVar[str] = "sft"
    """What the command is called that runs these settings."""
    CHATS: ClassVar[bool] = True
    """Whether what is trained is answers, by a chat template that belongs to the model from then on."""
    RATES: ClassVar[Mapping[str, float]] = {"lora": 2e-4, "full": 2e-5}
    """The peak learning rate of each method where none is given."""

    def __post_init__(self) -> None:
        if type(self.val) in (int, float):
            object.__setattr__(self, "val", str(self.val))
        for name, kind in typing.get_type_hints(type(self)).items():
            if typing.get_origin(kind) is not ClassVar:
                checked(getattr(self, name), kind, flag(name))
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed is {self.seed}; it must be at least 0 and below 2^63")
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if not math.isfinite(value) or value < least:
                raise ConfigError(f"{flag(name)} is {value}; it must be at least {least}")
        self._check_names()
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"--label-smoothing is {self.label_smoothing}; it must lie in [0, 1)")
        if not 0 <= self.beta2 < 1:
            raise ConfigError(f"--beta2 is {self.beta2}; it must lie in [0, 1)")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"--dropout is {self.dropout}; it must lie in [0, 1)")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"--alpha is {self.alpha}; it must be above 0")
        if not 0 < self.epochs <= 1e6:
            raise ConfigError(f"--epochs is {self.epochs}; it must be above 0 and at most 1000000")
        if self.lr is not None and not 0 < self.lr <= 1e30:
            raise ConfigError(f"--lr is {self.lr}; it must be above 0")
        if self.micro_batch > self.batch_size:
            raise ConfigError(
                f"--micro-batch {self.micro_batch} is larger than --batch-size {self.batch_size}; "
                "a batch is cut into micro-batches"
            )
        if self.patience and not self.eval_every:
            raise ConfigError("--patience counts validations; say how often with --eval-every")

    def _check_names(self) -> None:
        for name in ("model", "data", "out"):
            if not getattr(self, name):
                raise ConfigError(f"{flag(name)} is empty")


_AT_LEAST = {
    "rows": 0, "rank": 1, "max_steps": 0, "batch_size": 1, "micro_batch": 0, "max_length": 0, "eval_every": 0,
    "warmup": 0, "weight_decay": 0, "clip": 0, "patience": 0, "save_every": 0, "keep": 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTConfig(RunConfig):
    """Masked supervised fine-tuning: the prompt is read, only the answer is trained.

    minitune sft --model MODEL --data rows.jsonl --out runs/first    tune
    minitune sft run.toml --lr 1e-4                                  settings from a file; flags win over it
    minitune sft RECIPE --model MODEL --data rows.jsonl --out RUN    one that ships (see minitune recipes)
    minitune sft ... --dry-run                                       the plan: rows, steps, rates, memory
    minitune sft --resume runs/first                                 go on where it was stopped, bit for bit
    """

    on_long: Literal["error", "drop", "truncate-history"] = "error"
    """A row longer than --max-length: stop with its line, leave it out, or leave out its oldest turns (an answer that
    is too long by itself is then cut, and gets no end); both are counted."""
    train_on: Literal["all", "last"] = "all"
    """Train every answer of a conversation, or the last one; a row's own `train` and `weight` go before."""
    template: str = ""
    """How a conversation becomes text: a template by name; else the model's own, or alpaca where it brings none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(RunConfig):
    """The same loop on plain text, every token trained: go on with a model, or make one from zero.

    minitune pretrain --model MODEL --data book.txt --out runs/more
    minitune pretrain --shape config.json --tokenizer MODEL --data text.jsonl --out runs/new
    """

    model: str = ""
    """Model to go on from; empty makes a new one of --shape."""
    data: str
    """Text files, each one document, or rows of `text` in JSON, JSON Lines, CSV or Parquet; several mix by weight."""
    shape: str = ""
    """A config.json as published, for a new model with random weights; used without --model."""
    tokenizer: str = ""
    """Folder or file of the tokenizer of a new model; used with --shape."""
    init_std: float = 0.02
    """Standard deviation of the random weights of a new model."""
    init: Literal["normal", "mimetic"] = "normal"
    """Weights of a new model: normal draws each; mimetic starts every query as its key, so that like attends to like
    and looking up is learned from less text (arXiv 2305.09828)."""
    method: Literal["lora", "full"] = "full"
    """full trains every weight; lora, with --model, small matrices beside the frozen weights."""
    on_long: Literal["split", "error", "drop"] = "split"
    """A document longer than --max-length: go on with it in the next row, stop with its line, or leave it out."""
    weight_decay: float = 0.1
    """Decoupled weight decay (AdamW); not applied to norms and biases."""
    beta2: float = 0.95
    """AdamW: how long the mean of the squared gradients remembers."""

    COMMAND: ClassVar[str] = "pretrain"
    CHATS: ClassVar[bool] = False
    RATES: ClassVar[Mapping[str, float]] = {"lora": 2e-4, "full": 3e-4}

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        if not (math.isfinite(self.init_std) and self.init_std > 0):
            raise ConfigError(f"--init-std is {self.init_std}; it must be above 0")

    def _check_names(self) -> None:
        for name in ("data", "out"):
            if not getattr(self, name):
                raise ConfigError(f"{flag(name)} is empty")
        if bool(self.model) == bool(self.shape):
            got = "both are given" if self.model else "neither is given"
            raise ConfigError(f"{got}; --model goes on with a model, --shape (with --tokenizer) makes a new one")
        if bool(self.shape) != bool(self.tokenizer):
            raise ConfigError("--shape and --tokenizer go together: a new model needs both")
        if self.shape and self.method == "lora":
            raise ConfigError("--method lora needs a model to stand beside; a new one is trained in full")

    @property
    def train_on(self) -> Literal["all", "last"]:
        """Every token of a text."""
        return "all"

    @property
    def template(self) -> str:
        """Text is written as it stands."""
        return "plain"


TrainConfig = SFTConfig | PretrainConfig
