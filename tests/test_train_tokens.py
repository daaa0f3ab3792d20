"""``--train-tokens``: ChatML on a base model whose tokenizer does not know it, from the run to the merged folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import minitune
from minitune.chat import Message
from minitune.checkpoint import read_config
from minitune.cli import main
from minitune.config import SFTConfig
from minitune.errors import ConfigError
from minitune.jobs.conversation import conversation_ids, stop_on, template_of
from minitune.jobs.info import describe
from minitune.jobs.inspect import inspect
from minitune.jobs.load import TINY
from minitune.jobs.merge import merge
from minitune.jobs.sft import Run
from minitune.tokenizer import load_tokenizer

WORDS = ("red", "blue", "green", "小明", "five", "seven")
ROWS = [{"instruction": f"Say {word}.", "output": f"{word}!"} for word in WORDS]
TOKENS = ["<|im_start|>", "<|im_end|>"]


def config(data: Path, out: Path, **changes: Any) -> SFTConfig:
    settings: dict[str, Any] = {"model": "tiny", "data": str(data), "out": str(out), "val": "0", "device": "cpu"}
    settings |= {"template": "chatml", "train_tokens": True, "dtype": "float32", "packing": False, "quiet": True}
    return SFTConfig(**settings | {"batch_size": 6, "max_steps": 30, "lr": 1e-2} | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned six answers in ChatML."""
    out = tmp_path_factory.mktemp("tokens") / "run"
    Run(config(data, out)).finish()
    return out


def answers(model: Path) -> list[str]:
    """What a folder answers, each to its end, by the template that it was trained with."""
    loaded, tokenizer = minitune.load(model, device="cpu", dtype="float32")
    template, _ = template_of("", tokenizer, str(model))
    assert template.name == "chatml"
    stop = stop_on(template, loaded, tokenizer)
    found = []
    for word in WORDS:
        prompt = conversation_ids([Message("user", f"Say {word}.")], template, tokenizer)
        pieces = list(minitune.generate(loaded, tokenizer, prompt, max_tokens=12, temperature=0.0))
        assert tokenizer.token(stop) == "<|im_end|>"
        found.append("".join(piece.text for piece in pieces))
    return found


def test_a_base_model_learns_to_end_its_answers(run: Path) -> None:
    """Guards B12: with its rows trained the model ends each answer by the added token, which it could not have done."""
    assert answers(run) == [f"{word}!" for word in WORDS]


def test_what_is_written(run: Path) -> None:
    """The adapter folder brings rows, tokenizer, template and stop ids; the base is untouched."""
    adapter, base = run / "adapter", load_tokenizer(TINY)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    tokenizer = load_tokenizer(adapter)
    V = base.vocab_size
    assert [tokenizer.token_id(name) for name in TOKENS] == [V, V + 1]
    ids = settings["trainable_token_indices"]
    assert ids[-2:] == [V, V + 1]
    assert base.eos_id not in ids  # ChatML does not use it
    rows = load_file(adapter / "adapter_model.safetensors")
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    assert rows[key].shape == (len(ids), 128)
    assert V + 1 in json.loads((adapter / "generation_config.json").read_text())["eos_token_id"]
    assert "<|im_end|>" in (adapter / "chat_template.jinja").read_text()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["choices"]["tokens"]["value"].endswith("<|im_start|> <|im_end|>")
    assert load_file(TINY / "model.safetensors")["model.embed_tokens.weight"].shape[0] == V
    assert f"with the rows of {len(ids)} tokens" in str(describe(str(run)).adapter)


def test_the_merged_folder_is_a_plain_longer_model(run: Path, tmp_path: Path) -> None:
    """Guards resized vocabularies in merge: configuration, tables and tokenizer agree, and it answers the same."""
    found = merge("tiny", str(run), str(tmp_path / "merged"))
    assert found.compared_on == "6 rows that it was trained on"
    assert found.max_difference <= 1e-4 * found.largest_logit
    assert found.trained_tokens >= 2
    V = load_tokenizer(TINY).vocab_size
    assert read_config(tmp_path / "merged")[0].vocab_size == V + 2
    assert load_file(tmp_path / "merged" / "model.safetensors")["model.embed_tokens.weight"].shape[0] == V + 2
    assert answers(tmp_path / "merged") == answers(run)


# PEFT asks transformers for an attribute that transformers has renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_reference_loads_the_run(run: Path) -> None:
    """What the guide tells a user of PEFT to call: the base made as long as the tokenizer, then the adapter."""
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    tokenizer = load_tokenizer(run / "adapter")
    base: Any = LlamaForCausalLM.from_pretrained(TINY)
    base.resize_token_embeddings(tokenizer.vocab_size, mean_resizing=False)
    theirs: Any = PeftModel.from_pretrained(base, str(run / "adapter")).eval()
    ours, _ = minitune.load(run, device="cpu", dtype="float32")
    ids = torch.tensor([tokenizer.encode("<|im_start|>user\nSay red.<|im_end|>\n", control=True)])
    with torch.no_grad():
        want, got = theirs(ids).logits, ours.logits(ours(ids))
    assert float((want - got).abs().max() / want.abs().max()) <= 1e-5


def test_a_full_run_adds_tokens_too(data: Path, tmp_path: Path) -> None:
    """With --method full every row is trained; the flag adds what lacks, and the model that is written is longer."""
    run = Run(config(data, tmp_path / "run", method="full", max_steps=2, lr=1e-3))
    assert "tokens" not in run.ready.choices
    run.finish()
    V = load_tokenizer(TINY).vocab_size
    assert read_config(tmp_path / "run" / "model")[0].vocab_size == V + 2
    model, tokenizer = minitune.load(tmp_path / "run", device="cpu", dtype="float32")
    assert tokenizer.token_id("<|im_end|>") == V + 1
    ids = torch.arange(V + 2)[None, -9:]
    with torch.no_grad():
        assert torch.equal(model.logits(model(ids)), run.model.eval().logits(run.model(ids)))


def test_a_template_that_lacks_nothing_trains_its_rows_alone(data: Path, tmp_path: Path) -> None:
    """Nothing is added where nothing lacks: the rows of the tokens that stand in the examples are trained."""
    run = Run(config(data, tmp_path / "run", template="", max_steps=1))
    assert run.ready.choices["tokens"][0] == "<s> </s>"
    assert run.model.config.vocab_size == load_tokenizer(TINY).vocab_size
    run.finish()
    loaded, _ = minitune.load(tmp_path / "run", device="cpu", dtype="float32")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(loaded.logits(loaded(ids)), run.model.eval().logits(run.model(ids)))


def test_the_same_run_twice(data: Path, tmp_path: Path) -> None:
    """Two runs see the same new rows and the same losses; the second takes up what the first has prepared."""
    losses = [[r.loss for r in Run(config(data, tmp_path / name, max_steps=3))] for name in ("a", "b")]
    assert losses[0] == losses[1]


# ---- what is said without it


def test_without_the_flag_the_missing_token_is_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no token '<\|im_end\|>'.*or tune with --train-tokens, which adds it"):
        Run(config(data, tmp_path / "run", train_tokens=False))
    assert not (tmp_path / "run").exists()


def test_the_preflight_says_which_rows_are_untrained(data: Path, tmp_path: Path) -> None:
    """Guards B12: id, table and cure are named; a run that trains the row, either way, has nothing to warn of."""
    model = Path(shutil.copytree(TINY, tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][2] *= 1e-3
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    settings: dict[str, Any] = {"model": str(model), "template": "", "max_steps": 1}

    def warnings(name: str, **changes: Any) -> list[str]:
        return Run(config(data, tmp_path / name, **settings | changes)).warnings

    (said,) = warnings("a", train_tokens=False)
    assert "'</s>' (id 2) looks untrained in model.embed_tokens.weight" in said
    assert "add --train-tokens, which trains its row" in said
    assert warnings("b") == []
    assert warnings("c", method="full", train_tokens=False) == []


def test_inspect_shows_the_rows_as_they_will_be_trained(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a run by the flag, behind a run by the tokenizer that it wrote; without both the refusal is one line."""
    V = load_tokenizer(TINY).vocab_size
    asked = config(data, tmp_path / "none")
    found = inspect(asked, row=1, show=1)
    assert found.terminator == (V + 1, "<|im_end|>")
    assert found.refused == []
    again = inspect(config(data, tmp_path / "none", model=str(run), template="", train_tokens=False), row=1, show=1)
    assert [t.id for t in again.shown[0].examples[0]] == [t.id for t in found.shown[0].examples[0]]
    assert not any("untrained" in warning or "has no row" in warning for warning in again.warnings)
    words = ["inspect", "tiny", str(data), "--template", "chatml", "--quiet"]
    assert main([*words, "--train-tokens"]) == 0
    capsys.readouterr()
    assert main(words) == 2
    assert "--train-tokens" in capsys.readouterr().err
