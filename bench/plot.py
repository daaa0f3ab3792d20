"""The newest results of ``bench.train`` and ``bench.sample`` as PNG figures in docs/figures.

python -m bench.plot [--folder docs/figures]
"""

import argparse
from pathlib import Path
from typing import Any

from bench.measure import CHECKOUT
from bench.tables import newest


def bars(lines: list[dict[str, Any]], cases: list[str], value: str, label: str, path: Path) -> None:
    """A group of bars a case, one for each contestant, with what each reached above it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    contestants = list(dict.fromkeys(line["contestant"] for line in lines))
    figure = Figure(figsize=(max(5, 1.6 * len(cases) + 1.5), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / max(1, len(contestants))
    for i, contestant in enumerate(contestants):
        own = {line["case"]: line[value] for line in lines if line["contestant"] == contestant and value in line}
        places = [cases.index(case) - 0.4 + (i + 0.5) * width for case in own]
        drawn = axes.bar(places, list(own.values()), width, label=contestant)
        axes.bar_label(drawn, fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(cases)), cases, fontsize=8)
    axes.set_ylabel(label)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    """Draw what has results."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "docs" / "figures")
    args = parser.parse_args()
    lines = newest("train", "device", "shape", "setting", "method", "dtype", "contestant")
    for line in lines:
        line["case"] = f"{line['shape']}\n{line['method']}, {line['setting']} rows"
    draw(lines, "trained_tokens_per_s", "trained tokens a second", args.folder / "bench_train.png")
    lines = newest("sample", "device", "shape", "batch", "dtype", "contestant")
    for line in lines:
        line["case"] = f"{line['shape']}\n{line['batch']} at a time"
    draw(lines, "tokens_per_s", "tokens a second, decoding", args.folder / "bench_sample.png")


def draw(lines: list[dict[str, Any]], value: str, label: str, path: Path) -> None:
    """One figure, where there is anything to draw."""
    if lines:
        bars(lines, list(dict.fromkeys(line["case"] for line in lines)), value, label, path)
        print(path)


if __name__ == "__main__":
    main()
