"""Find out which kind of tokenizer a folder or a file holds, and load it."""

import gc
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minitune.errors import TokenizerError
from minitune.tokenizer.base import Tokenizer
from minitune.tokenizer.byte_level import load_byte_level
from minitune.tokenizer.byte_level_files import load_vocab_and_merges
from minitune.tokenizer.files import Companions, read_bytes, read_companions
from minitune.tokenizer.json_bpe import load_json_bpe
from minitune.tokenizer.json_spec import is_byte_level, read_root
from minitune.tokenizer.sentencepiece_file import load_sentencepiece


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer of a model folder, or one tokenizer file on its own.

    A folder is searched for ``tokenizer.model``, then ``tokenizer.json``, then ``vocab.json`` with ``merges.txt``;
    where the first two are there the sentencepiece file decides, because the other is made from it. The small files
    beside it say which tokens have a role or are special; a file that is named on its own is read alone. Raises
    ``TokenizerError`` with one line that names the file.
    """
    with _collector_at_rest():
        return _load(Path(path))


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Rest the cycle collector: it looks again and again at a million tuples that hold no cycle (half of the time)."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _load(path: Path) -> Tokenizer:
    if path.is_dir():
        found = next((path / name for name in ("tokenizer.model", "tokenizer.json") if (path / name).exists()), None)
        if found is None and (path / "vocab.json").exists() and (path / "merges.txt").exists():
            return load_vocab_and_merges(path / "vocab.json", read_companions(path))
        if found is None:
            raise TokenizerError(f"{path}: looked for tokenizer.model and tokenizer.json, found neither{_others(path)}")
        return _load_file(found, read_companions(path))
    if not path.exists():
        raise TokenizerError(f"{path}: no such file or folder; expected a model folder or a tokenizer file")
    return _load_file(path, Companions(files=(path,)))


def _load_file(path: Path, companions: Companions) -> Tokenizer:
    if path.suffix == ".json":
        root, data = read_root(path)
        load = load_byte_level if is_byte_level(root) else load_json_bpe
        return load(path, root, data, companions)
    if path.suffix == ".model":
        data = read_bytes(path)
        if _is_tiktoken(data):
            raise TokenizerError(
                f"{path}: is a tiktoken rank file, which is not supported; "
                "name the tokenizer.json beside it, or a sentencepiece file"
            )
        return load_sentencepiece(path, data, companions)
    raise TokenizerError(f"{path}: not a tokenizer file by its name; expected a folder, a .model or a .json file")


def _is_tiktoken(data: bytes) -> bool:
    """Whether the first line is base64, a space and a rank, as in the files that tiktoken reads."""
    fields = data[:4096].split(b"\n", 1)[0].split()
    alphabet = set((string.ascii_letters + string.digits + "+/=").encode())
    return len(fields) == 2 and fields[1].isdigit() and set(fields[0]) <= alphabet


def _others(folder: Path) -> str:
    kinds = {"spiece.model": "T5", "vocab.json": "byte-level BPE without its merges.txt", "vocab.txt": "WordPiece"}
    found = [f"{name} ({kind})" for name, kind in kinds.items() if (folder / name).exists()]
    return f"; found {', '.join(found)}, which is not supported in this form" if found else ""
