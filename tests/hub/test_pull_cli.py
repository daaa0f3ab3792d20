"""``minitune pull`` as typed: what is printed where, and one line for what a user can mend."""

import json
from pathlib import Path

import pytest
from hub_server import MODEL, REPO, TOKEN, Hub, cut, status
from rich.console import Console

from minitune import cli
from minitune.cli import main
from minitune.cli import pull as command


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch, server: Hub, tmp_path: Path) -> None:
    monkeypatch.setitem(cli.COMMANDS, "pull", "fetch an open model")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)


def test_a_pull_says_what_lies_where(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["pull", REPO]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[-1] == f"try: minitune info {Path('models', 'name')}"
    assert "at commit 0123456789ab, every file checked, in " in lines[-2]
    assert any(line.startswith("model.safetensors ") and "3.0 MB  fetched, sha256:" in line for line in lines)
    assert any(line.startswith("3.0 MB of 3.0 MB ") and line.endswith("model.safetensors") for line in lines)
    assert {path.name for path in (tmp_path / "models" / "name").iterdir()} > set(MODEL)
    assert main(["pull", REPO, "--quiet"]) == 0
    out, _ = capsys.readouterr()
    assert out.count("already there, ") == len(MODEL)
    assert len(out.splitlines()) == len(MODEL) + 2


def test_json_is_the_last_line_and_the_rest_is_for_people(
    server: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server.acts["config.json"] = [status(503, Retry_After="0")]
    folder = tmp_path / "a folder"
    assert main(["pull", REPO, "--out", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["folder"] == str(folder)
    assert [file["name"] for file in report["files"]] == list(MODEL)
    assert "trying again in 0 s" in err
    assert f"try: minitune info '{folder}'" in err


def test_a_live_bar_on_a_terminal(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server.acts["config.json"] = [status(503, Retry_After="0")]
    with (tmp_path / "screen").open("w+", encoding="utf-8") as screen:
        console = Console(file=screen, force_terminal=True, width=200, highlight=False)
        monkeypatch.setattr(command, "Console", lambda **options: console)
        assert main(["pull", REPO]) == 0
        screen.seek(0)
        shown = screen.read()
    assert "trying again in 0 s" in shown
    assert "3.0/3.0 MB" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["owner/name/x"], "expected owner/name"),
        ([], "REPO"),
        ([REPO, "--endpoint", "hub.test"], "is not an address of a hub"),
        ([REPO, "--revison", "main"], "did you mean --revision?"),
        ([REPO, "--revision", "a b"], "expected a branch, a tag or a commit"),
    ],
)
def test_what_a_user_can_get_wrong(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["pull", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("minitune: ")
    assert err.count("\n") == 1
    assert said in err


def test_a_failed_pull_goes_on_by_the_same_command(
    server: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.acts["model.safetensors"] = [cut(1_200_000), status(403)]
    monkeypatch.setattr("minitune.hub.web.MAX_WAIT_S", 0.0)
    assert main(["pull", REPO, "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "may not read it: accept the licence" in err
    assert "the same command goes on from there" in err
    assert TOKEN not in err
    assert main(["pull", REPO]) == 0
    out, _ = capsys.readouterr()
    assert "resumed, sha256:" in out


def test_the_help_names_what_the_environment_decides(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pull", "--help"])
    out, _ = capsys.readouterr()
    assert "HF_TOKEN" in out
    assert "HF_ENDPOINT" in out
