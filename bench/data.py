"""Preparing instruction data: rows a second from a file to packed rows of ids and labels, beside TRL.

    python -m bench.data [--rows 8000] [--capacity 1024] [--rounds 3]

minitune reads Alpaca's file, checks every row, renders it by the Alpaca template, tokenises it, checks the mask of
every example, writes the store and packs an epoch. TRL gets the same texts as prompt and completion, already rendered
(the easier half), tokenises them with the same tokenizer and packs them best fit; ``SFTTrainer`` does it when it is
made. Nothing is remembered from an earlier turn. Tokens and packed rows are counted and can be compared.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.measure import RESULTS, append, as_row, environment, summary
from bench.recipes import material
from bench.rows import ALPACA
from bench.shapes import SHAPES, make_folder
from bench.workers import Channel, able, race_workers, serve

CONTESTANTS = ("minitune", "trl", "trl 2 processes")


def main() -> None:
    """Parse, measure, print and keep."""
    parser = argparse.ArgumentParser(prog="python -m bench.data", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="SmolLM2-135M", help="whose tokenizer")
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--capacity", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--threads", type=int, default=0, help="0 leaves the choice to torch")
    parser.add_argument("--out", type=Path, default=RESULTS / "data.jsonl")
    parser.add_argument("--contestant", choices=CONTESTANTS, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant is not None:
        channel = Channel()
        (ours if args.contestant == "minitune" else theirs)(args, channel)
        return
    about = environment(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as scratch:
        tiny = "tiny" if SHAPES[args.shape].tokenizer == SHAPES["tiny"].tokenizer else args.shape
        folder = make_folder(tiny, Path(scratch) / "model")
        append(args.out, measure(args, folder, about))


def measure(args: argparse.Namespace, folder: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Every contestant in turns; the first turn is not timed."""
    words = {"folder": folder, "rows": args.rows, "capacity": args.capacity}
    contestants = dict.fromkeys(able(args.contestants, "cpu"), words)
    found = race_workers("bench.data", contestants, rounds=1 + args.rounds, threads=args.threads)
    lines = []
    for name, turns in found.items():
        timing = summary([1e3 * turn["seconds"] for turn in turns[1:]], turns[-1]["peak_bytes"])
        facts = {key: turns[-1][key] for key in ("rows", "tokens", "packed_rows")}
        rate = round(facts["rows"] / timing.p50_ms * 1e3, 1)
        lines.append({"contestant": name, "tokenizer": args.shape, "capacity": args.capacity, **facts,
                      "rows_per_s": rate, **as_row(timing), **about})  # fmt: skip
        print(f"  {name:16}{rate:10.0f} rows/s   {facts['rows']:,} rows, {facts['tokens']:,} tokens in "
              f"{facts['packed_rows']:,} packed rows")  # fmt: skip
    return lines


def ours(args: argparse.Namespace, channel: Channel) -> None:
    """The preparation of ``minitune sft``, into an empty cache each time."""
    from minitune.chat import TEMPLATES
    from minitune.config import SFTConfig
    from minitune.jobs.dataset import prepare, recipe_of
    from minitune.jobs.feed import Feed
    from minitune.tokenizer import load_tokenizer

    file, template = str(material() / ALPACA), TEMPLATES["alpaca"]
    tokenizer = load_tokenizer(args.folder)
    stops = () if tokenizer.eos_id is None else (tokenizer.eos_id,)

    def step() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["MINITUNE_CACHE"] = cache
            config = SFTConfig(model="-", data=file, out="-", rows=args.rows, val="0", on_bad="drop", on_long="drop",
                               max_length=args.capacity)  # fmt: skip
            start = time.perf_counter()
            recipe = recipe_of(config, template, stops, args.capacity, named=True)
            data = prepare(config, tokenizer, args.folder, recipe, args.capacity)
            packed = Feed(config, data).rows(0)
            seconds = time.perf_counter() - start
            facts = {"rows": data.train_rows, "tokens": data.report.tokens, "packed_rows": len(packed)}
            return {"seconds": seconds} | facts

    serve(channel, step)


def theirs(args: argparse.Namespace, channel: Channel) -> None:
    """``SFTTrainer`` made anew each time, on the rendered texts."""
    from datasets import Dataset, disable_caching  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    from minitune.chat import TEMPLATES, rendered_text
    from minitune.data.formats import read_rows
    from minitune.tokenizer import load_tokenizer

    disable_caching()
    ours_too, template = load_tokenizer(args.folder), TEMPLATES["alpaca"]
    texts: dict[str, list[str]] = {"prompt": [], "completion": []}
    for row in read_rows(material() / ALPACA, limit=args.rows + 64).good[: args.rows]:
        texts["prompt"].append(rendered_text(row.prompt, template, ours_too, header=True))
        texts["completion"].append(row.answer)
    load: Any = AutoModelForCausalLM.from_pretrained
    model, tokenizer = load(args.folder), AutoTokenizer.from_pretrained(args.folder)
    processes = 2 if "2 processes" in args.contestant else None
    config = SFTConfig(
        output_dir=str(args.folder / "trl"), packing=True, max_length=args.capacity, use_cpu=True, report_to="none",
        bf16=False, dataset_num_proc=processes, completion_only_loss=True,
    )  # fmt: skip

    def step() -> dict[str, Any]:
        start = time.perf_counter()
        data = Dataset.from_dict(texts)
        trainer = SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer)
        seconds = time.perf_counter() - start
        packed = trainer.train_dataset
        tokens = sum(sum(lengths) for lengths in packed["seq_lengths"])
        return {"seconds": seconds, "rows": len(texts["prompt"]), "tokens": tokens, "packed_rows": len(packed)}

    serve(channel, step)


if __name__ == "__main__":
    main()
