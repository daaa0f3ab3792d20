"""Real trained weights must give the numbers that were published or made by the reference library.

A test with random weights hides what only a trained model shows: a permuted head still has the right shape, but its
loss is that of a model that guesses.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from minitune.chat import Encoded
from minitune.checkpoint import load_checkpoint
from minitune.data.batch import pad_rows
from minitune.models import LanguageModel
from minitune.ops import BUILTIN, REFERENCE, Ops
from minitune.sample import generate_ids
from minitune.tokenizer import Tokenizer, load_tokenizer
from minitune.train import Validation, evaluate

LONGEST = 512


@dataclass(frozen=True)
class Published:
    """One real model: where it lies, and what is known of it. Loss is in nats over a number of predicted tokens."""

    folder: str
    truth: str
    loss: float
    tokens: int


STORIES = Published("weights/stories260K/hf", "weights/stories260K", 1.732558908757986, 80855)
TINY_STORIES = Published("weights/TinyStories-656K", "weights/TinyStories-656K", 3.227807740781264, 40865)
MODELS = [pytest.param(STORIES, id="stories260K"), pytest.param(TINY_STORIES, id="TinyStories-656K")]
TABLES = [pytest.param(ops, id=ops.name) for ops in (REFERENCE, BUILTIN)]


def reference_of(material: Path, published: Published) -> dict[str, Any]:
    return json.loads((material / published.truth / "derived_reference.json").read_text("utf-8"))


def greedy(model: LanguageModel, prompt: list[int], length: int) -> list[int]:
    """The prompt and its greedy continuation, ``length`` ids together; a stop id does not stop it."""
    made = generate_ids(model, prompt, max_tokens=length - len(prompt), stop_ids=())
    return prompt + [token for token, _ in made]


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text as the models read them: the start token first."""
    assert tokenizer.bos_id is not None
    return [tokenizer.bos_id, *tokenizer.encode(text)]


def stories(material: Path) -> list[str]:
    return json.loads((material / "data/text/tinystories_1000.json").read_text("utf-8"))[:200]


def without_unknown(tokenizer: Tokenizer, text: str) -> str:
    """The text without the characters that have no token of their own, where the vocabulary has no bytes either."""
    if tokenizer.token_id("<0x00>") is not None:
        return text
    return "".join(c for c in text if c == " " or tokenizer.token_id(c) is not None)


def story_loss(material: Path, published: Published, tokenizer: Tokenizer, texts: list[str]) -> Validation:
    """The loss of every token behind the start token, rows of a length together."""
    rows = []
    for ids in sorted((encode(tokenizer, text)[:LONGEST] for text in texts), key=len):
        rows.append(Encoded.of(ids, [False] + [True] * (len(ids) - 1)))
    model = load_checkpoint(material / published.folder).model
    return evaluate(model, [pad_rows(rows[start : start + 20]) for start in range(0, len(rows), 20)])


@pytest.mark.parametrize("ops", TABLES)
@pytest.mark.parametrize("published", MODELS)
def test_logits_equal_the_stored_ones(material: Path, published: Published, ops: Ops) -> None:
    """Guards the whole forward (RoPE layout, norms, grouped heads, tied head) in both implementations."""
    stored = numpy.load(material / published.truth / "derived_logits.npz")
    model = load_checkpoint(material / published.folder, ops=ops).model
    with torch.no_grad():
        logits = model.logits(model(torch.from_numpy(stored["input_ids"])[None]))[0]
    assert (logits - torch.from_numpy(stored["logits"])).abs().max() <= 1e-4


@pytest.mark.parametrize("published", MODELS)
def test_mean_loss_on_stories_is_the_published_one(material: Path, published: Published) -> None:
    """Guards tokenizer and model together: a wrong cut of the text or a shifted target is far outside 1e-3 nats.

    The stored number of TinyStories-656K was made by a tokenizer class that drops characters the vocabulary lacks
    (typographic quotes), where the tokenizer file itself says <unk>; so they are dropped here first.
    """
    tokenizer = load_tokenizer(material / published.folder)
    known = [without_unknown(tokenizer, story) for story in stories(material)]
    found = story_loss(material, published, tokenizer, known)
    assert found.tokens == published.tokens
    assert abs(found.loss - published.loss) <= 1e-3


def test_mean_loss_with_unknown_characters(material: Path) -> None:
    """Guards <unk>: the same stories as they stand, against the reference model on the reference tokenizer's ids."""
    tokenizer = load_tokenizer(material / TINY_STORIES.folder)
    found = story_loss(material, TINY_STORIES, tokenizer, stories(material))
    assert found.tokens == 41062
    assert abs(found.loss - 3.3105462247591295) <= 1e-3


def test_the_truth_of_the_loss_is_the_file_beside_the_weights(material: Path) -> None:
    """Guards the numbers above: they are those of the material, not of this package."""
    for published in (STORIES, TINY_STORIES):
        found = [value for key, value in reference_of(material, published).items() if key.startswith("loss")]
        assert found == [[published.loss, published.tokens]]


@pytest.mark.parametrize("ops", TABLES)
def test_stories260k_continues_as_published(material: Path, ops: Ops) -> None:
    """Guards sampling with the cache over 255 tokens, and the way back to text, against llama2.c's own output."""
    truth = reference_of(material, STORIES)
    expected = truth["greedy_ids_from_bos_255"]
    folder = material / STORIES.folder
    ids = greedy(load_checkpoint(folder, ops=ops).model, expected[:1], len(expected))
    assert ids == expected
    assert load_tokenizer(folder).decode(ids, skip_control=True) == truth["greedy_text"]


@pytest.mark.parametrize("ops", TABLES)
def test_tinystories_656k_continues_as_the_reference(material: Path, ops: Ops) -> None:
    """Guards prompts as text: their ids, the greedy ids behind them, and the text of both."""
    folder = material / TINY_STORIES.folder
    tokenizer = load_tokenizer(folder)
    model = load_checkpoint(folder, ops=ops).model
    cases = reference_of(material, TINY_STORIES)["cases"]
    assert len(cases) == 4
    for case in cases:
        prompt = encode(tokenizer, case["prompt"])
        assert prompt == case["prompt_ids"]
        assert greedy(model, prompt, len(case["greedy_ids"])) == case["greedy_ids"]


def test_generation_ends_where_the_files_say(material: Path) -> None:
    """Guards the stop ids: without them an answer never ends."""
    for published in (STORIES, TINY_STORIES):
        assert load_checkpoint(material / published.folder).model.stop_ids == (2,)
