"""The rows of a timing, encoded once: every contestant gets the same ids and the same mask."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.recipes import material
from minitune.chat import TEMPLATES, examples, terminator
from minitune.data.formats import read_rows
from minitune.errors import DataError
from minitune.files import read_json, write_json
from minitune.tokenizer import Tokenizer, load_tokenizer

ALPACA = "data/en/alpaca.json"


@dataclass(frozen=True)
class Example:
    """Ids of one row, and which of them are trained; of the first none can be."""

    ids: list[int]
    trained: list[bool]

    @property
    def weights(self) -> list[float]:
        return [float(trained) for trained in self.trained]

    @property
    def labels(self) -> list[int]:
        """As the reference libraries take them: the id where it is trained, else -100."""
        return [id_ if trained else -100 for id_, trained in zip(self.ids, self.trained, strict=True)]

    @property
    def inputs(self) -> int:
        """Ids that predict another one."""
        return len(self.ids) - 1


def real_rows(tokenizer: Tokenizer, count: int, *, longest: int, first: int = 0) -> list[Example]:
    """Alpaca's rows from number ``first`` on, rendered by its template, the answer trained; long ones left out."""
    found: list[Example] = []
    template = TEMPLATES["alpaca"]
    stop_id = terminator(template, tokenizer)
    for row in read_rows(material() / ALPACA, limit=first + 2 * count + 64).good[first:]:
        for made in examples(row.messages, template, tokenizer, stop_id, train_on="all"):
            if len(made.ids) <= longest and len(found) < count:
                found.append(Example(list(made.ids), [bool(weight) for weight in made.weights]))
    if len(found) < count:
        raise ValueError(f"{ALPACA} has only {len(found)} rows of at most {longest} tokens from {first} on")
    return found


def full_rows(vocabulary: int, count: int, length: int, *, seed: int = 0) -> list[Example]:
    """Rows of ``length`` random ids, all trained but the first: the work of the engine and nothing else."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (count, length), generator=generator).tolist()
    return [Example(row, [False] + [True] * (length - 1)) for row in ids]


def write_examples(path: Path, rows: list[Example]) -> None:
    """For the contestants' processes to read."""
    write_json(path, {"ids": [row.ids for row in rows], "trained": [row.trained for row in rows]})


def read_examples(path: Path) -> list[Example]:
    """What ``write_examples`` wrote."""
    found: dict[str, Any] = read_json(path, DataError)
    return [Example(ids, trained) for ids, trained in zip(found["ids"], found["trained"], strict=True)]


def tokenizer_in(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder."""
    return load_tokenizer(folder)
