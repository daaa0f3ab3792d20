"""Files of every kind to raw rows: CSV, TSV, Parquet, plain text, and arrays longer than what is read at a time."""

import csv
import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitune.data import json_array
from minitune.data.formats import BadRow, entries, read_rows, rows_or_error, stream_rows
from minitune.data.readers import original, read_file
from minitune.errors import DataError


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def contents(path: Path) -> list[tuple[str, ...]]:
    return [tuple(turn.content for turn in row.messages) for row in read_rows(path).good]


# ---- CSV and TSV


def test_csv(tmp_path: Path) -> None:
    text = (
        '\ufeffinstruction,input,output,weight\r\n"Say ""hi"",\r\nplease.",,hi,2\r\n\r\n问,"a, b",答,\r\nfew,cells\r\n'
        "a,,3,high\r\n"
    )
    path = write(tmp_path, "rows.csv", text)
    rows = read_rows(path)
    assert [(row.messages[0].content, row.messages[0].context, row.answer) for row in rows.good] == [
        ('Say "hi",\r\nplease.', "", "hi"),
        ("问", "a, b", "答"),
    ]
    assert [(row.line, row.index, row.weight) for row in rows.good] == [(2, 0, 2.0), (5, 1, 1.0)]
    assert [(bad.line, bad.reason) for bad in rows.bad] == [
        (6, "has 2 cells, but the header names 4 columns"),
        (7, "'weight' is str 'high'; expected a number of at least 0"),
    ]


def test_csv_that_is_damaged(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, "a.csv", b"instruction,output\na,b\nc,\xff\nd,e\n"))
    assert [(bad.line, bad.reason) for bad in rows.bad] == [(3, "invalid UTF-8 in column 'output': byte 0xff")]
    rows = read_rows(write(tmp_path, "a.csv", 'instruction,output\na,b\nc,"d\ne,f\n'))
    assert [(bad.line, bad.unread) for bad in rows.bad] == [(3, True)]
    with pytest.raises(DataError, match=r"line 3 \(row 2\): broken CSV: a quote is opened and never closed"):
        rows_or_error(rows, on_bad="drop")
    with pytest.raises(DataError, match="the column 'a' stands twice in the header"):
        read_rows(write(tmp_path, "a.csv", "a,b,a\n1,2,3\n"))
    with pytest.raises(DataError, match="has no rows"):
        read_rows(write(tmp_path, "a.csv", "instruction,output\n"))


def test_tsv_and_a_table_of_another_name(tmp_path: Path) -> None:
    assert contents(write(tmp_path, "a.tsv", "prompt\tcompletion\na, b\tc\n")) == [("a, b", "c")]
    with pytest.raises(DataError, match="neither JSON nor JSON Lines: it starts with 'prompt,completion'"):
        read_rows(write(tmp_path, "a.dat", "prompt,completion\na,b\n"))
    # What the content says comes before the name.
    assert contents(write(tmp_path, "b.csv", '{"prompt": "a", "completion": "b"}\n')) == [("a", "b")]


cell = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9).filter(str.strip)


@given(pairs=st.lists(st.tuples(cell, cell), min_size=1, max_size=6), tab=st.booleans(), unix=st.booleans())
def test_any_table_that_python_writes_reads_back(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], tab: bool, unix: bool
) -> None:
    text = io.StringIO(newline="")
    # Of its own accord the writer quotes only the line ends that it writes itself.
    form = {"lineterminator": "\n", "quoting": csv.QUOTE_ALL} if unix else {}
    writer = csv.writer(text, delimiter="\t" if tab else ",", **form)
    writer.writerows([("prompt", "completion"), *pairs])
    path = write(tmp_path_factory.getbasetemp(), "t.tsv" if tab else "t.csv", text.getvalue())
    assert contents(path) == pairs


# ---- text, strings, Parquet


def test_a_text_file_is_one_row_and_an_array_of_texts_many(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "\ufeffOnce upon a time\r\n\r\nthere was.")
    (row,) = read_rows(path).good
    assert (row.layout, row.answer, row.line) == ("text", "Once upon a time\r\n\r\nthere was.", 1)
    rows = read_rows(write(tmp_path, "a.json", '[\n "One.",\n "Two.",\n 3, {"text": "Four."}]'))
    assert [(row.answer, row.line) for row in rows.good] == [("One.", 2), ("Two.", 3), ("Four.", 4)]
    assert [bad.reason for bad in rows.bad] == ["not an object (got int 3)"]
    with pytest.raises(DataError, match="invalid UTF-8 at byte 1 of the file"):
        rows_or_error(read_rows(write(tmp_path, "b.txt", b"a\xff")), on_bad="drop")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the parquet extra)")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}], "text": None},
        {"messages": None, "text": "Once."},
    ]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = read_rows(path)
    assert [row.layout for row in found.good] == ["messages", "text"]
    assert found.good[1].where == f"{path} (row 2)"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_rows(path)


def test_parquet_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"is a Parquet file, and pyarrow is missing; pip install 'minitune\[parquet"):
        read_rows(write(tmp_path, "a.parquet", b"PAR1" + bytes(40)))


# ---- streaming


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 16, 64, 1 << 20])
def test_an_array_is_the_same_in_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    values = [{"text": "一" * n, "n": n * 1.5e10, "deep": [[n], {"k": None}]} for n in range(12)]
    values += [1234567, True, None, -0.5e-7, 'é"\\', [], {}]
    text = json.dumps(values, indent=1, ensure_ascii=False)
    path = write(tmp_path, "a.json", b"\xef\xbb\xbf" + text.encode())
    monkeypatch.setattr(json_array, "_PIECE_BYTES", piece)
    found = list(read_file(str(path))[1])
    assert [one.value for one in found] == values
    assert [json.loads(one.raw) for one in found] == values
    assert all("\n" not in one.raw for one in found)
    lines = text.split("\n")
    for one in found:
        assert lines[one.line - 1].strip()[:1] in '{"-1tn['
    for cut in (text[:-1], text[: len(text) // 2], text.replace("null", "nul", 1), text + "x"):
        other = str(write(tmp_path, "b.json", cut))
        faults = []
        for size in (piece, 1 << 20):
            monkeypatch.setattr(json_array, "_PIECE_BYTES", size)
            faults.append([(one.line, one.fault) for one in read_file(other)[1] if one.fault])
        assert faults[0] == faults[1]
        assert len(faults[0]) == 1


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "a" * 2500, "completion": "b" * 2500})
    sizes = {}
    for form in ("array", "lines"):
        for count in (400, 4_000):
            text = "[" + ",\n".join([row] * count) + "]" if form == "array" else (row + "\n") * count
            path = write(tmp_path, "a.json", text)
            tracemalloc.start()
            assert sum(not isinstance(one, BadRow) for one in stream_rows(path)) == count
            sizes[form, count] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert sizes[form, 4_000] < 1.2 * sizes[form, 400] + (1 << 20)
        assert sizes[form, 4_000] < 8 << 20  # of 20 MiB


def test_the_original_of_a_row_is_its_own_text(tmp_path: Path) -> None:
    odd = '{"b":1.50, "a" :"\\u4f60\u2028/\\/",\n  "text":"x", "big": 123456789012345678901234567890}'
    _, found = entries(write(tmp_path, "a.json", f"[{odd}]"))
    (entry,) = found
    assert original(entry.found) == odd.replace("\n  ", " ")
    _, found = entries(write(tmp_path, "a.csv", "prompt,completion\n问,答\n"))
    assert original(next(found).found) == '{"prompt": "问", "completion": "答"}'
