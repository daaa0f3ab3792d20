"""The kernels in Triton's interpreter, in a process of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed; it is made for Linux")
@pytest.mark.parametrize("file", sorted(path.name for path in HERE.glob("test_*_kernel.py")))
def test_in_the_interpreter(file: str) -> None:
    """Guards the numbers of every kernel on machines without a GPU."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", str(HERE / file), "-p", "no:cacheprovider"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parents[1],
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
