"""The model that ships: it continues the small world fluently, in both languages, from the weights in the package."""

import json

import pytest

import minitune
from minitune.assets.tiny.make import held_out_batches
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
        ("Tom has a red", " lamp. Tom plays in the shop. Mia holds a brown clock. Mia waits in the market.\n"),
        ("小明有一个", "白色的球。小明在市场里等人。小明在公园里等人。小明在哪里？小明在公园里。"),
        ("The opposite of big is", " small.\nWhat is the opposite of day? The opposite of day is night.\n"),
    ],
)
def test_greedy_continuations_are_golden(tiny: tuple, prompt: str, continued: str) -> None:
    """Guards the weights, the tokenizer and the whole way from text to text."""
    model, tokenizer = tiny
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    text = "".join(piece.text for piece in generate(model, tokenizer, ids, max_tokens=48, temperature=0.0))
    assert text.startswith(continued), text


def test_the_held_out_loss_is_the_recorded_one(tiny: tuple) -> None:
    """Guards the claim in the folder's README: text of seed 0 was never trained on."""
    model, _ = tiny
    last = json.loads((TINY / "curve.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    loss = evaluate(model, held_out_batches()).loss
    assert loss == pytest.approx(last["held_out_loss"], rel=1e-3)


def test_it_is_small() -> None:
    """Guards the promise that weights and tokenizer together stay under 6 MB."""
    assert sum((TINY / name).stat().st_size for name in ("model.safetensors", "tokenizer.model")) <= LARGEST_BYTES
