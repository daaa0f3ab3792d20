"""Several files as one: what a spec names, which keys are mapped, how often an epoch sees a row."""

import collections
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitune.data.sources import Source, copies, parse_columns, parse_source, read_sources
from minitune.errors import DataError


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_spec_is_a_file_with_or_without_a_weight(tmp_path: Path) -> None:
    assert parse_source("a.json") == Source("a.json", 1.0)
    assert parse_source("a.json=2") == Source("a.json", 2.0)
    assert parse_source("a=b.json=0.5") == Source("a=b.json", 0.5)
    assert parse_source(r"C:\rows\a.json=2") == Source(r"C:\rows\a.json", 2.0)
    assert parse_source(r"C:\rows\a.json") == Source(r"C:\rows\a.json", 1.0)
    there = write(tmp_path / "a=2", {"text": "x"})
    assert parse_source(there) == Source(there, 1.0)
    assert parse_source(there + "=3") == Source(there, 3.0)
    for weight in ("two", "0", "-1", "nan", "inf", ""):
        with pytest.raises(DataError, match=f"'{weight}' is no weight; expected FILE=2"):
            parse_source(f"a.json={weight}")


def test_columns_are_pairs_of_known_names() -> None:
    assert parse_columns("") == {}
    assert parse_columns(" instruction = question, output=answer ") == {"instruction": "question", "output": "answer"}
    for text, words in (
        ("instruction", "'instruction' is no pair"),
        ("question=instruction", "'question' is none of instruction, input"),
        ("instructoin=q", "did you mean 'instruction'?"),
        ("output=a,output=b", "'output' stands twice"),
        ("output=", "is no pair"),
    ):
        with pytest.raises(DataError) as caught:
            parse_columns(text)
        assert words in str(caught.value)


def test_files_are_read_in_order_each_row_once(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", {"text": "a"}, {"text": ""}, {"text": "b"})
    other = write(tmp_path / "b.jsonl", {"question": "q", "answer": "c"})
    rows = read_sources([f"{first}=2", other], columns="instruction=question,output=answer")
    assert [(row.file, row.answer) for row in rows.good] == [(first, "a"), (first, "b"), (other, "c")]
    assert [(bad.file, bad.line) for bad in rows.bad] == [(first, 2)]
    assert rows.weights == {first: 2.0, other: 1.0}
    limited = read_sources([first, other], limit=2)
    assert [row.answer for row in limited.good] == ["a", "b"]
    with pytest.raises(DataError, match=r"is named twice; .*=2 reads its rows twice an epoch"):
        read_sources([first, first + "=2"])
    with pytest.raises(DataError, match=r"--columns instruction=x,output=y: no row of .* has any of x, y"):
        read_sources([first], columns="instruction=x,output=y")
    with pytest.raises(DataError, match="no instruction file is named"):
        read_sources([])


def seen(count: int, weight: float, seed: int, epoch: int) -> collections.Counter[int]:
    return collections.Counter(copies(["a"] * count, {"a": weight}, seed=seed, epoch=epoch))


def test_what_a_weight_means() -> None:
    files = ["a", "b", "a", "c"]
    assert copies(files, {"a": 2, "b": 1}, seed=0, epoch=0) == [0, 0, 1, 2, 2, 3]
    halves = [set(seen(10, 0.5, 0, epoch)) for epoch in range(4)]
    assert [len(half) for half in halves] == [5] * 4
    assert halves[0] | halves[1] == set(range(10))
    assert halves[2] == halves[0]
    assert seen(10, 0.5, 0, 0) == seen(10, 0.5, 0, 0) != seen(10, 0.5, 1, 0)
    assert copies(["b", "a"] * 5, {"a": 0.5, "b": 3}, seed=0, epoch=0).count(0) == 3


@given(count=st.integers(1, 60), weight=st.floats(0.01, 5), seed=st.integers(0, 2**63), epochs=st.integers(1, 9))
def test_a_weight_is_kept_in_every_epoch_and_over_all(count: int, weight: float, seed: int, epochs: int) -> None:
    total: collections.Counter[int] = collections.Counter()
    for epoch in range(epochs):
        now = seen(count, weight, seed, epoch)
        assert abs(now.total() - count * weight) <= 1.001
        times = [now[place] for place in range(count)]
        assert max(times) - min(times) <= 1
        assert set(times) <= {int(weight), int(weight) + 1}
        total.update(now)
    sums = [total[place] for place in range(count)]
    assert max(sums) - min(sums) <= 1
