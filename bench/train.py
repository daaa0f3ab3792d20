"""Training throughput: minitune beside what a user would pick instead, on the same rows, mask, type and token budget.

    python -m bench.train [--shapes SmolLM2-135M] [--methods lora full] [--settings fixed real] [--rounds 3]

``fixed`` is rows of one length, every token trained: the engine. ``real`` is rows of Alpaca, answers trained: padding,
packing and masking count. A step is one optimizer step over all rows; each contestant has a process of its own and they
take steps in turns. Loss and gradient norm of the first step must agree to 1e-3 with minitune's, or a contestant is not
timed. MFU is ``step_flops`` of minitune/ops/costs.py (documents as they are, no padding) over the time and what this
machine reaches in a large product.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.measure import RESULTS, Ceilings, append, as_row, ceilings, environment, settle, summary
from bench.rows import Example, full_rows, real_rows, tokenizer_in, write_examples
from bench.shapes import RANK, SHAPES, make_folder
from bench.workers import able, race_workers
from minitune.models.published import model_config
from minitune.ops.costs import attention_pairs, step_flops, utilisation

CONTESTANTS = ("minitune", "transformers", "trl", "liger")
AGREE = 1e-3


def main() -> None:
    """Parse, measure, print and keep."""
    args = _arguments()
    device = torch.device(args.device)
    dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    settle(device)
    top = ceilings(device, getattr(torch, dtype))
    print(f"{environment(device)['device']}, {args.threads or torch.get_num_threads()} threads: product "
          f"{top.product_flops / 1e9:.0f} GFLOP/s, copy {top.copy_bytes / 1e9:.0f} GB/s")  # fmt: skip
    names = able(args.contestants, args.device)
    for shape in args.shapes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = make_folder(shape, Path(scratch) / "model", dtype=getattr(torch, dtype))
            for setting in args.settings:
                rows = _rows(args, setting, shape, folder)
                write_examples(Path(scratch) / "rows.json", rows)
                for method in args.methods:
                    case = {"shape": shape, "setting": setting, "method": method, "dtype": dtype}
                    found = measure(names, case, args, folder, Path(scratch) / "rows.json")
                    append(args.out, report(case, found, rows, top, device, args))


def _arguments() -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m bench.train", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES)[: 3 if gpu else 1])
    parser.add_argument("--methods", nargs="+", choices=("lora", "full"), default=["lora", "full"])
    parser.add_argument("--settings", nargs="+", choices=("fixed", "real"), default=["fixed", "real"])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--fixed-rows", type=int, default=16 if gpu else 2)
    parser.add_argument("--length", type=int, default=1024 if gpu else 512, help="ids in a fixed row")
    parser.add_argument("--real-rows", type=int, default=512 if gpu else 64)
    parser.add_argument("--capacity", type=int, default=4096 if gpu else 1024, help="tokens in a packed row")
    parser.add_argument("--micro", type=int, default=0, help="rows at a time (fixed: all; real: 8 padded, 1 packed)")
    parser.add_argument("--rounds", type=int, default=10 if gpu else 3, help="timed steps of each contestant")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves the choice to torch")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=None)
    parser.add_argument("--ops", default="auto", help="minitune's operations")
    parser.add_argument("--compile", action="store_true", help="let torch compile minitune's blocks")
    parser.add_argument("--apart", action="store_true", help="one contestant after the other, where memory is short")
    parser.add_argument("--out", type=Path, default=RESULTS / "train.jsonl")
    return parser.parse_args()


def _rows(args: argparse.Namespace, setting: str, shape: str, folder: Path) -> list[Example]:
    if setting == "fixed":
        return full_rows(SHAPES[shape].config["vocab_size"], args.fixed_rows, args.length)
    return real_rows(tokenizer_in(folder), args.real_rows, longest=args.capacity)


def measure(
    names: list[str], case: dict[str, str], args: argparse.Namespace, folder: Path, rows: Path
) -> dict[str, list[dict[str, Any]]]:
    """The steps of every contestant: the first, which is compared, one more to warm, and those that are timed."""
    shared = {"folder": folder, "rows": rows, "device": args.device, "capacity": args.capacity, "ops": args.ops}
    shared |= {"compile": int(args.compile)} | {key: case[key] for key in ("method", "setting", "dtype")}
    contestants = {}
    for name in names:
        packs = case["setting"] == "real" and name in ("minitune", "trl")
        micro = args.micro or (args.fixed_rows if case["setting"] == "fixed" else 1 if packs else 8)
        contestants[name] = shared | {"micro": micro}
    return race_workers(
        "bench.train_contestants", contestants, rounds=2 + args.rounds, threads=args.threads, apart=args.apart
    )


def report(
    case: dict[str, str],
    found: dict[str, list[dict[str, Any]]],
    rows: list[Example],
    top: Ceilings,
    device: torch.device,
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Print a case, and return its lines: who agrees with minitune, and how fast everybody is."""
    config = model_config(SHAPES[case["shape"]].config, case["shape"])
    inputs = [row.inputs for row in rows]
    trained = sum(sum(row.trained[1:]) for row in rows)
    flops = step_flops(config, tokens=sum(inputs), trained=trained, pairs=attention_pairs(config, inputs),
                       rank=RANK if case["method"] == "lora" else 0)  # fmt: skip
    budget = {"rows": len(rows), "tokens": sum(inputs), "trained_tokens": trained, "step_flops": flops}
    tops = {"product_flops": round(top.product_flops), "copy_bytes_per_s": round(top.copy_bytes)}
    print(f"\n{case['shape']}  {case['method']}  {case['setting']} rows  {case['dtype']}: {len(rows)} rows, "
          f"{sum(inputs):,} tokens, {trained:,} trained")  # fmt: skip
    first = found.get("minitune", [{}])[0]
    lines = []
    for name, steps in found.items():
        line = case | {"contestant": name} | budget | tops | environment(device)
        line |= {key: steps[0][key] for key in ("loss", "grad_norm")}
        apart = max((abs(steps[0][key] / first[key] - 1) for key in ("loss", "grad_norm") if key in first), default=0.0)
        line["apart"] = apart
        if not apart <= AGREE:
            print(f"  {name:14} not timed: loss {steps[0]['loss']:.4f}, gradient norm {steps[0]['grad_norm']:.4f} are "
                  f"{apart:.1e} away from minitune's")  # fmt: skip
            lines.append(line | {"failed": f"{apart:.1e} away from minitune's loss and gradient norm"})
            continue
        timing = summary([1e3 * step["seconds"] for step in steps[2:]], steps[-1]["peak_bytes"])
        seconds = timing.p50_ms / 1e3
        line |= as_row(timing) | {
            "trained_tokens_per_s": round(trained / seconds, 2),
            "tokens_per_s": round(sum(inputs) / seconds, 2),
            "rows_per_s": round(len(rows) / seconds, 3),
            "mfu": round(utilisation(flops, seconds, top.product_flops), 4),
            "threads": args.threads or line["threads"],
        }
        print(f"  {name:14}{line['trained_tokens_per_s']:9.1f} trained tokens/s {line['tokens_per_s']:9.1f} tokens/s "
              f"{line['rows_per_s']:8.2f} rows/s  peak {timing.peak_bytes / 2**30:6.2f} GiB  MFU {line['mfu']:6.1%}  "
              f"loss {steps[0]['loss']:.4f}  norm {steps[0]['grad_norm']:.4f}")  # fmt: skip
        lines.append(line)
    return lines


if __name__ == "__main__":
    main()
