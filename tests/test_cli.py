"""The command line: what a user can get wrong is one line after ``minitune: `` and exit code 2, and loses nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minitune.cli import COMMANDS, main
from minitune.jobs.load import TINY

ROWS = str(TINY / "rows.jsonl")


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must fail as a user error; its one line."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("minitune: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def sft(model: Path | str, tmp_path: Path, *words: str, data: str = ROWS) -> list[str]:
    return ["sft", "--model", str(model), "--data", data, "--out", str(tmp_path / "run"), "--device", "cpu", *words]


def test_a_wrong_command_or_flag(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "did you mean 'sft'" in fails(capsys, "stf")
    assert "unrecognized options: --lrr" in fails(capsys, *sft("tiny", tmp_path, "--lrr", "1"))
    assert "did you mean --lr?" in fails(capsys, *sft("tiny", tmp_path, "--lrr", "1"))
    assert "--out" in fails(capsys, "sft", "--model", "tiny", "--data", "x")
    assert "'fast'" in fails(capsys, *sft("tiny", tmp_path, "--lr", "fast"))
    assert "lora" in fails(capsys, *sft("tiny", tmp_path, "--method", "lorra"))
    assert "at least 1" in fails(capsys, *sft("tiny", tmp_path, "--rank", "0"))
    assert "prompt" in fails(capsys, "generate", "tiny").lower()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_model(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path) -> None:
    assert "there is no such model folder" in fails(capsys, "info", str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert "config.json: there is no such file" in fails(capsys, "info", str(tmp_path / "empty"))
    (model / "config.json").write_text('{"model_type": "llama",')
    assert "not valid JSON (line 1" in fails(capsys, "info", str(model))
    shutil.copy(TINY / "config.json", model)
    (model / "tokenizer.model").unlink()
    assert "tokenizer" in fails(capsys, "generate", str(model), "x", "--device", "cpu")
    # What a folder is can be told without its tokenizer.
    assert main(["info", str(model)]) == 0
    assert "none that can be used" in capsys.readouterr().out


def test_a_pickle_is_never_opened(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    marker = tmp_path / "ran"
    (model / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    assert "are a pickle (pytorch_model.bin)" in fails(capsys, "info", str(model))
    assert not marker.exists()


def test_weights_that_are_not_finite(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, model / "model.safetensors")
    assert "'model.norm.weight' has 1 values that are not finite" in fails(capsys, *sft(model, tmp_path))


def test_rows_that_cannot_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    good = '{"instruction": "a", "output": "b"}\n'
    data.write_text(good * 20 + '{"instruction": "a"}\n')
    assert "rows.jsonl line 21" in fails(capsys, *sft("tiny", tmp_path, data=str(data)))
    assert "'output'" in fails(capsys, *sft("tiny", tmp_path, data=str(data)))
    data.write_text("[1,")
    assert "rows.jsonl" in fails(capsys, *sft("tiny", tmp_path, data=str(data)))
    assert "none.jsonl" in fails(capsys, *sft("tiny", tmp_path, data="none.jsonl"))
    assert not (tmp_path / "run").exists()


def test_settings_from_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('model = "tiny"\nlr = "1e-4"\n')
    assert "lr is '1e-4' (str); it must be float" in fails(capsys, "sft", str(file))
    file.write_text('model = "tiny"\nlearning_rat = 1e-4\n')
    assert "unknown key 'learning_rat'" in fails(capsys, "sft", str(file))
    file.write_text('model = "tiny"\nmodel = 3\n')
    assert "not valid TOML" in fails(capsys, "sft", str(file))
    file.write_text(f"model = 'tiny'\ndata = '{ROWS}'\nrows = 40\nval = '4'\nmax-steps = 50\nquiet = true\n")
    assert "--out" in fails(capsys, "sft", str(file))
    # A flag wins over the file.
    words = ["--out", str(tmp_path / "run"), "--max-steps", "2", "--device", "cpu", "--json"]
    assert main(["sft", str(file), *words]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 2


def test_json_is_the_last_line_and_the_rest_is_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*sft("tiny", tmp_path, "--rows", "40", "--val", "4", "--max-steps", "2"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["run"] == str(tmp_path / "run")
    assert "validation loss" in err
    assert main(["generate", str(tmp_path / "run"), "Hello", "--chat", "--max-tokens", "5", "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer["text"] == err.removesuffix("\n")
    assert answer["finish"] in ("stop", "length")
    assert main(["info", str(tmp_path / "run"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 1_271_424
    assert "LoRA, rank 8" in facts["adapter"]


def test_info_accounts_for_every_tensor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "56 used, 0 unused, 0 missing" in out
    assert "1,271,424" in out


def test_help_lists_every_command_and_needs_no_torch() -> None:
    code = "import sys; from minitune.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_every_flag(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "minitune", command, "--help"], capture_output=True, text=True, check=True
    )
    assert f"minitune {command}" in done.stdout
    assert "--json" in done.stdout
