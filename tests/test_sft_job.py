"""The main job on the model that ships: what it writes, that it repeats itself, and what it refuses."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

import minitune
from minitune import SFTConfig
from minitune.device import pick_dtype, pick_ops
from minitune.errors import ConfigError, DataError
from minitune.jobs.load import TINY, resolve
from minitune.jobs.sft import Run
from minitune.ops import BUILTIN, REFERENCE

ROWS = TINY / "rows.jsonl"


def config(tmp_path: Path, **changes) -> SFTConfig:
    settings = {"model": "tiny", "data": str(ROWS), "out": str(tmp_path / "run"), "rows": 60, "val": "8"}
    settings |= {"packing": False}
    return SFTConfig(**settings | {"device": "cpu", "dtype": "float32", "batch_size": 8, "lr": 2e-3} | changes)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_learns_and_writes_what_the_contract_says(tmp_path: Path, method: str) -> None:
    run = minitune.sft(config(tmp_path, method=method, epochs=3, eval_every=5))
    reports = list(run)
    result = run.finish()
    out = tmp_path / "run"
    assert result.val_loss_before is not None
    assert result.val_loss_after is not None
    assert result.val_loss_after < result.val_loss_before
    assert [report.step for report in reports] == list(range(1, run.steps + 1))
    assert run.steps == 3 * math.ceil(52 / 8)

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(run.steps + 1))
    assert [line["step"] for line in lines if "val_loss" in line] == [0, 5, 10, 15, 20, 21]
    assert lines[-1]["val_loss"] == result.val_loss_after
    inspected = json.loads((out / "inspect.json").read_text())
    assert (inspected["train_rows"], inspected["val_rows"]) == (52, 8)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["template"]["name"] == "alpaca"
    assert set(manifest["choices"]) == {"device", "dtype", "ops", "template"}
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.toml", "metrics.jsonl", "manifest.json", "inspect.json", "result.json"}
    assert ("adapter" in names, "model" in names) == (method == "lora", method == "full")

    # What was written is what was trained: loaded again, it gives the same logits.
    model, tokenizer = minitune.load(out, device="cpu", dtype="float32")
    ids = torch.tensor([[1, *tokenizer.encode("Name the first colour. red, blue")]])
    with torch.no_grad():
        run.model.eval()
        torch.testing.assert_close(model.logits(model(ids)), run.model.logits(run.model(ids)), rtol=0, atol=1e-6)


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    def losses(name: str, **changes) -> list[float]:
        return [r.loss for r in Run(config(tmp_path, out=str(tmp_path / name), max_steps=6, **changes))]

    assert losses("a", dropout=0.1) == losses("b", dropout=0.1)
    assert losses("c", seed=1) != losses("d", seed=2)


def test_accumulation_is_the_same_run(tmp_path: Path) -> None:
    whole, parts = (
        [(r.loss, r.grad_norm) for r in Run(config(tmp_path, out=str(tmp_path / f"m{m}"), max_steps=4, micro_batch=m))]
        for m in (8, 3)
    )
    for (a, na), (b, nb) in zip(whole, parts, strict=True):
        assert (b, nb) == (pytest.approx(a, rel=1e-5), pytest.approx(na, rel=1e-4))


def test_every_row_once_an_epoch(tmp_path: Path) -> None:
    run = Run(config(tmp_path, epochs=2))
    tokens = [sum(batch.trained_tokens for batch in step) for step in run._batches()]
    once = sum(int(example.trained.sum()) for example in run.ready.data.train)
    assert sum(tokens[:7]) == sum(tokens[7:]) == once


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    Run(config(tmp_path, max_steps=1)).finish()
    with pytest.raises(ConfigError, match="is not empty; choose a new folder, or pass --force"):
        Run(config(tmp_path))
    Run(config(tmp_path, max_steps=1, force=True)).finish()
    # What is not a run is never replaced.
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_text("x")
    with pytest.raises(ConfigError, match="is not a run folder"):
        Run(config(tmp_path, out=str(other), force=True))
    assert (other / "cat.jpg").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_batch(tmp_path: Path) -> None:
    run = Run(config(tmp_path, method="full"))
    run.begin()  # what it answers before: with finite numbers
    with torch.no_grad():
        run.model.norm.weight.fill_(1e38)
    with pytest.raises(minitune.MinituneError, match="step 1: loss"):
        list(run)
    kept = json.loads((tmp_path / "run" / "bad_step.json").read_text())
    assert kept["step"] == 1
    assert len(kept["batches"][0]["ids"]) == 8
    assert kept["batches"][0]["documents"] == [len(kept["batches"][0]["ids"][0])] * 8
    assert not (tmp_path / "run" / "model").exists()


def test_long_rows_stop_the_run_or_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl line \d+ .*over --max-length 80"):
        Run(config(tmp_path, max_length=80))
    run = Run(config(tmp_path, max_length=80, on_long="drop", out=str(tmp_path / "b")))
    assert run.ready.data.long_rows == 60 - len(run.ready.data.train) - len(run.ready.data.val) > 0
    assert max(len(example.ids) for example in run.ready.data.train) <= 80
    with pytest.raises(DataError, match="no row is left"):
        Run(config(tmp_path, max_length=5, on_long="drop", out=str(tmp_path / "c")))
    with pytest.raises(ConfigError, match="more than the 512 positions"):
        Run(config(tmp_path, max_length=513))


def test_validation_from_its_own_file_is_checked_for_leaks(tmp_path: Path) -> None:
    lines = ROWS.read_text(encoding="utf-8").splitlines(keepends=True)
    own = tmp_path / "val.jsonl"
    own.write_text("".join(lines[:2] + lines[900:905]), encoding="utf-8")
    run = Run(config(tmp_path, val=str(own)))
    assert len(run.ready.data.val.rows) == 7
    assert run.ready.data.leaked_rows >= 2


def test_an_adapter_finds_its_base_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(config(tmp_path, max_steps=1)).finish()
    monkeypatch.chdir(tmp_path)
    source = resolve("run/adapter")
    assert source == resolve("run")
    assert source.base == TINY
    raw = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    (tmp_path / "run/adapter/adapter_config.json").write_text(json.dumps(raw | {"base_model_name_or_path": "gone"}))
    with pytest.raises(minitune.MinituneError, match="its base model 'gone' is not there"):
        resolve("run")


def test_trained_weights_are_float32_under_bfloat16_compute(tmp_path: Path) -> None:
    for method in ("lora", "full"):
        run = Run(config(tmp_path, method=method, dtype="bfloat16", max_steps=1, out=str(tmp_path / method)))
        run.finish()
        assert {w.dtype for w in run.ready.optimizer.parameters.values()} == {torch.float32}
        assert run.model(torch.tensor([[1, 5]])).dtype == torch.bfloat16


def test_a_cpu_without_fast_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for cost, dtype in ((100.0, torch.float32), (0.3, torch.bfloat16)):
        monkeypatch.setattr("minitune.device._bfloat16_cost", lambda cost=cost: cost)
        picked, why = pick_dtype("auto", cpu)
        assert picked == dtype
        assert "bfloat16 product takes" in why
    assert pick_dtype("bfloat16", cpu) == (torch.bfloat16, "asked for")


def test_a_result_is_one_json_document(tmp_path: Path) -> None:
    result = Run(config(tmp_path, max_steps=1)).finish()
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == json.loads(
        json.dumps(dataclasses.asdict(result))
    )


def test_the_kernels_are_told_when_they_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing falls back in silence: asked for by name it is an error, chosen by itself the reason is printed."""

    def none() -> None:
        raise RuntimeError("minitune_kernels has no kernel yet for: rope")

    monkeypatch.setattr("minitune.device.triton_ops", none)
    with pytest.raises(ConfigError, match="no kernel yet for: rope; use --ops builtin"):
        pick_ops("triton", torch.device("cpu"))
    assert pick_ops("auto", torch.device("cuda"))[1].endswith("no kernel yet for: rope")
    assert pick_ops("auto", torch.device("cpu")) == (BUILTIN, "torch's own functions")
    assert pick_ops("reference", torch.device("cpu"))[0] is REFERENCE


def test_force_never_removes_what_the_run_reads_or_what_is_no_run(tmp_path: Path) -> None:
    """--force replaces a run, nothing else: not the model or rows that it needs, not a stranger's files."""
    run = tmp_path / "run"
    Run(config(tmp_path, max_steps=1, method="full")).finish()
    with pytest.raises(ConfigError, match="which this run reads"):
        Run(config(tmp_path, model=str(run), force=True))
    rows = run / "rows.jsonl"
    rows.write_bytes(ROWS.read_bytes())
    with pytest.raises(ConfigError, match="which this run reads"):
        Run(config(tmp_path, data=str(rows), force=True))
    assert (run / "model" / "model.safetensors").is_file()
    Run(config(tmp_path, max_steps=1, force=True)).finish()
    assert rows.is_file()  # beside the run, but not of it
    assert not (run / "model").exists()
    site = tmp_path / "site"
    site.mkdir()
    (site / "config.toml").write_text("title = 'a site'")
    with pytest.raises(ConfigError, match="is not a run folder"):
        Run(config(tmp_path, out=str(site), force=True))
    link = tmp_path / "link"
    link.symlink_to(run)
    Run(config(tmp_path, max_steps=2, out=str(link), force=True)).finish()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "wrong",
    [{"schedule": "step"}, {"method": "qlora"}, {"dtype": "float16"}, {"train_on": "first"}, {"rows": 10.5},
     {"epochs": 1e308}, {"seed": -1}, {"seed": 10**20}],
    ids=str,
)  # fmt: skip
def test_settings_are_checked_however_they_are_made(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong)).replace("_", "-")):
        config(tmp_path, **wrong)
    assert config(tmp_path, val=0.25).val == "0.25"


def test_an_out_that_cannot_be_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="--out"):
            Run(config(tmp_path, out=str(out), data="nowhere.jsonl"))


def test_a_few_rows_say_how_to_go_without_validation(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="or pass --val 0 for no validation"):
        Run(config(tmp_path, rows=3, val="0.05"))
    with pytest.raises(ConfigError, match="--val inf"):
        Run(config(tmp_path, val="inf"))
    Run(config(tmp_path, rows=3, val="0", max_steps=1)).finish()
