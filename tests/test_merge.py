"""``minitune merge``: what is written does what base and adapter did together, and says how exactly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import minitune
from minitune.cli import main
from minitune.config import SFTConfig
from minitune.errors import ConfigError
from minitune.jobs.load import TINY
from minitune.jobs.merge import merge
from minitune.jobs.sft import sft

ROWS = [{"instruction": f"Say {word}.", "input": "", "output": f"{word}!"} for word in ("red", "blue", "green", "小明")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained DoRA for a few steps at a high rate, so that the adapter does something."""
    folder = tmp_path_factory.mktemp("merge")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    settings: dict[str, Any] = {"lr": 2e-2, "max_steps": 4, "batch_size": 4, "packing": False, "val": "0"}
    sft(SFTConfig(model="tiny", data=str(data), out=str(folder / "run"), quiet=True, **settings)).finish()
    return folder / "run"


def greedy(model: str | Path) -> str:
    loaded, tokenizer = minitune.load(model, device="cpu", dtype="float32")
    pieces = minitune.generate(loaded, tokenizer, "Tom has a", max_tokens=12, temperature=0.0)
    return "".join(piece.text for piece in pieces)


def test_the_merged_folder_is_the_pair(run: Path, tmp_path: Path) -> None:
    """Guards B44: equal logits, measured on the run's own rows, and not just by the report: the text is the same."""
    found = merge("tiny", str(run), str(tmp_path / "merged"))
    assert found.checked_base
    assert found.compared_on == "4 rows that it was trained on"
    assert found.max_difference <= 1e-4 * found.largest_logit
    assert found.top1 == 1.0
    assert abs(found.kl) < 1e-8
    assert greedy(tmp_path / "merged") == greedy(run)
    base, _ = minitune.load("tiny", device="cpu", dtype="float32")
    tuned, tokenizer = minitune.load(tmp_path / "merged", device="cpu", dtype="float32")
    ids = torch.tensor([tokenizer.encode("Tom has a red kite.")])
    assert not torch.allclose(base(ids), tuned(ids), atol=1e-2)  # the adapter did something


def test_rounding_is_reported(run: Path, tmp_path: Path) -> None:
    """Guards the measurement itself: in bfloat16 the difference is there, and is told."""
    found = merge("tiny", str(run), str(tmp_path / "merged"), dtype="bfloat16")
    assert found.dtype == "BF16"
    assert 1e-4 < found.max_difference < 1.0
    assert 0 < found.kl < 1e-2


def test_another_base_is_refused(run: Path, tmp_path: Path) -> None:
    """Guards B44: the same shapes with other weights merge into nonsense, so they are told apart by their bytes."""
    other = tmp_path / "other"
    model, tokenizer = minitune.load("tiny", device="cpu", dtype="float32")
    with torch.no_grad():
        model.embed.weight[5, 5] += 0.25
    from minitune.checkpoint import save_checkpoint

    save_checkpoint(model, other, source=TINY, tokenizer_files=tokenizer.files)
    with pytest.raises(ConfigError, match="was trained on other weights"):
        merge(str(other), str(run), str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()
    assert merge(str(other), str(run), str(tmp_path / "merged"), force=True).top1 == 1.0


def test_an_adapter_without_rows_is_compared_on_sentences(run: Path, tmp_path: Path) -> None:
    lone = tmp_path / "adapter"
    lone.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (lone / name).write_bytes((run / "adapter" / name).read_bytes())
    found = merge("tiny", str(lone), str(tmp_path / "merged"))
    assert "sentences" in found.compared_on
    assert found.top1 == 1.0


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merged"
    assert main(["merge", "tiny", str(run), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "the weights it was trained on" in said
    assert "same likeliest token at 100.00 %" in said
    assert main(["merge", "tiny", str(run), "--out", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["merge", "tiny", str(TINY), "--out", str(tmp_path / "x")]) == 2
    assert "adapter_config.json" in capsys.readouterr().err
    assert main(["merge", str(run), str(run), "--out", str(tmp_path / "x")]) == 2
    assert "is an adapter itself" in capsys.readouterr().err


def test_what_goes_along(run: Path, tmp_path: Path) -> None:
    """Guards that other tools stop where the model was trained to, and write prompts as it was trained."""
    merge("tiny", str(run), str(tmp_path / "merged"))
    for folder in (run / "adapter", tmp_path / "merged"):
        settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        assert settings["eos_token_id"] == 2
        assert "### Response:" in (folder / "chat_template.jinja").read_text(encoding="utf-8")
    model, tokenizer = minitune.load(tmp_path / "merged", device="cpu", dtype="float32")
    from minitune.chat import template_for

    template, why = template_for(tokenizer)
    assert (template.name, why) == ("alpaca", "the model's own, recognised by what it writes")
    assert model.stop_ids == (2,)
