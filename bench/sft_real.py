"""Fine-tune real open weights on real rows, by LoRA and in full, and write down what it took.

    python -m bench.sft_real            (needs the weights and the rows; MINITUNE_MATERIAL names their folder)

Each run is a process of its own, so that its peak memory is its own. Appends a line a run to
``bench/results/sft_real.jsonl``: the command, the result as ``minitune sft --json`` gives it, the curve, the machine.
``python -m bench.report`` puts the newest of them into the README and draws the curves.
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
        metrics = (Path(scratch) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        curve = smooth([json.loads(line) for line in metrics])
        return json.loads(done.stdout.splitlines()[-1]) | {"run": None, "curve": curve}


def smooth(lines: list[dict[str, Any]], width: int = 20) -> list[tuple[int, float]]:
    """Training loss per ``width`` steps: (last step, mean loss)."""
    steps = [line for line in lines if "loss" in line]
    parts = [steps[i : i + width] for i in range(0, len(steps), width)]
    return [(part[-1]["step"], round(sum(line["loss"] for line in part) / len(part), 4)) for part in parts]


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
    """Run all and append the results."""
    for name, words in RUNS.items():
        result = run(words)
        line = {"name": name, "command": "minitune sft " + " ".join(words), "result": result, **environment()}
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(f"{name}: {result['seconds']:.0f} s, validation loss {result['val_loss_after']:.3f}", flush=True)


if __name__ == "__main__":
    main()
