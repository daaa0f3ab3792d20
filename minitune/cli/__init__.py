"""The command line: ``minitune COMMAND``. One file a command; each parses, calls a job, and prints.

Whatever a user can cause ends in one line after ``minitune: `` and exit code 2; a bug of ours keeps its traceback.
"""

import importlib
import os
import sys
from collections.abc import Sequence

import minitune
from minitune.errors import MinituneError, nearest

COMMANDS = {
    "demo": "the main job in about a minute: a tiny model is measured, fine-tuned, and measured again",
    "info": "what a model folder is: shape, parameters, tokenizer, every tensor accounted for",
    "generate": "continue a prompt, or answer it with --chat",
    "chat": "a conversation in the terminal, with /undo, /retry and /save",
    "inspect": "the loss mask as proof: every token with the rule that decided; assertions over whole files",
    "study": "the mathematics at work: one text through a model, forward and backward, as a page",
    "pull": "fetch an open model: safetensors, config and tokenizer over HTTPS, resumable, checked by hash",
    "data": "instruction files: check them line by line, clean them, split them without leaks",
    "sft": "masked supervised fine-tuning: a model folder and an instruction file in, a tuned model out",
    "pretrain": "the same loop on plain text: go on with a model, or make one from zero",
    "recipes": "settings that ship, with the time, memory and loss that they were measured at",
    "eval": "loss, perplexity and metrics of the answers that a model gives: exact match, labels, BLEU, ROUGE",
    "merge": "an adapter and its base become one plain folder, the difference measured",
}

_HELP = """usage: minitune COMMAND ...

A from-scratch Transformer and supervised fine-tuning engine in plain PyTorch.

{commands}

minitune COMMAND --help explains a command and every flag. Start with:
  minitune demo
  minitune sft --model tiny --data YOUR_ROWS.jsonl --out runs/first
  minitune generate runs/first "YOUR QUESTION" --chat
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if not args or args[0] in ("-h", "--help", "help"):
            listing = "\n".join(f"  {name:<10}{what}" for name, what in COMMANDS.items())
            print(_HELP.format(commands=listing), end="")
            return 0
        if args[0] in ("-V", "--version"):
            print(f"minitune {minitune.__version__}")
            return 0
        if args[0] not in COMMANDS:
            raise MinituneError(f"there is no command {args[0]!r}{nearest(args[0], COMMANDS)}; see minitune --help")
        return importlib.import_module(f"minitune.cli.{args[0]}").run(args[1:])
    except MinituneError as error:
        print(f"minitune: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minitune: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as in `minitune info ... | head`; nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
