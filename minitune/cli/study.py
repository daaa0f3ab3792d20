"""``minitune study trace``."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.console import Console

from minitune.cli.page import page_path, write_page
from minitune.cli.parse import parse
from minitune.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Follow one text through a model, forward and backward, and write what happens as a page.

    The page is one file that needs nothing but a browser. It shows the tokens with their ids; how long each token's
    vector is after every block; which token every head of every layer reads; what the model would say if it ended
    after each block (the logit lens); the loss of each token, coloured by whether it is trained; and how large the
    gradient of that loss is in every weight. Click a token and all of it follows.

    Without --chat the text is a text to go on with, and every token is trained, as in pretraining. With --chat it is
    a question, an answer stands behind it, and only the answer is trained, as in sft: the page shows the mask.

    minitune study trace tiny "Once upon a time there was a cat." --out trace.html

    minitune study trace runs/first "What is the opposite of hot?" --chat --out trace.html
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model folder as published, adapter folder, run folder, or `tiny`."""
    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]
    """The sentence to follow."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """The page to write; an earlier page of this command is replaced, anything else is not."""
    chat: bool = False
    """Render the text as a user turn with an answer behind it."""
    answer: str = ""
    """The answer, for --chat; by itself what the model answers, by its likeliest tokens."""
    system: str = ""
    """System message to put before the conversation, for --chat."""
    template: str = ""
    """How a conversation becomes text: by itself what a run was trained with, the model's own template, or alpaca."""
    top: int = 5
    """How many of the likeliest tokens the logit lens keeps at each place."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type."""
    json: bool = False
    """Print one JSON document as the last line; everything for people goes to standard error."""


def run(args: list[str]) -> int:
    """Run one of the commands that show the mathematics."""
    if not args or args[0] in ("-h", "--help", "help"):
        listing = "\n".join(f"  {name:<8}{what}" for name, (what, _) in _COMMANDS.items())
        print(f"usage: minitune study COMMAND ...\n\nThe mathematics at work.\n\n{listing}\n")
        print("minitune study COMMAND --help explains every flag; each takes --json. Start with:")
        print('  minitune study trace tiny "Once upon a time there was a cat." --out trace.html')
        print('  minitune study trace tiny "What is the opposite of hot?" --chat --answer "Cold." --out trace.html')
        print("and open trace.html in a browser. The formulas behind it are in docs/math, and in one file of NumPy:")
        print("  python -m minitune.by_hand")
        return 0
    if args[0] not in _COMMANDS:
        found = nearest(args[0], _COMMANDS)
        raise ConfigError(f"there is no command 'study {args[0]}'{found}; see minitune study --help")
    return _COMMANDS[args[0]][1](args[1:])


def _trace(args: list[str]) -> int:
    options = parse(Trace, "study trace", args)
    from minitune.study.page import MARK, page
    from minitune.study.trace import TraceConfig, trace

    same = ("model", "text", "chat", "answer", "system", "template", "top", "device", "dtype")
    config = TraceConfig(**{name: getattr(options, name) for name in same})
    path = page_path(options.out, "--out", MARK)
    found = trace(config)
    write_page(path, "--out", page(found))
    trained = sum(token.trained for token in found.tokens)
    console = Console(stderr=options.json, highlight=False, soft_wrap=True)
    console.print(f"tokens     {len(found.tokens):,}, of which {trained:,} are trained", markup=False)
    console.print(f"loss       {found.mean_loss:.4f} a trained token", markup=False)
    console.print(f"page       {path}", markup=False)
    if options.json:
        facts = {"page": str(path), "tokens": len(found.tokens), "trained": trained, "loss": found.mean_loss}
        print(json.dumps(facts))
    return 0


_COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "trace": ("tokens, residual stream, attention, logit lens, loss and gradient of one text, as a page", _trace),
}
