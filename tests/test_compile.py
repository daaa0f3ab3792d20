"""``--compile``: as accurate as eager, and one clear line where no C++ compiler is there."""

from pathlib import Path
from typing import Any

import pytest
import torch

from minitune.adapters import add_lora
from minitune.config import SFTConfig
from minitune.errors import ConfigError
from minitune.jobs import compiled
from minitune.jobs.load import TINY
from minitune.jobs.run import Run
from minitune.models import LanguageModel, build
from minitune.ops import BUILTIN
from minitune.train import accumulate


def run_of(out: Path, **changes: Any) -> Run:
    settings: dict[str, Any] = {
        "model": "tiny", "data": str(TINY / "rows.jsonl"), "out": str(out), "rows": 60, "val": "0", "max_steps": 3,
        "batch_size": 4, "max_length": 128, "lr": 1e-3, "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    return Run(SFTConfig(**settings | changes))


def gradients(run: Run, model: LanguageModel) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the run's first batch."""
    loss = accumulate(model, next(iter(run._batches())))
    found = {name: w.grad.double() for name, w in model.named_parameters() if w.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss, found


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
def test_compiled_steps_are_as_accurate_as_eager_ones(tmp_path: Path, method: str, packing: bool) -> None:
    """Both against float64: the gradients' error is at most twice eager's, whose products add in another order."""
    eager = run_of(tmp_path / "eager", method=method, packing=packing)
    fast = run_of(tmp_path / "fast", method=method, packing=packing, compile=True)
    exact = build(eager.model.config, BUILTIN, torch.float64).double()
    if method == "lora":
        add_lora(exact, eager.ready.lora, seed=0)
    exact.double().load_state_dict(eager.model.state_dict())
    for name, w in exact.named_parameters():
        w.requires_grad_(name in eager.ready.optimizer.parameters)
    (truth, wanted), (_, plain), (loss, compiled_) = (
        gradients(run, model) for run, model in ((eager, exact), (eager, eager.model), (fast, fast.model))
    )
    assert loss == pytest.approx(truth, rel=1e-5)
    assert compiled_.keys() == plain.keys() == wanted.keys()  # the names too: a checkpoint fits both
    errors = [torch.stack([(g[n] - w).square().mean() / w.square().mean() for n, w in wanted.items() if w.any()])
              for g in (compiled_, plain)]  # fmt: skip
    ours, eagers = (float(error.mean().sqrt()) for error in errors)
    assert ours <= 2 * eagers + torch.finfo(torch.float32).eps
    assert len(list(fast)) == 3


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
