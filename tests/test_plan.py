"""What is said before a run: the plan of memory term by term, the learning rates, and what --dry-run leaves alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import minitune
from minitune.cli import main
from minitune.config import ModelConfig, SFTConfig
from minitune.jobs.load import TINY
from minitune.jobs.ready import Ready
from minitune.jobs.run import Run, update_ratios
from minitune.jobs.run_folder import bad_step_batches
from minitune.memory_plan import memory_plan, total
from minitune.models import build
from minitune.train import accumulate

ROWS = TINY / "rows.jsonl"


def config(tmp_path: Path, **changes: Any) -> SFTConfig:
    settings: dict[str, Any] = {
        "model": "tiny", "data": str(ROWS), "out": str(tmp_path / "run"), "rows": 80, "val": "0.2", "max_steps": 20,
        "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    return SFTConfig(**settings | changes)


def test_a_dry_run_writes_nothing_and_plans_what_the_run_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sft", "--model", "tiny", "--data", str(ROWS), "--rows", "80", "--out", str(tmp_path / "run")]
    words += ["--max-steps", "5", "--device", "cpu", "--json"]
    assert main([*words, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not (tmp_path / "run").exists()
    assert main(words) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][1:]
    assert plan["steps"] == len(lines) == 5
    for step, rate in plan["rates"]:
        assert lines[step - 1]["lr"] == rate
    assert lines[0]["planned_memory_bytes"] == sum(plan["memory"].values())


def shape(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "vocab_size": 3000, "hidden_size": 256, "intermediate_size": 704, "num_layers": 6, "num_heads": 8,
        "num_kv_heads": 4, "head_dim": 32,
    }  # fmt: skip
    return ModelConfig(**values | changes)


def test_the_plan_counts_what_autograd_keeps() -> None:
    """Truth: the bytes of every tensor that a forward saves for its backward, weights left out, told by torch."""
    model = build(shape())
    model.initialize(seed=0)
    model.train()
    kept: dict[int, int] = {}
    weights = {w.untyped_storage().data_ptr() for w in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = 512
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        hidden = model(torch.randint(3000, (1, tokens)))
    assert hidden.requires_grad
    terms = {term.name: term.bytes for term in memory_plan(model, tokens=tokens)}
    assert terms["inside blocks"] == pytest.approx(sum(kept.values()), rel=0.05)


def test_checkpointing_leaves_one_block_and_the_stream() -> None:
    model = build(shape())
    whole, part = (
        {t.name: t.bytes for t in memory_plan(model, tokens=512)}["inside blocks"]
        for model.checkpointing in (False, True)
    )
    assert part < 0.4 * whole


def test_the_plan_of_weights_gradients_and_moments_is_exact(tmp_path: Path) -> None:
    for method in ("lora", "full"):
        run = Run(config(tmp_path, method=method, out=str(tmp_path / method)))
        next(iter(run))
        terms = {term.name: term.bytes for term in run.ready.memory()}
        optimizer = run.ready.optimizer
        size = {name: sum(w.numel() * 4 for w in named.values()) for name, named in
                (("w", optimizer.parameters), ("m", optimizer.m), ("v", optimizer.v))}  # fmt: skip
        assert terms["trained weights"] == terms["gradients"] == size["w"]
        assert terms["AdamW's moments"] == size["m"] + size["v"]
        frozen = sum(w.numel() * 4 for w in run.model.parameters() if not w.requires_grad)
        assert terms.get("frozen weights", 0) == frozen
        assert total(run.ready.memory()) == sum(terms.values())


def test_the_update_ratio_is_the_step_that_is_taken(tmp_path: Path) -> None:
    """Truth: the weights before and after a step at the peak rate (no warm-up, constant), block by block."""
    run = Run(config(tmp_path, method="full", warmup=0, schedule="constant", lr=1e-3, weight_decay=0.0))
    before = {name: w.detach().clone() for name, w in run.ready.optimizer.parameters.items()}
    next(iter(run))
    found = update_ratios(run.ready)
    logged = json.loads((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert logged["update_ratios"] == found
    assert set(found) == {"embed", "norm", *(f"blocks.{i}" for i in range(6))}
    for part, ratio in found.items():
        names = [name for name in before if name.startswith(part + ".")]
        now = run.ready.optimizer.parameters
        moved = sum(float((now[n].detach() - before[n]).double().square().sum()) for n in names) ** 0.5
        size = sum(float(now[n].detach().double().square().sum()) for n in names) ** 0.5
        assert ratio == pytest.approx(moved / size, rel=1e-3)


def test_a_steep_rate_is_warned_of(tmp_path: Path) -> None:
    run = Run(config(tmp_path, method="full", lr=0.1))
    next(iter(run))
    assert any("a lower --lr is safer" in warning for warning in run.warnings)


@pytest.mark.parametrize("packing", [True, False])
def test_the_batch_of_a_step_that_broke_can_be_run_again(tmp_path: Path, packing: bool) -> None:
    """Guards B44: the saved batch gives the loss that the run saw, to the bit."""
    run = Run(config(tmp_path, method="full", packing=packing, lr=1e-4))
    seen = next(iter(run._batches()))
    expected = accumulate(run.model, seen)
    run.ready.optimizer.zero_grad()
    run.begin()
    weight = run.model.norm.weight.detach().clone()
    with torch.no_grad():
        run.model.norm.weight.fill_(torch.inf)
    with pytest.raises(minitune.MinituneError, match=r"its batch is in .*bad_step.json"):
        list(run)
    with torch.no_grad():
        run.model.norm.weight.copy_(weight)
    assert accumulate(run.model, bad_step_batches(tmp_path / "run" / "bad_step.json")) == expected


def test_samples_stand_beside_every_validation(tmp_path: Path) -> None:
    Run(config(tmp_path, eval_every=2, max_steps=4)).finish()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "samples" in line] == [0, 2, 4]
    assert [line["step"] for line in lines if "val_loss" in line] == [0, 2, 4]


def test_the_rates_of_the_plan_are_the_schedule(tmp_path: Path) -> None:
    ready = Ready(config(tmp_path, max_steps=100, warmup=10, lr=1.0))
    rates = dict(ready.rate_table())
    assert rates[10] == 1.0
    assert rates[1] == 0.1
    assert list(rates) == [1, 10, 11, 25, 50, 75, 100]
    assert rates[100] > 0
