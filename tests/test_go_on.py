"""Runs that are stopped or killed go on bit for bit, and refuse to where they would be another run (B48 to B50)."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import minitune
from minitune.config import SFTConfig
from minitune.errors import ConfigError, MinituneError, TrainingError
from minitune.jobs.load import TINY
from minitune.jobs.run import Run, resumed
from minitune.models import LanguageModel
from minitune.resume import saved_steps
from minitune.train import Validation

ROWS = TINY / "rows.jsonl"
CLOCK = ("trained_tokens_per_s", "tokens_per_s", "peak_memory_bytes", "planned_memory_bytes")


def config(out: Path, **changes: Any) -> SFTConfig:
    settings: dict[str, Any] = {
        "model": "tiny", "data": str(ROWS), "out": str(out), "rows": 60, "val": "0.2", "batch_size": 4,
        "max_steps": 12, "lr": 1e-3, "dropout": 0.1, "packing": False, "save_every": 3, "eval_every": 4,
        "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    return SFTConfig(**settings | changes)


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of the metrics, but for clock and memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def weights(run: Path) -> dict[str, bytes]:
    """The bytes of every tensor that a run wrote; a file's header has its entries in any order."""
    return {name: w.numpy().tobytes() for name, w in load_file(next(run.glob("*/*.safetensors"))).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, mid-epoch validations and dropout included."""
    out = tmp_path_factory.mktemp("whole") / "run"
    Run(config(out)).finish()
    return out


def stopped_after(out: Path, steps: int, **changes: Any) -> Run:
    run = Run(config(out, **changes))
    for report in run:
        if report.step == steps:
            run.stop()
    assert run.result is None
    return run


@pytest.mark.parametrize("steps", [1, 5, 8])
def test_a_stopped_run_goes_on_bit_for_bit(whole: Path, tmp_path: Path, steps: int) -> None:
    """Weights, metrics, answers and the best step are those of the run that was not stopped."""
    out = tmp_path / "run"
    stopped_after(out, steps)
    assert saved_steps(out) == [steps]
    run = resumed(out)
    assert run.start == steps
    result = run.finish()
    assert metrics(out) == metrics(whole)
    assert weights(out) == weights(whole)
    expected = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    for name in ("steps", "train_loss", "val_loss_before", "val_loss_after", "best_step", "best_val_loss"):
        assert getattr(result, name) == expected[name], name
    assert [s.after for s in result.samples] == [s["after"] for s in expected["samples"]]


def test_full_tuning_with_accumulation_goes_on_bit_for_bit(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method": "full", "micro_batch": 2, "packing": True, "max_length": 128, "dropout": 0.0}
    Run(config(tmp_path / "whole", **changes)).finish()
    stopped_after(tmp_path / "run", 7, **changes)
    resumed(tmp_path / "run").finish()
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


SCRIPT = """
import sys
from minitune.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *words], text=True, env=env, **options)


def flags(out: Path) -> list[str]:
    found = ["sft"]
    for name, value in {
        "model": "tiny", "data": ROWS, "out": out, "rows": 60, "val": 0.2, "batch-size": 4, "max-steps": 12,
        "lr": 1e-3, "dropout": 0.1, "save-every": 1, "eval-every": 4, "device": "cpu", "dtype": "float32",
    }.items():  # fmt: skip
        found += [f"--{name}", str(value)]
    return [*found, "--no-packing", "--quiet"]


def killed_runs(tmp_path: Path, times: int) -> None:
    """Kill a run at random moments, also while it saves, go on each time, and compare with one that was not."""
    plain = tmp_path / "plain"
    assert start(*flags(plain)).wait() == 0
    out, rng = tmp_path / "run", random.Random(11)
    process, kills = start(*flags(out)), 0
    while kills < times:
        # Wait until there is something to go on from, then kill after a random while.
        while process.poll() is None and not saved_steps(out):
            time.sleep(0.01)
        time.sleep(rng.random() * 0.25)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        found = saved_steps(out)
        assert len(found) >= 1, "a kill left no checkpoint"
        process = start("sft", "--resume", str(out), "--quiet")
        # It has to come past the step it starts at before it is killed again, or nothing would ever end.
        while process.poll() is None and saved_steps(out) == found:
            time.sleep(0.01)
    assert process.wait() == 0
    assert kills
    assert metrics(out) == metrics(plain)
    assert weights(out) == weights(plain)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_killed_three_times(tmp_path: Path) -> None:
    killed_runs(tmp_path, 3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_killed_twenty_times(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        killed_runs(tmp_path / str(number), 4)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are other there")
def test_ctrl_c_ends_the_step_saves_and_says_how_to_go_on(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [word for word in flags(out) if word != "--quiet"]
    process = start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (out / "metrics.jsonl").is_file() or len(metrics(out)) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, told = process.communicate()
    assert process.returncode == 130
    assert "stopping behind this step" in printed
    assert f"go on with: minitune sft --resume {out}" in told
    assert "Traceback" not in told
    assert start("sft", "--resume", str(out), "--quiet").wait() == 0
    # Another interval of saving, another thread count perhaps; the losses are the same to float32's last digits.
    assert [line["loss"] for line in metrics(out)[1:]] == pytest.approx([m["loss"] for m in metrics(whole)[1:]])


def test_what_changed_is_named_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROWS.read_bytes())
    out = tmp_path / "run"
    stopped_after(out, 2, data=str(rows))
    rows.write_bytes(ROWS.read_bytes() + b'{"instruction": "x", "output": "y"}\n')
    with pytest.raises(TrainingError, match="not be the same run: data was"):
        resumed(out)
    rows.write_bytes(ROWS.read_bytes())
    settings = out / "config.toml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("batch_size = 4", "batch_size = 5"), encoding="utf-8")
    with pytest.raises(TrainingError, match="batch_size was 4, now 5"):
        resumed(out)
    settings.write_text(text, encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr("minitune.jobs.ready.code_fingerprint", lambda: "another")
        with pytest.raises(TrainingError, match=r"code was .*, now another; pass --force"):
            resumed(out)
        run = resumed(out, force=True)
        assert "goes on although code was" in run.warnings[-1]
    resumed(out).finish()
    with pytest.raises(TrainingError, match="has come to its end"):
        resumed(out)


def test_a_folder_without_a_run_or_a_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        resumed(tmp_path)
    Run(config(tmp_path / "run", save_every=100))
    with pytest.raises(TrainingError, match="has no checkpoint to go on from"):
        resumed(tmp_path / "run")


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save fails with one line, the run ends, and the checkpoint before it is still whole."""
    out = tmp_path / "run"
    run = Run(config(out))

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    for report in run:
        if report.step == 4:
            monkeypatch.setattr("minitune.resume.write_file", full)
            break
    with pytest.raises(
        MinituneError, match=r"step 6 could not be saved \(No space left on device\); the checkpoint of step 3"
    ):
        list(run)
    monkeypatch.undo()
    assert saved_steps(out) == [3]
    assert resumed(out).start == 3


def test_patience_stops_and_the_best_step_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two validations without gain end the run; the kept weights are those of the best step, not the last ones."""
    out = tmp_path / "run"
    run = Run(config(out, eval_every=2, patience=2, max_steps=40))
    losses = iter([9.0, 4.0, 3.0, 3.5, 3.2])  # before the first step, then behind steps 2, 4, 6 and 8
    monkeypatch.setattr(run, "_validate", lambda: Validation(nll=next(losses), tokens=1.0))
    ids = torch.arange(3, 23)[None]

    def logits(model: LanguageModel) -> torch.Tensor:
        model.eval()
        with torch.no_grad():
            found = model.logits(model(ids))
        model.train()
        return found

    seen = {report.step: logits(run.model) for report in run}
    result = run.finish()
    assert result.stopped_early
    assert (result.steps, result.best_step, result.best_val_loss) == (8, 4, 3.0)
    kept = json.loads((out / "best" / "best.json").read_text(encoding="utf-8"))
    assert kept == {"step": 4, "val_loss": 3.0}
    for folder, step in ((out / "best", 4), (out, 8)):
        model, _ = minitune.load(folder, device="cpu", dtype="float32")
        torch.testing.assert_close(logits(model), seen[step], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(seen[4], seen[8], atol=1e-2)


def test_keep_is_how_many_checkpoints_stay(tmp_path: Path) -> None:
    stopped_after(tmp_path / "run", 8, save_every=2, keep=3)
    assert saved_steps(tmp_path / "run") == [4, 6, 8]


def test_threads_are_part_of_what_makes_a_run(tmp_path: Path) -> None:
    """Another number of threads adds in another order, so it is named (and --force goes on)."""
    out = tmp_path / "run"
    stopped_after(out, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(TrainingError, match=f"threads was {threads}, now {threads + 1}"):
            resumed(out)
    finally:
        torch.set_num_threads(threads)
