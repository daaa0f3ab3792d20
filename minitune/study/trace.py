"""One text through a model, forward and backward, with everything on the way kept.

    stream     |x| of each token's residual stream: the embedding, and after each block
    writes     |what attention adds|, |what the MLP adds|, for each block and token
    pattern    p = softmax(q k^T / sqrt(D)) over the keys, for each block and head
    lens       softmax(head(norm(x))) after each block, as if the model ended there (nostalgebraist, 2020)
    loss       -log p(token | the tokens before it), for each token, trained or not
    gradient   |dL/dW| of each weight, with L the mean loss of the trained tokens

The model itself is what runs: hooks look at its blocks, and its table of operations is lent one attention that
remembers.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minitune.chat import Encoded, Message, Span, render, terminator
from minitune.chat.encoded import UNPREDICTED
from minitune.errors import ConfigError
from minitune.jobs.conversation import conversation_ids, stop_on, template_of
from minitune.jobs.inspect import Token, tokens_of
from minitune.jobs.load import load
from minitune.models import LanguageModel
from minitune.ops.attention import attention
from minitune.sample.texts import generate, prompt_ids
from minitune.tokenizer import Tokenizer

MOST_NUMBERS = 16_000_000
"""Attention probabilities that a page may hold: with more of them a browser no longer scrolls well."""
ANSWER_TOKENS = 64
EVERY = "plain text: every token that has one before it is trained"


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """What to trace, and how to compute."""

    model: str
    """Model folder as published, adapter folder, run folder, or `tiny`."""
    text: str
    """The sentence."""
    chat: bool = False
    """Render the text as a user turn, with an answer behind it: only the answer is trained, as sft would do."""
    answer: str = ""
    """The answer, for --chat; by itself what the model answers."""
    system: str = ""
    """System message to put before the conversation."""
    template: str = ""
    """How a conversation becomes text: by itself what a run was trained with, the model's own template, or alpaca."""
    top: int = 5
    """How many of the likeliest tokens the logit lens keeps at each place."""
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.text:
            raise ConfigError("TEXT is empty; give the sentence to trace")
        if not 1 <= self.top <= 20:
            raise ConfigError(f"--top is {self.top}; it must be from 1 to 20")
        for name in ("answer", "system", "template"):
            if getattr(self, name) and not self.chat:
                raise ConfigError(f"--{name} is for conversations; add --chat")


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a model did with a text: T tokens, L blocks, H query heads.

    ``loss`` and the probabilities of the next token are those of the token at the same place, given what stands before
    it; the first token has none.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    tokens: list[Token]
    template: str
    stream: Tensor  # (L + 1, T)
    attention_writes: Tensor  # (L, T), and so mlp_writes
    mlp_writes: Tensor
    patterns: Tensor  # (L, H, T, T)
    lens_ids: Tensor  # (L + 1, T, top), likeliest first, with lens_p beside it
    lens_p: Tensor
    next_p: Tensor  # (L + 1, T - 1): what the lens gives the token that did come
    loss: Tensor  # (T - 1,)
    mean_loss: float
    gradients: dict[str, float]


def trace(config: TraceConfig) -> Trace:
    """Load the model and follow the text through it.

    Raises ConfigError for a text that is too long for the model or for a page, and what loading raises.
    """
    model, tokenizer = load(config.model, device=config.device, dtype=config.dtype)
    encoded, template = encode(config, model, tokenizer)
    check_length(len(encoded.ids), model)
    return follow(model, tokenizer, encoded, template, config.top)


def encode(config: TraceConfig, model: LanguageModel, tokenizer: Tokenizer) -> tuple[Encoded, str]:
    """The ids with what of them is trained, as ``sft`` would have it, and the name of the template ("" for none)."""
    if not config.chat:
        ids = prompt_ids(tokenizer, config.text)
        first = Span(0, 1, -1, "", "content", False, 0.0, UNPREDICTED)
        return Encoded(ids, (first, Span(1, len(ids), -1, "", "content", True, 1.0, EVERY))), ""
    template, _ = template_of(config.template, tokenizer, config.model)
    stop_on(template, model, tokenizer)
    messages = [Message("system", config.system)] if config.system else []
    messages.append(Message("user", config.text))
    answer = config.answer
    if not answer:
        ids = conversation_ids(messages, template, tokenizer)
        check_length(len(ids) + 1, model)
        room = min(ANSWER_TOKENS, model.config.max_positions - len(ids))
        answer = "".join(map(str, generate(model, tokenizer, ids, max_tokens=room, temperature=0.0))).strip()
        if not answer:
            raise ConfigError("the model answers nothing; give the answer with --answer TEXT")
    messages.append(Message("assistant", answer))
    return render(messages, template, tokenizer, terminator(template, tokenizer)), template.name


def check_length(tokens: int, model: LanguageModel) -> None:
    """ConfigError where a text has nothing to predict, or is too long for the model or for a page."""
    config = model.config
    if not 2 <= tokens <= config.max_positions:
        raise ConfigError(f"the text has {tokens} tokens; this model takes 2 to {config.max_positions:,} here")
    numbers = config.num_layers * config.num_heads * tokens * (tokens + 1) // 2
    if numbers > MOST_NUMBERS:
        raise ConfigError(
            f"the text has {tokens} tokens, which makes {numbers:,} attention probabilities in {config.num_layers} "
            f"layers of {config.num_heads} heads; a page holds {MOST_NUMBERS:,}: give a shorter text"
        )


def follow(model: LanguageModel, tokenizer: Tokenizer, encoded: Encoded, template: str, top: int) -> Trace:
    """One forward and one backward of ``model`` over the ids, looked at from all sides."""
    device = next(model.parameters()).device
    ids = torch.tensor([encoded.ids], device=device)
    model.requires_grad_(True).zero_grad()
    with watched(model) as seen:
        hidden = model(ids)  # (1, T, C)
    logits = model.logits(hidden)[0]
    targets = ids[0, 1:]
    loss = nn.functional.cross_entropy(logits[:-1].float(), targets, reduction="none")  # (T - 1,)
    trained = torch.tensor(encoded.weights[1:], device=device)
    mean_loss = (loss * trained).sum() / trained.sum()
    mean_loss.backward()
    gradients = {name: float(w.grad.norm()) for name, w in model.named_parameters() if w.grad is not None}
    model.requires_grad_(False).zero_grad()

    lens = torch.stack([lens_of(model, x) for x in seen.stream])  # (L + 1, T, V)
    best = lens.topk(min(top, lens.shape[-1]), dim=-1)
    return Trace(
        model=model,
        tokenizer=tokenizer,
        tokens=tokens_of(encoded, tokenizer),
        template=template,
        stream=torch.stack(seen.stream).norm(dim=-1),
        attention_writes=torch.stack(seen.attention_writes).norm(dim=-1),
        mlp_writes=torch.stack(seen.mlp_writes).norm(dim=-1),
        patterns=torch.stack(seen.patterns),
        lens_ids=best.indices,
        lens_p=best.values,
        next_p=lens[:, :-1].gather(-1, targets.expand(len(lens), -1)[..., None]).squeeze(-1),
        loss=loss.detach(),
        mean_loss=float(mean_loss.detach()),
        gradients=gradients,
    )


@torch.no_grad()
def lens_of(model: LanguageModel, x: Tensor) -> Tensor:
    """Probabilities ``(T, V)`` of the next token if the model ended with the stream ``x (T, C)``."""
    return torch.softmax(model.logits(model.norm(x)).float(), dim=-1)


@torch.no_grad()
def pattern_of(q: Tensor, k: Tensor, **options: Any) -> Tensor:
    """Attention's probabilities ``(H, T, S)`` for ``q (1, T, H, D)`` and ``k (1, S, K, D)``.

    Attention returns ``p v``. Where the value of key j is the unit vector e_j that is row j of p, and a head of D
    channels has room for D of these vectors at a time. So the masks, windows and caps are attention's own.
    """
    S, D = k.shape[1], k.shape[3]
    columns = []
    for start in range(0, S, D):
        units = torch.zeros_like(k)
        for i in range(min(D, S - start)):
            units[:, start + i, :, i] = 1
        columns.append(attention(q, k, units, **options)[0].transpose(0, 1)[..., : S - start])  # (H, T, up to D)
    return torch.cat(columns, dim=-1).float()


@dataclass
class Seen:
    """What passed by, a tensor for each block: ``(T, C)``, of the stream one more; patterns ``(H, T, T)``."""

    stream: list[Tensor] = dataclasses.field(default_factory=list)
    attention_writes: list[Tensor] = dataclasses.field(default_factory=list)
    mlp_writes: list[Tensor] = dataclasses.field(default_factory=list)
    patterns: list[Tensor] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def watched(model: LanguageModel) -> Iterator[Seen]:
    """Remember what passes through the blocks of ``model`` in a call for one row, made inside."""
    seen = Seen()

    def keep(where: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, given, returned: where.append(returned[0].detach().float())

    def remembering(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        seen.patterns.append(pattern_of(q.detach(), k.detach(), **options))
        return model.ops.attention(q, k, v, **options)

    first = model.blocks[0].register_forward_pre_hook(lambda m, given: seen.stream.append(given[0][0].detach().float()))
    hooks = [first]
    attentions = []
    for block in model.blocks:
        hooks.append(block.register_forward_hook(keep(seen.stream)))
        # What joins the stream has passed the norm behind it, in the families that have one.
        for kind, where in (("attention", seen.attention_writes), ("mlp", seen.mlp_writes)):
            writer = block.get_submodule(kind + "_post_norm" if hasattr(block, kind + "_post_norm") else kind)
            hooks.append(writer.register_forward_hook(keep(where)))
        attentions.append(block.get_submodule("attention"))
    for module in attentions:
        module.ops = dataclasses.replace(model.ops, attention=remembering)
    try:
        yield seen
    finally:
        for module in attentions:
            module.ops = model.ops
        for hook in hooks:
            hook.remove()


def by_layer(gradients: dict[str, float], layers: int) -> tuple[list[str], list[list[float | None]], dict[str, float]]:
    """Gradient norms as a table: the kinds of weight, a row for each block, and what stands outside the blocks."""
    kinds: list[str] = []
    found: dict[tuple[int, str], float] = {}
    outside: dict[str, float] = {}
    for name, norm in gradients.items():
        parts = name.removesuffix(".weight").split(".")
        if parts[0] != "blocks":
            outside[".".join(parts)] = norm
            continue
        kind = ".".join(parts[2:])
        if kind not in kinds:
            kinds.append(kind)
        found[int(parts[1]), kind] = norm
    return kinds, [[found.get((layer, kind)) for kind in kinds] for layer in range(layers)], outside


def texts_of(ids: Sequence[int], tokenizer: Tokenizer) -> dict[int, str]:
    """What each id looks like: its text, or for half a character and what has no text its name in the file."""
    found = {}
    for i in dict.fromkeys(ids):
        if i >= tokenizer.vocab_size:  # a row of padding in the embedding
            found[i] = f"<{i}>"
            continue
        text = tokenizer.decode([i], continues=True)
        found[i] = tokenizer.token(i) if not text or "\ufffd" in text else text
    return found
