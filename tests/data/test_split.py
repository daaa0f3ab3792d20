"""Train and validation parts: nothing lost, no question in both, the same choice wherever and in whatever order."""

import contextlib
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitune.chat import Message
from minitune.data.formats import Row, read_rows
from minitune.data.split import shared_rows, split_rows
from minitune.errors import ConfigError, DataError, MinituneError


def rows_of(*questions: str | tuple[str, str]) -> list[Row]:
    pairs = [question if isinstance(question, tuple) else (question, "") for question in questions]
    return [
        Row((Message("user", ask, more), Message("assistant", f"answer {i}")), "alpaca", 1.0, "a.json", i + 1, i)
        for i, (ask, more) in enumerate(pairs)
    ]


def questions(rows: list[Row]) -> set[tuple[str, str]]:
    return {(row.messages[0].content, row.messages[0].context) for row in rows}


# What the first version chose; a change here would put trained rows into the validation part of an old run.
FIXED_0 = [0, 6, 8, 9, 18]
FIXED_1 = [0, 1, 2, 6, 8]

few = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"])
many_rows = st.lists(st.tuples(few, st.sampled_from(["", "x", "y"])), min_size=2, max_size=60)
seeds = st.integers(0, 2**64)
parts = st.floats(0.01, 0.99) | st.integers(1, 59)


@given(asked=many_rows, val=parts, seed=seeds, order=st.randoms(use_true_random=False))
def test_split_properties(asked: list[tuple[str, str]], val: float, seed: int, order) -> None:
    rows = rows_of(*asked)
    sizes = [asked.count(question) for question in set(asked)]
    wanted = val if val >= 1 else val * len(rows)
    try:
        train, held = split_rows(rows, val=val, seed=seed)
    except DataError:
        # Refused only where no group fits, or where nothing would be left to train on.
        assert round(wanted) < min(sizes) or round(wanted + 0.5) >= len(rows)
        return
    assert train
    assert held
    assert sorted(train + held, key=lambda row: row.index) == rows
    for part in (train, held):
        assert [row.index for row in part] == sorted(row.index for row in part)
    assert not questions(train) & questions(held)
    assert shared_rows(train, held) == []
    assert wanted - max(sizes) - 0.5 < len(held) <= wanted + 0.5
    assert split_rows(rows, val=val, seed=seed) == (train, held)
    shuffled = order.sample(rows, len(rows))
    assert questions(split_rows(shuffled, val=val, seed=seed)[1]) == questions(held)


@given(count=st.integers(2, 80), data=st.data(), seed=seeds)
def test_the_count_is_exact_where_no_question_stands_twice(count: int, data: st.DataObject, seed: int) -> None:
    val = data.draw(st.integers(1, count - 1))
    train, held = split_rows(rows_of(*map(str, range(count))), val=val, seed=seed)
    assert (len(train), len(held)) == (count - val, val)


def test_a_large_group_does_not_swell_a_small_validation_part() -> None:
    rows = rows_of(*["the same"] * 500, *map(str, range(500)))
    for seed in range(20):
        assert len(split_rows(rows, val=20, seed=seed)[1]) == 20


def test_the_choice_is_fixed_for_all_times() -> None:
    rows = rows_of(*(f"question {i}" for i in range(20)))
    chosen = {seed: [row.index for row in split_rows(rows, val=5, seed=seed)[1]] for seed in (0, 1)}
    assert chosen == {0: FIXED_0, 1: FIXED_1}


def test_the_choice_is_the_same_in_another_process() -> None:
    script = (
        "from minitune.chat import Message; from minitune.data.formats import Row\n"
        "from minitune.data.split import split_rows\n"
        "turns = [(Message('user', f'question {i}'), Message('assistant', 'a')) for i in range(20)]\n"
        "rows = [Row(two, 'alpaca', 1.0, 'a.json', i + 1, i) for i, two in enumerate(turns)]\n"
        "print([row.index for row in split_rows(rows, val=5, seed=0)[1]])"
    )
    checkout = Path(__file__).resolve().parents[2]
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(checkout)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.strip() == str(FIXED_0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Name a colour.", "name a COLOUR."),
        ("Name  a\tcolour.\n", " Name a colour."),
        ("Stra\u00dfe", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        ("\u0390", unicodedata.normalize("NFD", "\u0390")),
        ("a\u3000b\u00a0c", "a b c"),
        (("Sum", "1 2"), ("sum ", " 1  2")),
    ],
)
def test_what_counts_as_the_same_question(one: str, other: str) -> None:
    train, val = rows_of(one), rows_of(other)
    assert shared_rows(train, val) == [(train[0], val[0])]
    for seed in range(10):
        assert len(split_rows(rows_of(one, other, "x", "y"), val=1, seed=seed)[1]) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("a", "b"), (("a", "b"), ("a b", "")), (("a\nb", ""), ("a", "b")), (("a", "b"), ("b", "a")), ("ab", "a b")],
)
def test_what_counts_as_another_question(one: str, other: str) -> None:
    assert shared_rows(rows_of(one), rows_of(other)) == []


def test_shared_rows_name_the_first_train_row_of_each_leak() -> None:
    train, val = rows_of("a", "b", "B", "c"), rows_of("x", "b", "C", "b")
    assert shared_rows(train, val) == [(train[1], val[1]), (train[3], val[2]), (train[1], val[3])]
    assert shared_rows([], val) == []
    assert shared_rows(train, []) == []


@pytest.mark.parametrize(
    ("asked", "val", "words"),
    [
        ([], 1, "val 1 of 0 rows leaves no row to train on"),
        ([], 0.5, "leaves no row to validate on"),
        (["a"], 1, "val 1 of 1 row leaves no row to train on"),
        (["a", "b"], 2, "leaves no row to train on"),
        (["a", "b"], 1000, "leaves no row to train on"),
        (["a", "b"], 0.99, "leaves no row to train on"),
        (["a", "b"], 0.01, "val 0.01 of 2 rows leaves no row to validate on"),
        (["a", "a", "A "], 1, "cannot hold back 1 row of 3: .* the smallest such group has 3 rows"),
        (["a", "a", "b", "b"], 1, "the smallest such group has 2 rows"),
    ],
)
def test_a_part_that_would_be_empty_is_refused(asked: list[str], val: float, words: str) -> None:
    with pytest.raises(DataError, match=words):
        split_rows(rows_of(*asked), val=val, seed=0)


@pytest.mark.parametrize("val", [0, -1, -0.1, 1.5, float("nan"), float("inf"), True])
def test_a_value_that_is_no_fraction_and_no_count_is_refused(val: float) -> None:
    with pytest.raises(ConfigError, match="expected a fraction"):
        split_rows(rows_of("a", "b", "c"), val=val, seed=0)


@given(asked=st.lists(st.text(max_size=6), min_size=1, max_size=10), val=st.floats() | st.integers(), seed=seeds)
def test_any_text_and_any_value_give_a_split_or_one_clear_error(asked: list[str], val: float, seed: int) -> None:
    with contextlib.suppress(MinituneError):
        train, held = split_rows(rows_of(*asked), val=val, seed=seed)
        assert len(train) + len(held) == len(asked)


def test_real_rows(material: Path) -> None:
    rows = read_rows(material / "data/en/alpaca.json").good
    train, held = split_rows(rows, val=0.02, seed=0)
    assert len(held) == round(0.02 * len(rows))
    assert len(train) + len(held) == len(rows)
    assert not questions(train) & questions(held)
    assert shared_rows(train, held) == []


def test_real_rows_that_ask_the_same_thing_twice(material: Path) -> None:
    rows = read_rows(material / "data/en/instructions_1100.json").good
    assert len(questions(rows)) < len(rows)
    assert shared_rows(rows[::2], rows[1::2])  # what a split row by row would leak
    for seed in range(5):
        train, held = split_rows(rows, val=0.3, seed=seed)
        assert len(held) == 330
        assert not questions(train) & questions(held)
