"""Check your answers to the exercises.

    python docs/exercises/check.py              all of them
    python docs/exercises/check.py 4 5          these
    python docs/exercises/check.py --folder DIR the files of another folder, such as docs/exercises/solutions

For each it says: right; wrong, with the first number that differs; or not filled in yet, while a hole (``... = ...``)
is left. The numbers compared with are those of minitune itself, in float64. Exit code 0 where all that was asked for
is right.
"""

import argparse
import ast
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRITON_INTERPRET", "1")  # read by Triton at its import; no GPU is needed here

import numpy as np
from cases import CASES, Skip, check_machine

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-9
"""Of the largest number of an array; what float32 computes is compared in cases.py."""


class Verdict(NamedTuple):
    """``state`` is right, wrong, open or skipped."""

    state: str
    why: str = ""


SAID = {"right": "right", "wrong": "wrong: ", "open": "not filled in yet: ", "skipped": "skipped: "}


def exercises(folder: Path) -> dict[int, Path]:
    """The exercises of a folder by number."""
    return {int(path.name[:2]): path for path in sorted(folder.glob("[0-9][0-9]_*.py"))}


def holes(source: str) -> list[str]:
    """The names that are still given ``...``."""
    return [
        ast.unparse(node.targets[0])
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is ...
    ]


def check(path: Path) -> Verdict:
    """What is to be said of one file."""
    source = path.read_text(encoding="utf-8")
    try:
        left = holes(source)
    except SyntaxError as error:
        return Verdict("wrong", f"line {error.lineno}: {error.msg}")
    if left:
        return Verdict("open", ", ".join(left))
    number = int(path.name[:2])
    try:
        check_machine(number)
        for what, got, expected in CASES[number](load(path)):
            if found := difference(got, expected):
                return Verdict("wrong", f"{what}: {found}")
    except Skip as reason:
        return Verdict("skipped", str(reason))
    except Exception as error:  # whatever the reader's code raises
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        at = f"line {lines[-1]}: " if lines else ""
        return Verdict("wrong", f"{at}{type(error).__name__}: {' '.join(str(error).split())}")
    return Verdict("right")


def load(path: Path) -> Any:
    """The file as a module, whatever its name."""
    spec = importlib.util.spec_from_file_location(f"exercise_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def difference(got: Any, expected: Any) -> str:
    """The first number that is not what it should be; nothing where all are."""
    if got is None:
        return "got None; is there a return?"
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        return f"the shape is {got.shape}; expected {expected.shape}"
    if got.dtype.kind not in "biuf":
        return f"got {got.dtype}; expected numbers"
    size = np.abs(expected[np.isfinite(expected)].astype(float)).max(initial=0.0)
    with np.errstate(invalid="ignore"):
        same = (np.abs(got - expected) <= TOLERANCE * max(size, 1e-3)) if got.dtype.kind != "b" else got == expected
    wrong = np.argwhere(~(same | (got == expected)))
    if not len(wrong):
        return ""
    at = tuple(map(int, wrong[0]))
    place = f"at {list(at)}: " if at else ""
    return f"{place}got {got[at]:.10g}, expected {expected[at]:.10g} ({len(wrong)} of {got.size} differ)"


def main() -> int:
    """Print a line for each exercise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, metavar="NN", help="which exercises; all by itself")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the answers are")
    options = parser.parse_args()
    there = exercises(options.folder)
    missing = [number for number in options.numbers if number not in there]
    if missing or not there:
        parser.error(f"{options.folder} has no exercise {', '.join(map(str, missing))}; it has {list(there)}")
    right = True
    for number in options.numbers or there:
        verdict = check(there[number])
        right = right and verdict.state == "right"
        print(f"{there[number].stem:<20}{SAID[verdict.state]}{verdict.why}", flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
