"""Loading and saving a model folder, time and peak memory, beside ``transformers``.

    python -m bench.load [--shapes SmolLM2-135M] [--rounds 3]

Each contestant loads the same safetensors folder in a process of its own, reads every weight once (a loader may have
mapped the file only), and writes it to a new folder. The peak is what the process held beyond what it held before;
pages of a mapped file count. Times of a file that was read before: the disk is nobody's. ``import minitune`` and
``minitune --help`` are timed too, the whole process each.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.measure import CHECKOUT, RESULTS, Timing, append, as_row, environment, reset_process_peak, summary
from bench.shapes import SHAPES, make_folder
from bench.workers import Channel, able, peak_bytes, race_workers, serve

CONTESTANTS = ("minitune", "transformers")
STARTS = {
    "python -c pass": ["-c", "pass"],
    "import minitune": ["-c", "import minitune"],
    "minitune --help": ["-m", "minitune", "--help"],
    "import torch": ["-c", "import torch"],
}


def main() -> None:
    """Parse, measure, print and keep."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["SmolLM2-135M"])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves the choice to torch")
    parser.add_argument("--out", type=Path, default=RESULTS / "load.jsonl")
    parser.add_argument("--contestant", choices=CONTESTANTS, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant is not None:
        contestant(args.contestant, args.folder)
        return
    about = environment(torch.device("cpu"))
    append(args.out, starts(args.rounds, about))
    for shape in args.shapes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = make_folder(shape, Path(scratch) / "model")
            append(args.out, measure(shape, folder, args, about))


def starts(rounds: int, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds of whole processes, in turns."""
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(rounds + 1):
        for name, words in STARTS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True, cwd=CHECKOUT)
            times[name].append(1e3 * (time.perf_counter() - start))
    lines = []
    for name, values in times.items():
        line = {"start": name, **as_row(summary(values[1:])), **about}
        print(f"  {name:22}{line['p50_ms'] / 1e3:8.3f} s")
        lines.append(line)
    return lines


def measure(shape: str, folder: Path, args: argparse.Namespace, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Every contestant in turns; the first turn is not timed."""
    contestants = {name: {"folder": folder} for name in able(args.contestants, "cpu")}
    found = race_workers("bench.load", contestants, rounds=1 + args.rounds, threads=args.threads)
    lines = []
    for name, turns in found.items():
        for what in ("load", "save"):
            timing = summary([1e3 * turn[f"{what}_s"] for turn in turns[1:]], turns[0][f"{what}_bytes"])
            lines.append({"shape": shape, "what": what, "contestant": name, **as_row(timing), **about})
            print(f"  {shape} {what} {name:14}{timing.p50_ms / 1e3:8.3f} s   peak {_mib(timing)} MiB")
    return lines


def _mib(timing: Timing) -> str:
    return f"{(timing.peak_bytes or 0) / 2**20:8.0f}"


def contestant(name: str, folder: Path) -> None:
    """Load and save when told to."""
    channel = Channel()
    load, save = ours() if name == "minitune" else theirs()
    load_again: list[Any] = []

    def step() -> dict[str, Any]:
        load_again.clear()
        before = reset_process_peak()
        start = time.perf_counter()
        load_again.append(load(folder))
        touch(load_again[0])
        loaded, load_bytes = time.perf_counter() - start, peak_bytes() - before
        before = reset_process_peak()
        target = folder.parent / f"saved by {name}"
        start = time.perf_counter()
        save(load_again[0], target)
        saved, save_bytes = time.perf_counter() - start, peak_bytes() - before
        shutil.rmtree(target)
        return {"load_s": loaded, "load_bytes": load_bytes, "save_s": saved, "save_bytes": save_bytes}

    serve(channel, step)


def touch(model: torch.nn.Module) -> None:
    """Read every weight."""
    for weight in model.parameters():
        weight.detach().sum()


def ours() -> tuple[Callable[[Path], Any], Callable[[Any, Path], None]]:
    """minitune's reader, which accounts for every tensor and checks that it is finite, and its writer."""
    from minitune.checkpoint import load_checkpoint, save_checkpoint

    return lambda folder: load_checkpoint(folder).model, save_checkpoint


def theirs() -> tuple[Callable[[Path], Any], Callable[[Any, Path], None]]:
    """The same of ``transformers``."""
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    return lambda folder: load(folder, dtype=torch.float32), lambda model, target: model.save_pretrained(target)


if __name__ == "__main__":
    main()
