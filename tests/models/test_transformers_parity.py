"""Tiny random Llama models of every switch must be the reference library's: logits, gradients, files there and back.

The reference starts biases at 0 and norms at 1; both are filled with random values here, since a model with those
would hide a bias that is never added or a norm weight that is never read.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from minitune.chat import Encoded
from minitune.checkpoint import load_checkpoint, save_checkpoint
from minitune.data.batch import pad_rows
from minitune.models import LanguageModel
from minitune.models.published import stored_tensors
from minitune.ops import BUILTIN, IGNORE, REFERENCE, Ops
from minitune.train import next_token_loss

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped_heads": {"num_key_value_heads": 2},
    "one_key_value_head": {"num_key_value_heads": 1},
    "head_dim": {"head_dim": 6, "num_key_value_heads": 2},
    "wide_heads": {"head_dim": 12},
    "attention_bias": {"attention_bias": True, "num_key_value_heads": 2},
    "mlp_bias": {"mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "theta_500000": {"rope_theta": 500000.0},
    "theta_100": {"rope_theta": 100.0},
    "large_eps": {"rms_norm_eps": 1e-2},
    "everything": {
        "num_key_value_heads": 2,
        "head_dim": 10,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "rope_theta": 20000.0,
        "rms_norm_eps": 1e-6,
    },
}
TABLES = [pytest.param(ops, id=ops.name) for ops in (REFERENCE, BUILTIN)]
Published = Callable[[str], tuple[Any, Path]]


@pytest.fixture
def published(tmp_path: Path) -> Published:
    """Make the reference model of a case and save it as a folder."""

    def make(case: str) -> tuple[Any, Path]:
        from transformers import LlamaConfig, LlamaForCausalLM

        values = BASE | CASES[case]
        theta = values.pop("rope_theta", 10000.0)
        torch.manual_seed(7)
        model = LlamaForCausalLM(LlamaConfig(**values, rope_parameters={"rope_type": "default", "rope_theta": theta}))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim > 1:
                    weight.normal_(0, 0.15)
                elif name.endswith("bias"):
                    weight.normal_(0, 0.5)
                else:
                    weight.uniform_(0.3, 1.7)
        model.save_pretrained(tmp_path / case)
        return model.eval(), tmp_path / case

    return make


def random_ids(rows: int = 2, tokens: int = 23) -> Tensor:
    return torch.randint(0, BASE["vocab_size"], (rows, tokens), generator=torch.Generator().manual_seed(3))


def error(a: Tensor, b: Tensor) -> float:
    """The largest difference relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def first_difference(ours: LanguageModel, theirs: Any, ids: Tensor) -> str:
    """The first layer whose output is not the reference's, in words."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[name] = output

        return hook

    named = [("embed", ours.embed)] + [(f"blocks.{i}", block) for i, block in enumerate(ours.blocks)]
    hooks = [module.register_forward_hook(keep(name)) for name, module in [*named[:-1], ("norm", ours.norm)]]
    with torch.no_grad():
        ours(ids)
        states = theirs(ids, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    assert len(states) == len(named)
    # The last state of the reference is behind the final norm, which the last block and the norm make together.
    for name, state in zip([*(name for name, _ in named[:-1]), "norm"], states, strict=True):
        found = error(outputs[name], state)
        if not found <= 1e-5:
            where = f"{named[-1][0]} or norm" if name == "norm" else name
            return f"the first output that differs is that of {where}: relative error {found:.1e}"
    return "all hidden states are equal, so it is the head"


def assert_same_logits(ours: LanguageModel, theirs: Any, ids: Tensor) -> None:
    with torch.no_grad():
        found = error(ours.logits(ours(ids)), theirs(ids).logits)
    assert found <= 1e-4, f"logits: relative error {found:.1e}; {first_difference(ours, theirs, ids)}"


@pytest.mark.parametrize("ops", TABLES)
@pytest.mark.parametrize("case", CASES)
def test_logits(published: Published, case: str, ops: Ops) -> None:
    """Guards the forward: each switch of config.json means here what it means in the reference (B32)."""
    theirs, folder = published(case)
    assert_same_logits(load_checkpoint(folder, ops=ops).model, theirs, random_ids())


def test_a_wrong_layer_is_named(published: Published) -> None:
    """Guards the message: it must point at the layer that is wrong, not at the end of the model."""
    theirs, folder = published("plain")
    ours = load_checkpoint(folder).model
    with torch.no_grad():
        ours.get_parameter("blocks.1.mlp.up_proj.weight").mul_(1.5)
    with pytest.raises(AssertionError, match=r"that of blocks\.1: relative"):
        assert_same_logits(ours, theirs, random_ids())


@pytest.mark.parametrize("theta", [10000.0, 777.0])
def test_both_dialects_of_config(published: Published, theta: float) -> None:
    """Guards rope_theta: newer files nest it in rope_parameters, older ones write it at the top."""
    theirs, folder = published("theta_100")
    raw = json.loads((folder / "config.json").read_text("utf-8"))
    assert raw["rope_parameters"]["rope_theta"] == 100.0  # the reference writes the new dialect
    assert_same_logits(load_checkpoint(folder).model, theirs, random_ids())
    new = raw | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    old = {key: value for key, value in raw.items() if key != "rope_parameters"}
    old |= {"rope_theta": theta, "rope_scaling": None, "torch_dtype": "float32"}
    logits = []
    for values in (old, new):
        (folder / "config.json").write_text(json.dumps(values), "utf-8")
        model = load_checkpoint(folder).model
        assert model.config.rope_theta == theta
        logits.append(model.logits(model(random_ids())))
        assert_same_logits(model, type(theirs).from_pretrained(folder).eval(), random_ids())
    assert torch.equal(logits[0], logits[1])


def test_rope_theta_changes_the_logits(published: Published) -> None:
    """Guards the two tests above: at another theta they would fail."""
    theirs, folder = published("theta_100")
    raw = json.loads((folder / "config.json").read_text("utf-8"))
    raw["rope_parameters"]["rope_theta"] = 10000.0
    (folder / "config.json").write_text(json.dumps(raw), "utf-8")
    with pytest.raises(AssertionError, match=r"blocks\.0"):
        assert_same_logits(load_checkpoint(folder).model, theirs, random_ids())


@pytest.mark.parametrize("ops", TABLES)
@pytest.mark.parametrize("case", ["head_dim", "tied", "everything"])
def test_gradients_of_every_parameter(published: Published, case: str, ops: Ops) -> None:
    """Guards the backward, the tied head's two contributions included: every parameter, against the reference."""
    theirs, folder = published(case)
    ours = load_checkpoint(folder, ops=ops).model
    generator = torch.Generator().manual_seed(5)
    rows = []
    for length in (24, 9, 17):
        ids = torch.randint(3, BASE["vocab_size"], (length,), generator=generator).tolist()
        rows.append(Encoded.of(ids, [False] * (length // 2) + [True] * (length - length // 2)))
    batch = pad_rows(rows)
    loss_sum, denominator = next_token_loss(ours, batch)
    loss = loss_sum / denominator
    loss.backward()

    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORE)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
        for t, trained in enumerate(row.trained):
            if trained:
                labels[i, t] = row.ids[t]
    expected = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss
    expected.backward()
    assert error(loss.detach(), expected.detach()) <= 1e-5

    reference = dict(theirs.named_parameters())
    parameters = [name for name, _ in ours.named_parameters()]
    names = {stored.parts[0]: stored.name for stored in stored_tensors(ours.config, parameters)}
    assert set(names.values()) == set(reference)
    for name, parameter in ours.named_parameters():
        want = reference[names[name]].grad
        assert parameter.grad is not None
        assert want.abs().max() > 0
        assert error(parameter.grad, want) <= 1e-3, name


@pytest.mark.parametrize("case", ["grouped_heads", "everything"])
def test_a_folder_of_ours_loads_in_the_reference(published: Published, tmp_path: Path, case: str) -> None:
    """Guards export: config.json and names that we write ourselves, without a source folder, are understood there."""
    theirs, folder = published(case)
    ours = load_checkpoint(folder).model
    save_checkpoint(ours, tmp_path / "ours")
    back, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert_same_logits(ours, back.eval(), random_ids())
    assert_same_logits(load_checkpoint(tmp_path / "ours").model, theirs, random_ids())
    for name, weight in back.named_parameters():
        assert torch.equal(weight, theirs.get_parameter(name)), name


@pytest.mark.parametrize("case", ["plain", "tied", "everything"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_keeps_every_byte(published: Published, tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    """Guards saving as the source is laid out: same names, types and bytes, same config.json."""
    theirs, folder = published(case)
    theirs.to(dtype).save_pretrained(folder)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.certificate.dtype == dtype
    save_checkpoint(checkpoint.model, tmp_path / "again", source=folder, dtype=checkpoint.certificate.dtype)
    assert_same_bytes(folder, tmp_path / "again")


@pytest.mark.parametrize("name", ["weights/stories260K/hf", "weights/TinyStories-656K"])
def test_round_trip_of_real_folders(material: Path, tmp_path: Path, name: str) -> None:
    """Guards a layout no one would guess: only lm_head is stored, the embedding is an entry of the metadata (B35)."""
    folder = material / name
    checkpoint = load_checkpoint(folder)
    save_checkpoint(checkpoint.model, tmp_path / "again", source=folder, dtype=checkpoint.certificate.dtype)
    assert_same_bytes(folder, tmp_path / "again")
    again = load_checkpoint(tmp_path / "again").model
    assert again.head.weight is again.embed.weight
    assert torch.equal(again.logits(again(random_ids())), checkpoint.model.logits(checkpoint.model(random_ids())))


def test_the_lm_head_only_layout_loads_in_the_reference(material: Path, tmp_path: Path) -> None:
    """Guards the same layout the other way: what we write back is still the model, for the reference too."""
    from transformers import LlamaForCausalLM

    folder = material / "weights/TinyStories-656K"
    ours = load_checkpoint(folder).model
    save_checkpoint(ours, tmp_path / "again", source=folder)
    assert_same_logits(ours, LlamaForCausalLM.from_pretrained(tmp_path / "again").eval(), random_ids())


def test_a_tied_model_stays_tied_after_training(published: Published, tmp_path: Path) -> None:
    """Guards B35: a changed tied weight is saved once for both, and comes back as the model in memory."""
    _, folder = published("tied")
    model = load_checkpoint(folder).model
    with torch.no_grad():
        model.head.weight.add_(torch.randn(model.head.weight.shape, generator=torch.Generator().manual_seed(1)))
    save_checkpoint(model, tmp_path / "trained", source=folder)
    again = load_checkpoint(tmp_path / "trained").model
    assert again.head.weight is again.embed.weight
    assert torch.equal(again.logits(again(random_ids())), model.logits(model(random_ids())))


def assert_same_bytes(folder: Path, again: Path) -> None:
    """Every tensor, the metadata and config.json are the same in both folders."""
    from safetensors import safe_open

    before, after = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert tensor.shape == after[name].shape, name
        assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)), name
    metadata = []
    for path in (folder, again):
        with safe_open(path / "model.safetensors", framework="pt") as file:
            metadata.append(file.metadata())
    assert metadata[0] == metadata[1]
    assert (folder / "config.json").read_bytes() == (again / "config.json").read_bytes()
