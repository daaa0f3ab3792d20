"""Find out which kind of tokenizer a folder or a file holds, and load it."""

import gc
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
from minitune.tokenizer.rank_file import is_rank_file, load_rank_file
from minitune.tokenizer.sentencepiece_file import load_sentencepiece


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer of a model folder, or one tokenizer file on its own.

    A folder is searched for ``tokenizer.model``, ``tokenizer.json``, ``vocab.json`` with ``merges.txt``, and a
    ``.tiktoken`` file, in this order. Where the first two are there a sentencepiece file decides, because the other is
    made from it; a rank file (Llama 3's ``tokenizer.model``) does not, because it says less. The small files beside it
    say which tokens have a role or are special; a file that is named on its own is read alone. Raises
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
        return _load_folder(path)
    if not path.exists():
        raise TokenizerError(f"{path}: no such file or folder; expected a model folder or a tokenizer file")
    return _load_file(path, Companions(files=(path,)))


def _load_folder(folder: Path) -> Tokenizer:
    model, json, vocab = (folder / name for name in ("tokenizer.model", "tokenizer.json", "vocab.json"))
    ranks = sorted(folder.glob("*.tiktoken"))
    if model.exists() and not (json.exists() and is_rank_file(read_bytes(model))):
        return _load_file(model, read_companions(folder))
    if json.exists():
        return _load_file(json, read_companions(folder))
    if vocab.exists() and (folder / "merges.txt").exists():
        return load_vocab_and_merges(vocab, read_companions(folder))
    if len(ranks) == 1:
        return _load_file(ranks[0], read_companions(folder))
    raise TokenizerError(
        f"{folder}: looked for tokenizer.model, tokenizer.json, vocab.json with merges.txt and one .tiktoken file, "
        f"found none of them{_others(folder)}"
    )


def _load_file(path: Path, companions: Companions) -> Tokenizer:
    if path.suffix == ".json":
        root, data = read_root(path)
        load = load_byte_level if is_byte_level(root) else load_json_bpe
        return load(path, root, data, companions)
    if path.suffix in (".model", ".tiktoken"):
        data = read_bytes(path)
        ranked = path.suffix == ".tiktoken" or is_rank_file(data)
        return (load_rank_file if ranked else load_sentencepiece)(path, data, companions)
    raise TokenizerError(
        f"{path}: not a tokenizer file by its name; expected a folder, a .model, a .json or a .tiktoken file"
    )


def _others(folder: Path) -> str:
    kinds = {"spiece.model": "T5", "vocab.json": "byte-level BPE without its merges.txt", "vocab.txt": "WordPiece"}
    found = [f"{name} ({kind})" for name, kind in kinds.items() if (folder / name).exists()]
    return f"; found {', '.join(found)}, which is not supported in this form" if found else ""
