"""One contestant of ``bench.sample``: a prompt to its first token, then one token after another, for several rows."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from bench.measure import reset_process_peak
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
    slots = Slots(model, args.rows, positions=args.prompt + args.tokens, graph="graph" in args.contestant)

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


def llama_cpp(args: argparse.Namespace, channel: Channel) -> None:
    """llama.cpp on a GGUF file of the same folder, all rows in one batch, the largest logit of each taken by numpy.

    Its cache is float32 where the weights are, else float16, llama.cpp's own choice.
    """
    import llama_cpp as llama  # pyright: ignore[reportMissingImports]
    import numpy as np

    from bench.gguf_folder import write_gguf

    file = args.folder.with_suffix(".gguf")
    if not file.is_file():
        write_gguf(args.folder, file)
    reset_process_peak()  # writing the file is not its work
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(file).encode(), llama.llama_model_default_params())
    settings = llama.llama_context_default_params()
    settings.n_ctx = args.rows * (args.prompt + args.tokens)
    settings.n_batch = args.rows * args.prompt
    settings.n_seq_max = settings.n_outputs_max = args.rows
    settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
    if args.dtype == "float32":
        settings.type_k = settings.type_v = llama.GGML_TYPE_F32
    context = llama.llama_init_from_model(model, settings)
    if not context:
        raise RuntimeError(f"llama.cpp cannot make a context of {settings.n_ctx} positions")
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    batch = llama.llama_batch_init(args.rows * args.prompt, 0, 1)
    ids = prompts(args.rows, args.prompt, vocabulary).tolist()

    def next_ids(rows: list[list[int]], start: int) -> list[int]:
        """The greedy next id of each row; ``rows`` are the ids from position ``start``, as many in each."""
        batch.n_tokens = 0
        for row, tokens in enumerate(rows):
            for position, token in enumerate(tokens, start):
                i = batch.n_tokens
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position, 1, row
                batch.logits[i] = position == start + len(tokens) - 1
                batch.n_tokens += 1
        if status := llama.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode ended with {status}")
        return np.ctypeslib.as_array(llama.llama_get_logits(context), (args.rows, vocabulary)).argmax(-1).tolist()

    def step() -> dict[str, Any]:
        llama.llama_memory_clear(llama.llama_get_memory(context), False)
        start = time.perf_counter()
        made = [next_ids(ids, 0)]
        first = time.perf_counter() - start
        while len(made) < args.tokens:
            made.append(next_ids([[token] for token in made[-1]], args.prompt + len(made) - 1))
        return {"first_s": first, "rest_s": time.perf_counter() - start - first, "ids": [row[0] for row in made]}

    serve(channel, step)


CONTESTANTS = {"minitune": minitune, "transformers": transformers, "llama.cpp": llama_cpp}
"""By the first word of a name."""


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
        CONTESTANTS[args.contestant.partition(" ")[0]](args, channel)


if __name__ == "__main__":
    main()
