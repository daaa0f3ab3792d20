"""A hub on this machine that misbehaves in every way one can, and a pull from it."""

import contextlib
import hashlib
import http.client
import http.server
import json
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minitune import hub
from minitune.hub import HubError, PullReport

REPO = "owner/name"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_0123456789secret"
RNG = random.Random(0)
WEIGHTS = RNG.randbytes(3_000_001)
MODEL = {"config.json": b'{"model_type": "llama"}\n', "tokenizer.json": b'{"model": {}}', "model.safetensors": WEIGHTS}
FETCHED = dict.fromkeys(MODEL, "fetched")
Act = Callable[["Handler", bytes], object]


def lfs(data: bytes) -> dict[str, Any]:
    return {
        "size": len(data),
        "blobId": "f" * 40,
        "lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134},
    }


def git_blob(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}


def listing(files: dict[str, bytes]) -> dict[str, Any]:
    """What the API says about ``files``: safetensors as large files, the others as git blobs."""
    entries = [
        {"rfilename": name, **(lfs(data) if name.endswith(".safetensors") else git_blob(data))}
        for name, data in files.items()
    ]
    return {"id": REPO, "sha": COMMIT, "private": False, "siblings": entries}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> "Hub":
        assert isinstance(self.server, Hub)
        return self.server

    def do_GET(self) -> None:
        self.close_connection = True
        self.hub.requests.append((self.path, dict(self.headers)))
        path = self.path.partition("?")[0]
        if "/api/models/" in path:
            name, data = "", self.hub.answer or json.dumps(self.hub.listing).encode()
        else:
            name = path.rpartition("/")[2]
            data = self.hub.files.get(name)
        acts = self.hub.acts.get(name, [])
        if acts:
            acts.pop(0)(self, data or b"")
        elif data is None:
            self.reply(404, b"no", {"X-Error-Code": "EntryNotFound"})
        else:
            serve(self, data)

    def do_CONNECT(self) -> None:
        self.close_connection = True
        self.hub.requests.append((self.path, dict(self.headers)))
        self.reply(407, b"")

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        headers = {"Content-Length": str(len(body))} | (headers or {})
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Hub(http.server.ThreadingHTTPServer):
    """A hub with one repository; ``acts`` are answers given before it behaves, by file name ("" is the listing)."""

    daemon_threads = False

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.listing, self.answer = dict(files), listing(files), b""
        self.acts: dict[str, list[Act]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, name: str) -> list[dict[str, str]]:
        """The headers of every request for one file."""
        return [headers for path, headers in self.requests if path.endswith(f"/{name}")]

    def set(self, files: dict[str, bytes]) -> None:
        self.files, self.listing = dict(files), listing(files)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that hangs up is what many of these tests are about.
        assert isinstance(sys.exc_info()[1], ConnectionError)


# ---- ways to answer


def serve(handler: Handler, data: bytes) -> None:
    """As a good server does, ranges included."""
    found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    etag = {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}
    if not found:
        handler.reply(200, data, etag)
    elif int(found[1]) >= len(data):
        handler.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
    else:
        start = int(found[1])
        handler.reply(206, data[start:], etag | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})


def cut(after: int) -> Act:
    """Announce everything, send ``after`` bytes of it, hang up."""

    def act(handler: Handler, data: bytes) -> None:
        found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        headers = {"Content-Length": str(len(data) - start), "ETag": '"v1"'}
        if found:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        handler.reply(206 if found else 200, data[start : start + after], headers)

    return act


def status(code: int, **headers: str) -> Act:
    return lambda handler, data: handler.reply(code, b"<p>no</p>", {k.replace("_", "-"): v for k, v in headers.items()})


def body(change: Callable[[bytes], bytes], **headers: str) -> Act:
    """Another body than asked for, with status 200."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, data: handler.reply(200, change(data), named)


def redirect(to: str, code: int = 302) -> Act:
    return lambda handler, data: handler.reply(code, b"", {"Location": to})


def stall(after: int) -> Act:
    """Send some bytes, then nothing until the test is over."""

    def act(handler: Handler, data: bytes) -> None:
        handler.reply(200, data[:after], {"Content-Length": str(len(data))})
        handler.wfile.flush()
        handler.hub.released.wait(20)

    return act


def wrong_range(content_range: str) -> Act:
    return lambda handler, data: handler.reply(206, data[1000:], {"Content-Range": content_range})


def chunked(data: bytes) -> Act:
    """In chunks, so without a length."""

    def act(handler: Handler, _: bytes) -> None:
        pieces = [data[at : at + 100_000] for at in range(0, len(data), 100_000)] + [b""]
        handler.reply(
            200,
            b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces),
            {"Transfer-Encoding": "chunked", "Content-Length": ""},
        )

    return act


# ---- a hub to ask


@contextlib.contextmanager
def running(files: dict[str, bytes]) -> Iterator[Hub]:
    server = Hub(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Waits(list[float]):
    """Instead of sleeping."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def pull(server: Hub, out: Path, **options: Any) -> PullReport:
    """A pull that does not wait; whatever comes of it, no file there is half one or a wrong one."""
    options = {"token": TOKEN, "sleep": Waits(), "timeout_s": 5.0, "endpoint": server.url} | options
    before = list(out.iterdir()) if out.is_dir() else []
    try:
        return hub.pull(options.pop("repo", REPO), out, **options)
    finally:
        for path in out.iterdir() if out.is_dir() else ():
            if path.name in server.files and path not in before and path.is_file():
                assert path.read_bytes() == server.files[path.name]


def fails(server: Hub, out: Path, words: str, **options: Any) -> str:
    with pytest.raises(HubError) as caught:
        pull(server, out, **options)
    said = str(caught.value)
    assert re.search(words, said), said
    assert TOKEN not in said
    assert "\n" not in said
    return said


def statuses(report: PullReport) -> dict[str, str]:
    return {file.name: file.status for file in report.files}


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}
