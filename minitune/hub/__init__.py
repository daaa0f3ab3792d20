"""Fetching a model folder from a hub: ``web`` asks, ``listing`` chooses, ``fetch`` brings one file, here is the whole.

A pull is one commit: the revision is looked up once, and every file is asked for by the commit it stood for. Nothing
that is fetched is run or opened but JSON, no pickle and no code is fetched at all, and a file of the user is never
overwritten: ``.minitune-pull.json`` remembers which files of the folder came from where, and only those are replaced.
"""

import contextlib
import os
import shutil
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from minitune.files import read_json, write_json
from minitune.hub.fetch import fetch, is_there, on_disk, part_size
from minitune.hub.listing import (
    MAX_JSON_BYTES,
    Choice,
    Listing,
    RemoteFile,
    add_shards,
    belongs,
    check_repo,
    check_revision,
    choose,
    read_listing,
)
from minitune.hub.web import HubError, Web, check_endpoint, check_token, shown_host

__all__ = ["DEFAULT_ENDPOINT", "RECORD", "HubError", "Progress", "PullReport", "PulledFile", "pull"]

DEFAULT_ENDPOINT = "https://huggingface.co"
"""Where models are asked for unless the caller or HF_ENDPOINT says otherwise."""
RECORD = ".minitune-pull.json"
"""The file in a pulled folder that says where its files came from."""
_LONG_TO_CHECK_BYTES = 1 << 28
_KEPT = "what has arrived well is kept, and the same command goes on from there"


@dataclass(frozen=True, kw_only=True)
class PulledFile:
    """A file of the folder: its size, its hash as the hub names it, and whether it came now."""

    name: str
    size_bytes: int
    digest: str
    """``sha256:...``, or ``git-sha1:...`` for a small file."""
    status: str
    """``fetched``, ``resumed`` or ``already there``."""


@dataclass(frozen=True, kw_only=True)
class PullReport:
    """What lies where after a pull, and which commit it is."""

    folder: str
    repo: str
    endpoint: str
    revision: str
    commit: str
    files: tuple[PulledFile, ...]
    left_out: tuple[str, ...]
    """Safetensors of the repository that were not needed: second copies of the weights."""
    size_bytes: int
    missing_bytes: int
    """How much of that was not there before."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a pull is; ``note`` is a line for people, about a wait for example."""

    file: str = ""
    file_bytes: int = 0
    file_size_bytes: int = 0
    done_bytes: int = 0
    size_bytes: int = 0
    note: str = ""


def pull(
    repo: str,
    out: str | Path,
    *,
    endpoint: str | None = None,
    revision: str = "main",
    token: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    timeout_s: float = 30.0,
    retries: int = 5,
    sleep: Callable[[float], None] = time.sleep,
) -> PullReport:
    """Fetch the safetensors, configuration and tokenizer of ``repo`` into the folder ``out``.

    ``endpoint`` defaults to HF_ENDPOINT, else the usual hub; ``token`` to HF_TOKEN. The token is sent to the endpoint's
    own scheme, host and port only. ``timeout_s`` holds for each connection and each read; ``retries`` tries in a row
    may fail, with waits (by ``sleep``) that grow. Raises HubError with one line, never with the token in it.
    """
    address = check_endpoint(endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT)
    secret = check_token(token if token is not None else os.environ.get("HF_TOKEN"))
    show = progress or (lambda event: None)

    def note(text: str) -> None:
        show(Progress(note=_without(secret, text)))

    web = Web(endpoint=address, token=secret, timeout_s=timeout_s, retries=retries, sleep=sleep, note=note)
    try:
        return _Pull(web, check_repo(repo), check_revision(revision), Path(out).expanduser(), show).run()
    except HubError as error:
        # A host may put what it was sent into what it answers.
        raise HubError(_without(secret, str(error))) from None


class _Pull:
    """One pull on its way: what is wanted, what is there, what is still to come."""

    def __init__(self, web: Web, repo: str, revision: str, folder: Path, show: Callable[[Progress], None]) -> None:
        self.web, self.repo, self.revision, self.folder, self.show = web, repo, revision, folder, show
        self.done_bytes = self.size_bytes = 0

    def run(self) -> PullReport:
        """Look, choose, check the folder and the disk, and only then fetch."""
        listing = self._list()
        choice = self._choose(listing)
        self.size_bytes = sum(file.size_bytes for file in choice.files)
        with on_disk(self.folder):
            if self.folder.exists() and not self.folder.is_dir():
                raise HubError(f"{self.folder}: is a file; choose another --out")
            self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(self.folder):
            there = self._there(choice)
            self._check_space([file for file in choice.files if file.name not in there])
            return self._fetch(listing, choice, there)

    def _list(self) -> Listing:
        where = f"{self.repo} at {shown_host(self.web.endpoint)}"
        url = f"{self.web.endpoint}/api/models/{self.repo}/revision/{urllib.parse.quote(self.revision, safe='')}"
        what = f"the file list of {self.repo} ({self.revision})"
        return read_listing(self.web.read(f"{url}?blobs=true", what, MAX_JSON_BYTES), where)

    def _choose(self, listing: Listing) -> Choice:
        choice = choose(listing)
        if choice.index is None:
            return choice
        # Read ahead of its turn, since it decides what else is needed; it is fetched like the others later.
        index = choice.index
        if index.size_bytes > MAX_JSON_BYTES:
            raise HubError(f"{listing.where}: {index.name} has {index.size_bytes} bytes, which no index has")
        data = self.web.read(self._url(listing, index.name), index.name, index.size_bytes)
        hasher = index.hasher()
        hasher.update(data)
        if hasher.hexdigest() != index.digest:
            raise HubError(f"{listing.where}: {index.name} came with other bytes than listed; use another --endpoint")
        return add_shards(choice, listing, data)

    def _url(self, listing: Listing, name: str) -> str:
        return f"{self.web.endpoint}/{self.repo}/resolve/{listing.commit}/{urllib.parse.quote(name, safe='')}"

    def _there(self, choice: Choice) -> set[str]:
        """The names that are there already; HubError where the folder holds what this pull may not touch."""
        ours = self._record()
        there = set()
        for file in choice.files:
            path = self.folder / file.name
            if not path.exists() and not path.is_symlink():
                continue
            if file.size_bytes >= _LONG_TO_CHECK_BYTES:
                self.show(Progress(note=f"checking {path}"))
            if is_there(path, file):
                there.add(file.name)
            elif file.name not in ours or not is_there(path, ours[file.name]):
                raise HubError(
                    f"{path}: is there already and is not the one of {self.repo} ({self.revision}); it is never "
                    "overwritten: choose another --out, or move it away"
                )
        chosen = {file.name for file in choice.files}
        with on_disk(self.folder):
            strange = sorted(
                path.name for path in self.folder.iterdir() if belongs(path.name) and path.name not in chosen
            )
        if strange:
            raise HubError(
                f"{self.folder / strange[0]}: is no part of {self.repo} ({self.revision}), and a folder holds one "
                "model; choose another --out, or move it away"
            )
        return there

    def _record(self) -> dict[str, RemoteFile]:
        """The files of the folder that an earlier pull of the same repository brought; none where nothing says so."""
        try:
            said = read_json(self.folder / RECORD, HubError)
            if said["repo"] != self.repo:
                return {}
            return {entry["name"]: RemoteFile(**entry) for entry in said["files"]}
        except (HubError, KeyError, TypeError):
            return {}

    def _remember(self, listing: Listing, files: Iterable[RemoteFile], *, complete: bool) -> None:
        path = self.folder / RECORD
        if path.is_symlink():
            raise HubError(f"{path}: is a link, and nothing is written through it; remove it")
        said = {
            "repo": self.repo,
            "endpoint": self.web.endpoint,
            "revision": self.revision,
            "commit": listing.commit,
            "complete": complete,
            "files": [asdict(file) for file in files],
        }
        with on_disk(path):
            write_json(path, said)

    def _check_space(self, missing: list[RemoteFile]) -> None:
        with on_disk(self.folder):
            needed = sum(file.size_bytes - part_size(self.folder, file) for file in missing)
            free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise HubError(
                f"{self.folder}: {needed / 2**30:.2f} GiB are still to come and the disk has {free / 2**30:.2f} GiB "
                "free; make room, or choose another --out"
            )

    def _fetch(self, listing: Listing, choice: Choice, there: set[str]) -> PullReport:
        pulled, missing_bytes = [], 0
        ours = self._record()
        self._remember(listing, ours.values(), complete=False)
        for file in choice.files:
            status = "already there"
            if file.name not in there:
                missing_bytes += file.size_bytes - part_size(self.folder, file)
                status = self._fetch_one(listing, file)
            self._tell(file, file.size_bytes)
            self.done_bytes += file.size_bytes
            digest = f"{file.kind}:{file.digest}"
            pulled.append(PulledFile(name=file.name, size_bytes=file.size_bytes, digest=digest, status=status))
            # Not before: until it is replaced, a file of an earlier commit is known by what it was then.
            ours[file.name] = file
            self._remember(listing, ours.values(), complete=False)
        self._remember(listing, choice.files, complete=True)
        return PullReport(
            folder=str(self.folder),
            repo=self.repo,
            endpoint=self.web.endpoint,
            revision=self.revision,
            commit=listing.commit,
            files=tuple(pulled),
            left_out=choice.left_out,
            size_bytes=self.size_bytes,
            missing_bytes=missing_bytes,
        )

    def _fetch_one(self, listing: Listing, file: RemoteFile) -> str:
        try:
            return fetch(
                self.web,
                self._url(listing, file.name),
                self.folder,
                file,
                lambda file_bytes: self._tell(file, file_bytes),
            )
        except HubError as error:
            raise HubError(f"{error}; {_KEPT}") from None

    def _tell(self, file: RemoteFile, file_bytes: int) -> None:
        self.show(
            Progress(
                file=file.name,
                file_bytes=file_bytes,
                file_size_bytes=file.size_bytes,
                done_bytes=self.done_bytes + file_bytes,
                size_bytes=self.size_bytes,
            )
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder, so that no second pull writes the same parts; HubError where another holds it.

    Windows itself does not let an open file be replaced, and has no lock for a folder.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with on_disk(folder):
        held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HubError(f"{folder}: another pull is writing there; wait for it, or choose another --out") from None
        except OSError:
            pass  # a file system without locks: the hashes still tell when two have mixed
        yield
    finally:
        os.close(held)


def _without(secret: str | None, text: str) -> str:
    return text.replace(secret, "***") if secret else text
