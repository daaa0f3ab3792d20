"""A pull of a model: whole, resumed, cut, stalled, killed, with wrong bytes; never half a file under its name."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import (
    COMMIT,
    FETCHED,
    MODEL,
    REPO,
    TOKEN,
    WEIGHTS,
    Act,
    Hub,
    Waits,
    body,
    chunked,
    cut,
    fails,
    git_blob,
    pull,
    stall,
    status,
    statuses,
    visible,
    wrong_range,
)

from minitune import hub
from minitune.hub.fetch import fetch
from minitune.hub.listing import read_listing
from minitune.hub.web import Web


def test_a_pull_and_a_second_one(server: Hub, out: Path) -> None:
    report = pull(server, out)
    assert visible(out) == set(MODEL)
    assert statuses(report) == FETCHED
    assert report.commit == COMMIT
    assert report.size_bytes == report.missing_bytes == sum(map(len, MODEL.values()))
    digests = {file.name: file.digest for file in report.files}
    assert digests["model.safetensors"] == f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
    assert digests["config.json"] == f"git-sha1:{git_blob(MODEL['config.json'])['blobId']}"
    assert server.requests[0][0] == "/api/models/owner/name/revision/main?blobs=true"
    assert [path for path, _ in server.requests[1:]] == [
        f"/{REPO}/resolve/{COMMIT}/{file.name}" for file in report.files
    ]
    assert all(headers["Accept-Encoding"] == "identity" for _, headers in server.requests)
    record = json.loads((out / hub.RECORD).read_text())
    assert record["complete"] is True
    assert record["commit"] == COMMIT

    server.requests.clear()
    again = pull(server, out)
    assert statuses(again) == dict.fromkeys(MODEL, "already there")
    assert again.missing_bytes == 0
    assert len(server.requests) == 1


def test_a_prefix_and_a_revision_in_the_address(server: Hub, out: Path) -> None:
    pull(server, out, endpoint=f"{server.url}/hf/", revision="refs/pr/1")
    assert server.requests[0][0] == "/hf/api/models/owner/name/revision/refs%2Fpr%2F1?blobs=true"
    assert server.requests[1][0] == f"/hf/owner/name/resolve/{COMMIT}/config.json"


def test_the_endpoint_and_token_of_the_environment(server: Hub, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    pull(server, out, endpoint=None, token=None)
    assert all(headers["Authorization"] == f"Bearer {TOKEN}" for _, headers in server.requests)


def test_shards_are_those_the_index_names(server: Hub, out: Path) -> None:
    shards = {"model-00001-of-00002.safetensors": WEIGHTS[:1000], "model-00002-of-00002.safetensors": WEIGHTS[1000:]}
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, **shards}
    server.set(files | {"consolidated.safetensors": WEIGHTS})
    report = pull(server, out)
    assert visible(out) == set(files)
    assert report.left_out == ("consolidated.safetensors",)

    shutil.rmtree(out)
    del server.files["model-00002-of-00002.safetensors"]
    server.set(server.files)
    fails(server, out, "names 'model-00002-of-00002.safetensors', which is not there")
    for bad in ("../x.safetensors", "sub/x.safetensors", "x.bin", "a\\x.safetensors", 3, None, ["x"], {}):
        server.set({"model.safetensors.index.json": json.dumps({"weight_map": {"a": bad}}).encode()})
        fails(server, out, "not a safetensors file beside it")
    for text in (b"[]", b"nothing", b'{"weight_map": []}', b'{"weight_map": {}}', b'{"a": ' * 100_000):
        server.set({"model.safetensors.index.json": text})
        fails(server, out, "index.json")
    assert not out.exists()


def test_an_index_with_wrong_bytes_or_too_many(server: Hub, out: Path) -> None:
    index = b'{"weight_map": {"a": "model-1.safetensors"}}'
    server.set({"model.safetensors.index.json": index, "model-1.safetensors": b"1"})
    server.acts["model.safetensors.index.json"] = [body(lambda data: data.replace(b"-1", b"-2"))]
    fails(server, out, "other bytes than listed")
    server.acts["model.safetensors.index.json"] = [body(lambda data: data + b" ")]
    fails(server, out, "longer than")


def test_a_cut_is_mended_where_it_happened(server: Hub, out: Path) -> None:
    server.acts["model.safetensors"] = [cut(1_200_000), cut(1_000_000)]
    waits = Waits()
    events: list[hub.Progress] = []
    report = pull(server, out, sleep=waits, progress=events.append)
    ranges = [headers.get("Range") for headers in server.asked("model.safetensors")]
    assert ranges == [None, "bytes=1200000-", "bytes=2200000-"]
    assert server.asked("model.safetensors")[1]["If-Range"] == '"v1"'
    assert statuses(report)["model.safetensors"] == "fetched"
    assert waits == [1.0, 2.0]
    assert next(event.note for event in events if event.note).endswith(
        "cut off after 1200000 of 3000001 bytes; trying again in 1 s"
    )
    assert events[-1].done_bytes == events[-1].size_bytes == report.size_bytes


def test_tries_are_counted_anew_when_much_has_come(server: Hub, out: Path) -> None:
    server.acts["model.safetensors"] = [cut(1 << 20), cut(0), cut(1 << 20), cut(0)]
    waits = Waits()
    pull(server, out, sleep=waits, retries=2)
    assert waits == [1.0, 2.0, 1.0, 2.0]


def test_a_later_pull_resumes(server: Hub, out: Path) -> None:
    server.acts["model.safetensors"] = [cut(1_200_000)]
    said = fails(server, out, "cut off after 1200000 of 3000001 bytes; gave up after 1 tries", retries=0)
    assert "what has arrived well is kept, and the same command goes on from there" in said
    assert (out / "model.safetensors.part").stat().st_size == 1_200_000
    assert not (out / "model.safetensors").exists()
    server.requests.clear()
    report = pull(server, out)
    assert statuses(report) == {"config.json": "already there", "tokenizer.json": "already there"} | {
        "model.safetensors": "resumed"
    }
    assert report.missing_bytes == len(WEIGHTS) - 1_200_000
    assert [headers["Range"] for headers in server.asked("model.safetensors")] == ["bytes=1200000-"]
    assert visible(out) == set(MODEL)


@pytest.mark.parametrize(
    "damage", ["other bytes", "no sidecar", "broken sidecar", "another file's", "too long", "complete"]
)
def test_a_part_that_is_not_to_be_trusted(server: Hub, out: Path, damage: str) -> None:
    server.acts["model.safetensors"] = [cut(1_200_000)]
    fails(server, out, "cut off", retries=0)
    part, sidecar = out / "model.safetensors.part", out / "model.safetensors.part.json"
    if damage == "other bytes":
        part.write_bytes(b"0" * 1_200_000)
    elif damage == "no sidecar":
        sidecar.unlink()
    elif damage == "broken sidecar":
        sidecar.write_text("{")
    elif damage == "another file's":
        sidecar.write_text(sidecar.read_text().replace("3000001", "3000002"))
    elif damage == "too long":
        part.write_bytes(WEIGHTS + b"x")
    else:
        part.write_bytes(WEIGHTS)
    server.requests.clear()
    pull(server, out)
    assert visible(out) == set(MODEL)
    # What is not known to be a part of this file is not gone on with; what is, is, and the hash tells.
    first = [headers.get("Range") for headers in server.asked("model.safetensors")][:1]
    assert first == {"other bytes": ["bytes=1200000-"], "complete": []}.get(damage, [None])


def test_a_server_without_ranges(server: Hub, out: Path) -> None:
    server.acts["model.safetensors"] = [cut(1_200_000), body(lambda data: data)]
    pull(server, out)
    assert [headers.get("Range") for headers in server.asked("model.safetensors")] == [None, "bytes=1200000-"]


@pytest.mark.parametrize(
    "act",
    [
        status(416),
        wrong_range("bytes 1000-3000000/3000001"),
        wrong_range("bytes 1200000-3000000/3000002"),
        wrong_range("bytes 1200000-2000000/3000001"),
        wrong_range("bytes */3000001"),
        wrong_range("nonsense"),
        wrong_range(""),
    ],
)
def test_an_answer_to_a_range_that_does_not_fit_starts_anew(server: Hub, out: Path, act: Act) -> None:
    server.acts["model.safetensors"] = [cut(1_200_000), act]
    pull(server, out)
    assert [headers.get("Range") for headers in server.asked("model.safetensors")] == [None, "bytes=1200000-", None]


def test_a_range_nobody_asked_for(server: Hub, out: Path) -> None:
    server.acts["model.safetensors"] = [wrong_range("bytes 0-3000000/3000001")]
    fails(server, out, "an answer of no use .206")
    server.acts["model.safetensors"] = [status(416)]
    fails(server, out, "refuses to send it .416")


def test_a_server_that_never_gets_on_is_given_up(server: Hub, out: Path) -> None:
    # It cuts where it goes on, and goes on where it cuts: without a high-water mark this would not end.
    server.acts["model.safetensors"] = [cut(1_500_000), status(416)] * 50
    waits = Waits()
    fails(server, out, "gave up after 6 tries", sleep=waits)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_a_listing_that_is_cut_is_asked_for_again(server: Hub, out: Path) -> None:
    server.acts[""] = [cut(10), cut(200)]
    waits = Waits()
    pull(server, out, sleep=waits)
    assert waits == [1.0, 2.0]


def test_a_stall_ends_in_time(server: Hub, out: Path) -> None:
    server.acts["model.safetensors"] = [stall(1_200_000)]
    pull(server, out, timeout_s=0.3)
    assert server.asked("model.safetensors")[1]["Range"] == "bytes=1200000-"
    server.acts[""] = [stall(10)]
    fails(server, out, "no answer in time", timeout_s=0.3, retries=0)


def test_without_a_length(server: Hub, out: Path) -> None:
    server.acts["model.safetensors"] = [chunked(WEIGHTS)]
    pull(server, out)
    shutil.rmtree(out)
    server.acts["model.safetensors"] = [chunked(WEIGHTS + b"more")]
    fails(server, out, "goes on after its 3000001 bytes")
    assert visible(out) == {"config.json", "tokenizer.json"}
    server.acts["model.safetensors"] = [chunked(WEIGHTS[:-1])]
    pull(server, out)


def test_a_killed_pull_leaves_a_part_and_never_the_name(server: Hub, out: Path) -> None:
    server.acts["model.safetensors"] = [stall(1_200_000)]
    code = f"from minitune.hub import pull; pull({REPO!r}, {str(out)!r}, endpoint={server.url!r})"
    part = out / "model.safetensors.part"
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(hub.__file__).parents[2]) as process:
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size > 1_000_000):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        fails(server, out, "another pull is writing there")
        process.kill()
    assert not (out / "model.safetensors").exists()
    report = pull(server, out)
    assert statuses(report)["model.safetensors"] == "resumed"


def test_wrong_bytes_are_fetched_again_once(server: Hub, out: Path) -> None:
    wrong = body(lambda data: b"0" + data[1:])
    server.acts["model.safetensors"] = [wrong]
    pull(server, out)
    shutil.rmtree(out)
    server.acts["model.safetensors"] = [wrong, wrong]
    fails(server, out, "came, twice, but not those of its sha256")
    assert visible(out) == {"config.json", "tokenizer.json"}
    shutil.rmtree(out)
    server.acts["config.json"] = [wrong, wrong]
    fails(server, out, "not those of its git-sha1")


@pytest.mark.parametrize("change", [lambda data: data + b"x", lambda data: data[:-1], lambda data: b""])
def test_a_size_that_is_not_the_listed_one(server: Hub, out: Path, change: Callable[[bytes], bytes]) -> None:
    server.acts["model.safetensors"] = [body(change)]
    fails(server, out, "announces .* bytes where 3000001 are missing")
    assert not (out / "model.safetensors").exists()


def test_compressed_answers_are_refused(server: Hub, out: Path) -> None:
    server.acts["config.json"] = [body(lambda data: data, Content_Encoding="gzip")]
    fails(server, out, "comes compressed")
    server.acts[""] = [body(lambda data: data, Content_Encoding="br")]
    fails(server, out, "comes compressed")
    server.acts["config.json"] = [body(lambda data: data, Content_Encoding="identity")]
    pull(server, out)


def test_an_empty_file(server: Hub, out: Path) -> None:
    server.set(MODEL | {"merges.txt": b""})
    pull(server, out)
    assert (out / "merges.txt").read_bytes() == b""


def test_a_reader_of_our_output_that_has_gone_is_not_the_disk(server: Hub, out: Path) -> None:
    def gone(event: hub.Progress) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        pull(server, out, progress=gone)


def test_a_host_that_hands_the_token_back(server: Hub, out: Path) -> None:
    server.listing["siblings"] = [{"rfilename": f"{TOKEN}.bin"}]
    fails(server, out, r"'\*\*\*.bin'")


def test_one_file_can_be_fetched_alone(server: Hub, tmp_path: Path) -> None:
    want = read_listing(json.dumps(server.listing).encode(), "here").file("config.json")
    sizes: list[int] = []
    asked = Web(endpoint=server.url)
    assert fetch(asked, f"{server.url}/config.json", tmp_path, want, sizes.append) == "fetched"
    assert sizes == [0, want.size_bytes]
