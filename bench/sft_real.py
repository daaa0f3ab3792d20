"""Fine-tune real open weights on real rows, by LoRA and in full, and write down what it took.

    python -m bench.sft_real            (needs the weights and the rows; MINITUNE_MATERIAL names their folder)

Each run is a process of its own, so that its peak memory is its own. Prints a table and appends a line a run to
``bench/results/sft_real.jsonl``: the command, the result as ``minitune sft --json`` gives it, and the machine.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import minitune

CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / "bench" / "results" / "sft_real.jsonl"
DATA = ["--data", "data/en/alpaca.json", "--rows", "2000", "--on-bad", "drop", "--on-long", "drop", "--epochs", "3"]
RUNS = {
    "TinyStories-656K, LoRA": ["--model", "weights/TinyStories-656K", "--method", "lora", "--lr", "5e-3", *DATA],
    "TinyStories-656K, full": ["--model", "weights/TinyStories-656K", "--method", "full", "--lr", "2e-3", *DATA],
}


def material() -> Path:
    """The folder of real weights and rows."""
    folder = Path(os.environ.get("MINITUNE_MATERIAL") or CHECKOUT.parent / "shared" / "material")
    if not folder.is_dir():
        sys.exit(f"{folder} is not there; set MINITUNE_MATERIAL to a folder with weights/ and data/")
    return folder


def run(words: list[str]) -> dict[str, Any]:
    """One fine-tuning in a process of its own; its JSON document."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "minitune", "sft", *words, "--out", str(Path(scratch) / "run"), "--json"]
        done = subprocess.run(command, cwd=material(), stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1]) | {"run": None}


def environment() -> dict[str, Any]:
    """What the figures hold for."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    return {
        "minitune": minitune.__version__,
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Run all, append the results, print the table."""
    print("| run | steps | seconds | peak memory | validation loss before | after |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, words in RUNS.items():
        result = run(words)
        line = {"name": name, "command": "minitune sft " + " ".join(words), "result": result, **environment()}
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(
            f"| {name} | {result['steps']} | {result['seconds']:.0f} | {result['peak_memory_bytes'] / 2**20:.0f} MiB "
            f"| {result['val_loss_before']:.3f} | {result['val_loss_after']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
