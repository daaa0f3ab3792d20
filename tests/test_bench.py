"""The benches of the whole: they run on a bare machine, refuse a wrong contestant, and their tables are generated."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import workers
from bench.measure import Ceilings, process_peak_bytes
from bench.rows import Example, full_rows, read_examples, real_rows, tokenizer_in, write_examples
from bench.sample import perplexity, step_bytes
from bench.shapes import SHAPES, make_folder
from bench.tables import PAGE, SECTIONS, filled
from bench.train import AGREE, report
from bench.workers import Worker, WorkerDied, able, race_workers
from minitune.adapters.lora import adapted_layers
from minitune.jobs.load import load
from minitune.models.published import model_config
from minitune.ops.costs import all_weights

CHECKOUT = Path(__file__).resolve().parents[1]


def run(module: str, *words: str) -> list[dict[str, Any]]:
    """A bench in a process, on one thread; the lines that it kept."""
    out = Path(words[words.index("--out") + 1])
    place = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=CHECKOUT, env=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_the_shapes_are_the_published_ones() -> None:
    """Guards figures that name a model: parameters of the published checkpoints, the tied head counted once."""
    sizes = {"SmolLM2-135M": 134_515_008, "Qwen2.5-0.5B": 494_032_768, "Llama-3.2-1B": 1_235_814_400}
    for name, parameters in sizes.items():
        assert all_weights(model_config(SHAPES[name].config, name)) == parameters


def test_a_folder_is_loaded_with_its_adapter(material: Path, tmp_path: Path) -> None:
    """Guards that the contestants start from one model: B is not zero, so that A's gradient is compared too."""
    folder = make_folder("tiny", tmp_path / "model")
    model, tokenizer = load(folder / "adapter", device="cpu", dtype="float32")
    layers = adapted_layers(model)
    assert len(layers) == 7 * 2
    assert all(bool(layer.lora_B.any()) for layer in layers.values())
    assert tokenizer.vocab_size == 49152


def test_rows_come_back_as_they_were(material: Path, tmp_path: Path) -> None:
    """Guards the mask: the labels are the ids where trained, and end with the stop id."""
    tokenizer = tokenizer_in(make_folder("tiny", tmp_path / "model"))
    rows = real_rows(tokenizer, 5, longest=200) + full_rows(100, 2, 9)
    write_examples(tmp_path / "rows.json", rows)
    assert read_examples(tmp_path / "rows.json") == rows
    for row in rows[:5]:
        answer = [label for label in row.labels if label != -100]
        assert 0 < len(answer) < len(row.ids) <= 200
        assert answer[-1] == tokenizer.eos_id
        assert row.labels[-len(answer) :] == row.ids[-len(answer) :]
    assert [sum(row.trained) for row in rows[5:]] == [8, 8]


def test_a_bare_machine_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda module: None)
    assert able(["minitune", "transformers", "trl", "liger", "llama.cpp"], "cpu") == ["minitune"]
    said = capsys.readouterr().out
    assert "transformers: left out, transformers and peft cannot be imported; pip install transformers peft" in said
    assert "trl: left out" in said
    assert "liger: left out, it needs a GPU" in said
    assert "llama.cpp: left out, llama_cpp and gguf cannot be imported; pip install llama-cpp-python gguf" in said
    assert able(["minitune", "llama.cpp"], "cuda") == ["minitune"]
    assert "llama.cpp: left out, it is timed on a CPU" in capsys.readouterr().out


def test_who_is_wrong_is_not_timed(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards every throughput: a loss or a gradient norm that is further away than 1e-3 has no speed."""

    def turns(loss: float, norm: float) -> list[dict[str, Any]]:
        first = {"loss": loss, "grad_norm": norm, "seconds": 9.0, "peak_bytes": 1 << 30}
        return [first, first, *({**first, "seconds": s} for s in (2.0, 1.0, 3.0))]

    found = {"minitune": turns(2.0, 1.0), "near": turns(2.0 * (1 + AGREE / 2), 1.0), "loss": turns(2.1, 1.0),
             "norm": turns(2.0, 1.01), "nan": turns(float("nan"), 1.0)}  # fmt: skip
    case = {"shape": "tiny", "setting": "fixed", "method": "full", "dtype": "float32"}
    rows = [Example([1, 2, 3, 4], [False, False, True, True])] * 5
    args = Namespace(threads=1)
    lines = report(case, found, rows, Ceilings(1e9, 1e9), torch.device("cpu"), args)
    assert {line["contestant"]: "failed" in line for line in lines} == {
        "minitune": False, "near": False, "loss": True, "norm": True, "nan": True,
    }  # fmt: skip
    ours = lines[0]
    assert (ours["trained_tokens_per_s"], ours["tokens_per_s"], ours["rows_per_s"]) == (5.0, 7.5, 2.5)
    assert ours["mfu"] == pytest.approx(ours["step_flops"] / 2.0 / 1e9, abs=1e-4)
    assert capsys.readouterr().out.count("not timed") == 3


def test_bytes_of_a_step_are_those_of_the_weights_it_reads() -> None:
    numbers = 134_515_008 - 61 * 576  # all but the norms; the tied table is read as the head
    assert step_bytes("SmolLM2-135M", "float32", int8=False) == 4 * numbers
    assert step_bytes("SmolLM2-135M", "bfloat16", int8=False) == 2 * numbers
    assert step_bytes("SmolLM2-135M", "float32", int8=True) == numbers


def test_a_contestant_that_dies_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match="ended with 2"):
        Worker("bench.train_contestants", {"nothing": "of the kind"}, 1)


@pytest.mark.parametrize("apart", [False, True])
def test_who_dies_is_named_and_the_others_go_on(
    apart: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards a race: a contestant that dies on its way in or in its turn costs nobody else's figures, and all are
    closed; ``apart`` has never two loaded at once."""
    loaded: list[str] = []
    most = 0

    class Fake:
        def __init__(self, module: str, arguments: dict[str, Any], threads: int):
            nonlocal most
            self.name, self.turns = arguments["contestant"], 0
            if self.name == "unborn":
                raise WorkerDied("ended with 1")
            loaded.append(self.name)
            most = max(most, len(loaded))

        def step(self) -> dict[str, Any]:
            self.turns += 1
            if self.name == "dies" and self.turns == 2:
                raise WorkerDied("ended with -9")
            return {"turn": self.turns}

        def close(self) -> None:
            if self.name in loaded:
                loaded.remove(self.name)

    monkeypatch.setattr(workers, "Worker", Fake)
    names: dict[str, dict[str, Any]] = {"first": {}, "unborn": {}, "dies": {}, "last": {}}
    found = race_workers("bench.sample_contestants", names, rounds=3, threads=1, apart=apart)
    turns = [{"turn": 1}, {"turn": 2}, {"turn": 3}]
    assert found == {"first": turns, "last": turns}
    assert capsys.readouterr().out.splitlines() == ["unborn: ended with 1", "dies: ended with -9"]
    assert not loaded
    assert most == (1 if apart else 3)


def test_training_and_sampling_without_peers(material: Path, tmp_path: Path) -> None:
    """The whole way, minitune alone: what a bare machine gets."""
    words = ("--shapes", "tiny", "--contestants", "minitune", "--rounds", "1", "--threads", "1")
    out = str(tmp_path / "train.jsonl")
    one = ("--methods", "lora", "--settings", "real", "--real-rows", "6", "--capacity", "256")
    (line,) = run("bench.train", *words, *one, "--out", out)
    assert line["loss"] == pytest.approx(10.8, abs=0.1)  # ln V of random weights
    assert line["trained_tokens_per_s"] > 0
    assert line["tokens"] > line["trained_tokens"] > 0
    assert 0 < line["peak_bytes"] < 4 << 30
    out = str(tmp_path / "sample.jsonl")
    one = ("--batches", "2", "--prompt", "8", "--tokens", "6", "--no-perplexity")
    (line,) = run("bench.sample", *words, *one, "--out", out)
    assert line["tokens_per_s"] > 0
    assert line["first_token_ms"] > 0


@pytest.mark.slow
def test_all_agree_with_the_references(material: Path, tmp_path: Path) -> None:
    """Loss and gradient norm of one step through both libraries, LoRA and full, padded and packed; and equal tokens."""
    pytest.importorskip("peft")
    words = ("--shapes", "tiny", "--contestants", "minitune", "transformers", "--rounds", "1", "--length", "64")
    out = str(tmp_path / "train.jsonl")
    lines = run("bench.train", *words, "--real-rows", "12", "--capacity", "512", "--out", out)
    assert len(lines) == 8
    assert not [line for line in lines if "failed" in line]
    out = str(tmp_path / "sample.jsonl")
    words = ("--shapes", "tiny", "--batches", "1", "3", "--rounds", "1", "--prompt", "20", "--tokens", "10")
    lines = run("bench.sample", *words, "--no-perplexity", "--out", out)
    assert len(lines) == (10 if torch.cuda.is_available() else 8)  # on a GPU without graphs too
    assert not [line for line in lines if "failed" in line]
    lines = run("bench.load", "--shapes", "tiny", "--rounds", "1", "--out", str(tmp_path / "load.jsonl"))
    assert {line["contestant"] for line in lines if "contestant" in line} == {"minitune", "transformers"}
    words = ("--contestants", "minitune", "--rows", "300", "--rounds", "1", "--out", str(tmp_path / "data.jsonl"))
    lines = run("bench.data", *words)
    assert lines[0]["rows_per_s"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_llama_cpp_makes_the_same_tokens(dtype: str, material: Path, tmp_path: Path) -> None:
    """The file that is written for it is the model, and its rows in a batch do not mix."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    words = ("--shapes", "tiny", "--contestants", "minitune", "llama.cpp", "--rounds", "1", "--no-perplexity")
    sizes = ("--batches", "1", "3", "--prompt", "20", "--tokens", "10", "--dtype", dtype, "--device", "cpu")
    lines = run("bench.sample", *words, *sizes, "--out", str(tmp_path / "sample.jsonl"))
    assert [line["contestant"] for line in lines] == ["minitune", "llama.cpp"] * 2
    assert not [line for line in lines if "failed" in line]


@pytest.mark.slow
def test_int8_costs_little(material: Path) -> None:
    folder = material / "weights" / "TinyStories-656K"
    plain, small = (perplexity(folder, kept, stories=20) for kept in ("none", "int8"))
    assert plain != small
    assert small == pytest.approx(plain, rel=0.01)


def test_the_page_is_what_the_results_say() -> None:
    """Mended by ``python -m bench.tables``."""
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page
    assert filled(filled(page)) == page
    assert all(f"<!-- {name}: python -m bench.tables -->" in page for name in SECTIONS)


def test_a_process_knows_its_peak() -> None:
    before = process_peak_bytes()
    block = torch.ones(64 << 20, dtype=torch.uint8)
    assert process_peak_bytes() >= before > 0
    del block


@pytest.mark.parametrize("words", [["-c", "import minitune"], ["-m", "minitune", "--help"]], ids=["import", "help"])
def test_starting_takes_no_half_second(words: list[str]) -> None:
    """Guards imports at the top of modules: torch alone takes a second. The best of three, by the processor's time."""

    def seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True, cwd=CHECKOUT)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 0.5
