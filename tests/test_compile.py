"""``--compile``: as accurate as eager, and one clear line where no C++ compiler is there."""

from pathlib import Path
from typing import Any

import pytest
import torch

from minitune.config import SFTConfig
from minitune.errors import ConfigError
from minitune.jobs import compiled
from minitune.jobs.load import TINY
from minitune.jobs.run import Run


def losses(out: Path, **changes: Any) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    settings: dict[str, Any] = {
        "model": "tiny", "data": str(TINY / "rows.jsonl"), "out": str(out), "rows": 60, "val": "0", "max_steps": 5,
        "batch_size": 4, "max_length": 128, "lr": 1e-3, "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    run = Run(SFTConfig(**settings | changes))
    reports = list(run)
    weights = {name: w.detach().clone() for name, w in run.ready.optimizer.parameters.items()}
    return [r.loss for r in reports], [r.grad_norm for r in reports], weights


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
def test_compiled_steps_are_those_of_eager(tmp_path: Path, method: str, packing: bool) -> None:
    eager = losses(tmp_path / "eager", method=method, packing=packing)
    fast = losses(tmp_path / "fast", method=method, packing=packing, compile=True)
    assert fast[0] == pytest.approx(eager[0], rel=1e-5)
    assert fast[1] == pytest.approx(eager[1], rel=1e-4)
    assert fast[2].keys() == eager[2].keys()  # names are not those of a wrapper, so that a checkpoint fits both


@pytest.mark.parametrize("missing", [True, False])
def test_without_a_compiler_it_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, missing: bool) -> None:
    """Whether torch itself finds none, or names one that is not there."""

    def none() -> str:
        if missing:
            raise RuntimeError("No working C++ compiler found")
        return "/nowhere/g++"

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    with pytest.raises(ConfigError, match=r"--compile on a CPU needs a C\+\+ compiler.*leave --compile out"):
        compiled.refuse_without_compiler()
