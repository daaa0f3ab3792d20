"""One file of a repository onto the disk: whole and checked under its name, or unfinished beside it.

What arrives goes into ``NAME.part``; ``NAME.part.json`` says what it is a part of, so that a later pull can go on. The
name itself appears when the last byte is there and the hash is right, in one step.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from minitune.files import read_json, write_json
from minitune.hub.listing import RemoteFile
from minitune.hub.web import HubError, Reply, TryAgain, Web

_PROGRESS_BYTES = 1 << 20  # so much must arrive for the count of failures to start anew
_READ_BYTES = 1 << 20
Show = Callable[[int], None]
"""Called with the number of bytes of the file that are there."""


def fetch(web: Web, url: str, folder: Path, want: RemoteFile, show: Show) -> str:
    """Bring ``want`` into ``folder`` from ``url`` and return ``fetched`` or ``resumed``.

    Raises HubError where it cannot be had; what has arrived then stays beside it for the next time, unless its bytes
    were wrong.
    """
    host = ""
    for _ in range(2):
        with on_disk(folder / want.name), Part(folder, want) as part:
            resumed = part.size > 0
            host = _fill(web, url, part, show)
            if part.hasher.hexdigest() == want.digest:
                part.finish()
                return "resumed" if resumed else "fetched"
            part.discard()
            web.note(f"{want.name} from {host}: wrong bytes, fetching it again")
    raise HubError(
        f"{want.name} from {host}: {want.size_bytes} bytes came, twice, but not those of its {want.kind}; they were "
        "deleted; use another --endpoint"
    )


def is_there(path: Path, want: RemoteFile) -> bool:
    """Whether ``path`` holds exactly the bytes of ``want``."""
    with on_disk(path):
        if not path.is_file() or path.stat().st_size != want.size_bytes:
            return False
        hasher = want.hasher()
        with path.open("rb") as file:
            _feed(hasher, file)
        return hasher.hexdigest() == want.digest


def part_size(folder: Path, want: RemoteFile) -> int:
    """How many bytes of ``want`` an earlier pull has left in ``folder``."""
    path = folder / f"{want.name}.part"
    if path.is_symlink() or not path.is_file() or not _describes(folder, want):
        return 0
    size = path.stat().st_size
    return size if size <= want.size_bytes else 0


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line, a HubError."""
    try:
        yield
    except BrokenPipeError:  # not the disk: whoever read our output has gone
        raise
    except OSError as error:
        raise HubError(f"{path}: cannot be read or written ({error.strerror or error})") from None


class Part:
    """The unfinished file, open for appending, with the hash of what it holds."""

    def __init__(self, folder: Path, want: RemoteFile) -> None:
        self.want = want
        self.target = folder / want.name
        self.path = folder / f"{want.name}.part"
        self.sidecar = folder / f"{want.name}.part.json"
        for path in (self.target, self.path, self.sidecar, self.sidecar.with_name(f".{self.sidecar.name}.part")):
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise HubError(f"{path}: is a link or no plain file, and nothing is written through it; remove it")
        known = part_size(folder, want)
        self.etag = _describes(folder, want).get("etag") if known else None
        self._file = _open(self.path)
        self.hasher: Any = want.hasher()
        self.size = 0
        if known:
            self.size = _feed(self.hasher, self._file)
        else:
            self.restart()

    def __enter__(self) -> "Part":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def restart(self, etag: str | None = None) -> None:
        """Empty the part; ``etag`` is what the host calls the version that will fill it."""
        self._file.seek(0)
        self._file.truncate()
        self.hasher, self.size, self.etag = self.want.hasher(), 0, etag
        want = {"size": self.want.size_bytes, self.want.kind: self.want.digest}
        write_json(self.sidecar, want | ({"etag": etag} if etag else {}))

    def write(self, piece: bytes) -> None:
        """Append what has arrived."""
        self._file.write(piece)
        self.hasher.update(piece)
        self.size += len(piece)

    def finish(self) -> None:
        """Give the complete part its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.path.replace(self.target)
        self.sidecar.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete the part and what describes it."""
        self._file.close()
        self.path.unlink()
        self.sidecar.unlink(missing_ok=True)


def _fill(web: Web, url: str, part: Part, show: Show) -> str:
    """Go on asking until the part has its size; the host that answered last."""
    failures, best, host = 0, part.size, "the disk"
    show(part.size)
    while part.size < part.want.size_bytes:
        try:
            host = _ask(web, url, part, show)
        except TryAgain as problem:
            # Measured from the most there ever was, or a host that cuts here and restarts there could go on for good.
            failures = 1 if part.size >= best + _PROGRESS_BYTES else failures + 1
            best = max(best, part.size)
            web.pause(problem, failures)
    return host


def _ask(web: Web, url: str, part: Part, show: Show) -> str:
    """Ask once for what is missing and append what comes; TryAgain where that is not all of it."""
    want = part.want
    headers = {"Range": f"bytes={part.size}-"} if part.size else {}
    if part.size and part.etag:
        headers["If-Range"] = part.etag
    with web.get(url, want.name, headers) as reply:
        asked = f"{want.name} from {reply.host}"
        if part.size and reply.status in (206, 416) and not _continues(reply, part):
            part.restart()
            raise TryAgain(f"{asked}: the host cannot go on where the file stopped ({reply.status}); it starts anew")
        if reply.status not in (200, 206) or (reply.status == 206 and not part.size):
            raise web.refusal(reply)
        rest = want.size_bytes - (part.size if reply.status == 206 else 0)
        if reply.length is not None and reply.length != rest:
            raise HubError(
                f"{asked}: announces {reply.length} bytes where {rest} are missing by the hub's own list; use another "
                "--endpoint"
            )
        if reply.status == 200:
            part.restart(_strong(reply.header("ETag")))
        for piece in reply.pieces():
            if part.size + len(piece) > want.size_bytes:
                part.discard()
                raise HubError(
                    f"{asked}: goes on after its {want.size_bytes} bytes; it was deleted; use another --endpoint"
                )
            part.write(piece)
            show(part.size)
        if part.size < want.size_bytes:
            raise TryAgain(f"{asked}: cut off after {part.size} of {want.size_bytes} bytes")
        return reply.host


def _continues(reply: Reply, part: Part) -> bool:
    """Whether an answer to a Range begins at the byte asked for, of a file of the size expected."""
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", reply.header("Content-Range"), re.ASCII)
    return (
        reply.status == 206
        and found is not None
        and int(found[1]) == part.size
        and int(found[2]) == part.want.size_bytes - 1
        and found[3] in ("*", str(part.want.size_bytes))
    )


def _strong(etag: str) -> str | None:
    """An ETag that can stand in If-Range: quoted, and not a weak one."""
    return etag if re.fullmatch(r'"[!#-~]{1,200}"', etag) else None


def _describes(folder: Path, want: RemoteFile) -> dict[str, Any]:
    """What the sidecar of the part says, where that is of the very bytes wanted now; else nothing."""
    try:
        said = read_json(folder / f"{want.name}.part.json", HubError)
    except HubError:
        return {}
    etag = said.get("etag")
    same = said.get("size") == want.size_bytes and said.get(want.kind) == want.digest
    return {"etag": _strong(etag) if isinstance(etag, str) else None} if same else {}


def _open(path: Path) -> BinaryIO:
    """The file of this name, made where it is not there, never through a link; for reading and writing."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "r+b")


def _feed(hasher: Any, file: BinaryIO) -> int:
    """Feed the rest of a file to a hash; how many bytes that was."""
    count = 0
    while data := file.read(_READ_BYTES):
        hasher.update(data)
        count += len(data)
    return count
