"""Run every recipe on real open weights and real rows, and write down what it took and what it gave.

    python -m bench.recipes [NAME ...]     (needs the weights and the rows; MINITUNE_MATERIAL names their folder)

Each run is a process of its own, so that its peak memory is its own. Appends a line a recipe to
``bench/results/recipes.jsonl``: the command, the result as ``minitune sft --json`` gives it, the curve, texts before
and after, the machine. The figures that ``minitune recipes`` shows go into ``minitune/recipes/measured.json``.
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
from minitune.files import write_json
from minitune.jobs.recipes import MEASURED, recipes

CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / "bench" / "results" / "recipes.jsonl"
DATA, ROWS = "data/en/alpaca.json", 2000
WEIGHTS = {"tinystories-656k": "weights/TinyStories-656K", "stories260k": "weights/stories260K/hf"}
PROMPT = "Give three tips for staying healthy."


def material() -> Path:
    """The folder of real weights and rows."""
    folder = Path(os.environ.get("MINITUNE_MATERIAL") or CHECKOUT.parent / "shared" / "material")
    if not folder.is_dir():
        sys.exit(f"{folder} is not there; set MINITUNE_MATERIAL to a folder with weights/ and data/")
    return folder


def model_of(recipe: str) -> Path:
    """The weights of a recipe."""
    return material() / next(path for name, path in WEIGHTS.items() if recipe.startswith(name))


def answer(model: Path) -> str:
    """What a model says to ``PROMPT``, greedily."""
    words = [
        "generate",
        str(model),
        PROMPT,
        "--chat",
        "--template",
        "alpaca",
        "--max-tokens",
        "60",
        "--temperature",
        "0",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "minitune", *words], stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True
    )
    return " ".join(done.stdout.split())


def run(name: str) -> dict[str, Any]:
    """One recipe in a process of its own: the command as a user types it, and what came of it."""
    with tempfile.TemporaryDirectory() as scratch:
        model, out = model_of(name), Path(scratch) / "run"
        words = ["sft", name, "--model", str(model), "--data", str(material() / DATA), "--rows", str(ROWS)]
        command = [sys.executable, "-m", "minitune", *words, "--out", str(out), "--json"]
        before = answer(model)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
        metrics = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        result = json.loads(done.stdout.splitlines()[-1]) | {"run": None, "samples": None}
        texts = {"prompt": PROMPT, "before": before, "after": answer(out)}
        where = model.relative_to(material())
        shown = f"minitune sft {name} --model {where} --data {DATA} --rows {ROWS} --out RUN"
        curve = smooth([json.loads(line) for line in metrics])
        return {"name": name, "command": shown, "result": result, "curve": curve, "texts": texts, **environment()}


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


def measured() -> dict[str, Any]:
    """What ``minitune recipes`` shows of the newest run of each recipe."""
    found = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        result = row["result"]
        names = ("steps", "seconds", "peak_memory_bytes", "val_loss_before", "val_loss_after")
        machine = f"{row['threads']} CPU threads, {row['machine']}, {row['date']}"
        found[row["name"]] = {"rows": ROWS} | {name: result[name] for name in names} | {"machine": machine}
    return found


def main() -> None:
    """Run what is named, or all, and put down the results."""
    for name in sys.argv[1:] or [recipe.name for recipe in recipes()]:
        line = run(name)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        result = line["result"]
        print(f"{name}: {result['seconds']:.0f} s, validation loss {result['val_loss_after']:.3f}", flush=True)
    write_json(MEASURED, measured())


if __name__ == "__main__":
    main()
