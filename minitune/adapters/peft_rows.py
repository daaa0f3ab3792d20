"""Trained rows of tokens as PEFT lays them out: ``trainable_token_indices`` and ``trainable_tokens_delta``.

The setting is a list of ids, which means the embedding and, where it is tied, the head; or an object from the last name
of a module to its ids. The tensors are the rows themselves, in the order of the ids, whatever their name says. Where
the vocabulary was made longer, PEFT also writes both tables as a whole, and of tied ones everything twice; a folder of
ours has the rows alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitune.adapters.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, take
from minitune.adapters.token_rows import add_token_rows, token_rows
from minitune.errors import CheckpointError
from minitune.models import LanguageModel
from minitune.models.published import published_module

KEY = "trainable_token_indices"
HEADS = ("lm_head", "embed_out")
"""What the reference calls a head: the first, whatever the weights' file says; GPT-NeoX's was the second before."""
_ROWS = "token_adapter.trainable_tokens_delta"
_WHOLE = ("token_adapter.base_layer.weight", "weight")


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """Rows of an adapter folder, by ``embed`` and ``head``: ids, values, and whole tables where the folder has them.

    ``vocab_size``: rows that the tables must have.
    """

    vocab_size: int
    ids: Mapping[str, list[int]] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    whole: Mapping[str, Tensor] = field(default_factory=dict)


def rows_to_write(model: LanguageModel) -> tuple[list[int] | dict[str, list[int]] | None, dict[str, Tensor]]:
    """The setting, and the tensors by name, of a model's trained rows; None and nothing where it has none."""
    found, tied = token_rows(model), model.config.tie_embeddings
    if not found:
        return None, {}
    names = {"embed": published_module(model.config, "embed")[0], "head": HEADS[0]}
    names = {table: name for table, name in names.items() if table in found and not (tied and table == "head")}
    ids: dict[str, list[int]] = {name.rpartition(".")[2]: found[table].ids.tolist() for table, name in names.items()}
    tensors: dict[str, Tensor] = {f"{PREFIX}{name}.{_ROWS}": found[table].values for table, name in names.items()}
    return next(iter(ids.values())) if tied else ids, tensors


def read_rows(setting: Any, model: LanguageModel, tensors: dict[str, Tensor], folder: Path) -> StoredRows:
    """Take the trained rows that ``setting`` speaks of out of the ``tensors`` of an adapter folder.

    Raises CheckpointError, in one line, for ids and tensors that do not belong together or to the model.
    """
    V, C, tied = model.config.vocab_size, model.config.hidden_size, model.config.tie_embeddings
    if setting in (None, [], {}):
        return StoredRows(vocab_size=V)
    head = next((name for name in HEADS if any(n.startswith(f"{PREFIX}{name}.") for n in tensors)), HEADS[0])
    names = {"embed": published_module(model.config, "embed")[0], "head": head}
    ids = _ids(setting, names, tied, folder / ADAPTER_CONFIG)
    path = folder / ADAPTER_WEIGHTS
    if tied:
        _once(tensors, names, path)
    values = {table: take(tensors, f"{PREFIX}{names[table]}.{_ROWS}", (len(ids[table]), C), path) for table in ids}
    stored = [(table, f"{PREFIX}{name}.{leaf}") for table, name in names.items() for leaf in _WHOLE]
    stored = [(table, name) for table, name in stored if name in tensors]
    V = max([V, *(len(tensors[name]) for _, name in stored)])
    whole = {table: take(tensors, name, (V, C), path) for table, name in stored}
    if len(whole) == 1 and not tied:
        raise CheckpointError(f"{path}: holds the whole table of {names[next(iter(whole))]}, but not the other one")
    beyond = sorted({id for one in ids.values() for id in one if id >= V})
    if beyond != list(range(V, V + len(beyond))):
        where = folder / ADAPTER_CONFIG
        raise CheckpointError(f"{where}: {KEY} has the id {beyond[0]}; this base has ids 0 to {V - 1}")
    return StoredRows(vocab_size=V + len(beyond), ids=ids, values=values, whole=whole)


@torch.no_grad()
def put_rows(model: LanguageModel, stored: StoredRows) -> None:
    """Make the tables as long as the rows ask for, and put these in; after ``add_lora``."""
    if not stored.ids:
        return
    if stored.vocab_size > model.config.vocab_size:
        model.resize(stored.vocab_size)
    for table, tensor in stored.whole.items():
        model.get_submodule(table).get_parameter("weight").copy_(tensor)
    tied = model.config.tie_embeddings
    for table, ids in stored.ids.items():
        rows = add_token_rows(model, ids, embedding=table == "embed", head=tied or table == "head")[table]
        rows.values.copy_(stored.values[table][torch.tensor(ids).argsort()])


def _once(tensors: dict[str, Tensor], names: Mapping[str, str], path: Path) -> None:
    """Leave out what stands under the name of a tied head; it must be what the embedding has."""
    for leaf in (_ROWS, *_WHOLE):
        again = tensors.pop(f"{PREFIX}{names['head']}.{leaf}", None)
        if again is not None and not torch.equal(again, tensors.get(f"{PREFIX}{names['embed']}.{leaf}", again[:0])):
            raise CheckpointError(f"{path}: {names['head']}.{leaf} is not the embedding's, to which it is tied here")


def _ids(setting: Any, names: Mapping[str, str], tied: bool, path: Path) -> dict[str, list[int]]:
    """Ids by table, of a list or of an object from a module's name to a list."""
    found: dict[str, list[int]] = {}
    for name, ids in (setting if isinstance(setting, dict) else {names["embed"]: setting}).items():
        table = "head" if name in HEADS else "embed" if f".{names['embed']}".endswith(f".{name}") else None
        if table is None:
            known = ", ".join(names.values())
            raise CheckpointError(f"{path}: {KEY} names {name!r}; rows are trained in {known} only")
        right = isinstance(ids, list) and ids and all(type(id) is int and id >= 0 for id in ids)
        if not right or len(set(ids)) < len(ids):
            raise CheckpointError(f"{path}: {KEY} is {ids!r}; it must be a list of ids, each of them once")
        found[table] = ids
    if not found:
        raise CheckpointError(f"{path}: {KEY} is {setting!r}; it must name ids, or be null")
    if tied and "head" in found and found.get("embed") != found.pop("head"):
        raise CheckpointError(f"{path}: {KEY} is not the same for embedding and head, which this model ties")
    return found
