"""A tiny world whose instructions have exactly checkable answers, in English and Chinese.

For now it knows lists: which thing comes first, which last. The lists of the validation rows are never trained on, so
a right answer there was read from the prompt, not remembered.
"""

import json
import random
from pathlib import Path

_LISTS = (
    # kind, things, separator, (question, answer) for the first and for the last
    (
        ["cat", "dog", "cow", "hen", "fox", "bee", "pig", "owl", "ant", "rat"],
        ", ",
        ("Which animal comes first in the list?", "The {} comes first."),
        ("Which animal comes last in the list?", "The {} comes last."),
    ),
    (
        ["red", "blue", "green", "white", "black", "pink", "gold", "grey"],
        ", ",
        ("Name the first colour.", "The first colour is {}."),
        ("Name the last colour.", "The last colour is {}."),
    ),
    (
        ["猫", "狗", "牛", "鸡", "狐", "马", "羊", "鱼", "鸟", "虎"],
        "、",
        ("列表中第一个动物是什么？", "第一个是{}。"),
        ("列表中最后一个动物是什么？", "最后一个是{}。"),
    ),
)


def instructions(count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """``count`` Alpaca rows (instruction, input, output), each kind of list in turn; the same for a seed."""
    rng = random.Random(f"world {seed}")
    rows = []
    for i in range(count):
        things, separator, first, last = _LISTS[i % len(_LISTS)]
        listed = rng.sample(things, rng.choice((3, 4)))
        wants_first = rng.random() < 0.5
        question, answer = first if wants_first else last
        output = answer.format(listed[0] if wants_first else listed[-1])
        rows.append({"instruction": question, "input": separator.join(listed), "output": output})
    return rows


def write_instructions(path: Path, count: int, *, seed: int = 0) -> None:
    """Write ``instructions`` as JSON Lines."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in instructions(count, seed=seed))
    path.write_text("".join(lines), encoding="utf-8")
