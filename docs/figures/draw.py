"""Draw the figures of docs/math, from the code and the model in the package.

python docs/figures/draw.py                 into docs/figures/math
python docs/figures/draw.py --out FOLDER
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

import minitune
from minitune.models.decoder import Block
from minitune.ops import REFERENCE
from minitune.ops.plan import in_sight
from minitune.ops.rope import rope, rope_frequencies, rope_tables
from minitune.ops.tiled import visible_tiles

HERE = Path(__file__).resolve().parent
TINY = Path(minitune.__file__).parent / "assets" / "tiny"
TEXT = "Tom has a red ball. Mia has a blue box. Tom has a"
LAYER = 3
INK, WARM, COOL, PALE = "#1b1b1b", "#c8553d", "#2f6690", "#b4b8ab"


def sheet(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def attention_weights(text: str) -> tuple[list[str], list[Tensor]]:
    """The tokens of ``text``, and the weights ``(H, T, T)`` of each layer of the model in the package.

    With values that are one-hot, what attention gives are its weights.
    """
    model, tokenizer = minitune.load("tiny", device="cpu", dtype="float32", ops="reference")
    found: list[Tensor] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        T = q.shape[1]
        pad = max(0, T - q.shape[3])
        scale = given.pop("scale", None) or q.shape[3] ** -0.5
        wide_q, wide_k = (torch.nn.functional.pad(t, (0, pad)) for t in (q, k))
        one_hot = torch.eye(T, wide_k.shape[3])[None, :, None].expand_as(wide_k)
        weights = REFERENCE.attention(wide_q, wide_k, one_hot, scale=scale, **given)
        found.append(weights[0, :, :, :T].transpose(0, 1))
        return REFERENCE.attention(q, k, v, scale=scale, **given)

    for block in model.blocks:
        assert isinstance(block, Block)
        block.attention.ops = replace(REFERENCE, attention=spy)
    ids = tokenizer.encode(text)
    with torch.no_grad():
        model(torch.tensor([ids]))
    return [tokenizer.token(i).replace("\u2581", " ").strip() or "_" for i in ids], found


def draw_attention() -> Figure:
    """Who looks at whom, in each head of one layer."""
    tokens, weights = attention_weights(TEXT)
    figure = sheet(10, 3.2)
    heads = weights[LAYER]
    for head, axes in enumerate(figure.subplots(1, len(heads), sharey=True)):
        axes.imshow(heads[head], cmap="Blues", vmin=0, vmax=1)
        axes.set_title(f"layer {LAYER}, head {head}", fontsize=9)
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=6)
        axes.set_yticks(range(len(tokens)), tokens, fontsize=6)
    figure.supylabel("query", fontsize=8)
    figure.supxlabel("key", fontsize=8)
    return figure


def draw_rope() -> Figure:
    """The angles of the pairs over the positions, one pair turned, and scores over the distance."""
    D, places = 16, 64
    omega = rope_frequencies(D, 10000.0)
    figure = sheet(10, 3.2)
    left, middle, right = figure.subplots(1, 3)
    for i, color in ((0, PALE), (2, WARM), (4, COOL), (6, INK)):
        angle = torch.arange(places) * omega[i]
        left.plot(angle.cos(), color=color, linewidth=1.2, label=f"pair {i}")
    left.legend(fontsize=7, loc="lower left")
    left.set(title="cos of the angle, 4 of 8 pairs", xlabel="position")
    x = torch.zeros(1, 8, 1, 2, dtype=torch.float64)
    x[..., 0] = 1
    cos, sin = rope_tables(torch.arange(8)[None], torch.tensor([0.35], dtype=torch.float64), torch.float64)
    turned, _ = rope(x, x, cos, sin)
    for p, (a, b) in enumerate(turned[0, :, 0].tolist()):
        middle.annotate("", (a, b), (0, 0), arrowprops={"arrowstyle": "->", "color": WARM, "alpha": 0.35 + 0.09 * p})
        middle.text(1.13 * a, 1.13 * b, str(p), ha="center", va="center", fontsize=8)
    middle.set(xlim=(-1.3, 1.3), ylim=(-0.3, 1.3), aspect="equal", title="one pair at positions 0 to 7")
    ones = torch.ones(1, 1, 1, D, dtype=torch.float64)
    at_0 = rope(ones, ones, *rope_tables(torch.tensor([[0]]), omega, torch.float64))[0]
    scores = []
    for distance in range(places):
        turned, _ = rope(ones, ones, *rope_tables(torch.tensor([[distance]]), omega, torch.float64))
        scores.append(float((turned * at_0).sum()) / D)
    right.plot(scores, color=INK, linewidth=1)
    right.set(title="score of two equal vectors", xlabel="distance")
    for axes in (left, middle, right):
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=7)
    return figure


def draw_tiles() -> Figure:
    """Which tiles are visited, and which need a mask: causal, and with a window."""
    T, tile = 24, 4
    figure = sheet(9, 3.2)
    for axes, (title, window) in zip(
        figure.subplots(1, 2), (("causal", None), ("causal, window of 10", 10)), strict=True
    ):
        places = torch.arange(T)
        seen = in_sight(places, places, True, window)
        for at, by in visible_tiles(T, T, tile, tile, causal=True, window=window):
            whole = bool(seen[at, by].all())
            axes.add_patch(
                Rectangle((by.start, at.start), tile, tile, facecolor=COOL if whole else WARM, alpha=0.35, zorder=1)
            )
        queries, keys = seen.nonzero(as_tuple=True)
        axes.scatter(keys + 0.5, queries + 0.5, s=3, color=INK, zorder=2)
        axes.set(xlim=(0, T), ylim=(T, 0), aspect="equal", title=title, xlabel="key", ylabel="query")
        axes.set_xticks(range(0, T + 1, tile))
        axes.set_yticks(range(0, T + 1, tile))
        axes.grid(color=PALE, linewidth=0.8, zorder=0)
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=7)
    figure.supxlabel("blue: visited without a mask; red: with one; white: never visited", fontsize=8)
    return figure


def draw_loss() -> Figure:
    """The loss of the model in the package over its training."""
    lines = [json.loads(line) for line in (TINY / "curve.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["stage"] == 0]  # the others count the loss of other texts
    figure = sheet(6, 3)
    axes = figure.add_subplot()
    for key, label, color in (("loss", "training", PALE), ("val_loss", "held out", COOL)):
        points = [(line["tokens"] / 1e6, line[key]) for line in lines if key in line]
        axes.plot(*zip(*points, strict=True), "o-", markersize=3, linewidth=1.2, label=label, color=color)
    axes.set(xlabel="million tokens", ylabel="nats a token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "attention.png": draw_attention,
    "rope.png": draw_rope,
    "tiles.png": draw_tiles,
    "loss.png": draw_loss,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the figures of docs/math.")
    parser.add_argument("--out", type=Path, default=HERE / "math", help="folder to write to")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        draw().savefig(out / name, dpi=90, metadata={"Software": None})
        print(out / name)


if __name__ == "__main__":
    main()
