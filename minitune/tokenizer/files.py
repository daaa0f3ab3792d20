"""What the small files beside a tokenizer say: which tokens have a role, which are special, which were added."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minitune.errors import TokenizerError

# Everything that a writer must carry along. The order is the one a reader would look in.
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "spiece.model",
    "vocab.json",
    "merges.txt",
)
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
OTHER_ROLES = ("cls_token", "sep_token", "mask_token")
FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")
NAME_LISTS = ("additional_special_tokens", "extra_special_tokens")
MAX_IDS = 1 << 22  # an id beyond this is damage, and a table up to it would fill the memory


def shown(value: object) -> str:
    """Return a value as a short piece of one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a tokenizer file; unreadable files and Git LFS pointers raise ``TokenizerError``."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error.strerror or error}); expected a tokenizer file") from None
    if data.startswith(b"version https://git-lfs"):
        raise TokenizerError(f"{path}: is a Git LFS pointer, not the file itself; fetch the real file (git lfs pull)")
    return data


def read_json(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the object that a JSON file holds, and its bytes; anything else raises ``TokenizerError``."""
    data = read_bytes(path)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise TokenizerError(f"{path}: the key {shown(twice)} stands twice in one object; keep one of them")
        return made

    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique)
    except TokenizerError:
        raise
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: byte {error.start} is not UTF-8; a JSON file is UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise TokenizerError(f"{path}: not valid JSON ({reason}); the file is damaged, fetch it again") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: holds a JSON {type(value).__name__}; expected an object")
    return value, data


def token_name(value: object, where: str) -> str | None:
    """Return the name in a token entry of a configuration file: a string, ``{"content": ...}`` or null."""
    name = value.get("content") if isinstance(value, dict) else value
    if (name is None and value is None) or (isinstance(name, str) and name):
        return name
    raise TokenizerError(f"{where} is {shown(value)}; expected a token, an object with 'content', or null")


@dataclass(frozen=True, kw_only=True, slots=True)
class Companions:
    """What stands beside the tokenizer file; all of it may be absent.

    ``roles`` holds a role only where a file speaks of it: its name, or None for an explicit null.
    ``special`` are the names that a file calls special; ``added`` gives ids to names beside the main vocabulary;
    ``flags`` are what ``tokenizer_config.json`` says of them (``lstrip`` and the like). ``legacy`` false: a text behind
    a control token gets no dummy prefix. ``tokenizer_class``: the name of the reference's class, where it is given.
    """

    roles: dict[str, str | None] = field(default_factory=dict)
    special: frozenset[str] = frozenset()
    added: dict[str, int] = field(default_factory=dict)
    flags: dict[str, dict[str, bool]] = field(default_factory=dict)
    add_bos: bool | None = None
    legacy: bool | None = None
    tokenizer_class: str | None = None
    config: Path = Path("tokenizer_config.json")
    files: tuple[Path, ...] = ()


def read_companions(folder: Path) -> Companions:
    """Read the small files of a folder; ``tokenizer_config.json`` goes before ``special_tokens_map.json``."""
    config_path = folder / "tokenizer_config.json"
    map_path = folder / "special_tokens_map.json"
    added_path = folder / "added_tokens.json"
    sources = [(path, read_json(path)[0]) for path in (config_path, map_path) if path.is_file()]
    roles: dict[str, str | None] = {}
    special: set[str] = set()
    for path, source in sources:
        for role in ROLES + OTHER_ROLES:
            if source.get(role, "") != "":  # some published files say "" where they mean nothing at all
                name = token_name(source[role], f"{path}: {role}")
                roles[role] = roles.get(role) or name
                special.update([name] if name else [])
        for key in NAME_LISTS:
            special.update(_names(source.get(key), f"{path}: {key}"))
    config = sources[0][1] if sources and sources[0][0] == config_path else {}
    tokenizer_class = config.get("tokenizer_class")
    if not (tokenizer_class is None or isinstance(tokenizer_class, str)):
        raise TokenizerError(f"{config_path}: tokenizer_class is {shown(tokenizer_class)}; expected a name or null")
    added: dict[str, int] = {}
    flags = _read_added_decoder(config.get("added_tokens_decoder"), config_path, added)
    special.update(name for name, given in flags.items() if given.get("special"))
    if added_path.is_file():
        for name, id in read_json(added_path)[0].items():
            _add(added, name, checked_id(id, f"{added_path}: {shown(name)}"), added_path)
    files = tuple(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())
    return Companions(
        roles=roles,
        special=frozenset(special),
        added=added,
        flags=flags,
        add_bos=_switch(config, "add_bos_token", config_path),
        legacy=_switch(config, "legacy", config_path),
        tokenizer_class=tokenizer_class,
        config=config_path,
        files=files,
    )


def _switch(source: dict[str, Any], name: str, where: object) -> bool | None:
    value = source.get(name)
    if not (value is None or isinstance(value, bool)):
        raise TokenizerError(f"{where}: {name} is {shown(value)}; expected true, false or null")
    return value


def checked_id(value: object, where: str) -> int:
    """Return a token id as a file gives it, or raise ``TokenizerError``."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_IDS:
        return value
    raise TokenizerError(f"{where} has the id {shown(value)}; expected an integer from 0 to {MAX_IDS - 1}")


def check_added(path: Path, companions: Companions, id_of: Mapping[str, int]) -> None:
    """Raise ``TokenizerError`` where a small file gives a token another id than the tokenizer file does."""
    for name, id in companions.added.items():
        if id_of.get(name) != id:
            raise TokenizerError(
                f"{companions.config.parent}: the token {shown(name)} is added with the id {id}, but in {path.name} it "
                f"is {id_of.get(name, 'absent')}; the files must come from the same checkpoint"
            )


def _names(value: object, where: str) -> list[str]:
    """Names in ``additional_special_tokens``: a list of tokens, or an object from purpose to token."""
    if value is None:
        return []
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        raise TokenizerError(f"{where} is {shown(value)}; expected a list of tokens")
    names = [token_name(item, f"{where}[{i}]") for i, item in enumerate(value)]
    return [name for name in names if name is not None]


def _read_added_decoder(value: object, path: Path, added: dict[str, int]) -> dict[str, dict[str, bool]]:
    """Fill ``added`` with name to id, and return name to flags."""
    where = f"{path}: added_tokens_decoder"
    flags: dict[str, dict[str, bool]] = {}
    if value is None:
        return flags
    if not isinstance(value, dict):
        raise TokenizerError(f"{where} is {shown(value)}; expected an object from id to token")
    for key, entry in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise TokenizerError(f"{where} has the key {shown(key)}; expected an id")
        name = token_name(entry, f"{where}[{key}]")
        if name is None:
            raise TokenizerError(f"{where}[{key}] is null; expected a token")
        _add(added, name, checked_id(int(key), f"{where}: {shown(name)}"), path)
        given = ((flag, _switch(entry, flag, f"{where}[{key}]")) for flag in FLAGS if isinstance(entry, dict))
        flags[name] = {flag: on for flag, on in given if on is not None}
    return flags


def _add(added: dict[str, int], name: str, id: int, path: Path) -> None:
    if added.setdefault(name, id) != id:
        raise TokenizerError(f"{path}: {shown(name)} has the id {id} here and {added[name]} elsewhere; keep one")
