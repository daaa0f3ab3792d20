"""Read a ``tokenizer.json`` of the sentencepiece kind into a checked description; refuse by name whatever is not known.

The format is that of the ``tokenizers`` library. What decides ids or text is read exactly or refused. ``truncation``
and ``padding`` belong to a run, not to a vocabulary, and are left aside.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from minitune.errors import TokenizerError
from minitune.tokenizer.added import AddedToken
from minitune.tokenizer.base import SPACE_MARK
from minitune.tokenizer.files import FLAGS, MAX_IDS, checked_id, read_json, shown

TOP_LEVEL = {
    "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder",
    "model",
}  # fmt: skip
MODEL_KEYS = {
    "type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
    "ignore_merges", "vocab", "merges",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonSpec:
    """What a ``tokenizer.json`` of the sentencepiece kind says.

    ``prefix``: how the space mark gets in front: ``"prepend"`` (a normalizer, before every stretch of text),
    ``"always"`` or ``"first"`` (Metaspace, only where none is there yet), or ``"never"``.
    """

    path: Path
    data: bytes
    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    unk_token: str | None
    fuse_unk: bool
    byte_fallback: bool
    ignore_merges: bool
    added: list[AddedToken]
    normalizes_spaces: bool
    has_metaspace: bool
    prefix: str
    decodes_marks: bool
    decodes_bytes: bool
    strips_space: bool
    single: list[str | None]  # the post-processor's form of one text: special names, None where the text stands


def refuse(path: Path, what: str, value: object, expected: str) -> NoReturn:
    """Raise the one-line error for a component that this reader does not know."""
    raise TokenizerError(f"{path}: {what} is {shown(value)}, which is not supported; expected {expected}")


def read_root(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the object of a ``tokenizer.json`` with a known version, known components and a model, and the bytes."""
    root, data = read_json(path)
    for key in root:
        if key not in TOP_LEVEL:
            refuse(path, "the component", key, f"one of {', '.join(sorted(TOP_LEVEL))}")
    if root.get("version", "1.0") != "1.0":
        refuse(path, "version", root["version"], "'1.0'")
    model = root.get("model")
    if not isinstance(model, dict):
        raise TokenizerError(f"{path}: 'model' is {shown(model)}; expected an object with type, vocab and merges")
    check_model(path, model)
    return root, data


def is_byte_level(root: dict[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` speaks of the byte alphabet, in its pre-tokenizer or in its decoder."""
    return any("'ByteLevel'" in str(root.get(part)) for part in ("pre_tokenizer", "decoder"))


def read_spec(path: Path, root: dict[str, Any], data: bytes) -> JsonSpec:
    """Read and check what ``read_root`` gave; raises ``TokenizerError`` with one line."""
    model = root["model"]
    vocab = read_vocab(path, model.get("vocab"))
    prepends, replaces = _read_normalizer(path, root.get("normalizer"))
    scheme, metaspace = _read_pre_tokenizer(path, root.get("pre_tokenizer"), prepends, replaces)
    decoder = _read_decoder(path, root.get("decoder"))
    unk_token = model.get("unk_token")
    if unk_token is not None and unk_token not in vocab:
        raise TokenizerError(f"{path}: model.unk_token is {shown(unk_token)}; expected a token of the vocabulary")
    return JsonSpec(
        path=path,
        data=data,
        vocab=vocab,
        merges=_read_merges(path, model.get("merges"), vocab),
        unk_token=unk_token,
        fuse_unk=flag(path, model, "model.fuse_unk", False),
        byte_fallback=flag(path, model, "model.byte_fallback", False),
        ignore_merges=flag(path, model, "model.ignore_merges", False),
        added=read_added(path, root.get("added_tokens"), vocab),
        normalizes_spaces=replaces,
        has_metaspace=metaspace,
        prefix="prepend" if prepends else scheme,
        decodes_marks="Replace" in decoder,
        decodes_bytes="ByteFallback" in decoder,
        strips_space="Strip" in decoder,
        single=read_template(path, root.get("post_processor")),
    )


def flag(path: Path, source: dict[str, Any], name: str, default: bool) -> bool:
    """Return a true or false of a file; null and absence give the default."""
    value = source.get(name.rpartition(".")[2])
    if value is None:
        return default
    if not isinstance(value, bool):
        raise TokenizerError(f"{path}: {name} is {shown(value)}; expected true or false")
    return value


def check_model(path: Path, model: dict[str, Any]) -> None:
    """Refuse a model that is not BPE, or that has a setting which would change ids in a way not known here."""
    if model.get("type") != "BPE":
        refuse(path, "model.type", model.get("type"), "'BPE'")
    for key in model:
        if key not in MODEL_KEYS:
            refuse(path, "the key in model", key, f"one of {', '.join(sorted(MODEL_KEYS))}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key) not in (None, ""):
            refuse(path, f"model.{key}", model[key], "null")
    dropout = model.get("dropout")
    if dropout is not None and (isinstance(dropout, bool) or dropout != 0):
        refuse(path, "model.dropout", dropout, "null")
    unk_token = model.get("unk_token")
    if unk_token is not None and not isinstance(unk_token, str):
        raise TokenizerError(f"{path}: model.unk_token is {shown(unk_token)}; expected a token or null")


def _check_text(path: Path, token: str, where: str) -> None:
    try:
        token.encode("utf-8")
    except UnicodeEncodeError:
        raise TokenizerError(f"{path}: {where} {token!a} holds a lone surrogate; expected Unicode text") from None


def read_vocab(path: Path, vocab: object) -> dict[str, int]:
    """Return ``model.vocab`` checked: every token is Unicode text and has an id of its own."""
    if not isinstance(vocab, dict) or not vocab:
        raise TokenizerError(f"{path}: model.vocab is {shown(vocab)}; expected an object from token to id")
    owner: dict[int, str] = {}
    for token, id in vocab.items():
        if type(id) is not int or not 0 <= id < MAX_IDS:  # the common case stays fast; the call writes the error
            checked_id(id, f"{path}: the token {shown(token)} of model.vocab")
        if owner.setdefault(id, token) is not token:
            raise TokenizerError(
                f"{path}: the id {id} belongs to {shown(owner[id])} and to {shown(token)}; every token needs its own"
            )
        if not token.isascii():
            _check_text(path, token, "the token")
    return vocab


def _read_merges(path: Path, merges: object, vocab: dict[str, int]) -> list[tuple[str, str]]:
    if not isinstance(merges, list):
        raise TokenizerError(f"{path}: model.merges is {shown(merges)}; expected a list of pairs")
    pairs = []
    for i, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)):
            raise TokenizerError(
                f"{path}: merge {i} is {shown(merge)}; expected two tokens with one space between them, or a list of "
                "two (a space inside a token must be written as U+2581)"
            )
        left, right = parts
        for token, role in ((left, "names"), (right, "names"), (left + right, "makes")):
            if token not in vocab:
                raise TokenizerError(
                    f"{path}: merge {i} {role} {shown(token)}, which is not in model.vocab; "
                    "vocabulary and merges must come from the same file"
                )
        pairs.append((left, right))
    return pairs


def read_added(path: Path, entries: object, vocab: dict[str, int]) -> list[AddedToken]:
    """Return ``added_tokens`` checked against the vocabulary."""
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise TokenizerError(f"{path}: added_tokens is {shown(entries)}; expected a list")
    owner = {id: token for token, id in vocab.items()}
    id_of = dict(vocab)
    added = []
    for i, entry in enumerate(entries):
        where = f"{path}: added_tokens[{i}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not entry["content"]:
            raise TokenizerError(f"{where} is {shown(entry)}; expected an object with id and content")
        content = entry["content"]
        id = checked_id(entry.get("id"), f"{where} ({shown(content)})")
        _check_text(path, content, "the added token")
        if owner.setdefault(id, content) != content or id_of.setdefault(content, id) != id:
            raise TokenizerError(
                f"{where}: {shown(content)} has the id {id}, but the id {id} is {shown(owner[id])} and "
                f"{shown(content)} is {id_of.get(content, 'free')}; ids and tokens must agree"
            )
        flags = {key: flag(path, entry, f"added_tokens[{i}].{key}", False) for key in FLAGS}
        flags["normalized"] = flag(path, entry, f"added_tokens[{i}].normalized", not flags["special"])
        added.append(AddedToken(id=id, content=content, **flags))
    return added


def parts_of(path: Path, component: object, name: str, list_key: str) -> list[dict[str, Any]]:
    """Return a component as a flat list of parts with a type; a Sequence is opened."""
    if component is None:
        return []
    if not isinstance(component, dict) or not isinstance(component.get("type"), str):
        raise TokenizerError(f"{path}: {name} is {shown(component)}; expected an object with a type, or null")
    if component["type"] != "Sequence":
        return [component]
    inner = component.get(list_key)
    if not isinstance(inner, list):
        raise TokenizerError(f"{path}: {name}.{list_key} is {shown(inner)}; expected a list")
    return [part for item in inner for part in parts_of(path, item, name, list_key)]


def _read_normalizer(path: Path, component: object) -> tuple[bool, bool]:
    """Whether the normalizer puts a space mark in front, and whether it writes spaces as marks."""
    known = {
        "Prepend": {"type": "Prepend", "prepend": SPACE_MARK},
        "Replace": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK},
    }
    seen = []
    for part in parts_of(path, component, "normalizer", "normalizers"):
        if part != known.get(part["type"]) or part["type"] in seen:
            refuse(path, "normalizer", part, "at most one Prepend of U+2581 and one Replace of ' ' by U+2581")
        seen.append(part["type"])
    return "Prepend" in seen, "Replace" in seen


def _read_pre_tokenizer(path: Path, component: object, prepends: bool, replaces: bool) -> tuple[str, bool]:
    """The prefix scheme of Metaspace (``never`` without one), and whether there is one."""
    parts = parts_of(path, component, "pre_tokenizer", "pretokenizers")
    if not parts:
        return "never", False
    if len(parts) > 1:
        refuse(path, "pre_tokenizer", [part["type"] for part in parts], "null or one Metaspace")
    part = parts[0]
    if part["type"] == "Split" and replaces:
        # Gemma's file splits on spaces after its normalizer has replaced every one of them: nothing is split.
        if part.get("pattern") == {"String": " "} and part.get("behavior") == "MergedWithPrevious":
            return "never", False
        refuse(path, "pre_tokenizer", part, "null, Metaspace, or Gemma's Split on ' ', which does nothing")
    if part["type"] != "Metaspace" or not set(part) <= {
        "type", "replacement", "str_rep", "prepend_scheme", "add_prefix_space", "split",
    }:  # fmt: skip
        refuse(path, "pre_tokenizer", part, "null or Metaspace with split false")
    if part.get("replacement") != SPACE_MARK:
        refuse(path, "pre_tokenizer.replacement", part.get("replacement"), "U+2581")
    if flag(path, part, "pre_tokenizer.split", True):
        refuse(path, "pre_tokenizer.split", True, "false")
    scheme = part.get("prepend_scheme", "always")
    if scheme not in ("first", "always", "never"):
        refuse(path, "pre_tokenizer.prepend_scheme", scheme, "'first', 'always' or 'never'")
    if not flag(path, part, "pre_tokenizer.add_prefix_space", True):
        if part.get("prepend_scheme", "never") != "never":
            refuse(path, "pre_tokenizer.prepend_scheme", scheme, "'never', as add_prefix_space is false")
        scheme = "never"
    if prepends:
        refuse(path, "pre_tokenizer", "Metaspace", "null, as the normalizer already has a Prepend")
    return scheme, True


def _read_decoder(path: Path, component: object) -> list[str]:
    known = {
        "Replace": {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
        "ByteFallback": {"type": "ByteFallback"},
        "Fuse": {"type": "Fuse"},
        "Strip": {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    }
    expected = "a Sequence of Replace (U+2581 by ' '), ByteFallback, Fuse and, where there is a prefix, Strip"
    types = []
    for part in parts_of(path, component, "decoder", "decoders"):
        if part != known.get(part["type"]):
            refuse(path, "decoder", part, expected)
        types.append(part["type"])
    if types != [name for name in known if name in types] or "Fuse" not in types:
        refuse(path, "decoder", types or None, expected)
    return types


def read_template(path: Path, component: object) -> list[str | None]:
    """Return the post-processor's form of one text: special names, None where the text stands."""
    if component is None:
        return [None]
    if not isinstance(component, dict) or component.get("type") != "TemplateProcessing":
        kind = component.get("type") if isinstance(component, dict) else component
        refuse(path, "post_processor", kind, "null or TemplateProcessing")
    single = component.get("single")
    if not isinstance(single, list):
        raise TokenizerError(f"{path}: post_processor.single is {shown(single)}; expected a list")
    names: list[str | None] = []
    for item in single:
        token = item.get("SpecialToken") if isinstance(item, dict) else None
        if isinstance(token, dict) and isinstance(token.get("id"), str):
            names.append(token["id"])
        elif isinstance(item, dict) and isinstance(item.get("Sequence"), dict):
            names.append(None)
        else:
            raise TokenizerError(f"{path}: post_processor.single holds {shown(item)}; expected a token or a text")
    return names
