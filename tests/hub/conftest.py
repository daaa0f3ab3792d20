"""A hub of the test's own, a folder to pull into, and no settings from outside."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import MODEL, Hub, running


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "https_proxy", "HTTPS_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Hub]:
    with running(MODEL) as server:
        yield server


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "models" / "name"
