"""What every test shares: no network, and the folder of real third-party files where there is one."""

import os
import tempfile
from pathlib import Path

import pytest

# The reference libraries read these at import, so they are set before any test module is collected:
# a test that needs the network is a broken test.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Tests that run side by side share the cores, and so do the processes that they start.
if _workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _workers)))

# What commands remember goes into a folder of this run of the tests, and away with it.
_CACHE = tempfile.TemporaryDirectory(prefix="minitune-tests-")
os.environ["MINITUNE_CACHE"] = _CACHE.name

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def material() -> Path:
    """Return the folder of real weights, tokenizers and data; skip the test, with the reason, where it is absent."""
    named = os.environ.get("MINITUNE_MATERIAL")
    folder = Path(named) if named else CHECKOUT.parent / "shared" / "material"
    if not folder.is_dir():
        where = f"MINITUNE_MATERIAL names {named}" if named else "MINITUNE_MATERIAL is not set, no ../shared/material"
        pytest.skip(f"the folder of real files is absent ({where})")
    return folder
