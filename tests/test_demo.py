"""The demo: the main job from start to end, by the code of sft, measured on what was held out."""

import json
from pathlib import Path

import pytest

from minitune.cli import main
from minitune.data.world import KINDS, tasks
from minitune.jobs import demo as job
from minitune.plot import text_plot


def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "TRAIN_ROWS", 72)
    monkeypatch.setattr(job, "TEST_ROWS", 36)
    monkeypatch.setattr(job, "SETTINGS", job.SETTINGS | {"epochs": 1.0})


def test_a_short_demo_tells_and_writes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The contract's JSON document is the last line, the numbers in it are those of the files."""
    shortened(monkeypatch)
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--json", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out.splitlines()[-1])
    assert {"exact_match_before", "exact_match_after", "seconds", "run"} <= set(found)
    assert found["run"] == str(out / "run")
    assert found == json.loads((out / "demo.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (out / "after.jsonl").read_text(encoding="utf-8").splitlines()]
    assert found["exact_match_after"] == sum(line["exact"] for line in lines) / 36
    test = [json.loads(line) for line in (out / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert test == [task.row for task in tasks(36, seed=1, test=True)]
    for word in ("before", "after", "loss of every step", "exact answers", "minitune generate"):
        assert word in printed.err
    assert any("\u4e00" < c < "\u9fff" for c in printed.err), "no answer in Chinese is shown"
    # The command that it names is one that sft takes, with the settings that it used.
    command = next(line for line in printed.err.splitlines() if "minitune sft --model tiny" in line).split()
    assert command[command.index("--lr") + 1] == str(job.SETTINGS["lr"])
    assert command[command.index("--max-length") + 1] == str(job.SETTINGS["max_length"])


def test_a_second_demo_does_not_touch_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert job._folder("") == tmp_path / "runs" / "demo"
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert job._folder("") == tmp_path / "runs" / "demo-2"
    (tmp_path / "runs" / "demo" / "x").write_text("x")
    assert main(["demo", "--out", "runs/demo"]) == 2


def test_no_row_of_the_test_is_trained_on() -> None:
    trained = {(task.instruction, task.input) for task in tasks(job.TRAIN_ROWS, seed=0)}
    assert not trained & {(task.instruction, task.input) for task in tasks(job.TEST_ROWS, seed=1, test=True)}


def test_the_plot_falls_as_the_losses_do() -> None:
    """Full blocks stand in the first column from top to bottom, and only in the lowest line of the last."""
    lines = [line.partition("|")[2] for line in text_plot([8.0, 6.0, 4.0, 2.0, 0.0], height=4).splitlines()[:4]]
    assert [line[:1] for line in lines] == ["\u2588"] * 4
    assert [len(line) for line in lines] == sorted(len(line) for line in lines)
    assert len(lines[-1]) == 5
    assert text_plot([1.0, 1.0]) != ""
    assert text_plot([]) == ""


@pytest.mark.slow
def test_the_demo_teaches_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The promise: near 0 % before, at least 85 % after, and no kind of task at chance."""
    assert main(["demo", "--out", str(tmp_path / "demo"), "--json", "--quiet", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["exact_match_before"] < 0.05
    assert found["exact_match_after"] >= 0.85
    assert set(found["by_kind"]) == set(KINDS)
    assert min(found["by_kind"].values()) >= 0.6, found["by_kind"]


@pytest.mark.slow
def test_the_same_tuning_from_random_weights_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The control: what the rows teach by themselves stays below 25 %."""
    words = ["demo", "--control", "--out", str(tmp_path / "demo"), "--json", "--quiet", "--device", "cpu"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["exact_match_after"] < 0.25
