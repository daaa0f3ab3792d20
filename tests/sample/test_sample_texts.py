"""Generation on the model that ships: greedy, drawn, stopped, streamed, and never beyond its positions."""

import itertools
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

import minitune
from minitune.errors import ConfigError
from minitune.models import LanguageModel
from minitune.sample import SamplerSettings, complete, generate_batch, generate_ids
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


PROMPTS = ["Name three colours.", "a", "", "Below is an instruction that describes a task. " * 3, "一"]


def test_many_prompts_give_what_each_gives_alone(tiny: tuple[LanguageModel, Tokenizer]) -> None:
    """Guards the batch: results in the order of the prompts, each with the seed it would have alone."""
    model, tokenizer = tiny
    options = {"max_tokens": 20, "temperature": 1.0, "top_p": 0.9, "logprobs": 2}
    for batch_size in (1, 3, 16):
        found = generate_batch(model, tokenizer, iter(PROMPTS), batch_size=batch_size, n=2, seed=4, **options)
        assert [(c.prompt, c.seed) for c in found] == [(i, seed) for i in range(len(PROMPTS)) for seed in (4, 5)]
        for completion in found:
            prompt = PROMPTS[completion.prompt]
            pieces = list(minitune.generate(model, tokenizer, prompt, seed=completion.seed, **options))
            assert completion.text == "".join(map(str, pieces))
            assert completion.ids == tuple(piece.token for piece in pieces)
            assert completion.finish == pieces[-1].finish
            assert completion.logprobs == pytest.approx([piece.logprob for piece in pieces], abs=1e-4)
            assert [[i for i, _ in top] for top in completion.top] == [[i for i, _ in p.top] for p in pieces]


def test_a_prompt_is_only_taken_when_a_slot_is_free(tiny: tuple[LanguageModel, Tokenizer]) -> None:
    """Guards memory: a stream of prompts is not read to its end before the first has an answer."""
    model, tokenizer = tiny
    taken = []

    def endless() -> Iterator[str]:
        for number in itertools.count():
            taken.append(number)
            yield f"row {number}"

    settings = SamplerSettings(max_tokens=3)
    done = list(itertools.islice(complete(model, tokenizer, endless(), settings=settings, batch_size=2), 6))
    assert sorted(completion.prompt for completion in done) == list(range(6))
    assert len(taken) <= 9


def test_a_stop_string_frees_its_slot(tiny: tuple[LanguageModel, Tokenizer]) -> None:
    model, tokenizer = tiny
    options = {"max_tokens": 30, "temperature": 1.0, "stop_ids": ()}
    plain = generate_batch(model, tokenizer, PROMPTS, batch_size=2, **options)
    stops = tuple({completion.text[5:7] for completion in plain})
    for completion, whole in zip(
        generate_batch(model, tokenizer, PROMPTS, batch_size=2, stop=stops, **options), plain, strict=True
    ):
        assert completion.finish == "stop"
        assert whole.text.startswith(completion.text)
        assert not any(stop in completion.text for stop in stops)
        assert len(completion.ids) < len(whole.ids)


def test_the_row_that_is_wrong_is_named(tiny: tuple[LanguageModel, Tokenizer]) -> None:
    model, tokenizer = tiny
    with pytest.raises(ConfigError, match=r"prompt 2: the prompt has \d+ tokens"):
        generate_batch(model, tokenizer, ["a", "b" * 2000], max_tokens=1)
    with pytest.raises(ConfigError, match="the number of samples is 0"):
        generate_batch(model, tokenizer, ["a"], n=0)
    with pytest.raises(ConfigError, match="the number of texts at a time is 0"):
        generate_batch(model, tokenizer, ["a"], batch_size=0)


def test_dropout_is_off_and_then_as_it_was(tiny: tuple[LanguageModel, Tokenizer]) -> None:
    """Guards answers in the middle of a training run, given up half way or not."""
    model, tokenizer = tiny
    model.train()
    try:
        stream = minitune.generate(model, tokenizer, "a", max_tokens=5, stop_ids=())
        next(stream)
        assert not model.training
        stream.close()
        assert model.training
        generate_batch(model, tokenizer, ["a"], max_tokens=2)
        assert model.training
    finally:
        model.eval()


def test_settings_need_no_torch() -> None:
    """Guards the command line's start: flags and --help come from the settings."""
    code = "import sys; import minitune.sample.settings; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
