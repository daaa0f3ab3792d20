"""Pre-training: every token of a text is trained once, and a new model starts from its shape."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from minitune.config import PretrainConfig
from minitune.errors import ConfigError, DataError
from minitune.jobs.encode import pieces
from minitune.jobs.load import TINY, load
from minitune.jobs.run import Run, resumed
from minitune.jobs.sft import pretrain
from minitune.ops import IGNORE
from minitune.tokenizer import load_tokenizer

TEXTS = [
    "Tom has a red ball. Mia has a blue cup. Who has the ball? Tom has the ball.",
    "小明有一个红色的球。小红有一个蓝色的杯子。谁有球？小明有球。",
    "one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve. " * 12,
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def config(tmp_path: Path, data: Path, **changes: Any) -> PretrainConfig:
    settings: dict[str, Any] = {
        "model": "tiny", "data": str(data), "out": str(tmp_path / "run"), "val": "0", "max_length": 64, "batch_size": 2,
        "max_steps": 3, "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    return PretrainConfig(**settings | changes)


@pytest.mark.parametrize("packing", [True, False])
def test_every_token_of_a_text_is_predicted_exactly_once(tmp_path: Path, rows: Path, packing: bool) -> None:
    """Told from the batches: the targets of an epoch are the ids of all texts but the start tokens."""
    run = pretrain(config(tmp_path, rows, packing=packing, max_steps=0))
    found: list[int] = []
    for batches in run._batches():
        for batch in batches:
            found += batch.targets[batch.targets != IGNORE].tolist()
    tokenizer = load_tokenizer(TINY)
    assert tokenizer.eos_id is not None
    expected = [token for text in TEXTS for token in (*tokenizer.encode(text), tokenizer.eos_id)]
    assert sorted(found) == sorted(expected)


def test_a_long_text_goes_on_in_the_next_piece() -> None:
    """Each id but the first is a target once, and what stands before it in its piece stood before it in the text."""
    ids, weights = list(range(100, 123)), [0.0, *[1.0] * 22]
    found = list(pieces(ids, weights, 8))
    targets = [token for piece, w in found for token, trained in zip(piece, w, strict=True) if trained]
    assert targets == ids[1:]
    assert all(len(piece) <= 8 and list(piece) == ids[ids.index(piece[0]) :][: len(piece)] for piece, _ in found)
    assert [piece[0] for piece, _ in found[1:]] == [piece[-1] for piece, _ in found[:-1]]
    assert list(pieces(ids[:8], weights[:8], 8)) == [(ids[:8], weights[:8])]


def test_one_book_is_validated_on_some_of_its_pieces(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(" ".join(TEXTS) * 6, encoding="utf-8")
    run = pretrain(config(tmp_path, book, val="0.25"))
    parts = run.ready.data
    assert set(parts.train.places.tolist()).isdisjoint(parts.val.places.tolist())
    assert len(parts.val) == round(0.25 * (len(parts.val) + len(parts.train)))
    result = run.finish()
    assert result.val_loss_before is not None
    assert result.val_loss_after is not None
    assert result.val_loss_after < result.val_loss_before


def test_a_new_model_starts_by_guessing_and_is_a_whole_folder(tmp_path: Path, rows: Path) -> None:
    """Its first loss is ln V, its folder loads, keeps the shape, and stops where its texts end."""
    shape = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    small = tmp_path / "small.json"
    small.write_text(json.dumps(shape | {"num_hidden_layers": 2}), encoding="utf-8")
    new = config(tmp_path, rows, model="", shape=str(small), tokenizer="tiny", lr=2e-3, max_steps=30)
    run = pretrain(new)
    reports = list(run)
    assert reports[0].loss == pytest.approx(math.log(1536), abs=0.25)
    assert reports[-1].loss < 0.7 * reports[0].loss
    model, tokenizer = load(tmp_path / "run", device="cpu", dtype="float32")
    assert model.config.num_layers == 2
    assert model.stop_ids == (tokenizer.eos_id,)
    assert tokenizer.encode(TEXTS[1]) == load_tokenizer(TINY).encode(TEXTS[1])


def test_a_pretrained_model_has_no_chat_template(tmp_path: Path, rows: Path) -> None:
    """Guards what is tuned next: a template of plain text beside the weights would take the place of Alpaca's."""
    found = pretrain(config(tmp_path, rows)).finish()
    assert found.run is not None
    assert (Path(found.run) / "model" / "generation_config.json").is_file()
    assert not list(Path(found.run).rglob("chat_template.jinja"))


def test_two_new_models_of_one_seed_are_one(tmp_path: Path, rows: Path) -> None:
    def losses(name: str, seed: int) -> list[float]:
        new = config(tmp_path, rows, model="", shape=str(TINY), tokenizer="tiny", seed=seed, out=str(tmp_path / name))
        return [report.loss for report in Run(new)]

    assert losses("a", 0) == losses("b", 0) != losses("c", 1)


def test_it_goes_on_bit_for_bit(tmp_path: Path, rows: Path) -> None:
    whole = Run(config(tmp_path, rows, out=str(tmp_path / "whole"), max_steps=6))
    whole.finish()
    run = Run(config(tmp_path, rows, max_steps=6))
    for report in run:
        if report.step == 2:
            run.stop()
    resumed(tmp_path / "run").finish()
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_is_not_plain_text_is_refused_with_the_way_out(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows.jsonl line 1 .*row of alpaca; pretrain takes plain text"):
        Run(config(tmp_path, rows))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "neither is given"),
        ({"shape": "a", "tokenizer": "b"}, "both are given"),
        ({"model": "", "shape": "a"}, "go together"),
        ({"model": "", "shape": "a", "tokenizer": "b", "method": "lora"}, "needs a model to stand beside"),
        ({"init_std": 0.0}, "--init-std is 0"),
    ],
)
def test_what_a_new_model_needs_is_asked_for(tmp_path: Path, rows: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, rows, **changes)


def test_a_shape_too_small_for_its_tokenizer_is_told(tmp_path: Path, rows: Path) -> None:
    shape = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    small = tmp_path / "small.json"
    small.write_text(json.dumps(shape | {"vocab_size": 100}), encoding="utf-8")
    with pytest.raises(ConfigError, match="vocab_size of 100; the tokenizer tiny has 1536 ids"):
        Run(config(tmp_path, rows, model="", shape=str(small), tokenizer="tiny"))


def test_a_text_alone_is_trained_as_pretraining_always_was(tmp_path: Path, rows: Path) -> None:
    """Truth: the loss of the first step is plain torch's cross-entropy of the texts, next token by next token."""
    run = pretrain(config(tmp_path, rows, packing=False, batch_size=16, micro_batch=1, clip=0.0, max_steps=1))
    model, tokenizer = load("tiny", device="cpu", dtype="float32")
    assert tokenizer.bos_id is not None
    assert tokenizer.eos_id is not None
    nll, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id])
        for start in range(0, len(ids) - 1, 63):
            part = ids[start : start + 64][None]
            with torch.no_grad():
                logits = model.logits(model(part[:, :-1]))
            nll += float(torch.nn.functional.cross_entropy(logits[0], part[0, 1:], reduction="sum"))
            count += part.shape[1] - 1
    (report,) = list(run)
    assert report.trained_tokens == count
    assert report.loss == pytest.approx(nll / count, rel=1e-5)
