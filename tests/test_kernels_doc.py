"""docs/kernels.md: its steps run and are right, its tables are what they count, its code is theirs."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
STEPS = CHECKOUT / "docs" / "kernels_steps"
PAGE = (CHECKOUT / "docs" / "kernels.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)


def run(code_or_file: list[str]) -> subprocess.CompletedProcess[str]:
    """A process of its own, since Triton's interpreter is chosen at its import."""
    path = os.pathsep.join(map(str, (CHECKOUT, CHECKOUT / "kernels", STEPS)))
    return subprocess.run(
        [sys.executable, *code_or_file],
        env=os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed; it is made for Linux"
)


@needs_triton
def test_every_step_is_right_and_counts_what_the_page_says() -> None:
    """Guards the steps against float64, and every figure of the page."""
    done = run([str(STEPS / "run.py"), "--check"])
    assert done.returncode == 0, f"{done.stdout}{done.stderr[-4000:]}\nrun: python docs/kernels_steps/run.py --write"


COUNT_A_KNOWN_KERNEL = """
import torch, triton, triton.language as tl
from pathlib import Path
from counting import counted_kernels, counted_operations
import known

x = torch.ones(40)
with counted_kernels() as counts:
    known.double_kernel[(2,)](x, x, 40, BLOCK=32)
assert (counts.read_bytes, counts.written_bytes, counts.exponentials) == (160, 160, 64), counts
assert bool((x == 2 * torch.e).all() or torch.allclose(x, torch.full((40,), 2 * torch.e)))
with counted_kernels() as counts:
    known.product_kernel[(1,)](torch.ones(16, 32), torch.ones(32, 16), torch.empty(16, 16))
assert counts.product_flops == 2 * 16 * 32 * 16, counts
with counted_operations() as counts:
    y = (torch.ones(8, 4) @ torch.ones(4, 2)).T.exp()
assert counts.product_flops == 2 * 8 * 4 * 2, counts
# Written: twice ones, the product, the exponentials; read: both factors, the product. The transposition moves nothing.
assert (counts.written_bytes, counts.read_bytes) == (4 * (32 + 8 + 16 + 16), 4 * (32 + 8 + 16)), counts
"""
KNOWN = """
import triton
import triton.language as tl


@triton.jit
def double_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, 2 * tl.exp(tl.load(x_ptr + at, at < n)), at < n)


@triton.jit
def product_kernel(a_ptr, b_ptr, c_ptr):
    i, j = tl.arange(0, 16), tl.arange(0, 32)
    a = tl.load(a_ptr + i[:, None] * 32 + j[None, :])
    b = tl.load(b_ptr + j[:, None] * 16 + i[None, :])
    tl.store(c_ptr + i[:, None] * 16 + i[None, :], tl.dot(a, b))
"""


@needs_triton
def test_counting_counts(tmp_path: Path) -> None:
    """Guards the counter itself, on kernels and products whose bytes and FLOPs are known."""
    (tmp_path / "known.py").write_text(KNOWN)
    (tmp_path / "count.py").write_text(COUNT_A_KNOWN_KERNEL)
    done = run([str(tmp_path / "count.py")])
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1].strip()[:40])
def test_the_code_of_the_page_is_the_code_that_runs(block: str) -> None:
    """Guards the page's code: each block stands, to the letter, in a file that the first test runs."""
    sources = [path.read_text(encoding="utf-8") for path in STEPS.glob("*_steps.py")]
    assert any(block in source for source in sources)


def test_the_links_of_the_page_lead_somewhere() -> None:
    """Guards links within the repository; the chapters of docs/math where they are there."""
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in link]
    if not (CHECKOUT / "docs" / "math").is_dir():
        links = [link for link in links if not link.startswith("math/")]
    assert links
    assert not [link for link in links if not (CHECKOUT / "docs" / link).exists()]
