"""``minitune data split``: every row kept as it stands, no question in two parts, near duplicates kept together."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from minitune.cli import main
from minitune.errors import ConfigError, DataError, MinituneError
from minitune.jobs.data_split import SplitConfig, SplitReport, split_files

LONG = "Write a short story about a brave little fox who crosses the frozen river to find her lost brother"


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def file_of(tmp_path: Path, questions: Sequence[str], name: str = "a.jsonl") -> Path:
    """Rows with keys of somebody's own, of which every seventh asks its question with other case and spaces."""
    rows = [{"id": i, "instruction": q, "input": "", "output": f"é {i}", "notes": [i]} for i, q in enumerate(questions)]
    path = tmp_path / name
    path.write_text("".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows)), "utf-8")
    return path


def split(path: Path, out: Path, **more: object) -> SplitReport:
    return split_files(SplitConfig(files=[str(path)], out=str(out), **more))  # pyright: ignore[reportArgumentType]


def test_every_row_is_in_one_part_byte_for_byte_and_in_order(tmp_path: Path) -> None:
    questions = [f"question {i % 60}" if i % 7 else f" Question  {i % 60}\t" for i in range(200)]
    path, out = file_of(tmp_path, questions), tmp_path / "out"
    report = split(path, out, val=0.2, test=30, near="report")
    parts = {name: lines(out / f"{name}.jsonl") for name in ("train", "val", "test")}
    whole = lines(path)
    assert sorted(line for part in parts.values() for line in part) == sorted(whole)
    assert {name: len(part) for name, part in parts.items()} == report.parts
    place = {line: i for i, line in enumerate(whole)}
    asked = {}
    for name, part in parts.items():
        assert [place[line] for line in part] == sorted(place[line] for line in part)
        asked[name] = {" ".join(json.loads(line)["instruction"].lower().split()) for line in part}
    assert not asked["train"] & asked["val"]
    assert not asked["train"] & asked["test"]
    assert not asked["val"] & asked["test"]
    assert 40 - 7 < report.parts["val"] <= 40
    assert 30 - 7 < report.parts["test"] <= 30
    assert (report.rows, report.groups) == (200, 60)


def test_same_seed_same_parts_another_seed_others(tmp_path: Path) -> None:
    path = file_of(tmp_path, [f"question {i}" for i in range(100)])
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        split(path, tmp_path / name, val=10, seed=seed)
    a, b, c = ((tmp_path / name / "val.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def near_file(tmp_path: Path) -> Path:
    """60 pairs of questions that differ in one word of eighteen, so that some pair is torn whatever the seed."""
    return file_of(tmp_path, [f"{LONG} {i} {i} {i} {word}" for i in range(60) for word in ("now", "today")])


def test_near_duplicates_stay_together_are_listed_or_refused(tmp_path: Path) -> None:
    path = near_file(tmp_path)
    report = split(path, tmp_path / "together", val=0.25, threshold=0.9)
    assert report.leaks == []
    assert report.kept_together >= 60
    report = split(path, tmp_path / "report", val=0.25, near="report", threshold=0.9)
    parts = {
        name: {json.loads(line)["id"] for line in lines(tmp_path / f"report/{name}.jsonl")} for name in report.parts
    }
    torn = {i for i in range(0, 120, 2) if (i in parts["val"]) != (i + 1 in parts["val"])}
    named = {tuple(sorted(int(re.findall(r"row (\d+)", w)[0]) - 1 for w in (x.first, x.second))) for x in report.leaks}
    assert torn
    assert {(i, i + 1) for i in torn} <= named
    for leak in report.leaks:
        assert {leak.first_part, leak.second_part} == {"train", "val"}
        assert leak.jaccard >= 0.9
    assert json.loads((tmp_path / "report/split.json").read_text())["near_pairs"] == len(named)
    with pytest.raises(DataError, match="nearly the same, the first with Jaccard"):
        split(path, tmp_path / "refuse", val=0.25, near="refuse", threshold=0.9)
    assert not (tmp_path / "refuse").exists()


def test_a_chinese_near_duplicate_is_seen(tmp_path: Path) -> None:
    text = "请写一个关于勇敢的小狐狸穿过结冰的河去寻找她失散的哥哥的短篇故事，第{}号"
    path = file_of(tmp_path, [text.format(i) for i in range(10)] + [f"第{i}个完全不同的问题" for i in range(10)])
    assert split(path, tmp_path / "out", val=4).kept_together >= 9


def test_bad_rows_stop_it_or_are_named(tmp_path: Path) -> None:
    path = file_of(tmp_path, [f"question {i}" for i in range(20)])
    path.write_text(path.read_text("utf-8") + '{"instruction": "x", "output": ""}\n', "utf-8")
    with pytest.raises(DataError, match=r"line 21 \(row 21\): 'output' is empty; fix them, or pass --on-bad drop"):
        split(path, tmp_path / "out", val=2)
    assert not (tmp_path / "out").exists()
    report = split(path, tmp_path / "out", val=2, on_bad="drop")
    assert [bad.line for bad in report.bad] == [21]
    assert sum(report.parts.values()) == 20


def test_what_stands_in_the_way_is_not_replaced(tmp_path: Path) -> None:
    path, out = file_of(tmp_path, [f"question {i}" for i in range(20)]), tmp_path / "out"
    split(path, out, val=2)
    before = (out / "val.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="not empty"):
        split(path, out, val=5)
    split(path, out, val=5, force=True)
    assert (out / "val.jsonl").read_bytes() != before
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds mine\.txt"):
        split(path, out, val=5, force=True)
    with pytest.raises(ConfigError, match="which this command reads"):
        split(path, tmp_path, val=5, force=True)
    for wrong in ({"threshold": 0}, {"val": 1.5}, {"val": 30}, {"val": 0}):
        with pytest.raises(MinituneError):
            split(path, tmp_path / "other", **wrong)
    assert not (tmp_path / "other").exists()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = near_file(tmp_path)
    words = ["data", "split", str(path), "--out", str(tmp_path / "out"), "--val", "0.25", "--near", "report"]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["parts"] == {"train": 90, "val": 30}
    assert "warning: " in err
    assert f"{path} line" in err
    assert main(["data", "spilt"]) == 2
    assert "did you mean 'split'?" in capsys.readouterr().err
    assert main(["data"]) == 0
    assert "split" in capsys.readouterr().out
