"""The exercises: each solution is right, each file as it is handed out is open, and each usual mistake is seen."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDER = CHECKOUT / "docs" / "exercises"
NAMES = [path.stem for path in sorted(FOLDER.glob("[0-9]*.py"))]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton, for the last exercise, is made for Linux"
)

# For each exercise what a reader may well write, in place of a line of the solution, and what must be said of it.
MISTAKES = {
    "01_softmax": ("np.exp(z - z.max(-1, keepdims=True))", "np.exp(z)", "scores near 1000"),
    "02_rms_norm": ("g - x_hat * (g * x_hat).mean(-1, keepdims=True)", "g", "dx"),
    "03_rope": ("x2 * cos + x1 * sin", "x2 * cos - x1 * sin", "(1, 0) by 90 degrees: at [0, 1]"),
    "04_attention": ("h * k.shape[1] // H", "h % k.shape[1]", "4 query heads, 2 key/value heads"),
    "05_cross_entropy": ("dz[~kept] = 0", "pass", "dz of logits (5, 7): at [1, 0]"),
    "06_adamw": ("m_hat = m / (1 - b1**t)", "m_hat = m", "w after step 1"),
    "07_lora": ("alpha / len(A) * B @ A", "alpha * B @ A", "merged"),
    "08_packing": ("IGNORE), IGNORE)", "IGNORE), ids[0])", "targets of [3, 1, 2]: at [5]"),
    "09_top_p": ("np.cumsum(falling) - falling < p", "np.cumsum(falling) <= p", "top-p 0.1"),
    "10_online_softmax": ("scale = np.exp(m - m_new)", "scale = 1.0", "blocks of 1"),
    "11_triton_kernel": ("triton.cdiv(n, BLOCK)", "n // BLOCK", "elements"),
}


@cache
def said_of(folder: Path) -> dict[str, str]:
    """What the command says of each file of a folder; the interpreter of Triton needs a process of its own."""
    run = subprocess.run(
        [sys.executable, str(FOLDER / "check.py"), "--folder", str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (CHECKOUT, CHECKOUT / "kernels")))},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert "Traceback" not in run.stderr, run.stderr
    said = dict(line.split(maxsplit=1) for line in run.stdout.splitlines())
    assert run.returncode == (0 if set(said.values()) == {"right"} else 1)
    return said


def test_every_solution_is_right() -> None:
    """Guards the solutions, and that the checks accept what is right."""
    assert said_of(FOLDER / "solutions") == dict.fromkeys(NAMES, "right")
    assert len(NAMES) >= 10


def test_what_is_handed_out_is_open() -> None:
    """Guards the holes: every file has one, and is not called wrong before it is filled in."""
    said = said_of(FOLDER)
    assert sorted(said) == NAMES
    assert all(verdict.startswith("not filled in yet: ") for verdict in said.values()), said


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of a folder with a mistake in every file."""
    folder = tmp_path_factory.mktemp("answers")
    for name in NAMES:
        right, wrong, _ = MISTAKES[name]
        solution = (FOLDER / "solutions" / f"{name}.py").read_text(encoding="utf-8")
        assert solution.count(right) == 1, name
        (folder / f"{name}.py").write_text(solution.replace(right, wrong), encoding="utf-8")
    return said_of(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_usual_mistake_is_wrong(name: str, mistaken: dict[str, str]) -> None:
    """Guards the checks: none can be passed with the mistake that the exercise is about, and the place is named."""
    assert mistaken[name].startswith("wrong: "), mistaken[name]
    assert MISTAKES[name][2] in mistaken[name]


def test_an_answer_that_breaks_is_wrong(tmp_path: Path) -> None:
    """Guards the reader's own exceptions, half-filled files and results of another shape: a line each, never more."""
    source = (FOLDER / "01_softmax.py").read_text(encoding="utf-8")
    answers = {
        "01_softmax.py": ("answer = ...", "answer = z / 0j.real.nothing"),
        "02_softmax.py": ("answer = ...", "answer = ("),
    }
    for name, (hole, answer) in answers.items():
        (tmp_path / name).write_text(source.replace(hole, answer), encoding="utf-8")
    other = (FOLDER / "solutions" / "03_rope.py").read_text(encoding="utf-8")
    (tmp_path / "03_rope.py").write_text(other.replace("axis=1)", "axis=0)"), encoding="utf-8")
    said = said_of(tmp_path)
    assert re.match(r"wrong: line \d+: AttributeError: ", said["01_softmax"])
    assert re.match(r"wrong: line \d+: ", said["02_softmax"])
    assert "(1, 0) by 90 degrees: the shape is (2, 1); expected (1, 2)" in said["03_rope"]


@pytest.mark.parametrize("name", NAMES)
def test_a_solution_is_the_exercise_with_its_holes_filled(name: str) -> None:
    """Guards that the two do not drift apart: same statement, same functions, and every other line the same."""
    exercise = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    solution = (FOLDER / "solutions" / f"{name}.py").read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(exercise)) == ast.get_docstring(ast.parse(solution))
    lines = iter(solution.splitlines())
    for line in exercise.splitlines():
        if not re.match(r"\s*\w+ = \.\.\.(  #.*)?$", line):
            assert line in lines, f"not in the solution, or in another order: {line}"  # it walks on from the last one


@pytest.mark.parametrize("name", NAMES)
def test_what_an_exercise_tells_to_read_is_there(name: str) -> None:
    """Guards the reading line: sources that exist, and the command with the exercise's own number."""
    statement = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
    reading = next(line for line in statement.splitlines() if line.startswith("Reading: "))
    paths = [re.sub(r" \(.*\)$", "", path) for path in reading.removeprefix("Reading: ").split(", ")]
    if not (CHECKOUT / "docs" / "math").is_dir():  # the chapters are written elsewhere
        paths = [path for path in paths if not path.startswith("docs/math/")]
    assert not [path for path in paths if not (CHECKOUT / path).is_file()]
    assert statement.splitlines()[-1] == f"Check:   python docs/exercises/check.py {int(name[:2])}"
