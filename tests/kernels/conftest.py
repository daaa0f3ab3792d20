"""Where a kernel runs in these tests: in Triton's interpreter on the CPU, or on a GPU.

Triton reads TRITON_INTERPRET once, at its import, so a process is one or the other. ``test_kernels.py`` starts the
process that interprets; there the tests of this folder use the CPU, float32 and float16 (the interpreter multiplies
bfloat16 wrongly). Where there is a GPU and no interpreter, the same tests carry the mark ``gpu`` and use bfloat16 too.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*_kernel.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "kernels" and item.path.name.endswith("_kernel.py") and not INTERPRETED:
            item.add_marker("gpu")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(params=[torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16]), ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param
