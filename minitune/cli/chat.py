"""``minitune chat MODEL``."""

import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import tyro

from minitune.cli.parse import parse
from minitune.cli.sampling import Sampling
from minitune.errors import ConfigError, MinituneError, nearest
from minitune.files import write_text

if TYPE_CHECKING:
    from minitune.chat import Message
    from minitune.models import LanguageModel
    from minitune.tokenizer import Tokenizer

HELP = """/system TEXT   set the system message (nothing: take it away)
/undo          take the last turn back
/retry         answer the last turn again, with another seed
/save FILE     write the conversation as a row that sft can train on (added behind the rows of FILE)
/quit          end; so does Ctrl-D. Ctrl-C stops an answer"""
POSITIONS = 1024
"""Room at the start; it grows with the conversation."""


@dataclass(frozen=True, kw_only=True)
class Chat(Sampling):
    """A conversation in the terminal: type a message, read the answer; /help lists the commands."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model folder as published, adapter folder, run folder, or `tiny`."""
    temperature: float = 0.7
    """0 takes the likeliest token each time; 1 draws from the model's own distribution; above 1 it is flatter."""
    json: bool = False
    """Print the conversation as one JSON document at the end; the conversation itself goes to standard error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logprobs is not None:
            raise ConfigError("--logprobs is for minitune generate, with --chat and --json")


def run(args: list[str]) -> int:
    """Read messages and commands until /quit or the end of the input."""
    options = parse(Chat, "chat", args)
    from minitune.jobs.load import load
    from minitune.ops.costs import all_weights

    model, tokenizer = load(
        options.model,
        device=options.device,
        dtype=options.dtype,
        ops=options.ops,
        quantise=options.quantise,
        packed=True,
    )
    session = Session(options, model, tokenizer, sys.stderr if options.json else sys.stdout)
    parameters = all_weights(model.config)
    session.say(f"{options.model}: {parameters:,} parameters. Type a message, or a command:\n{HELP}")
    for line in _lines(session.out):
        if not session.take(line):
            break
    if options.json:
        print(json.dumps(session.document(), ensure_ascii=False))
    return 0


class Session:
    """A conversation and the cache that knows it: each turn computes only what is new in it."""

    def __init__(self, options: Chat, model: "LanguageModel", tokenizer: "Tokenizer", out: TextIO):
        from minitune.chat import Message
        from minitune.jobs.conversation import stop_on, template_of
        from minitune.sample.slots import Slots

        self.options, self.model, self.tokenizer, self.out = options, model, tokenizer, out
        self.template, _ = template_of(options.template, tokenizer, options.model)
        stop_on(self.template, model, tokenizer)
        self.system = [Message("system", options.system)] if options.system else []
        self.turns: list[Message] = []  # user, assistant, user, ...
        self.answers = 0  # how many were drawn, each with a seed of its own
        self.slots = Slots(model, 1, positions=POSITIONS)
        self._commands: dict[str, Callable[[str], None]] = {
            "/system": self._system,
            "/undo": self._undo,
            "/retry": self._retry,
            "/save": self._save,
            "/help": lambda _: self.say(HELP),
        }

    def say(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def take(self, line: str) -> bool:
        """Do what a line says; False where it ends the conversation. What goes wrong is told, and changes nothing."""
        from minitune.chat import Message

        word, _, rest = line.strip().partition(" ")
        if not word:
            return True
        if word == "/quit":
            return False
        try:
            if not line.startswith("/"):
                self._answer([*self.turns, Message("user", line)])
            elif word in self._commands:
                self._commands[word](rest.strip())
            else:
                known = [*self._commands, "/quit"]
                self.say(f"there is no command {word}{nearest(word, known)}; there are: {', '.join(known)}")
        except MinituneError as error:
            print(f"minitune: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return True

    def document(self) -> dict[str, list[dict[str, str]]]:
        """The conversation as a row of an instruction file."""
        return {"messages": [{"role": turn.role, "content": turn.content} for turn in (*self.system, *self.turns)]}

    def _answer(self, turns: "list[Message]") -> None:
        """Stream the answer to ``turns``, and only then take both into the conversation."""
        from minitune.chat import Message
        from minitune.jobs.conversation import conversation_ids
        from minitune.sample.texts import generate

        ids = conversation_ids([*self.system, *turns], self.template, self.tokenizer)
        limit = self.model.config.max_positions
        if len(ids) >= limit:
            raise ConfigError(
                f"the conversation has {len(ids)} tokens and this model {limit} positions; take turns back with /undo, "
                "or /save it and start a new one"
            )
        seed = (self.options.seed + self.answers) % 2**63
        self.answers += 1
        said, finish = "", None
        stream = generate(
            self.model, self.tokenizer, ids, settings=self.options.settings(), seed=seed, slots=self.slots
        )
        try:
            with contextlib.closing(stream):
                for piece in stream:
                    said, finish = said + piece.text, piece.finish
                    print(piece.text, end="", file=self.out, flush=True)
        except KeyboardInterrupt:
            self.slots.forget()
            finish = None
        self.say("")
        if finish is None:
            self.say("(stopped)")
        elif finish == "length":
            self.say(f"(cut at --max-tokens {self.options.max_tokens})")
        elif finish == "context":
            self.say(f"(all {limit} positions of this model are full; /undo takes the last turn back)")
        if said or finish:
            self.turns = [*turns, Message("assistant", said)]

    def _system(self, text: str) -> None:
        from minitune.chat import Message

        self.system = [Message("system", text)] if text else []
        self.say("the system message is set" if text else "there is no system message now")

    def _undo(self, _: str) -> None:
        if not self.turns:
            self.say("there is no turn to take back")
            return
        self.turns = self.turns[:-2]
        self.say(f"taken back; {len(self.turns) // 2} turns are left")

    def _retry(self, _: str) -> None:
        if not self.turns:
            self.say("there is no turn to answer again")
            return
        if self.options.temperature == 0:
            self.say("(temperature 0 gives the same answer for every seed; start with --temperature above 0)")
        self._answer(self.turns[:-1])

    def _save(self, name: str) -> None:
        if not name:
            raise ConfigError("/save needs a file name, such as /save talk.jsonl")
        if not self.turns:
            raise ConfigError("there is nothing to save yet")
        path = Path(name).expanduser()
        row = json.dumps(self.document(), ensure_ascii=False) + "\n"
        try:
            before = _rows_before(path)
            write_text(path, before + row)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None
        self.say(f"saved to {path} ({(before + row).count(chr(10))} rows)")


def _rows_before(path: Path) -> str:
    """The rows of a file that conversations were saved to before; ConfigError for a file of another kind."""
    if not path.exists():
        return ""
    text, rows = "", [None]
    with contextlib.suppress(UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        text = path.read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.split("\n") if line]
    if not all(isinstance(row, dict) and "messages" in row for row in rows):
        raise ConfigError(f"{path} exists and is not a file of saved conversations; choose another name")
    return text if not text or text.endswith("\n") else text + "\n"


def _lines(out: TextIO) -> Iterator[str]:
    """The lines that are typed, with a prompt and a history on a terminal; Ctrl-C only abandons a line."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # arrow keys and history, where there is such a library
    while True:
        try:
            yield input("> ")
        except EOFError:
            print(file=out)
            return
        except KeyboardInterrupt:
            print("\n(/quit or Ctrl-D ends)", file=out)
