"""``minitune merge MODEL ADAPTER --out DIR``."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from minitune.cli.parse import parse


@dataclass(frozen=True)
class Merge:
    """One plain folder from a base model and its adapter, with the difference of their logits measured.

    minitune merge models/SmolLM2-135M runs/first --out models/mine
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The base model: a folder as published, or `tiny`."""
    adapter: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER")]
    """Adapter folder, or the folder of a run (whose own rows are then compared on)."""
    out: str
    """Folder to write; must be new or empty."""
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    """Type of the written weights; stored: as the base has them. The sum is made in float32 and rounded once."""
    rows: int = 16
    """How many of the run's rows to compare on."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""
    force: bool = False
    """Merge although the adapter was trained on other weights than these."""
    json: bool = False
    """Print one JSON document instead."""


def run(args: list[str]) -> int:
    """Merge, and print how far the result is from the pair."""
    options = parse(Merge, "merge", args)
    from minitune.jobs.merge import merge

    found = merge(
        options.model,
        options.adapter,
        options.out,
        dtype=options.dtype,
        rows=options.rows,
        device=options.device,
        force=options.force,
    )
    if options.json:
        print(json.dumps(dataclasses.asdict(found)))
        return 0
    checked = "the weights it was trained on" if found.checked_base else "not named by the adapter, so not compared"
    print(f"base        {found.base}  ({checked})")
    print(f"adapter     {found.adapter}: {found.layers} layers merged")
    print(f"compared    on {found.compared_on}, {found.tokens:,} tokens, both in float32")
    print(
        f"difference  of a logit at most {found.max_difference:.2e} (the largest logit is {found.largest_logit:.1f}); "
        f"KL {found.kl:.1e} nats; the same likeliest token at {100 * found.top1:.2f} % of positions"
    )
    print(f"written     {found.out}, stored as {found.dtype}")
    if found.top1 < _TOP1_EXPECTED:
        print(f"warning: rounding to {found.dtype} shows; --dtype float32 keeps what was trained")
    return 0


_TOP1_EXPECTED = 0.99
