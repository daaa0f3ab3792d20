"""Sampling: prompt and decoding, greedy, beside llama.cpp, and ``generate`` of ``transformers`` with a dynamic and a
static cache.

    python -m bench.sample [--shapes SmolLM2-135M] [--batches 1 8 32] [--prompt 128] [--tokens 64]

Tokens a second of decoding, milliseconds to the first token (the prompt's), and the share of the bandwidth ceiling:
the bytes of weights that one step must read, over what this machine moves in a large copy. Each contestant has a
process of its own and they take turns. The first ids of all that keep the weights as they are must be minitune's.
``minitune int8`` keeps the weights in eight bits; what that costs is measured on a trained model of the material, as
perplexity of text that it was not made from. On a GPU ``minitune graph`` decodes by CUDA graphs, which are captured in
the turn that is not timed.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.measure import RESULTS, Ceilings, append, as_row, ceilings, environment, settle, summary
from bench.recipes import material
from bench.shapes import SHAPES, make_folder
from bench.workers import able, race_workers
from minitune.models.published import model_config
from minitune.ops.costs import matrix_weights

GRAPH = "minitune graph"
CONTESTANTS = ("minitune", GRAPH, "minitune int8", "transformers dynamic", "transformers static", "llama.cpp")
STORIES = "data/text/tinystories_1000.json"
SAME = 8
"""Ids that must be the same; a random model's two best logits are close, and one day rounding decides."""


def main() -> None:
    """Parse, measure, print and keep."""
    args = _arguments()
    device = torch.device(args.device)
    dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    settle(device)
    top = ceilings(device, getattr(torch, dtype))
    print(f"{environment(device)['device']}, {args.threads or torch.get_num_threads()} threads: "
          f"copy {top.copy_bytes / 1e9:.1f} GB/s")  # fmt: skip
    names = [name for name in able(args.contestants, args.device) if args.device == "cuda" or name != GRAPH]
    for shape in args.shapes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = make_folder(shape, Path(scratch) / "model", dtype=getattr(torch, dtype))
            for batch in args.batches:
                case = {"shape": shape, "batch": batch, "prompt": args.prompt, "tokens": args.tokens, "dtype": dtype}
                append(args.out, report(case, measure(names, case, args, folder), top, device, args))
    if not args.no_perplexity:
        append(args.out, perplexities(device, args))


def _arguments() -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m bench.sample", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES)[: 3 if gpu else 1])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--prompt", type=int, default=128, help="ids of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to make")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves the choice to torch")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=None)
    parser.add_argument("--ops", default="auto", help="minitune's operations")
    parser.add_argument("--no-perplexity", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "sample.jsonl")
    return parser.parse_args()


def measure(
    names: list[str], case: dict[str, Any], args: argparse.Namespace, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """One turn of every contestant to warm, then those that are timed."""
    words = {"folder": folder, "device": args.device, "ops": args.ops, "dtype": case["dtype"]}
    words |= {"rows": case["batch"], "prompt": args.prompt, "tokens": args.tokens}
    contestants = dict.fromkeys(names, words)
    return race_workers("bench.sample_contestants", contestants, rounds=1 + args.rounds, threads=args.threads)


def step_bytes(shape: str, dtype: str, *, int8: bool) -> int:
    """Bytes of weights that a step of decoding reads: the matrices of the blocks and the head."""
    config = model_config(SHAPES[shape].config, shape)
    numbers = matrix_weights(config) + config.vocab_size * config.hidden_size
    return numbers * (1 if int8 else getattr(torch, dtype).itemsize)


def report(
    case: dict[str, Any],
    found: dict[str, list[dict[str, Any]]],
    top: Ceilings,
    device: torch.device,
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Print a case, and return its lines."""
    print(f"\n{case['shape']}  {case['dtype']}: {case['batch']} rows, {case['prompt']} ids, {case['tokens']} tokens")
    ours = found.get("minitune", [{}])[0].get("ids", [])[:SAME]
    lines = []
    for name, turns in found.items():
        line = case | {"contestant": name, **environment(device), "copy_bytes_per_s": round(top.copy_bytes)}
        line["threads"] = args.threads or line["threads"]
        int8 = "int8" in name
        if ours and not int8 and turns[0]["ids"][:SAME] != ours:
            print(f"  {name:22} not timed: its first ids are {turns[0]['ids'][:SAME]}, minitune's are {ours}")
            lines.append(line | {"failed": "makes other tokens"})
            continue
        timing = summary([1e3 * turn["rest_s"] for turn in turns[1:]], turns[-1]["peak_bytes"])
        first = summary([1e3 * turn["first_s"] for turn in turns[1:]])
        steps = (case["tokens"] - 1) / timing.p50_ms * 1e3
        line |= as_row(timing) | {
            "first_token_ms": round(first.p50_ms, 2),
            "prompt_tokens_per_s": round(case["batch"] * case["prompt"] / first.p50_ms * 1e3, 1),
            "tokens_per_s": round(steps * case["batch"], 2),
            "of_bandwidth": round(steps * step_bytes(case["shape"], case["dtype"], int8=int8) / top.copy_bytes, 4),
        }
        print(f"  {name:22}{line['tokens_per_s']:9.1f} tokens/s  {line['of_bandwidth']:6.1%} of the bandwidth  first "
              f"token {line['first_token_ms']:8.1f} ms ({line['prompt_tokens_per_s']:8.1f} tokens/s)  peak "
              f"{timing.peak_bytes / 2**30:5.2f} GiB")  # fmt: skip
        lines.append(line)
    return lines


def perplexities(device: torch.device, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Perplexity of trained models with weights as they are and in int8, on stories of the material."""
    lines = []
    for name in ("stories260K/hf", "TinyStories-656K"):
        found = {kept: perplexity(material() / "weights" / name, kept) for kept in ("none", "int8")}
        change = found["int8"] / found["none"] - 1
        print(f"{name}: perplexity {found['none']:.4f}, with int8 weights {found['int8']:.4f} ({change:+.2%})")
        line = {"perplexity_of": name, "float32": found["none"], "int8": found["int8"], "change": change}
        lines.append(line | environment(device))
    return lines


@torch.inference_mode()
def perplexity(folder: Path, quantise: str, stories: int = 200, longest: int = 256) -> float:
    """exp of the mean negative log-likelihood a token of the first stories, 16 tokens at a time behind a cache.

    So few at a time that the product is the one of decoding.
    """
    from minitune.jobs.load import load
    from minitune.models.cache import KVCache

    model, tokenizer = load(folder, device="cpu", dtype="float32", quantise=quantise, packed=True)
    nll = tokens = 0.0
    for text in json.loads((material() / STORIES).read_text(encoding="utf-8"))[:stories]:
        start = [tokenizer.bos_id] if tokenizer.bos_id is not None else []
        ids = torch.tensor([(start + tokenizer.encode(text))[:longest]])
        cache = KVCache(model.config, 1, ids.shape[1], device="cpu", dtype=torch.float32)
        logits = []
        for chunk in ids.split(16, dim=1):
            logits.append(model.logits(model(chunk, cache=cache)))
            cache.advance(chunk.shape[1])
        logp = torch.log_softmax(torch.cat(logits, 1)[0, :-1].double(), -1)
        nll -= float(logp.gather(-1, ids[0, 1:, None]).sum())
        tokens += ids.shape[1] - 1
    return math.exp(nll / tokens)


if __name__ == "__main__":
    main()
