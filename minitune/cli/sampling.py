"""What ``generate`` and ``chat`` share: flags, and results for people and for programs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from minitune.sample.settings import SamplerSettings, checked_seed

if TYPE_CHECKING:
    from minitune.sample.texts import Completion
    from minitune.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Sampling(SamplerSettings):
    """The sampler's settings as flags, and where and how to compute."""

    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TEXT")] = ()
    """Text that ends the answer and is not printed; may be given several times."""
    seed: int = 0
    """Decides what is drawn."""
    system: str = ""
    """System message to put before the conversation."""
    template: str = ""
    """How a conversation becomes text: by itself what a run was trained with, the model's own template, or alpaca."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute type; auto takes what this device is fast in."""
    ops: Literal["auto", "triton", "builtin", "reference"] = "auto"
    """Implementation of the mathematics."""
    quantise: Literal["none", "int8"] = "none"
    """int8 keeps the weights in eight bits a number: faster on a CPU, a quarter of the memory, not quite as exact."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_seed(self.seed)

    def settings(self) -> SamplerSettings:
        """The part that the sampler reads."""
        return SamplerSettings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(SamplerSettings)})


def as_json(completion: "Completion", tokenizer: "Tokenizer") -> dict[str, Any]:
    """A completion as JSON has it; logprobs only where they were asked for."""
    found: dict[str, Any] = {
        "text": completion.text,
        "ids": list(completion.ids),
        "finish": completion.finish,
        "seed": completion.seed,
    }
    if completion.logprobs:
        found["logprobs"] = [
            {
                "token": token_text(tokenizer, token),
                "logprob": logprob,
                "top": [_named(tokenizer, pair) for pair in top],
            }
            for token, logprob, top in zip(completion.ids, completion.logprobs, completion.top, strict=True)
        ]
    return found


def logprob_lines(completion: "Completion", tokenizer: "Tokenizer") -> list[str]:
    """A line a token: its log probability, itself, and what stood beside it."""
    lines = []
    for token, logprob, top in zip(completion.ids, completion.logprobs, completion.top, strict=True):
        others = "  ".join(f"{token_text(tokenizer, other)!r} {value:.3f}" for other, value in top)
        lines.append(f"{logprob:9.4f}  {token_text(tokenizer, token)!r:<16}{others}".rstrip())
    return lines


def token_text(tokenizer: "Tokenizer", token: int) -> str:
    """What a token adds to a text, or its name where it is a control token; U+FFFD for a part of a character."""
    if token >= tokenizer.vocab_size:
        return f"<id {token}>"
    return tokenizer.token_bytes(token).decode("utf-8", "replace") or tokenizer.token(token)


def _named(tokenizer: "Tokenizer", pair: Sequence[Any]) -> dict[str, Any]:
    return {"id": pair[0], "token": token_text(tokenizer, pair[0]), "logprob": pair[1]}
