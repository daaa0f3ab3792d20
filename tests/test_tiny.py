"""The model that ships: it continues the small world fluently, in both languages, from the weights in the package."""

import json
import random

import pytest
import torch

import minitune
from minitune.assets.tiny.make import batches, chunk_of_ids, padded
from minitune.jobs.load import TINY
from minitune.sample import generate
from minitune.train import evaluate

LARGEST_BYTES = 6_000_000


@pytest.fixture(scope="module")
def tiny() -> tuple:
    return minitune.load("tiny", device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("prompt", "continued"),
    [
        ("Tom has a red", " kite. Tom plays in the library. The white cup belongs to Ben. Ben is in the market.\n"),
        ("小明有一个", "蓝色的书包。小明在公园里等人。那个黄色的杯子是小雪的。小雪在车站里等人。\n"),
        ("The opposite of big is", " small.\n"),
    ],
)
def test_greedy_continuations_are_golden(tiny: tuple, prompt: str, continued: str) -> None:
    """Guards the weights, the tokenizer and the whole way from text to text."""
    model, tokenizer = tiny
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    text = "".join(piece.text for piece in generate(model, tokenizer, ids, max_tokens=48, temperature=0.0))
    assert text.startswith(continued), text


def test_the_held_out_loss_is_the_recorded_one(tiny: tuple) -> None:
    """Guards the claim in the folder's README: chunk 0 of the text was never trained on."""
    model, _ = tiny
    last = json.loads((TINY / "curve.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    held_out = batches(chunk_of_ids(0)[:2000], 16_384, random.Random(0))[:2]
    loss = evaluate(model, [padded(part, torch.device("cpu")) for part in held_out]).loss
    assert loss == pytest.approx(last["held_out_loss"], rel=0.08)  # two batches of all


def test_it_is_small() -> None:
    """Guards the promise that weights and tokenizer together stay under 6 MB."""
    assert sum((TINY / name).stat().st_size for name in ("model.safetensors", "tokenizer.model")) <= LARGEST_BYTES
