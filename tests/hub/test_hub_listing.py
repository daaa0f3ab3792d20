"""What is chosen of a repository; names, sizes and hashes from a server are not believed."""

import copy
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, MODEL, Hub, chunked, fails, lfs, listing, pull, visible

from minitune import hub
from minitune.hub import HubError
from minitune.hub.listing import Choice, choose, read_listing


def chosen(*names: str) -> Choice:
    return choose(read_listing(json.dumps(listing(dict.fromkeys(names, b"x"))).encode(), "here"))


def test_what_is_chosen() -> None:
    small = ["LICENSE", "LICENSE.txt", "README.md", "adapter_config.json", "added_tokens.json", "chat_template.jinja"]
    small += ["chat_template.json", "config.json", "generation_config.json", "merges.txt", "qwen.tiktoken"]
    small += ["special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    small += ["vocab.json"]
    never = ["pytorch_model.bin", "model.pth", "model.pt", "a.pkl", "tf_model.h5", "flax_model.msgpack", "model.gguf"]
    never += ["modeling.py", ".gitattributes", "onnx/model.safetensors", "original/consolidated.safetensors"]
    never += ["original/tokenizer.model", "training_args.bin", "run.sh"]
    choice = chosen(*never, *small, "consolidated.safetensors", "model.safetensors", "model.safetensors.index.json")
    assert [file.name for file in choice.files] == [*small, "model.safetensors"]
    assert choice.left_out == ("consolidated.safetensors",)
    assert [
        file.name for file in chosen("adapter_model.safetensors", "adapter_config.json", "adapter_model.bin").files
    ] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert [file.name for file in chosen("consolidated.safetensors").files] == ["consolidated.safetensors"]
    assert [file.name for file in chosen("b.safetensors", "a b.safetensors").files] == [
        "a b.safetensors",
        "b.safetensors",
    ]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["config.json", "pytorch_model.bin"],
            "a pickle .'pytorch_model.bin'., which can run code and is never fetched",
        ),
        (["model.pth"], "pickle"),
        (["adapter_config.json", "adapter_model.bin"], "pickle"),
        (["model-q4.gguf", "README.md"], "only 'model-q4.gguf'"),
        (["config.json", "sub/model.safetensors"], "has no weights at its top level"),
        ([], "has no weights"),
    ],
)
def test_a_repository_without_safetensors(server: Hub, out: Path, names: list[str], words: str) -> None:
    server.set(dict.fromkeys(names, b"x"))
    fails(server, out, words)
    assert not out.exists()


ESCAPES = [
    "../model.safetensors",
    "../../config.json",
    "a/../../tokenizer.json",
    "/etc/tokenizer.json",
    "/model.safetensors",
    "./config.json",
    "a//config.json",
    "..\\config.json",
    "a\\b.safetensors",
    "\\\\host\\share\\config.json",
    "C:model.safetensors",
    "C:\\model.safetensors",
    "config.json:stream.safetensors",
    "a\n.safetensors",
    "\x1b[2Jmodel.safetensors",
    "model\0.safetensors",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_a_name_that_leads_out(server: Hub, out: Path, name: str, tmp_path: Path) -> None:
    server.listing["siblings"].append({"rfilename": name, **lfs(b"x")})
    said = fails(server, out, "leads out of its folder")
    assert said.isprintable()
    assert not list(tmp_path.iterdir())


def test_names_that_are_never_fetched_do_no_harm(server: Hub, out: Path, tmp_path: Path) -> None:
    for name in ("../x", "/etc/x", "a\\b", "C:x", "", "..", "/", "x\n", "logs/run:1.txt"):
        server.listing["siblings"].append({"rfilename": name})
    pull(server, out)
    assert visible(out) == set(MODEL)
    assert {path.name for path in tmp_path.iterdir()} == {"models"}


@pytest.mark.parametrize(
    "name", [".safetensors", " a.safetensors", "nul.safetensors", "COM1.x.safetensors", "a*.safetensors"]
)
def test_a_name_no_disk_should_have(name: str) -> None:
    with pytest.raises(HubError, match="no file here may be called"):
        chosen(name)


def test_names_that_are_one_file_on_many_disks(server: Hub, out: Path) -> None:
    files = {"A.safetensors": b"1", "a.safetensors": b"2"}
    server.set(files)
    fails(server, out, "lists both 'A.safetensors' and 'a.safetensors'")
    server.set(MODEL)
    server.listing["siblings"] *= 2
    fails(server, out, "lists both 'config.json' and 'config.json'")
    assert not out.exists()


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>sign in to this network</html>",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"sha": ' + b"1" * 10_000 + b"}",
        b'{"siblings": []}',
        b'{"sha": "main", "siblings": []}',
        json.dumps({"sha": COMMIT}).encode(),
        json.dumps({"sha": COMMIT, "siblings": {}}).encode(),
        json.dumps({"sha": COMMIT, "siblings": ["config.json"]}).encode(),
        json.dumps({"sha": COMMIT, "siblings": [{"rfilename": 1}]}).encode(),
        json.dumps({"sha": COMMIT + "/../..", "siblings": []}).encode(),
    ],
)
def test_a_listing_that_is_none(server: Hub, out: Path, answer: bytes) -> None:
    server.answer = answer
    fails(server, out, "owner/name at 127.0.0.1")
    assert not out.exists()


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"size": 3},
        {"size": -1, "blobId": "a" * 40},
        {"size": True, "blobId": "a" * 40},
        {"size": 1e3, "blobId": "a" * 40},
        {"size": 1 << 60, "blobId": "a" * 40},
        {"size": 3, "blobId": "A" * 40},
        {"size": 3, "blobId": "a" * 40, "lfs": {}},
        {"size": 3, "blobId": "a" * 40, "lfs": [1]},
        {"size": 3, "lfs": {"size": 3, "sha256": "a" * 40}},
        {"size": 3, "lfs": {"size": "3", "sha256": "a" * 64}},
    ],
)
def test_a_file_that_could_not_be_checked(server: Hub, out: Path, entry: dict[str, Any]) -> None:
    server.listing["siblings"].append({"rfilename": "merges.txt"} | entry)
    fails(server, out, "'merges.txt'")
    assert not out.exists()


def test_a_listing_without_end(server: Hub, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_JSON_BYTES", 100_000)
    server.answer = json.dumps(server.listing | {"more": "x" * 200_000}).encode()
    fails(server, out, "longer than 100000 bytes")
    server.acts[""] = [chunked(server.answer)]
    fails(server, out, "longer than 100000 bytes")


def mutated(value: Any, rng: random.Random) -> Any:
    """``value`` with one thing in it replaced, removed or doubled."""
    junk = [
        None,
        True,
        -1,
        0,
        1 << 70,
        1.5,
        "",
        "../x",
        "\ud800",
        "model.safetensors",
        [],
        {},
        [[]],
        {"size": {}},
        "a" * 64,
    ]
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            collect(node[key])

    collect(value)
    node, key = rng.choice(places)
    action = rng.randrange(4)
    if action == 0:
        del node[key]
    elif action == 1 and isinstance(node, list):
        node.append(rng.choice(junk + node))
    else:
        node[key] = rng.choice(junk)
    return value


def test_any_listing_gives_a_choice_or_one_line() -> None:
    rng = random.Random(1)
    names = ["config.json", "model.safetensors", "LICENSE", "adapter_model.safetensors", "model.safetensors.index.json"]
    good = listing({name: name.encode() for name in names})
    errors = 0
    for _ in range(600):
        value = good
        for _ in range(rng.randrange(1, 4)):
            value = mutated(value, rng)
        data = bytearray(json.dumps(value).encode())
        if rng.random() < 0.2:
            data[rng.randrange(len(data))] = rng.randrange(256)
        said = ""
        try:
            choice = choose(read_listing(bytes(data), "here"))
        except HubError as error:
            said = str(error)
            errors += 1
        else:
            assert all(re.fullmatch(r"[\w.-]+", file.name) for file in choice.files)
        assert "\n" not in said
    assert 50 < errors < 550


@pytest.mark.parametrize(
    "repo", ["", "/", "a/b/c", "../x", "a/..", "a/b?x", "a b", "-a", "https://hub.test/a/b", "a/\n", "é"]
)
def test_a_repo_that_cannot_be(server: Hub, out: Path, repo: str) -> None:
    fails(server, out, "REPO is .*expected owner/name", repo=repo)
    assert not server.requests


@pytest.mark.parametrize("revision", ["", "a b", "../main", "-x", "a?b", "a\n", "x" * 300])
def test_a_revision_that_cannot_be(server: Hub, out: Path, revision: str) -> None:
    fails(server, out, "--revision is ", revision=revision)
    assert not server.requests


@pytest.mark.parametrize(
    "endpoint",
    [
        "hub.test",
        "ftp://hub.test",
        "https://",
        "https://me:pw@hub.test",
        "https://hub.test:x",
        "https://h/?a=b",
        "http://a b",
    ],
)
def test_an_endpoint_that_is_none(server: Hub, out: Path, endpoint: str) -> None:
    assert "pw" not in fails(server, out, "--endpoint", endpoint=endpoint)


def test_a_token_that_is_none(server: Hub, out: Path) -> None:
    for token in ("two words", "a\r\nHost: evil", "\u00fc"):
        assert token not in fails(server, out, "HF_TOKEN: has characters", token=token)
