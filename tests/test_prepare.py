"""From files to batches: nothing is lost, nothing leaks, the mask is checked, and what was made once is remembered."""

import copy
import json
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minitune.chat import TEMPLATES, Message, render, terminator
from minitune.checkpoint import read_config
from minitune.config import SFTConfig
from minitune.data.batch import Batch, pack_rows, pad_rows
from minitune.data.formats import Row
from minitune.errors import DataError
from minitune.jobs import encode, prepared
from minitune.jobs.dataset import Dataset, data_specs, prepare, recipe_of
from minitune.jobs.encode import Encoder, Recipe, encode_rows
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
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "code_fingerprint", lambda: "another version")
        made(tokenizer, data)
    assert len(calls) == 6
    other = copy.copy(tokenizer)
    other.fingerprint = "other bytes"
    made(other, data)
    assert len(calls) == 7


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


def many(count: int) -> list[tuple[int, Row]]:
    turns = [(Message("user", f"{i}?"), Message("assistant", f"{i}!")) for i in range(count)]
    return [(i, Row(messages, "messages", 1.0, "x", i + 1, i)) for i, messages in enumerate(turns)]


def same(a: encode.Chunk, b: encode.Chunk) -> bool:
    return all(map(np.array_equal, a.piece, b.piece)) and a.report == b.report


def test_processes_give_the_same(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the order: rows encoded in other processes come back as if encoded here."""
    here, how = many(encode.CHUNK + 700), recipe(settings("x"))
    alone = list(encode_rows(here, tokenizer, TINY, how, 1))
    monkeypatch.setattr(encode, "ALONE_S", -1)
    together = list(encode_rows(here, tokenizer, TINY, how, 2))
    assert all(map(same, alone, together))
    assert [len(chunk.piece.rows) for chunk in together] == [encode.CHUNK, encode.CHUNK, 700 - encode.CHUNK]


def test_processes_that_cannot_start_are_no_end(tokenizer: Tokenizer, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Guards a machine without room for a second process: the work goes on in the first."""
    here, how = many(encode.CHUNK + 700), recipe(settings("x"))
    alone = list(encode_rows(here, tokenizer, TINY, how, 1))
    monkeypatch.setattr(encode, "ALONE_S", -1)
    monkeypatch.setattr(encode, "_begin", die)
    assert all(map(same, alone, encode_rows(here, tokenizer, TINY, how, 2)))


def die(*args: object) -> None:
    os._exit(3)


def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path) -> None:
    """Guards library users: processes that encode do not import the script that started them."""
    write(tmp_path / "a.jsonl", rows_for(1500))
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "Path('ran.txt').open('a').write('once ')\n"
        "from minitune.config import SFTConfig\n"
        "from minitune.jobs import encode, prepared\n"
        "from minitune.jobs.dataset import prepare, recipe_of\n"
        "from minitune.jobs.load import TINY\n"
        "from minitune.chat import TEMPLATES\n"
        "from minitune.tokenizer import load_tokenizer\n"
        "encode.ALONE_S, prepared._cores = -1, lambda: 2\n"
        "config = SFTConfig(model='tiny', data='a.jsonl', out='x', val='0')\n"
        "recipe = recipe_of(config, TEMPLATES['alpaca'], (2,), 512, named=False)\n"
        "print(len(prepare(config, load_tokenizer(TINY), TINY, recipe, 512).train))\n"
    )
    path = os.pathsep.join(str(Path(__file__).parents[1] / part) for part in ("", "kernels"))
    run = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100,
        env=os.environ | {"PYTHONPATH": path, "MINITUNE_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert (run.stdout, run.stderr) == ("1500\n", "")
    assert (tmp_path / "ran.txt").read_text() == "once "


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


def test_rows_that_the_template_has_no_form_for_are_bad_rows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Guards B18: named with their line and the reason, and left out only where that was asked for."""
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    data = write(tmp_path / "a.jsonl", [*rows_for(2), {"messages": turns}, {"instruction": "no answer"}])
    with pytest.raises(DataError, match=r"2 of 4 rows are bad: .*line 4 .*line 3 .*must be from 'assistant'"):
        made(tokenizer, data)
    dropped = made(tokenizer, data, on_bad="drop")
    assert (len(dropped.train), dropped.bad_rows) == (2, 2)


def test_rows_of_validation_that_are_trained_on_are_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", rows_for(9))
    other = write(tmp_path / "b.jsonl", [*rows_for(3), {"instruction": "new", "output": "x"}])
    assert made(tokenizer, train, val=other).leaked_rows == 3


def test_progress_comes_to_its_end(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINITUNE_CACHE", str(tmp_path / "cache"))
    config = settings(write(tmp_path / "a.jsonl", rows_for(1300)))
    seen: list[tuple[int, float]] = []
    for _ in range(2):  # what is remembered takes no time
        prepare(config, tokenizer, TINY, recipe(config), 512, lambda rows, share: seen.append((rows, share)))
    assert [rows for rows, _ in seen] == [512, 1024, 1300, 1300]
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(512 / 1300, abs=0.02)
    assert shares[-1] == 1


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
    shape, _ = read_config(TINY)

    rows = examples(tokenizer)
    model = build(shape, ops, dtype).to(dtype)
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
    shape, _ = read_config(TINY)

    rows = examples(tokenizer)
    model = build(shape, ops)
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


@pytest.mark.parametrize("ops", [REFERENCE, BUILTIN], ids=["reference", "builtin"])
def test_a_document_s_loss_takes_nothing_from_its_neighbours(tokenizer: Tokenizer, ops: Any) -> None:
    """Guards B22: the gradient of one document's loss is exactly 0 at the embeddings of all others, and only there."""
    shape, _ = read_config(TINY)

    rows = examples(tokenizer)
    model = build(shape, ops)
    model.initialize(seed=1)
    batch = pack_rows([rows], 40 + sum(len(row.ids) for row in rows))
    held: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: Any, y: torch.Tensor) -> None:
        y.retain_grad()
        held.append(y)

    model.embed.register_forward_hook(keep)
    ends = np.cumsum([len(row.ids) - 1 for row in rows]).tolist()
    for start, end in ((0, ends[0]), (ends[2], ends[3]), (ends[-2], ends[-1])):
        targets = torch.full_like(batch.targets, IGNORE)
        targets[:, start:end] = batch.targets[:, start:end]
        loss, _ = model.loss(model(batch.ids, plan=batch.plan), targets)
        loss.backward()
        gradient = held.pop().grad
        assert gradient is not None
        inside = torch.zeros(batch.ids.shape[1], dtype=torch.bool)
        inside[start:end] = True
        assert (gradient[0, ~inside] == 0).all()
        assert (gradient[0, inside].abs().sum(-1) > 0).all()


def test_a_batch_without_a_target_has_no_loss_and_no_gradient(tokenizer: Tokenizer) -> None:
    """Guards B25: a micro-batch in which nothing is trained gives 0, never 0 / 0."""
    shape, _ = read_config(TINY)

    model = build(shape, BUILTIN)
    model.initialize(seed=1)
    batch = pad_rows(examples(tokenizer)[:2])
    loss, denominator = model.loss(model(batch.ids, plan=batch.plan), torch.full_like(batch.targets, IGNORE))
    loss.backward()
    assert (float(loss.detach()), float(denominator)) == (0.0, 0.0)
    assert all(w.grad is None or not w.grad.any() for w in model.parameters())


def test_terminators_are_in_the_stop_set(tokenizer: Tokenizer) -> None:
    assert terminator(TEMPLATES["alpaca"], tokenizer) in STOPS


# ---- speed and memory (-m slow)


@pytest.mark.slow
def test_alpaca_with_llama_3_is_fast(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the promise: 52,002 rows in under 30 s on two free cores, and under a second when remembered."""
    monkeypatch.setenv("MINITUNE_CACHE", str(tmp_path / "cache"))
    source = material / "tokenizers/llama3"
    shutil.copy(source / "tokenizer.json", tmp_path)
    shutil.copy(source / "hf_tokenizer_config.json", tmp_path / "tokenizer_config.json")
    llama = load_tokenizer(tmp_path)
    config = settings(str(material / "data/en/alpaca.json"), on_bad="drop", val="0.02")
    how = recipe_of(config, TEMPLATES["llama3"], (128009,), 8192, named=False)

    def timed() -> tuple[Dataset, float]:
        started = time.perf_counter()
        return prepare(config, llama, tmp_path, how, 8192), time.perf_counter() - started

    (_, first), (data, second) = timed(), timed()
    print(f"52,002 rows: {first:.1f} s, then {second:.2f} s")
    assert data.report.rows + data.bad_rows == 52002
    assert not data.report.failures
    assert first < 30
    assert second < 1
    assert Feed(config, data).first()[2] > 0.97


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tokens(tokenizer: Tokenizer, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Guards streaming: some 32 bytes a row at the peak of preparing, splitting and packing, however long rows are."""
    monkeypatch.setattr(encode, "ALONE_S", 1e9)
    peaks = []
    for count in (20_000, 60_000):
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            for i in range(count):
                asked = " ".join(str(i))  # few words, so that what the tokenizer remembers of them stays small
                file.write(json.dumps({"prompt": asked, "completion": " a b c" * 12}) + "\n")
        tracemalloc.start()
        feed = Feed(settings(str(path)), made(tokenizer, str(path), val="0.02"))
        next(feed.steps())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    grown = (peaks[1] - peaks[0]) / 40_000
    print(f"{grown:.0f} bytes a row")
    assert grown < 48
