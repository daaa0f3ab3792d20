"""Instructions about the small world, each with the one answer that is right: what fine-tuning learns and is tested on.

A row is one question of a scene with the scene's story as its input. Rows for training never touch a held-out
combination; rows for the test are about nothing else, so that no answer can have been learned by heart.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minitune.data.world.scenes import SCENES, Maker
from minitune.data.world.words import LANGUAGES
from minitune.files import write_text

KINDS = {
    "has": "holding", "who": "owning", "where": "holding", "colour": "owning", "more": "counting",
    "fewer": "counting", "moved": "moving", "first": "listing", "second": "listing", "last": "listing",
    "count": "listing", "reverse": "listing", "odd": "odd_one", "range": "ranging", "translate": "translating",
    "opposite": "opposing", "sound": "sounding", "day": "dating",
}  # fmt: skip
"""Every kind of question, and the scene in which it is asked."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One instruction: what it asks (a key of ``KINDS``), in which language, and its only right answer."""

    kind: str
    language: str
    instruction: str
    input: str
    output: str

    @property
    def row(self) -> dict[str, str]:
        """As an Alpaca row."""
        return {"instruction": self.instruction, "input": self.input, "output": self.output}


def tasks(count: int, *, seed: int, test: bool = False) -> Iterator[Task]:
    """``count`` instructions: the languages in turn, the kinds equally often; the same for a seed everywhere."""
    rng = random.Random(f"minitune tasks {seed} {test}")
    makers = [Maker(words, rng, test=test) for words in LANGUAGES]
    assert set(KINDS.values()) == set(SCENES)
    kinds: list[str] = []
    for i in range(count):
        make = makers[i % 2]
        kinds = kinds or rng.sample(list(KINDS), len(KINDS))
        yield _task(make, kinds[-1])
        if i % 2:
            kinds.pop()


def _task(make: Maker, kind: str) -> Task:
    while True:
        scene = make.make(KINDS[kind])
        for asked in scene.questions:
            if asked.kind == kind:
                return Task(
                    kind=kind,
                    language=make.words.name,
                    instruction=asked.question,
                    input=scene.story,
                    output=asked.answer,
                )


def instructions(count: int, *, seed: int, test: bool = False) -> list[dict[str, str]]:
    """``tasks`` as Alpaca rows."""
    return [task.row for task in tasks(count, seed=seed, test=test)]


def write_instructions(path: Path, count: int, *, seed: int, test: bool = False) -> None:
    """Write ``instructions`` as JSON lines."""
    rows = instructions(count, seed=seed, test=test)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
