"""Every family against the reference library, there and back, on tiny random models with every flag on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.parity import CASES, Case, compare, reference_model, relative
from minitune.checkpoint import load_checkpoint, read_config, save_checkpoint
from minitune.cli import main
from minitune.errors import CheckpointError
from minitune.models import build
from minitune.models.families import FAMILIES
from minitune.models.published import _WINDOW_KEYS, model_config, raw_config
from minitune.ops import REFERENCE

SHAPE = {"vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads"}

pytestmark = [
    # The reference warns of ids outside a tiny vocabulary and of unusual rope factors; both are meant here.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_gradients_and_cache_are_the_references(case: Case, tmp_path: Path) -> None:
    distance = compare(case, tmp_path)
    assert distance.ok, distance
    distance = compare(case, tmp_path, REFERENCE)
    assert distance.ok, distance


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_written_back_it_is_byte_equal_and_the_reference_reads_it(case: Case, tmp_path: Path) -> None:
    import transformers

    reference = reference_model(case)
    reference.save_pretrained(tmp_path / "theirs")
    model = load_checkpoint(tmp_path / "theirs").model
    ids = torch.arange(20)[None] % case.settings["vocab_size"]
    stored = load_file(tmp_path / "theirs" / "model.safetensors")
    for name, source in (("same layout", tmp_path / "theirs"), ("from the configuration alone", None)):
        out = tmp_path / name
        # Small shards, so that the index is on the way too.
        save_checkpoint(model, out, source=source, max_shard_bytes=20_000)
        assert len(list(out.glob("model-*.safetensors"))) > 1
        written = {k: v for file in out.glob("*.safetensors") for k, v in load_file(file).items()}
        assert set(written) == set(stored)
        for key, tensor in stored.items():
            assert tensor.dtype == written[key].dtype
            assert torch.equal(tensor, written[key]), key
        again = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager").eval()
        with torch.no_grad():
            assert relative(again(ids).logits, reference(ids).logits) == 0.0
            ours = load_checkpoint(out).model
            assert relative(ours.logits(ours(ids)), again(ids).logits) < 1e-4


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_dialects_mean_the_same(case: Case, tmp_path: Path) -> None:
    """Published files say ``rope_theta`` and ``rope_scaling`` flat; newer ones nest them in ``rope_parameters``."""
    reference_model(case).config.save_pretrained(tmp_path)
    config, raw = read_config(tmp_path)
    assert model_config(raw_config(config), "x") == config
    nested = raw.pop("rope_parameters", None)
    if nested is not None:
        flat = dict(raw)
        flat["rotary_emb_base" if case.family == "gpt_neox" else "rope_theta"] = nested.pop("rope_theta")
        if "partial_rotary_factor" in nested:
            flat["rotary_pct"] = nested.pop("partial_rotary_factor")
        if nested.pop("rope_type") != "default":
            scaling = dict(raw_config(config)["rope_parameters"])
            scaling["type"] = scaling.pop("rope_type")
            flat["rope_scaling"] = {k: v for k, v in scaling.items() if k != "rope_theta"}
        assert model_config(flat, "x") == config


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_keys_take_the_familys_own_defaults(family: str) -> None:
    """A key that a file leaves out means what the family's own class assumes, not one default for all."""
    import transformers

    full = transformers.AutoConfig.for_model(family).to_dict()
    entry = FAMILIES[family]
    shape = {key: full[key] for key, ours in entry.keys.items() if ours in SHAPE and full.get(key) is not None}
    understood = {*entry.keys, entry.activation, *entry.defaults, *_WINDOW_KEYS[entry.windows], "rope_parameters"}
    said = {key: value for key, value in full.items() if key in understood}
    assert model_config({"model_type": family} | shape, "x") == model_config({"model_type": family} | said, "x")


def test_the_head_and_what_lies_on_the_way_are_initialised(tmp_path: Path) -> None:
    """A fresh model of every family has finite weights and a loss near that of guessing."""
    for case in CASES:
        reference_model(case).config.save_pretrained(tmp_path)
        config, _ = read_config(tmp_path)
        model = build(config)
        model.initialize(seed=0)
        ids = torch.randint(0, config.vocab_size, (4, 16), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            loss, count = model.loss(model(ids), ids.flip(0, 1))
        assert abs(float(loss / count) - torch.log(torch.tensor(config.vocab_size)).item()) < 0.3, case.name


def norm_of(reference: Any) -> Any:
    """The last norm of a reference model."""
    body = reference.base_model
    return next(getattr(body, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(body, name))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_norms_round_in_the_order_of_their_family(case: Case, tmp_path: Path) -> None:
    """In bfloat16 the order of rounding and scaling shows in the bits; logits stay as near as two roundings allow."""
    reference = reference_model(case).to(torch.bfloat16)
    reference.save_pretrained(tmp_path)
    model = load_checkpoint(tmp_path, dtype=torch.bfloat16, ops=REFERENCE).model
    x = torch.randn(2, 7, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        theirs, ours = norm_of(reference)(x), model.norm(x)
        if model.config.form == "llama":
            assert torch.equal(ours, theirs)
        else:  # LayerNorm is one rounding at the end, whose last bit depends on the order of its sums
            assert (ours.float() - theirs.float()).abs().max() <= 2**-7 * theirs.float().abs().max()
        ids = torch.arange(20)[None] % case.settings["vocab_size"]
        assert relative(model.logits(model(ids)).float(), reference(ids).logits.float()) < 0.05


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float16_only_where_it_is_wide_enough(case: Case, tmp_path: Path) -> None:
    """Activations of Qwen and Gemma overflow float16 (B37): refused with the reason."""
    reference_model(case).save_pretrained(tmp_path)
    if FAMILIES[case.family].float16:
        model = load_checkpoint(tmp_path, dtype=torch.float16).model
        assert model(torch.arange(8)[None]).dtype == torch.float16
    else:
        with pytest.raises(CheckpointError, match="overflow float16; use bfloat16 or float32"):
            load_checkpoint(tmp_path, dtype=torch.float16)


def test_info_tells_what_each_family_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, case in enumerate(CASES):
        folder = tmp_path / str(number)
        reference = reference_model(case)
        reference.save_pretrained(folder)
        assert main(["info", str(folder)]) == 0
        out = capsys.readouterr().out
        assert f"family                {case.family}\n" in out
        assert f"{sum(weight.numel() for weight in reference.parameters()):,}" in out
        assert "0 unused, 0 missing" in out


# As published, from the models' own pages: old keys that say nothing, class defaults that are left out.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": True, "use_mrope": False, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "gpt2": {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "n_special": 0, "predict_special_tokens": True, "output_past": True, "resid_pdrop": 0.1,
        "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
        "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257,
    },
    "pythia-70m": {
        "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
        "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_understood(name: str) -> None:
    config = model_config(PUBLISHED[name], name)
    assert config.windows == ()
    assert config.rope_fraction == (0.25 if name == "pythia-70m" else 1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_theta": 1e6}, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "differ"),
        ({"partial_rotary_factor": 0.5}, "rotate the whole head"),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 4.0}}, "rope_type is given as"),
        ({"use_mrope": True}, "use_mrope is True, which is not supported"),
    ],
)
def test_what_is_said_twice_must_agree(changes: dict[str, Any], said: str) -> None:
    """A second place that says another thing is never dropped in silence."""
    with pytest.raises(CheckpointError, match=said):
        model_config(PUBLISHED["Qwen2.5-0.5B"] | changes, "config.json")


def test_a_folder_of_mixed_types_goes_back_as_it_was(tmp_path: Path) -> None:
    """bfloat16 matrices beside float32 norms: each tensor keeps its own type."""
    reference_model(CASES[0]).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    mixed = {name: tensor.float() if tensor.ndim == 1 else tensor for name, tensor in load_file(path).items()}
    save_file(mixed, path, metadata={"format": "pt"})
    save_checkpoint(load_checkpoint(tmp_path / "theirs").model, tmp_path / "ours", source=tmp_path / "theirs")
    for name, tensor in load_file(tmp_path / "ours" / "model.safetensors").items():
        assert tensor.dtype == mixed[name].dtype
        assert torch.equal(tensor, mixed[name])
