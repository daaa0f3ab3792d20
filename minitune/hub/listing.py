"""What a hub says it has, and the part of it that a model folder is made of.

The names, sizes and hashes come from a server and are checked before any of them reaches the disk. The fields are
those of ``GET /api/models/REPO/revision/REVISION?blobs=true``: a large file carries the SHA-256 of its bytes, a small
one the SHA-1 that git gives it as a blob.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from minitune.hub.web import HubError, shown

MAX_JSON_BYTES = 20_000_000
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
_NAMED = {
    *("config.json", "generation_config.json", "adapter_config.json", INDEX),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "spiece.model", "chat_template.jinja", "chat_template.json"),
}
_PATTERNS = re.compile(r".*\.(safetensors|tiktoken)", re.DOTALL)
_DOCUMENTS = re.compile(r"README\.md|LICENSE[A-Za-z0-9._-]*")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_FOREIGN = (*_PICKLES, ".h5", ".msgpack", ".gguf", ".onnx")
_SAFE = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9 ._+=,@()-]{0,198}[A-Za-z0-9_)])?")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # what Windows opens instead of a file
_REPO = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+@-]{0,199}")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file as the hub describes it: its name, its size, and the hash by which it is known."""

    name: str
    size_bytes: int
    kind: str
    """``sha256`` of the bytes, or ``git-sha1``, the name of the git blob with these bytes."""
    digest: str

    def hasher(self) -> Any:
        """A hash to be fed the file's bytes; its ``hexdigest()`` is ``digest`` when they are the right ones."""
        if self.kind == "sha256":
            return hashlib.sha256()
        # Not for safety, for git: this is how a git repository names a file's contents.
        return hashlib.sha1(b"blob %d\0" % self.size_bytes, usedforsecurity=False)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One commit of a repository: its name and its files, not yet checked."""

    where: str
    commit: str
    entries: tuple[tuple[str, dict[str, Any]], ...]

    @property
    def names(self) -> list[str]:
        """Every name, as the server gave it."""
        return [name for name, _ in self.entries]

    def file(self, name: str) -> RemoteFile:
        """The checked description of one of the files; HubError where size or hash are missing or make no sense."""
        entry = next(entry for known, entry in self.entries if known == name)
        lfs = entry.get("lfs")
        if lfs is not None and not isinstance(lfs, dict):
            raise HubError(f"{self.where}: {shown(name)} has an 'lfs' that is no object; {_OTHER}")
        source, key, kind, length = (entry, "blobId", "git-sha1", 40) if lfs is None else (lfs, "sha256", "sha256", 64)
        size, digest = source.get("size"), source.get(key)
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 60:
            raise HubError(f"{self.where}: no size is given for {shown(name)}, so it could not be checked; {_OTHER}")
        if not isinstance(digest, str) or not re.fullmatch(rf"[0-9a-f]{{{length}}}", digest):
            raise HubError(f"{self.where}: no hash is given for {shown(name)}, so it could not be checked; {_OTHER}")
        return RemoteFile(name=name, size_bytes=size, kind=kind, digest=digest)


_OTHER = "use another --endpoint"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The files to fetch, small ones first, and the weights that are left where they are.

    Where ``index`` is there, the weights are the files that it names.
    """

    files: tuple[RemoteFile, ...]
    index: RemoteFile | None
    left_out: tuple[str, ...]


def check_repo(repo: str) -> str:
    """``repo`` where it has the form of ``name`` or ``owner/name``, else HubError."""
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise HubError(
            f"REPO is {shown(repo)}; expected owner/name as on the hub's page, such as mistralai/Mistral-7B-v0.1"
        )
    return repo


def check_revision(revision: str) -> str:
    """``revision`` where it has the form of a branch, a tag or a commit, else HubError."""
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise HubError(f"--revision is {shown(revision)}; expected a branch, a tag or a commit, such as main")
    return revision


def belongs(name: str) -> bool:
    """Whether a file of this name says what model a folder holds: weights, configuration or tokenizer."""
    return name in _NAMED or bool(_PATTERNS.fullmatch(name))


def read_json(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``data``, HubError where it is none."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise HubError(
            f"{where}: the answer is no JSON object, so this is no model hub, or a page in between; check --endpoint"
        )
    return value


def read_listing(data: bytes, where: str) -> Listing:
    """What a hub answers about a repository; HubError where it is not what a hub says."""
    value = read_json(data, where)
    commit, siblings = value.get("sha"), value.get("siblings")
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", commit):
        raise HubError(f"{where}: the answer names no commit ('sha'); check --endpoint")
    if not isinstance(siblings, list):
        raise HubError(f"{where}: the answer has no list of files ('siblings'); check --endpoint")
    entries = []
    for entry in siblings:
        name = entry.get("rfilename") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise HubError(f"{where}: a file without a name ('rfilename') in the answer; check --endpoint")
        entries.append((name, entry))
    return Listing(where=where, commit=commit, entries=tuple(entries))


def choose(listing: Listing) -> Choice:
    """The files of a model folder: top level only, no pickles, no code, no second copy of the weights.

    Raises HubError where there are no safetensors, where a name would lead out of the folder, or where two names
    would be one file on a disk that does not tell upper from lower case.
    """
    for name in listing.names:
        last = re.split(r"[/\\:]", name)[-1]
        if (belongs(last) or _DOCUMENTS.fullmatch(last)) and _leads_out(name):
            raise HubError(f"{listing.where}: lists {shown(name)}, which leads out of its folder; {_OTHER}")
    top = [name for name in listing.names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors") and name != ADAPTER]
    index = None
    if WEIGHTS in weights:
        chosen = [WEIGHTS]
    elif INDEX in top:
        chosen, index = [], listing.file(INDEX)
    else:
        chosen = [name for name in weights if not name.startswith("consolidated")] or weights
    if not chosen and index is None and ADAPTER not in top:
        raise HubError(_no_weights(listing))
    small = [
        name
        for name in top
        if _DOCUMENTS.fullmatch(name)
        or (belongs(name) and not name.endswith(".safetensors") and (name != INDEX or index is not None))
    ]
    chosen += [name for name in top if name == ADAPTER]
    left_out = () if index else tuple(name for name in weights if name not in chosen)
    return Choice(files=_checked(listing, sorted(small) + sorted(chosen)), index=index, left_out=left_out)


def add_shards(choice: Choice, listing: Listing, index: bytes) -> Choice:
    """``choice`` with the weights that ``index``, the bytes of its index, names; HubError where one is not there."""
    where = f"{listing.where}: {INDEX}"
    weight_map = read_json(index, where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise HubError(f"{where}: has no 'weight_map'; the repository is damaged, try another --revision")
    for name in weight_map.values():
        if not isinstance(name, str) or not name.endswith(".safetensors") or "/" in name or _leads_out(name):
            raise HubError(
                f"{where}: names {shown(name)} as a file of weights, which is not a safetensors file beside it"
            )
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if name not in listing.names]
    if missing:
        raise HubError(f"{where}: names {shown(missing[0])}, which is not there; try another --revision")
    names = [file.name for file in choice.files]
    files = _checked(listing, names + [name for name in shards if name not in names])
    others = [name for name in listing.names if "/" not in name and name.endswith(".safetensors")]
    left_out = tuple(name for name in others if name not in {file.name for file in files})
    return Choice(files=files, index=choice.index, left_out=left_out)


def _checked(listing: Listing, names: Iterable[str]) -> tuple[RemoteFile, ...]:
    """The files of these names, which must differ in more than case; HubError where they do not."""
    seen: dict[str, str] = {}
    for name in names:
        if not _SAFE.fullmatch(name) or _DEVICES.fullmatch(name):
            raise HubError(f"{listing.where}: lists {shown(name)}, which no file here may be called; {_OTHER}")
        if name.lower() in seen:
            raise HubError(
                f"{listing.where}: lists both {shown(seen[name.lower()])} and {shown(name)}, which are one file on "
                "many disks; try another --revision"
            )
        seen[name.lower()] = name
    return tuple(listing.file(name) for name in seen.values())


def _leads_out(name: str) -> bool:
    """Whether a name could mean a place outside its folder on some system, or could break a line."""
    parts = name.split("/")
    return bool({"", ".", ".."} & set(parts) or re.search(r"[\\:\x00-\x1f\x7f]", name))


def _no_weights(listing: Listing) -> str:
    """Why there is nothing to fetch, by what is there instead."""
    names = [name for name in listing.names if "/" not in name]
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        return (
            f"{listing.where}: its weights are a pickle ({shown(pickles[0])}), which can run code and is never "
            "fetched; look for a --revision or another repository of this model with safetensors"
        )
    others = [name for name in names if name.endswith(_FOREIGN)]
    found = f"only {shown(others[0])}" if others else "no weights"
    return f"{listing.where}: has {found} at its top level; only safetensors are fetched"
