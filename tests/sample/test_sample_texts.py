"""Generation on the model that ships: greedy, drawn, stopped, streamed, and never beyond its positions."""

import pytest
import torch

import minitune
from minitune.errors import ConfigError
from minitune.models import LanguageModel
from minitune.sample import generate_ids
from minitune.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tiny() -> tuple[LanguageModel, Tokenizer]:
    return minitune.load("tiny", device="cpu", dtype="float32")


@torch.no_grad()
def test_greedy_is_the_likeliest_token_of_the_full_pass(tiny: tuple[LanguageModel, Tokenizer]) -> None:
    model, _ = tiny
    prompt = [1, 20, 30]
    made = [token for token, _ in generate_ids(model, prompt, max_tokens=20, stop_ids=[])]
    for i, token in enumerate(made):
        logits = model.logits(model(torch.tensor([prompt + made[:i]]))[0, -1])
        best = logits.topk(2).values
        assert token == int(logits.argmax()) or best[0] - best[1] < 1e-3


def test_a_seed_means_the_same_text_and_another_seed_another(tiny: tuple[LanguageModel, Tokenizer]) -> None:
    model, _ = tiny

    def draw(seed: int) -> list[int]:
        return [token for token, _ in generate_ids(model, [1], max_tokens=30, temperature=1.0, seed=seed, stop_ids=[])]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_a_stop_id_ends_the_text_and_is_not_printed(tiny: tuple[LanguageModel, Tokenizer]) -> None:
    model, tokenizer = tiny
    first = [token for token, _ in generate_ids(model, [1], max_tokens=4, stop_ids=[])]
    stop = first[-1]
    pieces = list(minitune.generate(model, tokenizer, [1], max_tokens=50, stop_ids=[stop]))
    assert [piece.token for piece in pieces] == first[: first.index(stop) + 1]
    assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert "".join(map(str, pieces)) == tokenizer.decode([p.token for p in pieces[:-1]], skip_control=True)


def test_text_never_runs_beyond_the_positions(tiny: tuple[LanguageModel, Tokenizer]) -> None:
    model, tokenizer = tiny
    limit = model.config.max_positions
    prompt = [1] + [20] * (limit - 3)
    pieces = list(minitune.generate(model, tokenizer, prompt, max_tokens=50, stop_ids=[]))
    assert (len(pieces), pieces[-1].finish) == (3, "context")
    with pytest.raises(ConfigError, match=f"this model has {limit} positions"):
        list(generate_ids(model, [1] * limit, max_tokens=1))


def test_half_a_character_is_never_streamed(tiny: tuple[LanguageModel, Tokenizer]) -> None:
    """Whatever bytes the model makes, a piece is whole characters, and the pieces are the decoded text."""
    model, tokenizer = tiny
    pieces = list(minitune.generate(model, tokenizer, "一", max_tokens=60, temperature=1.5, seed=3, stop_ids=[]))
    ids = [piece.token for piece in pieces]
    assert "".join(map(str, pieces)) == tokenizer.decode(ids, continues=True, skip_control=True)


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"prompt": []}], ids=str
)
def test_settings_out_of_range_are_refused(tiny: tuple[LanguageModel, Tokenizer], wrong: dict) -> None:
    settings = {"prompt": [1], "max_tokens": 1} | wrong
    with pytest.raises(ConfigError):
        list(generate_ids(tiny[0], settings.pop("prompt"), **settings))
