"""The kernels in Triton's interpreter, in processes of their own that run side by side."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
FILES = sorted(path.name for path in HERE.glob("test_*_kernel.py"))

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed; it is made for Linux"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Any, Path]]]:
    """A process for each file, all started before any is waited for."""
    folder = tmp_path_factory.mktemp("interpreter")
    started = {}
    for file in FILES:
        output = folder / f"{file}.log"
        with output.open("w") as log:
            started[file] = (
                subprocess.Popen(
                    [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / file)],
                    env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=HERE.parents[1],
                ),
                output,
            )
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("file", FILES)
def test_in_the_interpreter(file: str, runs: dict[str, tuple[Any, Path]]) -> None:
    """Guards the numbers of every kernel on machines without a GPU."""
    process, output = runs[file]
    code = process.wait()
    assert code == 0, output.read_text()[-8000:]
