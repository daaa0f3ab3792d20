"""Instruction files to rows: what is read, what is named as bad and why, and on which line."""

import collections
import dataclasses
import json
import os
import pickle
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitune.chat import Message
from minitune.data.formats import BadRow, Row, Rows, read_rows, rows_or_error
from minitune.data.sources import parse_columns
from minitune.errors import DataError

GOOD = {"instruction": "Add.", "input": "1 2", "output": "3"}


def write(folder: Path, content: str | bytes, name: str = "data.json") -> Path:
    path = folder / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def texts(rows: Rows) -> list[tuple[str, str, str]]:
    """(instruction, input, output) of Alpaca rows that have no more."""
    assert all([turn.role for turn in row.messages] == ["user", "assistant"] for row in rows.good)
    return [(row.messages[0].content, row.messages[0].context, row.messages[1].content) for row in rows.good]


def alpaca(instruction: str, more: str, output: str, file: Path, line: int, index: int) -> Row:
    turns = (Message("user", instruction, more), Message("assistant", output))
    return Row(turns, "alpaca", 1.0, str(file), line, index)


def rows_or_refusal(path: Path) -> Rows | str:
    try:
        return read_rows(path)
    except DataError as error:
        return str(error)


def reason_of(folder: Path, row: object) -> str:
    """The reason given for one bad row, which must be the same in an array and in JSON Lines."""
    reasons = []
    for content in (json.dumps([GOOD, row]), json.dumps(GOOD) + "\n" + json.dumps(row) + "\n"):
        rows = read_rows(write(folder, content))
        assert texts(rows) == [("Add.", "1 2", "3")]
        assert [bad.index for bad in rows.bad] == [1]
        reasons.append(rows.bad[0].reason)
    assert reasons[0] == reasons[1]
    assert "\n" not in reasons[0]
    return reasons[0]


# ---- what is read


def test_array_rows_keep_their_text_their_line_and_their_index(tmp_path: Path) -> None:
    content = (
        "\n[\n"
        '  {\n    "instruction": " Say hi. ",\n    "output": "hi\\n"\n  },\n'
        '  {"instruction": "a", "input": "", "output": "b"}, {"instruction": "c", "input": "d", "output": "e"}\n'
        ",\n\n"
        '  {"instruction": "f", "input": null, "output": "g", "text": "an extra key"}\n]\n'
    )
    path = write(tmp_path, content, "rows.jsonl")
    rows = read_rows(path)
    assert rows.bad == []
    assert rows.good == [
        alpaca(" Say hi. ", "", "hi\n", path, 3, 0),
        alpaca("a", "", "b", path, 7, 1),
        alpaca("c", "d", "e", path, 7, 2),
        alpaca("f", "", "g", path, 10, 3),
    ]
    assert rows.good[3].where == f"{path} line 10 (row 4)"


def test_line_numbers_of_pretty_printed_rows_are_those_of_the_file(tmp_path: Path) -> None:
    content = json.dumps([GOOD | {"instruction": f"row {i}", "tags": list(range(i % 4))} for i in range(50)], indent=2)
    lines = content.splitlines()
    for newline in ("\n", "\r\n"):
        rows = read_rows(write(tmp_path, content.replace("\n", newline)))
        assert len(rows.good) == 50
        for row in rows.good:
            assert lines[row.line - 1] == "  {"
            assert row.messages[0].content in lines[row.line]


def test_json_lines_with_blank_lines(tmp_path: Path) -> None:
    row = json.dumps(GOOD)
    rows = read_rows(write(tmp_path, f"\n\n{row}\n   \t\n{row}\n{row}"))
    assert [(found.line, found.index) for found in rows.good] == [(3, 0), (5, 1), (6, 2)]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("form", ["array", "lines"])
def test_byte_order_mark_and_line_ends(tmp_path: Path, newline: str, mark: bytes, form: str) -> None:
    rows = [{"instruction": "说", "output": "好\r\n"}, {"instruction": "b", "output": "c"}]
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    if form == "lines":
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    found = read_rows(write(tmp_path, mark + text.replace("\n", newline).encode()))
    assert texts(found) == [("说", "", "好\r\n"), ("b", "", "c")]
    assert [row.line for row in found.good] == ([2, 6] if form == "array" else [1, 2])


def test_line_separators_inside_a_string_do_not_end_a_line(tmp_path: Path) -> None:
    odd = "one\u2028two\u2029three\u0085four\x0bfive"
    line = json.dumps({"instruction": odd, "output": odd}, ensure_ascii=False).replace("\x0b", "\\u000b")
    rows = read_rows(write(tmp_path, f"{line}\n{line}\n"))
    assert texts(rows) == [(odd, "", odd)] * 2
    assert [row.line for row in rows.good] == [1, 2]


def test_limit_counts_good_rows_and_stops_there(tmp_path: Path) -> None:
    bad = {"instruction": "a", "output": ""}
    for form in ("array", "lines"):
        rows = [GOOD, bad, GOOD, GOOD]
        text = json.dumps(rows)[:-1] + " broken" if form == "array" else "\n".join(map(json.dumps, rows)) + "\nbroken"
        found = read_rows(write(tmp_path, text), limit=2)
        assert [row.index for row in found.good] == [0, 2]
        assert [row.index for row in found.bad] == [1]
    with pytest.raises(DataError, match="at least 1"):
        read_rows(tmp_path / "data.json", limit=0)


def test_rows_cannot_be_changed(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, json.dumps([GOOD])))
    with pytest.raises(dataclasses.FrozenInstanceError):
        rows.good[0].weight = 2.0  # pyright: ignore[reportAttributeAccessIssue]


word = st.text(st.characters(codec="utf-8"), max_size=12)
spoken = word.filter(lambda text: text.strip())
valid_rows = st.lists(st.tuples(spoken, word, spoken), min_size=1, max_size=8)


@given(rows=valid_rows, form=st.sampled_from(["array", "indented", "lines"]), ascii_only=st.booleans())
def test_any_valid_rows_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], form: str, ascii_only: bool
) -> None:
    objects = [dict(zip(("instruction", "input", "output"), row, strict=True)) for row in rows]
    if form == "lines":
        text = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in objects)
    else:
        text = json.dumps(objects, indent=2 if form == "indented" else None, ensure_ascii=ascii_only)
    found = read_rows(write(tmp_path_factory.getbasetemp(), text))
    assert found.bad == []
    assert texts(found) == rows
    assert [row.index for row in found.good] == list(range(len(rows)))
    expected = {"array": [1] * len(rows), "lines": [i + 1 for i in range(len(rows))]}
    assert [row.line for row in found.good] == expected.get(form, [2 + 5 * i for i in range(len(rows))])


# ---- bad rows


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["a", "b"], "not an object (got list)"),
        ("hello", "not an object (got str 'hello')"),
        (3, "not an object (got int 3)"),
        (None, "not an object (got null)"),
        ({}, "missing key 'instruction' (the row has: nothing)"),
        (
            {"instruction": "a", "ouput": "b"},
            "missing key 'output' (the row has: instruction, ouput); did you mean 'ouput'?",
        ),
        (
            {"Instruction": "a", "output": "b"},
            "missing key 'instruction' (the row has: Instruction, output); did you mean 'Instruction'?",
        ),
        ({"instruction": "a", "input": "b"}, "missing key 'output' (the row has: instruction, input)"),
        ({"instruction": "a", "inputs": "b", "output": "c"}, "unknown key 'inputs'; did you mean 'input'?"),
        ({"instruction": "a", "output": 3}, "'output' is not text (got int 3)"),
        ({"instruction": "a", "output": None}, "'output' is not text (got null)"),
        ({"instruction": True, "output": "b"}, "'instruction' is not text (got bool True)"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "'input' is not text (got list)"),
        ({"instruction": "a", "output": {"b": 1}}, "'output' is not text (got object)"),
        ({"instruction": "", "output": "b"}, "'instruction' is empty"),
        ({"instruction": " \n\u3000", "output": "b"}, "'instruction' is blank (white space only)"),
        ({"instruction": "a", "output": ""}, "'output' is empty"),
        ({"instruction": "a", "output": "\t"}, "'output' is blank (white space only)"),
        (GOOD | {"history": "a"}, "'history' is not a list of pairs (got str 'a')"),
        (GOOD | {"history": [["a", "b"], ["c"]]}, "'history' turn 2 is not a pair of question and answer (got list)"),
        (GOOD | {"history": [["a", 3]]}, "'history' turn 1 is not text (got int 3)"),
        (GOOD | {"history": [["a", " "]]}, "'history' turn 1 is blank (white space only)"),
        (GOOD | {"system": 3}, "'system' is not text (got int 3)"),
        (GOOD | {"weight": "2"}, "'weight' is str '2'; expected a number of at least 0"),
        (GOOD | {"weight": -1}, "'weight' is int -1; expected a number of at least 0"),
        (GOOD | {"weight": True}, "'weight' is bool True; expected a number of at least 0"),
        (GOOD | {"weight": float("nan")}, "'weight' is float nan; expected a number of at least 0"),
        (GOOD | {"weight": 0}, "'weight' is 0, so the row trains nothing; leave it out"),
        (GOOD | {"output": "ab\ud83d"}, "'output' holds a lone surrogate, \\ud83d at character 3"),
        (GOOD | {"input": "\udc80"}, "'input' holds a lone surrogate, \\udc80 at character 1"),
    ],
)
def test_reason_of_a_bad_row(tmp_path: Path, row: object, reason: str) -> None:
    assert reason_of(tmp_path, row) == reason


def test_empty_history_and_system_are_no_fault(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, json.dumps([GOOD | {"history": [], "system": ""}, GOOD | {"system": None}])))
    assert len(rows.good) == 2


@pytest.mark.parametrize("join", [",", ",\n"])
def test_a_key_that_stands_twice(tmp_path: Path, join: str) -> None:
    twice = '{"instruction": "a", "output": "b", "output": "c"}'
    rows = read_rows(write(tmp_path, f"[{twice}{join}{json.dumps(GOOD)}]"))
    assert [(bad.index, bad.reason) for bad in rows.bad] == [(0, "a key stands twice in one object: 'output'")]
    assert [row.index for row in rows.good] == [1]


def test_a_long_value_and_many_keys_are_shortened(tmp_path: Path) -> None:
    many = {f"key {i}": i for i in range(100)}
    assert len(reason_of(tmp_path, many)) < 250
    assert len(reason_of(tmp_path, "x" * 10_000)) < 100
    assert len(reason_of(tmp_path, {"line\nbreak" * 30: 1})) < 250


@pytest.mark.parametrize("form", ["array", "lines"])
def test_invalid_utf8_spoils_its_own_row_only(tmp_path: Path, form: str) -> None:
    mark = b"\xef\xbb\xbf"
    row, broken = json.dumps(GOOD).encode(), b'{"instruction": "caf\xe9", "output": "\xc3\xa9"}'
    data = mark + (b"[%b,\n%b,\n%b]" % (row, broken, row) if form == "array" else b"\n".join((row, broken, row)))
    rows = read_rows(write(tmp_path, data))
    assert [(found.line, found.index) for found in rows.good] == [(1, 0), (3, 2)]
    assert [bad.reason for bad in rows.bad] == [f"invalid UTF-8 at byte {data.index(0xE9)} of the file"]
    assert (rows.bad[0].line, rows.bad[0].index, rows.bad[0].unread) == (2, 1, False)


def test_a_broken_line_is_named_and_the_next_ones_are_read(tmp_path: Path) -> None:
    row = json.dumps(GOOD)
    deep, long = "[" * 200_000, f'{{"instruction": {"1" * 5000}}}'
    rows = read_rows(write(tmp_path, "\n".join([row, row[:-1], row + ",", deep, long, "NaN?", row])))
    assert [found.line for found in rows.good] == [1, 7]
    reasons = {bad.line: bad.reason for bad in rows.bad}
    assert list(reasons) == [2, 3, 4, 5, 6]
    assert all(reason.startswith("broken JSON: ") for reason in reasons.values())
    assert f"(column {len(row)})" in reasons[2]
    assert f"(column {len(row) + 1})" in reasons[3]
    assert "nested too deeply" in reasons[4]
    assert "too many digits" in reasons[5]
    assert not any(bad.unread for bad in rows.bad)


@pytest.mark.parametrize(
    ("tail", "line", "place", "words"),
    [
        (',\n{"instruction": "a"\n  "output": "b"}]', 3, "line 4 column 3", ""),
        (",\n{'instruction': 1}]", 3, "line 3 column 2", ""),
        ("\n{}\n]", 3, "line 3 column 1", "expected ',' or ']' here"),
        (",\n]", 3, "line 3 column 1", ""),
        (",\n\n", 4, "", "the file ends inside the array"),
        ("\n", 3, "", "the file ends inside the array"),
        (',\n{"instruction": ', 3, "", "the file ends inside the array"),
        ("]\n[]", 3, "line 3 column 1", "text after the end of the array"),
        (",\n" + "[" * 200_000, 3, "", "nested too deeply"),
        (",\n" + "1" * 5000 + "]", 3, "", "too many digits"),
    ],
)
def test_a_syntax_error_ends_an_array(tmp_path: Path, tail: str, line: int, place: str, words: str) -> None:
    rows = read_rows(write(tmp_path, "[\n" + json.dumps(GOOD) + tail))
    assert len(rows.good) == 1
    assert [(bad.line, bad.index, bad.unread) for bad in rows.bad] == [(line, 1, True)]
    reason = rows.bad[0].reason
    assert reason.startswith("broken JSON")
    assert reason.endswith("; the rest of the file was not read")
    assert place in reason
    assert words in reason
    for on_bad in ("error", "drop"):  # nobody agreed to lose rows that were never seen
        with pytest.raises(DataError, match="was not read; mend the file"):
            rows_or_error(rows, on_bad=on_bad)


# ---- files that hold no rows


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf\n \n", "has no rows"),
        (b" [\n] ", "has no rows"),
        (b"[] x", "text after the end of the array"),
        (b"instruction,output\na,b\n", "neither JSON nor JSON Lines: it starts with 'instruction,output'"),
        (b"\xff\xfe[\x00", "UTF-16"),
        (pickle.dumps([GOOD]), "pickle"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PAR1\x15\x04", "Parquet"),
        (b"abc\x00def", "binary"),
        (json.dumps(GOOD, indent=2).encode(), "a JSON object spread over several lines"),
        (b'{"data": []}', "its one row is bad, line 1 (row 1): is in no known layout (the row has: data)"),
        (b'\n{"poem": "a"}\n{"poem": "b"}', "all 2 rows are bad, the first is line 2 (row 1): is in no known layout"),
        (b"[3", "not an object"),
    ],
)
def test_files_without_a_good_row(tmp_path: Path, content: bytes, words: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_a_pipe_and_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("rows.json", "[]")
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: opening it would wait for ever
    for name, words in [("none.json", "no such file"), ("", "a folder"), ("pipe", "regular"), ("rows.zip", "zip")]:
        with pytest.raises(DataError, match=words):
            read_rows(tmp_path / name)
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(DataError, match="not readable"):
            read_rows(name)


@given(data=st.binary(max_size=60), head=st.sampled_from([b"", b"[", b"{", b'[{"instruction": "', b"[[1,2],", b"\xef"]))
def test_any_bytes_give_rows_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, head: bytes
) -> None:
    found = rows_or_refusal(write(tmp_path_factory.getbasetemp(), head + data))
    assert found.good if isinstance(found, Rows) else "data.json" in found


# ---- what to do about bad rows


def test_on_bad(tmp_path: Path) -> None:
    mixed = [GOOD, {"instruction": "a", "output": ""}, 3, [], None, GOOD]
    rows = read_rows(write(tmp_path, json.dumps(mixed, indent=0)))
    assert rows_or_error(rows, on_bad="drop") == rows.good
    with pytest.raises(DataError) as caught:
        rows_or_error(rows, on_bad="error")
    name = tmp_path / "data.json"
    assert str(caught.value) == (
        f"4 of 6 rows are bad: {name} line 7 (row 2): 'output' is empty; {name} line 11 (row 3): not an object "
        f"(got int 3); {name} line 12 (row 4): not an object (got list); and 1 more; fix them, or pass --on-bad drop"
    )
    fine = Rows(rows.good, [])
    assert rows_or_error(fine, on_bad="error") == rows.good
    one = Rows(rows.good, [BadRow("a.json", 7, 1, "'output' is empty")])
    with pytest.raises(DataError, match=r"^1 of 3 rows is bad: a.json line 7 \(row 2\): 'output' is empty; fix them"):
        rows_or_error(one, on_bad="error")


def test_real_alpaca_rows(material: Path) -> None:
    path = material / "data/en/alpaca.json"
    start = time.perf_counter()
    rows = read_rows(path)
    seconds = time.perf_counter() - start
    plain = json.loads(path.read_text(encoding="utf-8"))
    assert len(plain) == 52_002
    kept = [row for row in plain if row["instruction"].strip() and row["output"].strip()]
    assert texts(rows) == [(row["instruction"], row["input"], row["output"]) for row in kept]
    assert [bad.index for bad in rows.bad] == [i for i, row in enumerate(plain) if not row["output"].strip()]
    reasons = collections.Counter(bad.reason for bad in rows.bad)
    print(f"{len(plain):,} rows in {seconds:.2f} s, {len(rows.bad)} bad: {dict(reasons)}")
    assert reasons == {"'output' is empty": 28}
    lines = path.read_text(encoding="utf-8").split("\n")
    for row in [*rows.good[::1000], *rows.bad]:
        assert lines[row.line - 1].strip() == "{"
        assert json.loads("{" + lines[row.line].rstrip(",") + "}")["instruction"] == plain[row.index]["instruction"]


def test_every_real_file_is_read_or_refused_in_one_line(material: Path) -> None:
    found: dict[str, tuple[int, int, set[str]]] = {}
    for path in sorted(material.glob("data/*/*.*")):
        rows = rows_or_refusal(path)
        if isinstance(rows, str):
            assert "\n" not in rows
            assert len(rows) < 400 + len(str(path))
            assert path.name in ("gsm8k_test.jsonl", "gsm8k_train.jsonl", "tang_poems_0.json")
        else:
            found[path.name] = len(rows.good), len(rows.bad), {row.layout for row in rows.good}
    assert found == {
        "alpaca.json": (51_974, 28, {"alpaca"}),
        "alpaca_zh.json": (17_467, 9, {"alpaca"}),
        "belle_seed_tasks.jsonl": (175, 0, {"alpaca"}),
        "instructions_1100.json": (1_100, 0, {"alpaca"}),
        "numina_cot_sharegpt_1k.jsonl": (1_000, 0, {"sharegpt"}),
        "self_instruct_seed_tasks.jsonl": (175, 0, {"alpaca"}),
        "sharegpt_zh_1k.jsonl": (998, 2, {"sharegpt"}),
        "sherlock.txt": (1, 0, {"text"}),
        "tinyshakespeare.txt": (1, 0, {"text"}),
        "tinystories_1000.json": (1_000, 0, {"text"}),
    }
    columns = parse_columns("instruction=question,output=answer")
    assert len(read_rows(material / "data/en/gsm8k_train.jsonl", columns=columns).good) == 7_473
