"""A tokenizer with control tokens that its files lack: the files again, with these added as the reference adds them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitune.errors import TokenizerError
from minitune.files import whole_folder, write_text
from minitune.tokenizer.base import Tokenizer
from minitune.tokenizer.files import read_json
from minitune.tokenizer.load import load_tokenizer

_JSON, _CONFIG, _ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"


def extended(tokenizer: Tokenizer, names: Sequence[str], folder: Path) -> Tokenizer:
    """Write the files of ``tokenizer`` into ``folder``, with ``names`` as control tokens behind its ids, and load them.

    A ``tokenizer.json`` lists them among its added tokens, and ``tokenizer_config.json`` by their ids: a model file of
    sentencepiece or of ranks stays as it is. Ids of before stay what they were. Raises TokenizerError for a name that
    is taken, and for files that do not load with the names.
    """
    ids = {name: tokenizer.vocab_size + i for i, name in enumerate(names)}
    taken = [name for name in names if tokenizer.token_id(name) is not None]
    if taken or len(ids) < len(names):
        raise TokenizerError(f"{tokenizer.files[0]}: the token {(taken or list(names))[0]!r} is there already")
    by_name = {file.name: file for file in tokenizer.files}
    found = {name: read_json(by_name[name])[0] if name in by_name else {} for name in (_JSON, _CONFIG, _ADDED)}
    changed: dict[str, Any] = {}
    if _JSON in by_name:
        added = [{"id": id} | _entry(name, special=True) for name, id in ids.items()]
        changed[_JSON] = found[_JSON] | {"added_tokens": [*(found[_JSON].get("added_tokens") or []), *added]}
    if _JSON not in by_name or {_CONFIG, "tokenizer.model"} & set(by_name):
        # Where a folder has the list, the reference reads it and no longer added_tokens.json.
        old = {name: id for name, id in found[_ADDED].items() if "added_tokens_decoder" not in found[_CONFIG]}
        entries = {str(id): _entry(name, special=id in tokenizer.control_ids) for name, id in old.items()}
        entries |= found[_CONFIG].get("added_tokens_decoder") or {}
        entries |= {str(id): _entry(name, special=True) for name, id in ids.items()}
        changed[_CONFIG] = found[_CONFIG] | {"added_tokens_decoder": entries}
    with whole_folder(folder) as part:
        for name, file in by_name.items():
            if name not in changed:
                shutil.copyfile(file, part / name)
        for name, value in changed.items():
            write_text(part / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    return _checked(load_tokenizer(folder), tokenizer, ids)


def _entry(name: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special}
    return {"content": name} | flags


def _checked(made: Tokenizer, before: Tokenizer, ids: dict[str, int]) -> Tokenizer:
    """The tokenizer made, where it has the new names as control tokens and the old ids; TokenizerError where not."""
    right = all(made.token_id(name) == id and id in made.control_ids for name, id in ids.items())
    same = made.vocab_size == before.vocab_size + len(ids) and before.control_ids <= made.control_ids
    if not right or not same:
        names = ", ".join(map(repr, ids))
        raise TokenizerError(f"{before.files[0]}: the tokens {names} cannot be added to a tokenizer of this kind")
    return made
