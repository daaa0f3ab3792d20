"""The model that ships: it continues the small world fluently, in both languages, from the weights in the package."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

import minitune
from minitune.assets.tiny import make
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
        (
            "Tom has a red",
            " rope.\nLeo has a pink rope.\nWhat does Leo have? Leo has a pink rope.\n"
            "What does Tom have? Tom has a red rope.",
        ),
        (
            "小明有一个",
            "绿色的盒子。小明在公园里等人。小明有什么？小明有一个绿色的盒子。小明在什么地方？小明在公园里。",
        ),
        (
            "The opposite of big is",
            " small.\nWhat is the opposite of small? The opposite of small is big.\n",
        ),
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


def test_all_stages_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the recorded way to the weights: each stage goes on from the last, and what is done is not done again."""
    monkeypatch.setattr(make, "STAGES", tuple(replace(stage, documents=40) for stage in make.STAGES[:2]))
    monkeypatch.setattr(make, "SETTINGS", (*make.SETTINGS, "--val", "4", "--max-steps", "2"))
    assert make.make_model(tmp_path) == 0
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [(1, 0), (1, 2), (2, 0), (2, 2)]
    settings = tomllib.loads((tmp_path / "stage-2" / "config.toml").read_text(encoding="utf-8"))
    assert settings["model"] == str(tmp_path / "stage-1")
    weights = (tmp_path / "stage-2" / "model" / "model.safetensors").read_bytes()
    assert make.make_model(tmp_path) == 0
    assert (tmp_path / "stage-2" / "model" / "model.safetensors").read_bytes() == weights
