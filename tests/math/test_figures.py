"""The figures of the book: drawn by the committed script, small, and each shown in a chapter."""

import os
import subprocess
import sys
from pathlib import Path

import book

FIGURES = book.CHECKOUT / "docs" / "figures" / "math"


def test_the_script_draws_what_is_there(tmp_path: Path) -> None:
    """Guards a figure whose script no longer runs; in a process of its own, as a reader starts it."""
    path = os.pathsep.join([str(book.CHECKOUT), str(book.CHECKOUT / "kernels")])
    run = subprocess.run(
        [sys.executable, str(book.CHECKOUT / "docs" / "figures" / "draw.py"), "--out", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    drawn = {file.name for file in tmp_path.iterdir()}
    assert drawn == {file.name for file in FIGURES.iterdir()}
    shown = "".join(chapter.text for chapter in book.chapters())
    for name in drawn:
        assert f"../figures/math/{name}" in shown
        assert (FIGURES / name).read_bytes().startswith(b"\x89PNG")
        assert (FIGURES / name).stat().st_size < 100_000
