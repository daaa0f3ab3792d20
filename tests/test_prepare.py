"""From files to batches: nothing is lost, nothing leaks, the mask is checked, and what was made once is remembered."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minitune.chat import TEMPLATES, Message, render, terminator
from minitune.config import SFTConfig
from minitune.data.batch import Batch, pack_rows, pad_rows
from minitune.data.formats import Row
from minitune.errors import DataError
from minitune.jobs import prepared
from minitune.jobs.dataset import Dataset, data_specs, prepare, recipe_of
from minitune.jobs.encode import WORTH_A_POOL, Encoder, Recipe, encode_rows
from minitune.jobs.feed import Feed
from minitune.jobs.load import TINY
from minitune.models import build
from minitune.ops import BUILTIN, IGNORE, REFERENCE
from minitune.tokenizer import Tokenizer, load_tokenizer

STOPS = (2,)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(TINY)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_for(n: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Say {i}.", "output": f"the number {i} " * (1 + i % 5)} for i in range(n)]


def settings(data: str, **changes: Any) -> SFTConfig:
    given: dict[str, Any] = {"model": "tiny", "data": data, "out": "nowhere", "val": "0"}
    return SFTConfig(**given | changes)


def recipe(config: SFTConfig, template: str = "alpaca", *, named: bool = False) -> Recipe:
    return recipe_of(config, TEMPLATES[template], STOPS, 512, named=named)


def made(tokenizer: Tokenizer, data: str, template: str = "alpaca", **changes: Any) -> Dataset:
    config = settings(data, **changes)
    return prepare(config, tokenizer, TINY, recipe(config, template), 512)


# ---- the store


def test_examples_are_what_render_gives(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = rows_for(30)
    data = made(tokenizer, write(tmp_path / "a.jsonl", rows))
    assert len(data.train) == data.report.rows == 30
    for example, row in zip(data.train, rows, strict=True):
        turns = [Message("user", row["instruction"]), Message("assistant", row["output"])]
        want = render(turns, TEMPLATES["alpaca"], tokenizer, 2)
        assert example.ids.tolist() == want.ids
        assert example.trained.tolist() == want.trained


def test_what_was_made_is_remembered_until_something_changes(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the cache: the same files and settings are not encoded again, and anything that decides is in the key."""
    monkeypatch.setenv("MINITUNE_CACHE", str(tmp_path / "cache"))
    data = write(tmp_path / "a.jsonl", rows_for(12))
    made(tokenizer, data)
    calls: list[int] = []
    real = prepared.encode_rows

    def counting(*args: Any) -> Any:
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(prepared, "encode_rows", counting)
    again = made(tokenizer, data)
    assert again.prepared[0].remembered
    assert (len(again.train), calls) == (12, [])
    made(tokenizer, data, val="3", seed=4)  # how it is split and drawn is decided later
    assert calls == []
    for number, (template, changes) in enumerate(
        [("plain", {}), ("alpaca", {"max_length": 200}), ("alpaca", {"train_on": "last"}), ("alpaca", {"rows": 5})], 1
    ):
        made(tokenizer, data, template, **changes)
        assert len(calls) == number
    write(tmp_path / "a.jsonl", rows_for(13))
    assert len(made(tokenizer, data).train) == 13
    assert len(calls) == 5


def test_a_store_that_was_damaged_is_made_again(tokenizer: Tokenizer, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("MINITUNE_CACHE", str(tmp_path / "cache"))
    data = write(tmp_path / "a.jsonl", rows_for(8))
    store = made(tokenizer, data).train.store.folder
    (store / "ids.bin").write_bytes(b"\0\0")
    assert len(made(tokenizer, data).train) == 8


def test_nowhere_to_keep_it_is_no_error(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("MINITUNE_CACHE", str(tmp_path / "file"))
    assert len(made(tokenizer, write(tmp_path / "a.jsonl", rows_for(8))).train) == 8


def test_processes_give_the_same(tokenizer: Tokenizer) -> None:
    """Guards the order: rows encoded in other processes come back as if encoded here."""
    config = settings("x")
    numbered = [
        (i, Row((Message("user", f"{i}?"), Message("assistant", f"{i}!")), "messages", 1.0, "x", i + 1, i))
        for i in range(WORTH_A_POOL + 700)
    ]
    alone, together = (
        [chunk.piece for chunk in encode_rows(numbered, tokenizer, TINY, recipe(config), n)] for n in (1, 2)
    )
    for a, b in zip(alone, together, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# ---- layouts, weights, splits


def test_layouts_go_to_their_templates(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Guards plain text and prompt-completion rows against a template that nobody asked for."""
    data = write(
        tmp_path / "a.jsonl",
        [
            {"text": "Tom has a red kite."},
            {"prompt": "Tom has", "completion": " a red kite."},
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}] * 2},
        ],
    )
    text, completion, chat = made(tokenizer, data).train
    assert tokenizer.decode(text.ids[1:-1].tolist()) == "Tom has a red kite."
    assert text.trained.tolist() == [False] + [True] * (len(text.ids) - 1)
    assert tokenizer.decode(completion.ids[1:-1].tolist()) == "Tom has a red kite."
    assert tokenizer.decode(completion.ids[completion.trained][:-1].tolist(), continues=True) == " a red kite."
    assert chat.trained.sum() == 2 * (len(tokenizer.encode("Hello", continues=True)) + 1)


def test_weights_multiply(tokenizer: Tokenizer, tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "train": False},
        {"role": "user", "content": "e"}, {"role": "assistant", "content": "f"},
    ]  # fmt: skip
    (example,) = made(tokenizer, write(tmp_path / "a.jsonl", [{"messages": turns, "weight": 3}])).train
    assert sorted(set(example.weights.tolist())) == [0.0, 1.5, 3.0]
    batch = pad_rows([example])
    assert batch.token_weight is not None
    assert batch.denominator == pytest.approx(float(example.weights.sum()))


def test_files_mix_by_weight(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Guards ``a.json=2``: each of its rows twice an epoch, and 0.5 in every other epoch."""
    a, b, c = (write(tmp_path / f"{name}.jsonl", rows_for(6)) for name in "abc")
    data = made(tokenizer, f"{a}=2 {b} {c}=0.5")
    seen = [np.bincount(data.epoch(epoch, seed=0), minlength=18) for epoch in (0, 1)]
    assert [part.tolist() for part in np.split(seen[0], 3)][:2] == [[2] * 6, [1] * 6]
    assert (seen[0] + seen[1])[12:].tolist() == [1] * 6
    assert seen[0][12:].sum() == 3


def test_a_file_with_a_space_in_its_name_is_one_file(tmp_path: Path) -> None:
    name = write(tmp_path / "my rows.jsonl", rows_for(2))
    assert data_specs(name) == [name]
    assert data_specs(f"{name}=2") == [f"{name}=2"]
    assert data_specs("a.json=2 'b c.json'") == ["a.json=2", "b c.json"]


def test_the_split_is_of_rows_and_keeps_questions_together(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"instruction": f"Q{i // 3}", "output": f"A{i}"} for i in range(60)]
    data = made(tokenizer, write(tmp_path / "a.jsonl", rows), val="12")
    train, val = ({int(number) // 3 for number in part.rows} for part in (data.train, data.val))
    assert (len(data.train), len(data.val)) == (48, 12)
    assert not train & val


# ---- length


def conversation(exchanges: int, words: int = 12) -> list[dict[str, str]]:
    turns = []
    for i in range(exchanges):
        turns += [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer{i} " * words}]
    return turns


def test_history_is_left_out_from_the_front(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "system", "content": "Be brief."}, *conversation(9)]}]
    data = made(tokenizer, write(tmp_path / "a.jsonl", rows), max_length=300, on_long="truncate-history")
    (example,) = data.train
    text = tokenizer.decode(example.ids[1:].tolist())
    assert len(example.ids) <= 300
    assert "Be brief." in text
    assert "question 8" in text
    assert "question 0" not in text
    assert int(example.ids[-1]) == 2
    assert (data.report.shortened_rows, data.report.cut_rows) == (1, 0)


def test_a_cut_answer_gets_no_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Guards B8: a model must not learn that a text ends where our limit was."""
    rows = [{"instruction": "Go on.", "output": "and on " * 200}, {"instruction": "long " * 400, "output": "x"}]
    data = made(tokenizer, write(tmp_path / "a.jsonl", rows), max_length=100, on_long="truncate-history")
    (example,) = data.train
    assert len(example.ids) == 100
    assert 2 not in example.ids[example.trained]
    assert (data.report.cut_rows, data.long_rows) == (1, 1)  # the second has no room for any of its answer


def test_long_rows_stop_or_are_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [{"instruction": "Go on.", "output": "and on " * 200}, *rows_for(3)])
    with pytest.raises(DataError, match=r"a.jsonl line 1 .*over --max-length 100, like 1 of 4 rows; pass --on-long"):
        made(tokenizer, data, max_length=100)
    dropped = made(tokenizer, data, max_length=100, on_long="drop")
    assert (len(dropped.train), dropped.long_rows) == (3, 1)


def test_a_row_without_a_trained_answer_stops_the_run(tokenizer: Tokenizer, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False}]
    with pytest.raises(DataError, match=r"a.jsonl line 1 .*no turn is trained"):
        made(tokenizer, write(tmp_path / "a.jsonl", [{"messages": turns}, *rows_for(2)]))


# ---- the order of training


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_sees_every_example_once_and_can_be_entered_anywhere(
    tokenizer: Tokenizer, tmp_path: Path, packing: bool
) -> None:
    config = settings(write(tmp_path / "a.jsonl", rows_for(60)), packing=packing, batch_size=3, max_length=128)
    data = prepare(config, tokenizer, TINY, recipe(config), 512)
    feed = Feed(config, data)
    walk = feed.steps()
    epochs = [[next(walk) for _ in range(feed.steps_of(1))] for _ in range(2)]
    for epoch in epochs:
        assert sorted(place for step in epoch for row in step for place in row) == list(range(60))
    assert epochs[0] != epochs[1]
    steps = epochs[0] + epochs[1]
    for start in (0, 1, len(epochs[0]), len(epochs[0]) + 1):
        assert next(feed.steps(start)) == steps[start]
    assert feed.steps_of(1.5) > feed.steps_of(1) >= 1


# ---- packed, padded left, padded right: one loss


def examples(tokenizer: Tokenizer) -> list[Any]:
    encoder = Encoder(tokenizer, recipe(settings("x")))
    found = []
    for i in range(7):
        answer = Message("assistant", f"answer {i} " * (7 - i), weight=1 + i % 2)
        turns = (Message("user", f"question {i} " * (i + 1)), answer)
        found += encoder.row(Row(turns, "messages", 1.0, "x", 1, i)).examples
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("ops", [REFERENCE, BUILTIN], ids=["reference", "builtin"])
def test_packed_and_padded_are_one_loss(tokenizer: Tokenizer, ops: Any, dtype: torch.dtype, tolerance: float) -> None:
    """Guards B22 and B23: where documents stand changes neither the loss nor the gradient."""
    from minitune.assets.tiny.make import SHAPE

    rows = examples(tokenizer)
    model = build(SHAPE, ops, dtype).to(dtype)
    model.initialize(seed=1)

    def loss(batches: list[Batch]) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            part, _ = model.loss(model(batch.ids, plan=batch.plan), batch.targets, token_weight=batch.token_weight)
            part.backward()
            total += part.detach().double()
        assert model.embed.weight.grad is not None
        return float(total), model.embed.weight.grad.clone()

    alone, gradient = loss([pad_rows([row]) for row in rows])
    size = max(len(row.ids) for row in rows) * 5
    for batches in ([pad_rows(rows)], [pad_rows(rows, left=True)], [pack_rows([rows[:3], rows[3:]], size)]):
        found, other = loss(batches)
        assert found == pytest.approx(alone, rel=tolerance)
        assert float((other - gradient).norm() / gradient.norm()) < 100 * tolerance


@pytest.mark.parametrize("ops", [REFERENCE, BUILTIN], ids=["reference", "builtin"])
def test_packed_documents_do_not_see_each_other(tokenizer: Tokenizer, ops: Any) -> None:
    """Guards isolation bit for bit: another document's ids change no logit, and take no gradient."""
    from minitune.assets.tiny.make import SHAPE

    rows = examples(tokenizer)
    model = build(SHAPE, ops)
    model.initialize(seed=1)
    batch = pack_rows([rows], 1 + sum(len(row.ids) for row in rows))
    first = len(rows[0].ids) - 1
    second = slice(first, first + len(rows[1].ids) - 1)
    changed = batch.ids.clone()
    changed[0, second] = (changed[0, second] + 1) % 1000
    with torch.no_grad():
        a, b = (model.logits(model(ids, plan=batch.plan)) for ids in (batch.ids, changed))
    others = torch.ones(batch.ids.shape[1], dtype=torch.bool)
    others[second] = False
    assert torch.equal(a[0, others], b[0, others])
    assert not torch.equal(a[0, second], b[0, second])
    # The last input of a document has the document's own last id as its target, and never the next one's first.
    ends = np.cumsum([len(row.ids) - 1 for row in rows]) - 1
    assert batch.targets[0, ends.tolist()].tolist() == [row.ids[-1] for row in rows]
    assert (batch.targets[0, ends[-1] + 1 :] == IGNORE).all()


def test_terminators_are_in_the_stop_set(tokenizer: Tokenizer) -> None:
    assert terminator(TEMPLATES["alpaca"], tokenizer) in STOPS
