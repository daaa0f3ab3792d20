"""The folder a model is pulled into: nothing of someone else is overwritten, nothing goes through a link."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from hub_server import MODEL, REPO, WEIGHTS, Hub, cut, fails, pull, statuses, visible

from minitune import hub


def test_files_of_someone_else_are_never_overwritten(server: Hub, out: Path) -> None:
    out.mkdir(parents=True)
    (out / "config.json").write_text("mine")
    fails(server, out, "config.json: is there already and is not the one of owner/name")
    assert (out / "config.json").read_text() == "mine"
    (out / "config.json").unlink()
    (out / "tokenizer.model").write_text("another model's")
    fails(server, out, "tokenizer.model: is no part of owner/name")
    assert visible(out) == {"tokenizer.model"}
    (out / "tokenizer.model").rename(out / "notes.txt")
    pull(server, out)
    assert visible(out) == {*MODEL, "notes.txt"}
    # The same size is not the same file.
    (out / "model.safetensors").write_bytes(b"0" + WEIGHTS[1:])
    fails(server, out, "model.safetensors: is there already and is not the one")


def test_files_of_an_earlier_commit_are_replaced(server: Hub, out: Path) -> None:
    pull(server, out)
    server.set(MODEL | {"config.json": b"newer", "model.safetensors": WEIGHTS[::-1]})
    server.acts["model.safetensors"] = [cut(10)]
    fails(server, out, "cut off", retries=0)
    assert json.loads((out / hub.RECORD).read_text())["complete"] is False
    assert (out / "model.safetensors").read_bytes() == WEIGHTS
    assert statuses(pull(server, out)) == {
        "config.json": "already there",
        "tokenizer.json": "already there",
        "model.safetensors": "resumed",
    }


def test_a_pull_that_stops_between_two_commits_knows_both(server: Hub, out: Path) -> None:
    pull(server, out)
    server.set(MODEL | {"config.json": b"newer", "tokenizer.json": b"newer too"})
    server.acts["tokenizer.json"] = [cut(2)]
    fails(server, out, "cut off", retries=0)
    server.set(MODEL | {"config.json": b"newest", "tokenizer.json": b"newest too"})
    pull(server, out)
    assert (out / "config.json").read_bytes() == b"newest"


def test_a_record_of_something_else_is_no_leave_to_overwrite(server: Hub, out: Path) -> None:
    pull(server, out)
    right = (out / hub.RECORD).read_text()
    server.set(MODEL | {"config.json": b"newer"})
    texts = [
        "{",
        "[]",
        '{"repo": "owner/name", "files": [{"name": "config.json"}]}',
        '{"repo": "owner/name", "files": 3}',
    ]
    for text in [*texts, right.replace(REPO, "owner/other"), right.replace('"name": "', '"name": "x')]:
        (out / hub.RECORD).write_text(text)
        fails(server, out, "is there already")
        assert (out / "config.json").read_bytes() == MODEL["config.json"]


@pytest.mark.parametrize("name", ["config.json", "config.json.part", "config.json.part.json", hub.RECORD])
def test_nothing_is_written_through_a_link(server: Hub, out: Path, name: str, tmp_path: Path) -> None:
    out.mkdir(parents=True)
    for target in (tmp_path / "outside", tmp_path / "absent"):
        (tmp_path / "outside").write_text("precious")
        (out / name).symlink_to(target)
        fails(server, out, f"{re.escape(name)}: is ")
        assert (tmp_path / "outside").read_text() == "precious"
        assert not (tmp_path / "absent").exists()
        (out / name).unlink()


def test_a_link_to_the_right_bytes_is_kept(server: Hub, out: Path, tmp_path: Path) -> None:
    out.mkdir(parents=True)
    (tmp_path / "store").write_bytes(WEIGHTS)
    (out / "model.safetensors").symlink_to(tmp_path / "store")
    assert statuses(pull(server, out))["model.safetensors"] == "already there"
    assert (out / "model.safetensors").is_symlink()


def test_a_folder_that_cannot_be_used(server: Hub, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.parent.write_text("a file")
    fails(server, out, "cannot be read or written")
    out.parent.unlink()
    out.mkdir(parents=True)
    (out / "config.json.part").mkdir()
    fails(server, out, "no plain file")
    (out / "config.json.part").rmdir()
    (out / "config.json").mkdir()
    fails(server, out, "is there already")
    (out / "config.json").rmdir()
    usage = shutil.disk_usage(out)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=len(WEIGHTS) - 1))
    fails(server, out, "GiB are still to come and the disk has .* free")
    assert not server.asked("config.json")
    shutil.rmtree(out)
    out.write_text("a file")
    fails(server, out, "is a file")


def test_a_full_disk(server: Hub, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    fails(server, out, "No space left on device")
    assert visible(out) <= {"config.json.part", "config.json.part.json"}
