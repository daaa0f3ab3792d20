"""Trained ids beside those of TRL, on the same prompt and completion rows; skipped where ``trl`` is not installed."""

import uuid
import warnings
from pathlib import Path
from typing import Any

import pytest

from minitune.chat import TEMPLATES, Message, terminator
from minitune.config import SFTConfig
from minitune.data.formats import Row
from minitune.jobs.dataset import recipe_of
from minitune.jobs.encode import Encoder
from minitune.tokenizer import load_tokenizer

# No token of these goes over the boundary: there TRL trains on the ids of the joined text, and we on those that a
# generation has (prompt encoded alone, then the answer).
ROWS = [
    {"prompt": "The capital of France is", "completion": " Paris."},
    {"prompt": "Count:\n", "completion": "one, two, three\n"},
    {"prompt": "Translate: hello\nAnswer:", "completion": " \u4f60\u597d, and \u00e9\u00e8!"},
    {"prompt": "def f(x):", "completion": "\n    return x + 1\n\n\n"},
    {"prompt": "Say nothing more.", "completion": " " + "and so on " * 30},
]


def test_trained_ids_are_trl_s(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the mask against an implementation of its own: the same ids, the same trained ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, at import
        trl = pytest.importorskip("trl")
        datasets = pytest.importorskip("datasets")
        transformers = pytest.importorskip("transformers")
        datasets.disable_caching()
        # Without a cache its keys need not be pickles of everything, which some versions cannot make.
        monkeypatch.setattr("datasets.fingerprint.Hasher.hash", lambda *_: uuid.uuid4().hex)
        where = material / "tokenizers/smollm2"
        reference: Any = transformers.AutoTokenizer.from_pretrained(where)
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(reference), **shape))
        arguments = trl.SFTConfig(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, completion_only_loss=True,
            max_length=None, gradient_checkpointing=False, disable_tqdm=True,
        )  # fmt: skip
        trainer = trl.SFTTrainer(
            model=model, args=arguments, train_dataset=datasets.Dataset.from_list(ROWS), processing_class=reference
        )
        theirs = [(row["input_ids"], trained(row)) for row in trainer.train_dataset]
    tokenizer = load_tokenizer(where)
    plain = TEMPLATES["plain"]
    assert terminator(plain, tokenizer) == reference.eos_token_id
    settings = SFTConfig(model="x", data="x", out="x")
    encoder = Encoder(tokenizer, recipe_of(settings, plain, (reference.eos_token_id,), 512, named=False))
    for number, (row, (ids, mask)) in enumerate(zip(ROWS, theirs, strict=True)):
        turns = (Message("user", row["prompt"]), Message("assistant", row["completion"]))
        (mine,) = encoder.row(Row(turns, "completion", 1.0, "x", number + 1, number)).examples
        assert mine.ids == ids
        assert mine.trained == mask


def trained(row: dict[str, Any]) -> list[bool]:
    """What a row of theirs trains: newer versions keep labels, older ones a mask."""
    if "labels" in row:
        return [label != -100 for label in row["labels"]]
    return [bool(value) for value in row["completion_mask"]]
