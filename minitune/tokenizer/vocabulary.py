"""What a tokenizer file and the small files beside it say together: names, roles, what decodes to what."""

import hashlib
import json
from collections.abc import Sequence

from minitune.tokenizer.added import AddedToken
from minitune.tokenizer.base import Vocabulary, role_id
from minitune.tokenizer.files import ROLES, Companions


def names_by_id(vocab: dict[str, int], added: Sequence[AddedToken]) -> list[str | None]:
    """Return the name of each id, added tokens included; None where an id is free."""
    id_of = vocab | {a.content: a.id for a in added}
    pieces: list[str | None] = [None] * (max(id_of.values()) + 1)
    for token, id in id_of.items():
        pieces[id] = token
    return pieces


def control_of(
    pieces: Sequence[str | None], added: Sequence[AddedToken], single: Sequence[str | None], special: frozenset[str]
) -> tuple[set[int], set[int]]:
    """Return the ids that no text becomes, by two rights: the tokenizer file's own word, and the small files' word.

    The first are special added tokens, what the post-processor puts around a text, and free ids.
    """
    own = {a.id for a in added if a.special or a.content in single}
    own.update(id for id, piece in enumerate(pieces) if piece is None)
    return own, {id for id, piece in enumerate(pieces) if piece in special}


def make_vocabulary(
    companions: Companions,
    data: bytes,
    *,
    pieces: Sequence[str | None],
    contributions: list[bytes],
    control_ids: frozenset[int],
    roles: dict[str, str | None],
    single: Sequence[str | None],
    strips_space: bool,
) -> Vocabulary:
    """Return the vocabulary; raises ``TokenizerError`` where a role names a token that is not there.

    ``roles``: role to name as the tokenizer file has it; ``single``: the form it gives one text, special names with
    None for the text itself, whose ends are bos and eos where nothing else names them. The small files go before both.
    ``data``: what decides ids besides, for the fingerprint. ``contributions`` of control ids are emptied.
    """
    id_of = {piece: id for id, piece in enumerate(pieces) if piece is not None}
    ends = {"bos_token": single[0] if single else None, "eos_token": single[-1] if len(single) > 1 else None}
    named = {role: name for role, name in ends.items() if name in id_of} | roles | companions.roles
    bos_id, eos_id, pad_id, unk_id = (role_id(named.get(role), role, id_of, companions.config) for role in ROLES)
    starts_with_bos = bool(single) and single[0] is not None and id_of.get(single[0]) == bos_id
    adds_bos = bos_id is not None and (starts_with_bos if companions.add_bos is None else companions.add_bos)
    for id in control_ids:
        contributions[id] = b""
    extra = json.dumps([sorted(control_ids), bos_id, eos_id, pad_id, unk_id, adds_bos]).encode()
    return Vocabulary(
        pieces=pieces,
        id_of=id_of,
        contributions=contributions,
        control_ids=control_ids,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        unk_id=unk_id,
        adds_bos=adds_bos,
        strips_space=strips_space,
        files=companions.files,
        fingerprint=hashlib.sha256(data + b"\0" + extra).hexdigest(),
    )
