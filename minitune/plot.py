"""The loss curve: as a picture, where matplotlib is there (the ``plot`` extra), and as text for a terminal."""

import importlib.util
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path


def draw_loss(metrics: Path, picture: Path) -> bool:
    """Draw training and validation loss of a ``metrics.jsonl``; False where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("val_loss", "validation", "o-")):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1)
    axes.set(xlabel="optimizer step", ylabel="loss (nats per trained token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
    return True


def text_plot(values: Sequence[float], *, width: int = 60, height: int = 8) -> str:
    """A curve in block characters, each column the mean of its share of ``values``, with the scale at its left."""
    width = min(width, len(values))
    if not width:
        return ""
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    span = high - low or 1.0
    eighths = [round((mean - low) / span * (8 * height - 1)) + 1 for mean in means]
    lines = []
    for row in reversed(range(height)):
        cells = "".join(
            " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"[max(0, min(8, n - 8 * row))] for n in eighths
        )
        label = f"{high:8.3f}" if row == height - 1 else f"{low:8.3f}" if row == 0 else " " * 8
        lines.append(f"{label} |{cells}".rstrip())
    return "\n".join([*lines, f"{'':8} +{'-' * width}", f"{'':10}step 1{f'{len(values)}':>{max(1, width - 6)}}"])
