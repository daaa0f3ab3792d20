"""``minitune info MODEL``."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from minitune.cli.parse import parse


@dataclass(frozen=True)
class Info:
    """What a model folder is: its shape, its tokenizer, what became of every tensor, and the memory it needs."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model folder as published, adapter folder, run folder, or `tiny`."""
    json: bool = False
    """Print one JSON document instead."""


def run(args: list[str]) -> int:
    """Print what the folder holds; loading it whole is the proof that it can be loaded."""
    options = parse(Info, "info", args)
    from minitune.jobs.info import describe

    facts = describe(options.model)
    if options.json:
        print(json.dumps(dataclasses.asdict(facts)))
        return 0
    for title, value in _lines(dataclasses.asdict(facts)):
        print(f"{title:<22}{value}")
    return 0


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    shape, tensors, memory = facts["shape"], facts["tensors"], facts["memory_bytes"]
    stored = ", ".join(f"{name} {count:,}" for name, count in facts["dtypes"].items())
    lines = [
        ("model", facts["folder"]),
        ("family", facts["family"]),
        ("parameters", f"{facts['parameters']:,}  (stored as {stored})"),
        ("shape", ", ".join(f"{name} {value}" for name, value in shape.items())),
        ("tokenizer", facts["tokenizer"] + (f", {facts['vocab_size']:,} ids" if facts["vocab_size"] else "")),
        ("start, stop", f"bos {facts['bos_id']}, stop ids {facts['stop_ids']}"),
        ("chat template", facts["template"]),
        (
            "tensors",
            f"{tensors['used']} used, 0 unused, 0 missing"
            + (f", {tensors['recomputed']} recomputed" if tensors["recomputed"] else ""),
        ),
    ]
    lines += [("  shared", f"{name} = {of}") for name, of in facts["shared"].items()]
    if facts["adapter"]:
        lines.append(("adapter", facts["adapter"]))
    lines += [(f"memory to {what}", f"{count / 2**20:,.1f} MiB") for what, count in memory.items()]
    lines.append(("", "(float32, without activations)"))
    return lines
