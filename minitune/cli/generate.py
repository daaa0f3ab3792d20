"""``minitune generate MODEL PROMPT``."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import tyro

from minitune.cli.parse import parse
from minitune.cli.sampling import Sampling, as_json, logprob_lines
from minitune.errors import ConfigError
from minitune.files import write_text

if TYPE_CHECKING:
    from minitune.jobs.conversation import PromptRow
    from minitune.models import LanguageModel
    from minitune.sample.texts import Completion
    from minitune.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Generate(Sampling):
    """Continue a prompt; with --chat, answer it as the model was tuned to; with --prompts, continue many."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model folder as published, adapter folder, run folder, or `tiny`."""
    prompt: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")] = None
    """Text to go on from; may be empty where the model has a start token."""
    prompts: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """Instead of PROMPT: a text file with a prompt a line, or .json/.jsonl rows with prompt, messages, or instruction
    and input; the last two are rendered as --chat does."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """Write the results of --prompts to this file too, as JSON Lines."""
    batch_size: int = 8
    """Texts to generate at a time, for --prompts and -n."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Samples of each prompt, with the seeds seed, seed + 1, ...; with --beams, how many of the beams to show."""
    beams: int = 1
    """Above 1: beam search with so many beams, by mean log probability, in place of drawing."""
    chat: bool = False
    """Render the prompt as a user turn."""
    json: bool = False
    """Print one JSON document as the last line of standard output (with several samples, a list of completions; with
    --prompts, a line for each result before it); everything for people goes to standard error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "n", "beams"):
            if not 1 <= getattr(self, name) <= 2**16:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be from 1 to 65536")
        if (self.prompt is None) == (not self.prompts):
            raise ConfigError("give either a PROMPT or --prompts FILE")
        if self.out and not self.prompts:
            raise ConfigError("--out is for the results of --prompts FILE")
        if self.system and not (self.chat or self.prompts):
            raise ConfigError("--system is for conversations; add --chat")
        if self.beams > 1:
            self._check_beams()

    def _check_beams(self) -> None:
        others = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "logprobs")
        plain = Sampling()
        set_too = [f"--{name.replace('_', '-')}" for name in others if getattr(self, name) != getattr(plain, name)]
        if set_too:
            raise ConfigError(f"--beams does not go with {', '.join(set_too)}: beam search draws nothing")
        if self.n > self.beams:
            raise ConfigError(f"-n {self.n} is more than the {self.beams} beams")


def run(args: list[str]) -> int:
    """Stream the continuation as it is made; several are printed in order, each when it is whole."""
    options = parse(Generate, "generate", args)
    from minitune.jobs.conversation import PromptRow, read_prompts, stop_on, template_of
    from minitune.jobs.load import load

    rows = read_prompts(Path(options.prompts)) if options.prompts else [PromptRow("PROMPT", options.prompt or "")]
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise ConfigError(f"--out {options.out}: its folder does not exist")
    people = sys.stderr if options.json else sys.stdout
    model, tokenizer = load(
        options.model,
        device=options.device,
        dtype=options.dtype,
        ops=options.ops,
        quantise=options.quantise,
        packed=True,
    )
    template, _ = template_of(options.template, tokenizer, options.model)
    if options.chat or any(row.messages for row in rows):
        stop_on(template, model, tokenizer)
    if options.prompts:
        ids = [row.ids(model, tokenizer, template, chat=options.chat, system=options.system) for row in rows]
        return _many(options, model, tokenizer, rows, ids, people)
    try:
        prompt = rows[0].ids(model, tokenizer, template, chat=options.chat, system=options.system)
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("PROMPT: ")) from None
    opening = "" if options.chat else rows[0].text
    if options.n == options.beams == 1:
        found = [_stream(options, model, tokenizer, prompt, opening, people)]
    else:
        found = []
        for completion in _in_order(options, model, tokenizer, [prompt]):
            if options.n > 1:
                print(f"--- {len(found) + 1} of {options.n} ({_how(completion)})", file=people)
            print(opening + completion.text, file=people, flush=True)
            found.append(completion)
    for completion in found if options.logprobs is not None else ():
        print(
            "\n".join(["", "  logprob  token           likeliest", *logprob_lines(completion, tokenizer)]), file=people
        )
    if options.json:
        documents = [as_json(completion, tokenizer) for completion in found]
        document = documents[0] if options.n == 1 else {"completions": documents}
        print(json.dumps(document, ensure_ascii=False))
    return 0


def _stream(
    options: Generate,
    model: "LanguageModel",
    tokenizer: "Tokenizer",
    prompt: list[int],
    opening: str,
    out: TextIO,
) -> "Completion":
    from minitune.sample.texts import completion_of, generate

    pieces = []
    for piece in generate(model, tokenizer, prompt, settings=options.settings(), seed=options.seed):
        if not pieces:
            print(opening, end="", file=out)
        print(piece.text, end="", file=out, flush=True)
        pieces.append(piece)
    print(file=out)
    return completion_of(pieces, 0, options.seed)


def _in_order(
    options: Generate, model: "LanguageModel", tokenizer: "Tokenizer", prompts: list[list[int]]
) -> Iterator["Completion"]:
    """Every sample of every prompt, in the order of the prompts, each as soon as those before it are there."""
    from minitune.sample.texts import complete

    if options.beams > 1:
        for number, prompt in enumerate(prompts):
            yield from _beams(options, model, tokenizer, prompt, number)
        return
    waiting: dict[tuple[int, int], Completion] = {}
    turn = ((number, options.seed + j) for number in range(len(prompts)) for j in range(options.n))
    following = next(turn)
    size = min(options.batch_size, len(prompts) * options.n)
    for completion in complete(
        model, tokenizer, prompts, settings=options.settings(), seed=options.seed, n=options.n, batch_size=size
    ):
        waiting[completion.prompt, completion.seed] = completion
        while following in waiting:
            yield waiting.pop(following)
            following = next(turn, (-1, -1))


def _beams(
    options: Generate, model: "LanguageModel", tokenizer: "Tokenizer", prompt: list[int], number: int
) -> Iterable["Completion"]:
    from minitune.sample.beam import beam_search
    from minitune.sample.texts import Completion

    continues = not set(prompt) <= tokenizer.control_ids
    for beam in beam_search(model, prompt, beams=options.beams, max_tokens=options.max_tokens)[: options.n]:
        shown = beam.ids[:-1] if beam.finish == "stop" else beam.ids
        text = tokenizer.decode(shown, continues=continues, skip_control=True)
        yield Completion(text, beam.ids, beam.finish, prompt=number, score=beam.score)


def _many(
    options: Generate,
    model: "LanguageModel",
    tokenizer: "Tokenizer",
    rows: list["PromptRow"],
    prompts: list[list[int]],
    people: TextIO,
) -> int:
    """Answer a file of prompts: a JSON line each on standard output with --json, else a paragraph each."""
    started, lines, tokens = time.perf_counter(), [], 0
    for completion in _in_order(options, model, tokenizer, prompts):
        row = rows[completion.prompt]
        shown = row.text or row.messages[-1].content
        record = {"index": completion.prompt, "prompt": shown} | as_json(completion, tokenizer)
        lines.append(json.dumps(record, ensure_ascii=False))
        tokens += len(completion.ids)
        if options.json:
            print(lines[-1], flush=True)
        else:
            print(f"--- {completion.prompt + 1}: {' '.join(shown.split())[:100]}", file=people)
            print(completion.text, file=people, flush=True)
            if options.logprobs is not None:
                print("\n".join(logprob_lines(completion, tokenizer)), file=people)
    seconds = time.perf_counter() - started
    if options.out:
        write_text(Path(options.out), "".join(line + "\n" for line in lines))
    where = f"; written to {options.out}" if options.out else ""
    print(
        f"{len(prompts)} prompts, {tokens:,} tokens in {seconds:.1f} s ({tokens / seconds:,.0f} tokens/s){where}",
        file=sys.stderr,
    )
    if options.json:
        summary = {"prompts": len(prompts), "completions": len(lines), "tokens": tokens, "seconds": round(seconds, 3)}
        print(json.dumps(summary | ({"out": options.out} if options.out else {}), ensure_ascii=False))
    return 0


def _how(completion: "Completion") -> str:
    return f"score {completion.score:.4f}" if completion.score is not None else f"seed {completion.seed}"
