"""One contestant of ``bench.sample``: a prompt to its first token, then one token after another, for several rows."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from bench.train_contestants import DTYPES
from bench.workers import Channel, serve


def prompts(rows: int, length: int, vocabulary: int) -> torch.Tensor:
    """Random ids ``(rows, length)``."""
    return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))


def minitune(args: argparse.Namespace, channel: Channel) -> None:
    """The slots that ``minitune generate`` steps; they stay, as those of a server or a conversation do."""
    from minitune.jobs.load import load
    from minitune.sample import SamplerSettings, Slots

    kept = "int8" if "int8" in args.contestant else "none"
    model, _ = load(args.folder, device=args.device, dtype=args.dtype, ops=args.ops, quantise=kept, packed=True)
    ids = prompts(args.rows, args.prompt, model.config.vocab_size).tolist()
    graph = False if "no graph" in args.contestant else None
    slots = Slots(model, args.rows, positions=args.prompt + args.tokens, graph=graph)

    def step() -> dict[str, Any]:
        slots.forget()
        for row in ids:
            slots.add(row, SamplerSettings(max_tokens=args.tokens), stop_ids=())
        start, first, made = time.perf_counter(), 0.0, []
        while slots.busy:
            events = slots.step()
            made += [event.token for event in events if event.slot == 0]
            if made and not first:
                first = time.perf_counter() - start
        return {"first_s": first, "rest_s": time.perf_counter() - start - first, "ids": made}

    serve(channel, step)


def transformers(args: argparse.Namespace, channel: Channel) -> None:
    """``generate`` of ``transformers``, greedy, with a dynamic or a static cache."""
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    model = load(args.folder, dtype=DTYPES[args.dtype], attn_implementation="sdpa").to(args.device).eval()
    ids = prompts(args.rows, args.prompt, model.config.vocab_size).to(args.device)
    static = "static" in args.contestant

    class Clock:
        """A streamer only says when tokens come; it takes one row, so rows are counted by calls."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: torch.Tensor) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def step() -> dict[str, Any]:
        clock = Clock()
        start = time.perf_counter()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=args.tokens,
            min_new_tokens=args.tokens,
            do_sample=False,
            cache_implementation="static" if static else None,
            streamer=clock,
            pad_token_id=0,
        )
        first = clock.times[1] - start  # the first call is the prompt
        rest = time.perf_counter() - start - first
        return {"first_s": first, "rest_s": rest, "ids": out[0, args.prompt :].tolist()}

    serve(channel, step)


def main() -> None:
    """Load, and take turns."""
    parser = argparse.ArgumentParser()
    for name in ("contestant", "device", "dtype", "ops"):
        parser.add_argument(f"--{name}")
    for name in ("rows", "prompt", "tokens"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    channel = Channel()
    with torch.inference_mode():
        (minitune if args.contestant.startswith("minitune") else transformers)(args, channel)


if __name__ == "__main__":
    main()
