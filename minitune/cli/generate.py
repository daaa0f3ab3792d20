"""``minitune generate MODEL PROMPT``."""

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from minitune.cli.parse import parse


@dataclass(frozen=True)
class Generate:
    """Continue a prompt; with --chat, answer it as the model was tuned to."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model folder as published, adapter folder, run folder, or `tiny`."""
    prompt: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]
    """Text to go on from; may be empty where the model has a start token."""
    max_tokens: int = 256
    """Most tokens to make."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; 1 draws from the model's own distribution."""
    seed: int = 0
    """Decides what is drawn."""
    chat: bool = False
    """Render the prompt as a user turn."""
    template: Literal["alpaca"] = "alpaca"
    """How --chat renders it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute type; auto takes what this device is fast in."""
    ops: Literal["auto", "triton", "builtin", "reference"] = "auto"
    """Implementation of the mathematics."""
    json: bool = False
    """Print one JSON document as the last line of standard output; the text streams to standard error."""


def run(args: list[str]) -> int:
    """Stream the continuation as it is made."""
    options = parse(Generate, "generate", args)
    from minitune.chat import TEMPLATES, Message, render
    from minitune.jobs.dataset import stop_of
    from minitune.jobs.load import load
    from minitune.sample import generate

    out = sys.stderr if options.json else sys.stdout
    model, tokenizer = load(options.model, device=options.device, dtype=options.dtype, ops=options.ops)
    prompt: str | list[int] = options.prompt
    if options.chat:
        stop_id = stop_of(tokenizer, model.stop_ids)
        prompt = render([Message("user", options.prompt)], TEMPLATES[options.template], tokenizer, stop_id).ids
    pieces = []
    settings = {"max_tokens": options.max_tokens, "temperature": options.temperature, "seed": options.seed}
    for piece in generate(model, tokenizer, prompt, **settings):
        if not pieces and not options.chat:  # not before the first token: until then the settings may be refused
            print(options.prompt, end="", file=out)
        print(piece.text, end="", file=out, flush=True)
        pieces.append(piece)
    print(file=out)
    if options.json:
        text = "".join(piece.text for piece in pieces)
        ids = [piece.token for piece in pieces]
        print(json.dumps({"text": text, "ids": ids, "finish": pieces[-1].finish}, ensure_ascii=False))
    return 0
