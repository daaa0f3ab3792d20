"""A model folder is loaded whole or refused in one line that names the file; it is written whole or not at all."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import minitune.checkpoint as module
from minitune import storage
from minitune.checkpoint import load_checkpoint, save_checkpoint
from minitune.config import ModelConfig
from minitune.errors import CheckpointError
from minitune.models import Decoder

Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small untied model folder that loads."""
    return write_model(tmp_path / "model", tied=False)


def write_model(folder: Path, *, tied: bool) -> Path:
    config = ModelConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4,
        tie_embeddings=tied,
    )  # fmt: skip
    model = Decoder(config)
    model.initialize(seed=0, std=0.3)
    save_checkpoint(model, folder)
    return folder


def change_config(folder: Path, **values: Any) -> None:
    """Set keys of config.json; None takes one away."""
    path = folder / "config.json"
    raw = json.loads(path.read_text("utf-8")) | values
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}), "utf-8")


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refusal(folder: Path, *, names: Path) -> str:
    """The one line with which ``folder`` is refused; it starts with the path ``names``."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert message.startswith(f"{names}: "), message
    assert "\n" not in message
    assert len(message) < 400 + len(str(names))
    return message


def test_the_folder_of_these_tests_loads(folder: Path) -> None:
    """Guards the refusals below: each is due to its one change."""
    certificate = load_checkpoint(folder).certificate
    assert set(certificate.used) == set(load_file(folder / "model.safetensors"))
    assert certificate.shared == {}
    assert certificate.recomputed == ()


# -- config.json


def test_no_folder(tmp_path: Path) -> None:
    """A mistyped path."""
    assert "no such model folder" in refusal(tmp_path / "absent", names=tmp_path / "absent")


def test_a_file_for_a_folder(folder: Path) -> None:
    """The weights named in place of their folder."""
    file = folder / "model.safetensors"
    assert "is a file; expected a model folder" in refusal(file, names=file)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "there is no such file" in refusal(folder, names=folder / "config.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"model_type": "llama",\n "vocab_size": }', "not valid JSON (line 2, column 16"),
        (b"", "not valid JSON (line 1, column 1"),
        (b"[1, 2]", "expected a JSON object, got list"),
        (b'{"model_type": "\xff\xfe"}', "not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
    ],
    ids=["broken", "empty", "list", "binary", "deep"],
)
def test_config_that_is_no_json(folder: Path, content: bytes, said: str) -> None:
    (folder / "config.json").write_bytes(content)
    assert said in refusal(folder, names=folder / "config.json")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'; did you mean 'llama'?; supported are llama, mistral"),
        ({"model_type": None}, "model_type is None"),
        ({"num_hidden_layer": 2}, "unknown key 'num_hidden_layer'; did you mean 'num_hidden_layers'?"),
        ({"logit_softcapping": 30.0}, "unknown key 'logit_softcapping'; it may change the mathematics"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "config.json"),
        ({"rope_parameters": {"rope_theta": 1e4, "factor": 8.0}}, "rope_parameters has an unknown key 'factor'"),
        ({"rope_theta": 5e5}, "rope_theta is given as 10000.0 and as 500000.0"),
        ({"rope_parameters": [1e4]}, "rope_parameters is [10000.0]; it must be an object"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', which is not supported; supported are silu"),
        ({"sliding_window": 128}, "sliding_window is 128"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"vocab_size": None}, "'vocab_size' is missing"),
        ({"hidden_size": "8"}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_key_value_heads": 3}, "2 query heads do not divide among 3 key/value heads"),
        ({"head_dim": 3}, "rotary embedding needs an even number"),
        ({"rms_norm_eps": -1e-5}, "norm_eps -1e-05"),
        ({"tie_word_embeddings": "yes"}, "tie_embeddings is 'yes'; it must be true or false"),
        ({"vocab_size": 11.5}, "vocab_size is 11.5"),
    ],
)
def test_config_that_is_not_understood(folder: Path, values: dict[str, Any], said: str) -> None:
    """Guards against a wrong model in silence: an option that is not built, or a key that nobody knows (B32)."""
    change_config(folder, **values)
    assert said in refusal(folder, names=folder / "config.json")


KEYS = [
    "architectures", "model_type", "hidden_act", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings",
    "tie_word_embeddings", "attention_bias", "mlp_bias", "rope_theta", "rope_scaling", "rope_parameters",
    "eos_token_id", "sliding_window",
]  # fmt: skip
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-1, 12), max_size=2),
    st.dictionaries(st.sampled_from(["rope_theta", "rope_type", "x\ny"]), st.integers() | st.text(max_size=3)),
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(key="rope_theta", value="abc")
@example(key="rope_parameters", value={"rope_theta": "abc"})
@example(key="rope_theta", value=-1.0)
@example(key="hidden_act", value=["silu"])
@example(key="num_attention_heads", value=0)
@example(key="eos_token_id", value=float("nan"))
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_of_any_key_loads_or_is_refused(folder: Path, key: str, value: Any) -> None:
    """Guards against a traceback: a strange value is refused in one line, or makes no difference."""
    path = folder / "config.json"
    before = path.read_bytes()
    raw = json.loads(before)
    if key == "head_dim" and value is not None:
        del raw["head_dim"]
    path.write_text(json.dumps(raw | {key: value}), "utf-8")
    message = str(folder)
    try:
        load_checkpoint(folder)
    except CheckpointError as error:
        message = str(error)
    finally:
        path.write_bytes(before)
    assert message.startswith(str(folder))
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("vocab_size", 2**63, id="vocab_size"),
        pytest.param("head_dim", 2**62, id="head_dim"),
        pytest.param("rms_norm_eps", 10**400, id="rms_norm_eps"),
        pytest.param("rope_theta", 10**400, id="rope_theta"),
    ],
)
def test_a_number_that_no_tensor_can_have(folder: Path, key: str, value: int) -> None:
    """Guards against a traceback: JSON holds whole numbers of any size."""
    change_config(folder, **{key: value})
    with pytest.raises(CheckpointError, match=re.escape(str(folder))) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["10000.0", True, [1e4], "abc", 0])
def test_a_rope_theta_that_is_no_number(folder: Path, value: object) -> None:
    """Guards B53: text that looks like a number is not one, and is refused as in every other key."""
    change_config(folder, rope_theta=value)
    assert "rope_theta" in refusal(folder, names=folder / "config.json")


@pytest.mark.parametrize("value", [-1, "2", [2, "x"], True])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_stop_id_that_is_no_id(folder: Path, file: str, value: object) -> None:
    """Guards the end of a generation: what is no id is told, not left out."""
    if file == "config.json":
        change_config(folder, eos_token_id=value)
    else:
        (folder / file).write_text(json.dumps({"eos_token_id": value}), "utf-8")
    assert "eos_token_id" in refusal(folder, names=folder / file)


def test_a_stop_id_beyond_the_vocabulary_is_left_out(folder: Path) -> None:
    """Guards the list of stop ids: one that the model cannot produce ends nothing, and need not stop the loading."""
    change_config(folder, eos_token_id=[2, 99])
    assert load_checkpoint(folder).model.stop_ids == (2,)


def test_stop_ids_of_both_files(folder: Path) -> None:
    """Guards chat models: their generation_config.json names more ids than config.json."""
    change_config(folder, eos_token_id=2)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}), "utf-8")
    assert load_checkpoint(folder).model.stop_ids == (2, 7)


# -- weights


class Bomb:
    """What a pickle can do: create the file ``marker`` when it is opened."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_the_bomb_of_these_tests_works(tmp_path: Path) -> None:
    """Guards the two tests below: unpickling does create the marker."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt", "model.pkl"])
def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path, name: str) -> None:
    """Guards B52: a pickle can run code, so the folder is refused with the file's name, unopened."""
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    message = refusal(folder, names=folder)
    assert name in message
    assert "pickle" in message
    assert not (tmp_path / "marker").exists()


def test_a_pickle_under_another_name_is_never_opened(folder: Path, tmp_path: Path) -> None:
    """Guards B52 against a disguise: the name says safetensors, the content is a pickle."""
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    assert "not a readable safetensors file" in refusal(folder, names=folder / "model.safetensors")
    assert not (tmp_path / "marker").exists()


def test_a_pickle_beside_safetensors_does_no_harm(folder: Path, tmp_path: Path) -> None:
    """Many published folders hold both; the safetensors are read."""
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    load_checkpoint(folder)
    assert not (tmp_path / "marker").exists()


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(folder, names=folder)
    (folder / "model.safetensors.index.json").write_text("{}", "utf-8")
    index = folder / "model.safetensors.index.json"
    assert "'weight_map' must be an object" in refusal(folder, names=index)


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_truncated_weights(folder: Path, kept: int) -> None:
    """A download that broke off: anywhere, the header and its last byte included."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "not a readable safetensors file" in refusal(folder, names=path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x10" + bytes(7) + b"{this is no json" + bytes(64),
        b"\xff" * 64,
        b"<!DOCTYPE html>\n<html><body>\nPage not found\n</body></html>" * 9,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 2626168\n",
    ],
    ids=["header", "ones", "html", "lfs"],
)
def test_weights_that_are_garbage(folder: Path, content: bytes) -> None:
    """An error page or a pointer file in place of the weights."""
    (folder / "model.safetensors").write_bytes(content)
    assert "not a readable safetensors file" in refusal(folder, names=folder / "model.safetensors")


def test_a_tensor_of_another_shape(folder: Path) -> None:
    def transpose(tensors: dict[str, Tensor]) -> None:
        name = "model.layers.1.mlp.up_proj.weight"
        tensors[name] = tensors[name].T.contiguous()

    change_tensors(folder, transpose)
    message = refusal(folder, names=folder / "model.safetensors")
    assert "'model.layers.1.mlp.up_proj.weight' has shape (8, 12); config.json asks for (12, 8)" in message


def test_a_missing_tensor(folder: Path) -> None:
    """Guards B33: nothing stays at its start values."""
    change_tensors(folder, lambda tensors: tensors.__delitem__(Q0))
    message = refusal(folder, names=folder / "model.safetensors")
    assert f"tensor {Q0!r} is missing" in message
    assert re.search(r"did you mean 'model\.layers\.\d\.self_attn\.\w_proj\.weight'\?", message)


def test_missing_biases(folder: Path) -> None:
    """Guards B33: a switch in config.json without its tensors is not made up for by zeros."""
    change_config(folder, attention_bias=True)
    message = refusal(folder, names=folder / "model.safetensors")
    assert "q_proj.bias' and 7 more is missing" in message


def test_an_extra_tensor(folder: Path) -> None:
    """Guards B33: a tensor without a place means another model; the nearest name tells a renamed one."""

    def rename(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.query_proj.weight"] = tensors.pop(Q0)

    change_tensors(folder, rename)
    message = refusal(folder, names=folder / "model.safetensors")
    assert f"'model.layers.0.self_attn.query_proj.weight' has no place in the model; did you mean {Q0!r}?" in message


def test_a_layer_too_many(folder: Path) -> None:
    """Guards B33: config.json says fewer layers than the file has."""
    change_config(folder, num_hidden_layers=1)
    assert "asks for 1 layers; the weights hold 2" in refusal(folder, names=folder / "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite(folder: Path, value: float) -> None:
    """Guards B38: a folder that a broken run wrote."""

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[Q0][3, 1] = value

    change_tensors(folder, spoil)
    assert f"{Q0!r} has 1 values that are not finite" in refusal(folder, names=folder / "model.safetensors")


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.int8, "I8"), (torch.int64, "I64"), (torch.float8_e4m3fn, "F8_E4M3")]
)
def test_a_tensor_of_another_kind(folder: Path, dtype: torch.dtype, name: str) -> None:
    """Guards quantised files: whole numbers are not weights without their scales."""

    def cast(tensors: dict[str, Tensor]) -> None:
        tensors[Q0] = tensors[Q0].to(dtype)

    change_tensors(folder, cast)
    assert f"{Q0!r} is stored as {name}" in refusal(folder, names=folder / "model.safetensors")


def test_a_tied_model_with_another_head(tmp_path: Path) -> None:
    """Guards B35: one of two differing tensors would be thrown away."""
    folder = write_model(tmp_path / "tied", tied=True)
    change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": torch.ones(11, 8)}))
    message = refusal(folder, names=folder / "model.safetensors")
    assert "ties the head to the embedding" in message
    assert '"tie_word_embeddings": false' in message


def test_a_tied_model_that_stores_both(tmp_path: Path) -> None:
    """Guards against refusing too much: equal copies are one weight, and a save keeps both."""
    folder = write_model(tmp_path / "tied", tied=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    checkpoint = load_checkpoint(folder)
    assert checkpoint.model.head.weight is checkpoint.model.embed.weight
    save_checkpoint(checkpoint.model, tmp_path / "again", source=folder)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert torch.equal(again["lm_head.weight"], again["model.embed_tokens.weight"])


def test_stored_rotary_frequencies_are_computed_anew(folder: Path, tmp_path: Path) -> None:
    """Guards old files: their buffers are no weights, are not loaded, and are named in the certificate."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    before = load_checkpoint(folder).model
    change_tensors(folder, lambda tensors: tensors.update({name: torch.full((2,), 5.0)}))
    checkpoint = load_checkpoint(folder)
    assert checkpoint.certificate.recomputed == (name,)
    ids = torch.arange(5)[None]
    assert torch.equal(checkpoint.model(ids), before(ids))
    save_checkpoint(checkpoint.model, tmp_path / "again", source=folder)
    assert name not in load_file(tmp_path / "again" / "model.safetensors")


# -- saving


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def fail_save_file(tensors: Any, path: Path, **more: Any) -> None:
    path.write_bytes(b"half of it")
    raise OSError(28, "No space left on device")


def fail_write_json(path: Path, value: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "failing", "error"),
    [("save_file", fail_save_file, OSError), ("write_json", fail_write_json, KeyboardInterrupt)],
)
def test_a_failing_save_leaves_the_former_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, failing: Any, error: type[BaseException]
) -> None:
    """Guards B49: a full disk or an interrupt leaves what was there, to the byte, and nothing beside it."""
    before, beside = content(folder), sorted(folder.parent.iterdir())
    model = load_checkpoint(folder).model
    with torch.no_grad():
        model.norm.weight.mul_(2)
    monkeypatch.setattr(storage if name == "save_file" else module, name, failing)
    with pytest.raises(error):
        save_checkpoint(model, folder)
    assert content(folder) == before
    assert sorted(folder.parent.iterdir()) == beside


@pytest.mark.parametrize("failing_rename", [1, 2])
def test_a_failing_rename_leaves_the_former_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing_rename: int
) -> None:
    """Guards B49 at its last moment: the folder changes places in two renames, and either may fail."""
    before, beside = content(folder), sorted(folder.parent.iterdir())
    model = load_checkpoint(folder).model
    rename, calls = Path.rename, []

    def fail(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == failing_rename:
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Permission denied"):
        save_checkpoint(model, folder)
    assert sorted(folder.parent.iterdir()) == beside
    assert content(folder) == before


def test_a_failing_first_save_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards B49: no half folder that a later load would take for a model."""
    model = load_checkpoint(folder).model
    monkeypatch.setattr(storage, "save_file", fail_save_file)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(model, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_missing_tokenizer_file_leaves_the_former_folder(folder: Path, tmp_path: Path) -> None:
    """Guards B49 for the last files that are written."""
    before = content(folder)
    model = load_checkpoint(folder).model
    with pytest.raises(FileNotFoundError):
        save_checkpoint(model, folder, tokenizer_files=(tmp_path / "tokenizer.json",))
    assert content(folder) == before


def test_a_save_replaces_the_former_folder(folder: Path, tmp_path: Path) -> None:
    """Guards the other side: a good save leaves nothing of the old folder, nothing beside it, and loads."""
    (folder / "old.txt").write_text("old", "utf-8")
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}", "utf-8")
    model = load_checkpoint(folder).model
    with torch.no_grad():
        model.norm.weight.mul_(2)
    save_checkpoint(model, folder, source=folder, tokenizer_files=(tokenizer,))
    assert set(content(folder)) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "tokenizer.json"]
    assert torch.equal(load_checkpoint(folder).model.norm.weight, model.norm.weight)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("with_source", [True, False])
def test_weights_that_are_not_finite_are_not_saved(folder: Path, value: float, with_source: bool) -> None:
    """Guards B38: a run that broke writes nothing, in one line that names the tensor."""
    before = content(folder)
    model = load_checkpoint(folder).model
    with torch.no_grad():
        model.get_parameter("blocks.0.attention.q_proj.weight")[0, 0] = value
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(model, folder, source=folder if with_source else None)
    assert str(caught.value) == f"{folder}: {Q0} has values that are not finite; nothing was written"
    assert content(folder) == before


def test_a_value_too_large_for_the_stored_type_is_not_saved(folder: Path) -> None:
    """Guards B38 at the cast: 70,000 is finite in float32 and infinite in float16."""
    model = load_checkpoint(folder).model
    with torch.no_grad():
        model.norm.weight[0] = 70_000.0
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has values that are not finite"):
        save_checkpoint(model, folder, dtype=torch.float16)


def test_generation_config_goes_along(folder: Path, tmp_path: Path) -> None:
    """Guards B51: the ids that end a generation survive a save."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}), "utf-8")
    model = load_checkpoint(folder).model
    save_checkpoint(model, tmp_path / "again", source=folder)
    shutil.rmtree(folder)
    assert load_checkpoint(tmp_path / "again").model.stop_ids == (7, 2)
