"""Adapters are PEFT's: its folders load here, ours load there, and nothing in one is left unused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minitune.adapters import LoRAConfig, add_lora, load_adapter, save_adapter
from minitune.adapters.lora import LoRALinear
from minitune.checkpoint import load_checkpoint, save_checkpoint
from minitune.config import ModelConfig
from minitune.errors import CheckpointError, ConfigError
from minitune.models import Decoder, LanguageModel

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EVERY = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
TARGETS = [pytest.param(("q_proj", "v_proj"), id="q,v"), pytest.param(("all-linear",), id="all-linear")]
SHAPE: dict[str, Any] = {
    "vocab_size": 53, "hidden_size": 24, "intermediate_size": 40, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6,
}  # fmt: skip

# PEFT asks transformers for an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def random_model(**changes: Any) -> LanguageModel:
    values = SHAPE | {"num_layers": 2, "qkv_bias": True, "o_bias": True} | changes
    model = Decoder(ModelConfig(**values))
    model.initialize(seed=1, std=0.2)
    return model.eval()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The folder of a small base model."""
    save_checkpoint(random_model(), tmp_path / "base")
    return tmp_path / "base"


def loaded(base: Path, **how: Any) -> LanguageModel:
    return load_checkpoint(base, **how).model.eval()


def random_ids() -> Tensor:
    return torch.randint(0, SHAPE["vocab_size"], (2, 13), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits_of(model: LanguageModel) -> Tensor:
    return model.logits(model(random_ids()))


@torch.no_grad()
def their_logits(model: Any) -> Tensor:
    return model.eval()(random_ids()).logits


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
def fill(parameters: Sequence[tuple[str, Tensor]], leaf: str) -> None:
    """Give the B matrices random values, so that the adapter does something."""
    generator = torch.Generator().manual_seed(9)
    found = [weight for name, weight in parameters if leaf in name]
    assert found
    for weight in found:
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)


def peft_model(base: Path, targets: Sequence[str], **more: Any) -> Any:
    """A model of the reference with a new adapter of random B, rank 4, alpha 6."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    named = "all-linear" if tuple(targets) == ("all-linear",) else list(targets)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": named, "task_type": "CAUSAL_LM"}
    settings |= more
    torch.manual_seed(11)
    theirs = LlamaForCausalLM.from_pretrained(base)
    model = get_peft_model(theirs, LoraConfig(**settings))
    fill(list(model.named_parameters()), "lora_B")
    return model


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """An adapter of ours on the base, of rank 4 on q_proj and v_proj, with random B."""
    model, config = loaded(base), LoRAConfig(rank=4, alpha=6.0, targets=("q_proj", "v_proj"))
    add_lora(model, config)
    fill(list(model.named_parameters()), "lora_B")
    save_adapter(model, tmp_path / "adapter", config, base=str(base))
    load_adapter(loaded(base), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("targets", TARGETS)
def test_an_adapter_of_peft_loads_here(tmp_path: Path, targets: Sequence[str], layers: int) -> None:
    """Guards names, scaling and orientation (B44), and that every tensor of the file is in the model (B45).

    For all-linear PEFT writes the full name of every layer into target_modules, or their last names where there are
    more than 20.
    """
    base = tmp_path / "base"
    save_checkpoint(random_model(num_layers=layers), base)
    theirs = peft_model(base, targets)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = loaded(base)
    plain = logits_of(ours)
    config = load_adapter(ours, tmp_path / "adapter")
    assert (config.rank, config.alpha) == (4, 6.0)
    expected = their_logits(theirs)
    assert error(plain, expected) > 0.1  # the adapter does something
    assert error(logits_of(ours), expected) <= 1e-5

    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    filled = [w for name, w in ours.named_parameters() if "lora_" in name]
    assert len(stored) == len(filled) == 2 * layers * (2 if len(targets) == 2 else len(EVERY))
    for name, tensor in stored.items():
        assert sum(w.shape == tensor.shape and torch.equal(w, tensor) for w in filled) == 1, name


@pytest.mark.parametrize("targets", TARGETS)
def test_an_adapter_of_ours_loads_in_peft(base: Path, tmp_path: Path, targets: tuple[str, ...]) -> None:
    """Guards the way there: PEFT finds every tensor where it looks for it, and makes the same logits."""
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    ours, config = loaded(base), LoRAConfig(rank=4, alpha=6.0, targets=targets)
    add_lora(ours, config, seed=2)
    fill(list(ours.named_parameters()), "lora_B")
    save_adapter(ours, tmp_path / "adapter", config, base=str(base))
    theirs = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / "adapter")
    assert error(their_logits(theirs), logits_of(ours)) <= 1e-5
    again = loaded(base)
    assert load_adapter(again, tmp_path / "adapter").rank == 4
    assert torch.equal(logits_of(again), logits_of(ours))
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    kept = {name: w for name, w in theirs.state_dict().items() if "lora_" in name}
    assert {name.replace(".default", "") for name in kept} == set(stored)
    for name, weight in kept.items():
        assert torch.equal(weight, stored[name.replace(".default", "")]), name


def test_all_linear_is_what_peft_means_by_it(base: Path) -> None:
    """Guards the set of layers: every linear layer of the blocks, and neither head nor embedding."""
    theirs = {name for name, _ in peft_model(base, ("all-linear",)).named_modules() if name.endswith("lora_A")}
    ours = add_lora(loaded(base), LoRAConfig())
    assert len(ours) == len(theirs) == 2 * len(EVERY)
    place = {name.replace("blocks.", "layers.").replace("attention.", "self_attn.") for name in ours}
    assert theirs == {f"base_model.model.model.{name}.lora_A" for name in place}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_adapter_changes_no_bit(base: Path, dtype: torch.dtype, tied: bool) -> None:
    """Guards B46: with B = 0 the model is the base, to the last bit."""
    model = random_model(tie_embeddings=tied).to(dtype)
    model.compute_dtype = dtype
    model.tie()
    before = logits_of(model)
    add_lora(model, LoRAConfig(rank=3))
    assert torch.equal(logits_of(model), before)
    assert all(w.abs().max() > 0 for name, w in model.named_parameters() if name.endswith("lora_A"))


def test_the_start_is_that_of_peft(base: Path) -> None:
    """Guards the spread of A: uniform within 1 / sqrt(in), as PEFT starts, and another for every layer and seed."""
    model = loaded(base)
    names = add_lora(model, LoRAConfig(rank=64), seed=5)
    for name, start in {name: model.get_submodule(name).get_parameter("lora_A") for name in names}.items():
        bound = start.shape[1] ** -0.5
        assert start.abs().max() <= bound, name
        assert float(start.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.08)
        assert abs(float(start.detach().mean())) < 0.1 * bound
    other = loaded(base)
    add_lora(other, LoRAConfig(rank=64), seed=6)
    same = loaded(base)
    add_lora(same, LoRAConfig(rank=64), seed=5)
    first = names[0]
    a = [m.get_submodule(first).get_parameter("lora_A") for m in (model, other, same)]
    assert not torch.equal(a[0], a[1])
    assert torch.equal(a[0], a[2])
    assert not torch.equal(a[0], model.get_submodule(names[1]).get_parameter("lora_A"))


def test_the_base_takes_no_gradient(base: Path) -> None:
    """Guards memory and the frozen base: only A and B are trained, and no base weight has a gradient buffer."""
    model = loaded(base)
    add_lora(model, LoRAConfig(rank=3))
    fill(list(model.named_parameters()), "lora_B")
    before = {name: w.clone() for name, w in model.named_parameters()}
    loss, _ = model.loss(model(random_ids()), random_ids())
    loss.backward()
    for name, weight in model.named_parameters():
        trained = name.endswith(("lora_A", "lora_B"))
        assert weight.requires_grad == trained, name
        assert (weight.grad is not None) == trained, name
        assert torch.equal(weight, before[name])
        if weight.grad is not None:
            assert weight.grad.abs().max() > 0, name


def test_dropout_acts_in_training_only(base: Path) -> None:
    """Guards evaluation: no dropout in it, and none on the base's own path."""
    model = loaded(base)
    plain = logits_of(model)
    add_lora(model, LoRAConfig(rank=3, dropout=0.5))
    assert torch.equal(logits_of(model.train()), plain)  # B = 0: what is dropped adds nothing
    fill(list(model.named_parameters()), "lora_B")
    assert not torch.equal(logits_of(model.train()), logits_of(model.train()))
    assert torch.equal(logits_of(model.eval()), logits_of(model.eval()))


def test_adapters_stay_in_float32_on_a_bfloat16_base(base: Path, tmp_path: Path) -> None:
    """Guards B36 for LoRA: what is trained is kept in float32, whatever the base is kept in, and saved so."""
    model, config = loaded(base, dtype=torch.bfloat16), LoRAConfig(rank=3)
    names = add_lora(model, config)
    for name in names:
        lora = model.get_submodule(name)
        assert isinstance(lora, LoRALinear)
        assert lora.base.weight.dtype == torch.bfloat16
        assert lora.lora_A.dtype == lora.lora_B.dtype == torch.float32
    fill(list(model.named_parameters()), "lora_B")
    assert logits_of(model).dtype == torch.bfloat16
    save_adapter(model, tmp_path / "adapter", config, base=str(base))
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    again = loaded(base, dtype=torch.bfloat16)
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits_of(again), logits_of(model))


def test_a_target_of_one_layer_comes_back(base: Path, tmp_path: Path) -> None:
    """Guards saving: an adapter on one layer of many must load again, or hours of training are lost."""
    model, config = loaded(base), LoRAConfig(rank=4, targets=("blocks.0.attention.q_proj",))
    assert add_lora(model, config) == ["blocks.0.attention.q_proj"]
    fill(list(model.named_parameters()), "lora_B")
    save_adapter(model, tmp_path / "adapter", config, base=str(base))
    again = loaded(base)
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits_of(again), logits_of(model))


@pytest.mark.parametrize("target", ["q_porj", "query", "embed", "norm", "*.wv", "", "proj"])
def test_a_target_that_names_no_layer(base: Path, target: str) -> None:
    """Guards against an adapter on nothing: the message has the choices, and the nearest one."""
    model = loaded(base)
    with pytest.raises(ConfigError) as caught:
        add_lora(model, LoRAConfig(targets=("v_proj", target)))
    message = str(caught.value)
    assert repr(target) in message
    assert "\n" not in message
    assert all(name in message for name in EVERY)
    assert ("did you mean 'q_proj'?" in message) == (target == "q_porj")
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_the_head_is_refused(base: Path) -> None:
    """Guards B35: an adapter on a head that may be tied is not built, so it must not be half built."""
    with pytest.raises(ConfigError, match="LoRA on the head is not built yet"):
        add_lora(loaded(base), LoRAConfig(targets=("head",)))


# -- refusals


def refusal(base: Path | LanguageModel, adapter: Path, *, names: Path) -> str:
    """The one line with which an adapter is refused; it starts with the path ``names``."""
    with pytest.raises(CheckpointError) as caught:
        load_adapter(base if isinstance(base, LanguageModel) else loaded(base), adapter)
    message = str(caught.value)
    assert message.startswith(f"{names}: "), message
    assert "\n" not in message
    return message


def change_settings(adapter: Path, **values: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def change_tensors(adapter: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("layers_to_transform", [0]),
        ("bias", "all"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["mlp.experts"]),
    ],
)
def test_an_option_that_changes_the_mathematics(base: Path, adapter: Path, key: str, value: object) -> None:
    """Guards B44: an option that is not built is refused by name, not left out."""
    change_settings(adapter, **{key: value})
    assert f"{key} is {value!r}, which is not supported yet" in refusal(
        base, adapter, names=adapter / "adapter_config.json"
    )


@pytest.mark.parametrize(
    ("key", "value"), [("use_bdlora", {"nblocks": 2}), ("kasa_config", {"beta": 1.0}), ("use_lora_of_later", True)]
)
def test_a_key_that_nobody_knows(base: Path, adapter: Path, key: str, value: object) -> None:
    """Guards B44 for options that came after this was written: named but not set is harmless, set is refused."""
    change_settings(adapter, **{key: None})
    load_adapter(loaded(base), adapter)
    change_settings(adapter, **{key: value})
    assert key in refusal(base, adapter, names=adapter / "adapter_config.json")


@pytest.mark.parametrize(
    "more",
    [{"modules_to_save": ["lm_head"]}, {"rank_pattern": {"q_proj": 2}}],
    ids=["modules_to_save", "rank_pattern"],
)
def test_such_an_adapter_by_peft_itself(base: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    """Guards the names above: PEFT does write these options in this way."""
    peft_model(base, ("q_proj", "v_proj"), **more).save_pretrained(tmp_path / "adapter")
    message = refusal(base, tmp_path / "adapter", names=tmp_path / "adapter" / "adapter_config.json")
    assert next(iter(more)) in message


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": 0}, "r is 0"),
        ({"r": "4"}, "r is '4'"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_dropout": "much"}, "lora_dropout is 'much'"),
        ({"lora_dropout": 1.5}, "lora_dropout is 1.5"),
        ({"target_modules": None}, "target_modules is None"),
        ({"target_modules": []}, "target_modules is []"),
        ({"target_modules": ".*wv"}, "target_modules is []"),
        ({"target_modules": "(q_proj"}, "is no regular expression"),
        ({"use_dora": "yes"}, "use_dora is 'yes'"),
        ({"target_modules": ["q_proj", "wv"]}, "target 'wv' names no linear layer"),
        ({"target_modules": ["lm_head"]}, "head"),
    ],
)
def test_settings_that_make_no_sense(base: Path, adapter: Path, values: dict[str, Any], said: str) -> None:
    """Guards against a traceback, and against an adapter that is scaled by nothing."""
    change_settings(adapter, **values)
    assert said in refusal(base, adapter, names=adapter / "adapter_config.json")


def test_another_base(adapter: Path) -> None:
    """Guards B44: the shapes of the adapter are those of its base."""
    wide = random_model(hidden_size=32)
    message = refusal(wide, adapter, names=adapter / "adapter_model.safetensors")
    assert "has shape (4, 24), but this base asks for (4, 32)" in message


@pytest.mark.parametrize(("layers", "said"), [(1, "tensors have no layer in this base"), (3, "is missing")])
def test_a_base_with_more_or_fewer_layers(adapter: Path, layers: int, said: str) -> None:
    """Guards B45: every tensor has a layer, and every layer its tensors."""
    change_settings(adapter, target_modules=["q_proj", "v_proj"])
    assert said in refusal(random_model(num_layers=layers), adapter, names=adapter / "adapter_model.safetensors")


def test_another_rank(base: Path, adapter: Path) -> None:
    """Guards the scale: alpha / r with an r that is not the file's would be wrong in silence."""
    change_settings(adapter, r=8)
    assert "has shape (4, 24), but this base asks for (8, 24)" in refusal(
        base, adapter, names=adapter / "adapter_model.safetensors"
    )


def test_a_missing_tensor(base: Path, adapter: Path) -> None:
    """Guards B45: a layer that would stay at its random start."""
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    change_tensors(adapter, lambda tensors: tensors.__delitem__(name))
    assert f"tensor {name!r} is missing" in refusal(base, adapter, names=adapter / "adapter_model.safetensors")


def test_an_extra_tensor(base: Path, adapter: Path) -> None:
    """Guards B45: a tensor that would be thrown away."""
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    change_tensors(adapter, lambda tensors: tensors.update({name: torch.zeros(4, 24)}))
    message = refusal(base, adapter, names=adapter / "adapter_model.safetensors")
    assert f"1 tensors have no layer in this base, such as {name!r}" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite(base: Path, adapter: Path, value: float) -> None:
    """Guards B38: an adapter of a broken run."""

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[min(tensors)][0, 0] = value

    change_tensors(adapter, spoil)
    assert "values that are not finite" in refusal(base, adapter, names=adapter / "adapter_model.safetensors")


def test_a_tensor_of_whole_numbers(base: Path, adapter: Path) -> None:
    """Guards against a quantised adapter, whose numbers mean nothing without their scales."""

    def cast(tensors: dict[str, Tensor]) -> None:
        tensors[min(tensors)] = tensors[min(tensors)].to(torch.int8)

    change_tensors(adapter, cast)
    assert "I8" in refusal(base, adapter, names=adapter / "adapter_model.safetensors").upper().replace("INT", "I")


def test_a_pickled_adapter_is_never_opened(base: Path, adapter: Path) -> None:
    """Guards B52 for adapters."""
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "a pickled adapter is never opened" in refusal(base, adapter, names=adapter)


def test_broken_files(base: Path, adapter: Path) -> None:
    """A download that broke off, and no settings at all."""
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert "not a readable safetensors file" in refusal(base, adapter, names=path)
    (adapter / "adapter_config.json").unlink()
    assert "there is no such file" in refusal(base, adapter, names=adapter / "adapter_config.json")


def test_an_adapter_that_is_not_finite_is_not_saved(base: Path, tmp_path: Path) -> None:
    """Guards B38: a broken run leaves no adapter."""
    model, config = loaded(base), LoRAConfig(rank=2)
    name = add_lora(model, config)[0]
    with torch.no_grad():
        model.get_submodule(name).get_parameter("lora_B")[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"lora_B of blocks\.0\.attention\.q_proj has values that are not finite"):
        save_adapter(model, tmp_path / "adapter", config, base=str(base))
    assert not (tmp_path / "adapter").exists()
