"""Beam search finds what the reference library's finds, and never less than greedy does."""

import itertools

import pytest
import torch
from sample_cases import alone, ours, reference, some_ids

from minitune.errors import ConfigError
from minitune.sample import SamplerSettings, beam_search

NAMES = ["llama, grouped, wide heads, biases", "mistral, window 8", "gpt2"]
STOPS = [2, 5, 7, 11]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5])
def test_beams_are_those_of_transformers(name: str, early: bool, penalty: float) -> None:
    """Guards scores, the length that they are divided by, which candidates end, and where the search stops."""
    finishes = set()
    for seed in range(3):
        prompt = some_ids(12, seed)
        ids = torch.tensor([prompt])
        expected = reference(name).generate(
            ids, attention_mask=torch.ones_like(ids), num_beams=4, num_return_sequences=4, max_new_tokens=14,
            do_sample=False, eos_token_id=STOPS, pad_token_id=1, length_penalty=penalty, early_stopping=early,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        found = beam_search(
            ours(name), prompt, beams=4, max_tokens=14, stop_ids=STOPS, length_penalty=penalty, early_stopping=early
        )
        for beam, row, score in zip(
            found, expected.sequences.tolist(), expected.sequences_scores.tolist(), strict=True
        ):
            made = row[len(prompt) :]
            assert list(beam.ids) == made[: len(beam.ids)]
            assert set(made[len(beam.ids) :]) <= {1}  # padding
            assert beam.score == pytest.approx(score, abs=1e-4)
            finishes.add(beam.finish)
    assert finishes <= {"stop", "length"}


def test_one_beam_is_greedy() -> None:
    model, prompt = ours(NAMES[0]), some_ids(5)
    (beam,) = beam_search(model, prompt, beams=1, max_tokens=30, stop_ids=())
    assert list(beam.ids) == alone(model, prompt, SamplerSettings(max_tokens=30))


def test_as_many_beams_as_texts_is_exhaustive() -> None:
    """Guards the search against what is certain: with a beam for every text, the best one is the best of all."""
    model, prompt, V = ours(NAMES[0]), some_ids(5), 61
    with torch.no_grad():
        first = torch.log_softmax(model.logits(model(torch.tensor([prompt]))[:, -1]), -1)[0]
        rows = torch.tensor([[*prompt, token] for token in range(V)])
        second = torch.log_softmax(model.logits(model(rows)[:, -1]), -1)
    total = first[:, None] + second
    best = beam_search(model, prompt, beams=V, max_tokens=2, stop_ids=())[0]
    assert best.ids == divmod(int(total.argmax()), V)
    assert best.logprob == pytest.approx(float(total.max()), abs=1e-4)


def test_the_end_of_the_positions_ends_a_beam() -> None:
    model = ours(NAMES[2])
    prompt = some_ids(model.config.max_positions - 2)
    found = beam_search(model, prompt, beams=3, max_tokens=50, stop_ids=())
    assert [(len(beam.ids), beam.finish) for beam in found] == [(3, "context")] * 3
    assert all(a.score >= b.score for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("prompt", [[], [1] * 320], ids=["empty", "full"])
def test_what_cannot_be_searched(prompt: list[int]) -> None:
    with pytest.raises(ConfigError, match="this model takes 1 to 319"):
        beam_search(ours(NAMES[0]), prompt, beams=2, max_tokens=1)
    with pytest.raises(ConfigError, match="--beams is 0"):
        beam_search(ours(NAMES[0]), [1], beams=0, max_tokens=1)
