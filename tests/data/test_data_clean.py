"""``minitune data check`` and ``data clean``: findings against brute force, and every row in exactly one file."""

import itertools
import json
import random
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from minitune.cli import main
from minitune.data.clean import RULES
from minitune.errors import ConfigError, DataError
from minitune.jobs.data_check import CheckConfig, CheckReport, check_files
from minitune.jobs.data_clean import CleanConfig, clean_files

WORDS = ("red fox runs over a frozen river and finds her lost brother near the old mill at dawn").split()  # noqa: SIM905


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def rows_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def check(path: Path, **more: Any) -> CheckReport:
    return check_files(CheckConfig(files=[str(path)], **more)).report(None)


def found(report: CheckReport, rule: str) -> set[tuple[int, int | None]]:
    """The rows that a rule found, and the row that each is compared with, by their lines."""
    line = lambda where: int(where.split(" line ")[1].split()[0]) if where else None  # noqa: E731
    return {(line(one.where) or 0, line(one.of)) for one in report.rules[rule].examples}


def random_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of few different texts, so that all kinds of copies come up; with case and spaces that do not count."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        question = f"Tell me story {rng.randrange(count // 3)} please"
        answer = " ".join(WORDS[: rng.randint(12, len(WORDS))]) + f" {rng.randrange(3)}."
        if rng.random() < 0.3:
            question, answer = question.upper(), answer.replace(" ", "  ")
        rows.append({"instruction": question, "output": answer, "id": number})
    return rows


def normal(text: str) -> tuple[str, ...]:
    return tuple(text.lower().split())


def test_copies_and_contradictions_against_brute_force(tmp_path: Path) -> None:
    rows = random_rows(300, seed=4)
    report = check(write(tmp_path / "a.jsonl", rows), rules="duplicate,contradiction")
    said = [(normal(row["instruction"]), normal(row["output"])) for row in rows]
    duplicates = {(i + 1, said.index(one) + 1) for i, one in enumerate(said) if said.index(one) < i}
    asked = [question for question, _ in said]
    others = {
        (i + 1, asked.index(q) + 1) for i, q in enumerate(asked) if asked.index(q) < i and i == said.index(said[i])
    }
    assert len(duplicates) > 20
    assert len(others) > 50
    assert found(report, "duplicate") == duplicates
    assert found(report, "contradiction") == others


def jaccard(one: str, other: str) -> Fraction:
    first, second = (
        {*itertools.pairwise(w)} for w in (one.strip(".").lower().split(), other.strip(".").lower().split())
    )
    return Fraction(len(first & second), len(first | second))


def test_near_duplicates_are_near_and_those_that_stay_are_not(tmp_path: Path) -> None:
    rng = random.Random(5)
    texts = [" ".join(rng.choices(WORDS, k=30)) for _ in range(40)]
    for text in list(texts):
        words = text.split()
        words[rng.randrange(30)] = "other"
        texts.append(" ".join(words))
    rng.shuffle(texts)
    path = write(tmp_path / "a.jsonl", [{"instruction": "Go", "output": text + "."} for text in texts])
    report = check(path, rules="near-duplicate", threshold=0.8)
    gone = {line for line, _ in found(report, "near-duplicate")}
    assert len(gone) >= 30
    for example in report.rules["near-duplicate"].examples:
        assert "Jaccard 0." in example.detail
    near = lambda i, j: jaccard("go " + texts[i - 1], "go " + texts[j - 1])  # noqa: E731
    for line, of in found(report, "near-duplicate"):
        assert of is not None
        assert of < line
        assert of not in gone
        assert near(line, of) >= Fraction(4, 5)
    staying = [line for line in range(1, 81) if line not in gone]
    missed = [pair for pair in itertools.combinations(staying, 2) if near(*pair) >= Fraction(82, 100)]
    assert len(missed) <= 1


def test_a_chinese_near_duplicate_is_found(tmp_path: Path) -> None:
    story = "从前有一只勇敢的小狐狸，它独自穿过结冰的大河，去寻找在暴风雪中失散的哥哥，{}终于在天亮时回到了家。"
    rows = [
        {"instruction": "讲个故事", "output": story.format(word)}
        for word in ("", "最后", "并且在朋友们的帮助之下，经过了许多天的努力，")
    ]
    assert found(check(write(tmp_path / "a.jsonl", rows)), "near-duplicate") == {(2, 1)}


MESSY = [
    {"instruction": "Name a colour.", "output": "Red is a colour.", "note": 1},
    {"instruction": "Name a  COLOUR.", "output": "red is a colour."},
    {"instruction": "Name a colour.", "output": "Blue is one of them."},
    {"instruction": "Name a fruit.", "output": ""},
    {"instruction": "Name a tree.", "out": "Oak"},
    {"instruction": "Where?", "output": "In a cafÃ©."},
    {"instruction": "Draw.", "output": "I'm sorry, but I cannot draw."},
    {"instruction": "What is rain?", "output": "Water &amp; air."},
]


def messy(tmp_path: Path) -> Path:
    path = write(tmp_path / "messy.jsonl", MESSY)
    path.write_text(path.read_text("utf-8") + '{"instruction": "broken\n', "utf-8")
    return path


def test_clean_puts_every_row_into_one_file_as_it_stands(tmp_path: Path) -> None:
    path, out = messy(tmp_path), tmp_path / "out"
    report = clean_files(CleanConfig(files=[str(path)], out=str(out)))
    assert rows_of(out / "clean.jsonl") == [MESSY[0], MESSY[2], MESSY[7]]
    gone = rows_of(out / "removed.jsonl")
    assert [row["row"] for row in gone] == [row["line"] for row in gone] == [2, 4, 5, 6, 7, 9]
    assert [row["reasons"][0]["rule"] for row in gone] == [
        "duplicate", "empty", "unreadable", "mojibake", "refusal", "unreadable",
    ]  # fmt: skip
    assert gone[0]["reasons"][0]["of"] == {"file": str(path), "line": 1, "row": 1}
    assert [row["value"] for row in gone[:-1]] == [MESSY[i] for i in (1, 3, 4, 5, 6)]
    assert gone[-1]["raw"] == '{"instruction": "broken'
    assert (report.rows, report.kept, report.removed) == (9, 3, 6)
    again = clean_files(CleanConfig(files=[str(out / "clean.jsonl")], out=str(tmp_path / "twice")))
    assert again.removed == 0
    assert (tmp_path / "twice/clean.jsonl").read_bytes() == (out / "clean.jsonl").read_bytes()


@pytest.mark.parametrize("seed", [1, 2])
def test_clean_on_random_rows_keeps_one_of_each_and_order(tmp_path: Path, seed: int) -> None:
    rows = random_rows(200, seed)
    path = write(tmp_path / "a.jsonl", rows)
    clean_files(CleanConfig(files=[str(path)], out=str(tmp_path / "out"), rules="duplicate"))
    first: dict[Any, Any] = {}
    for row in rows:
        first.setdefault((normal(row["instruction"]), normal(row["output"])), row)
    assert rows_of(tmp_path / "out/clean.jsonl") == list(first.values())
    assert [row["value"]["id"] for row in rows_of(tmp_path / "out/removed.jsonl")] == sorted(
        {row["id"] for row in rows} - {row["id"] for row in first.values()}
    )


def test_what_cannot_be_cleaned_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path, out = messy(tmp_path), tmp_path / "out"
    with pytest.raises(DataError, match=r"line 4 .* cannot be used, and --rules duplicate keeps it"):
        clean_files(CleanConfig(files=[str(path)], out=str(out), rules="duplicate"))
    unread = tmp_path / "cut.json"
    unread.write_text(json.dumps(MESSY)[:120])
    with pytest.raises(DataError, match="mend the file"):
        clean_files(CleanConfig(files=[str(unread)], out=str(out)))
    with pytest.raises(DataError, match="every one of the 1 rows"):
        clean_files(CleanConfig(files=[str(write(tmp_path / "b.jsonl", MESSY[6:7]))], out=str(out)))
    with pytest.raises(ConfigError, match="which this command reads"):
        clean_files(CleanConfig(files=[str(path)], out=str(tmp_path), force=True))
    for wrong in ({"threshold": 1.5}, {"max_chars": 0}, {"language": "xx"}, {"rules": "no"}):
        with pytest.raises(ConfigError):
            check(path, **wrong)
    assert not out.exists()


def test_a_copy_in_another_file_is_named_there(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl", MESSY[:1]), write(tmp_path / "two.jsonl", [*MESSY[7:], MESSY[1]])
    checked = check_files(CheckConfig(files=[str(one), str(two)], rules="duplicate"))
    [example] = checked.report(None).rules["duplicate"].examples
    assert (example.where, example.of) == (f"{two} line 2 (row 2)", f"{one} line 1 (row 1)")


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = messy(tmp_path)
    assert main(["data", "check", str(path), "--report", str(tmp_path / "all.json")]) == 1
    out = capsys.readouterr().out
    assert f"{path} line 6 (row 6): the answer holds 'Ã©'" in out
    assert f"of {path} line 1 (row 1): Name a colour. => Red is a colour." in out
    assert "8 of 9 rows broke a rule" in out
    assert json.loads((tmp_path / "all.json").read_text("utf-8"))["rules"]["unreadable"]["count"] == 2
    assert main(["data", "check", str(path), "--rules", "repetition,echo", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["flagged"] == 0
    assert "nothing found by: repetition, echo" in captured.err
    assert main(["data", "clean", str(path), "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 6
    assert main(["data", "check", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "prose.json").write_text("Once upon a time\nthere was a fox\n")
    assert main(["data", "check", str(tmp_path / "prose.json")]) == 2
    assert "neither JSON nor JSON Lines" in capsys.readouterr().err
    assert main(["data", "--help"]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in RULES)


@pytest.mark.parametrize("command", ["check", "clean", "split"])
def test_help_teaches_by_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", command, "--help"])
    out = capsys.readouterr().out
    assert f"minitune data {command} alpaca.json" in out
    assert "--columns" in out
    assert "--json" in out


SMALL = [
    ("en/gsm8k_test.jsonl", "instruction=question,output=answer"),
    ("en/instructions_1100.json", ""), ("en/numina_cot_sharegpt_1k.jsonl", ""),
    ("en/self_instruct_seed_tasks.jsonl", ""),
    ("zh/belle_seed_tasks.jsonl", ""), ("zh/sharegpt_zh_1k.jsonl", ""), ("text/tinystories_1000.json", ""),
    ("text/tang_poems_0.json", ""), ("text/sherlock.txt", ""), ("text/tinyshakespeare.txt", ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "columns"), SMALL)
def test_every_real_file_gets_a_report(material: Path, name: str, columns: str) -> None:
    report = check(material / "data" / name, columns=columns)
    assert report.rows > 0
    assert list(report.rules) == list(RULES)
    if name.startswith("text/tang"):  # poems, not instructions
        assert report.rules["unreadable"].count == report.rows
    elif name.startswith("text/tinystories"):  # these were decoded wrongly before they came here
        assert report.rules["mojibake"].count == report.flagged == 82
    elif "sharegpt_zh" not in name:
        assert report.flagged <= max(1, 0.03 * report.rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["en/alpaca.json", "zh/alpaca_zh.json", "en/gsm8k_train.jsonl"])
def test_large_real_files_in_under_a_minute(material: Path, name: str) -> None:
    started = time.perf_counter()
    report = check(material / "data" / name, columns="instruction=question,output=answer" if "gsm8k" in name else "")
    assert time.perf_counter() - started < 60
    assert report.flagged < 0.01 * report.rows
