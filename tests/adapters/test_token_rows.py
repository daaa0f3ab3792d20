"""Trained rows of the vocabulary: autograd's gradients without its buffers, nothing else moved, and PEFT's layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.parity import CASES, Case, reference_model, relative
from minitune.adapters import LoRAConfig, add_lora, add_token_rows, load_adapter, merge_token_rows, save_adapter
from minitune.adapters import token_rows as rows_module
from minitune.adapters.token_rows import token_rows
from minitune.checkpoint import load_checkpoint, save_checkpoint
from minitune.config import ModelConfig
from minitune.errors import CheckpointError
from minitune.models import Decoder, LanguageModel
from minitune.ops import BUILTIN, IGNORE, REFERENCE

pytestmark = [
    # PEFT asks transformers for an attribute that transformers has renamed; a tiny vocabulary is warned of.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
V = 53
IDS = [3, 17, 18, 50]
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def random_model(**changes: Any) -> LanguageModel:
    shape: dict[str, Any] = {"vocab_size": V, "hidden_size": 24, "intermediate_size": 40, "num_layers": 2}
    shape |= {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6}
    model = Decoder(ModelConfig(**shape | changes))
    model.initialize(seed=1, std=0.2)
    return model.eval()


def in_double(model: LanguageModel) -> LanguageModel:
    model.double().compute_dtype = torch.float64
    assert isinstance(model, Decoder)
    model.rotary.dtype = torch.float64
    model.tie()
    return model


def random_ids(size: int = V) -> Tensor:
    return torch.randint(0, size, (3, 40), generator=torch.Generator().manual_seed(3))


def targets_of(ids: Tensor) -> Tensor:
    targets = ids.roll(-1, 1)
    targets[:, ::3] = IGNORE
    return targets


def weights_of(ids: Tensor) -> Tensor:
    return torch.linspace(0.5, 2, ids.numel(), dtype=torch.float64).view(ids.shape)


@torch.no_grad()
def logits_of(model: LanguageModel, ids: Tensor | None = None) -> Tensor:
    return model.logits(model(random_ids() if ids is None else ids))


@torch.no_grad()
def move(model: LanguageModel, seed: int = 9) -> None:
    """Give the trained rows, and the B matrices, random values."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "rows" in name or name.endswith("lora_B"):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)


# ---- the mathematics


@TIED
@pytest.mark.parametrize("chunk", [7, 4096])
@pytest.mark.parametrize(
    "options", [{}, {"embed_scale": 4.9, "logit_softcap": 3.0}], ids=["plain", "scaled embedding, capped logits"]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradients_are_those_of_the_whole_tables(
    tied: bool, chunk: int, options: dict[str, Any], smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows' gradients are autograd's of both whole tables in float64, at these rows; so is what goes further down.

    Guards the rows in the softmax (B12's cure must not be another bug), the tied sum, and chunks of the loss.
    """
    monkeypatch.setattr(rows_module, "CHUNK", chunk)
    whole, part = (in_double(random_model(tie_embeddings=tied, **options)) for _ in range(2))
    rows = add_token_rows(part, IDS)
    part.norm.weight.requires_grad_()
    ids = random_ids()
    found = []
    for model in (whole, part):
        loss, denominator = model.loss(model(ids), targets_of(ids), token_weight=weights_of(ids), smoothing=smoothing)
        (loss / 7).backward()
        found.append((loss.detach(), denominator, model.norm.weight.grad))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    tables = {"embed": whole.embed.weight, "head": whole.head.weight}
    for name, one in rows.items():
        grad, wanted = one.values.grad, tables[name].grad
        assert grad is not None
        assert wanted is not None
        torch.testing.assert_close(grad, wanted[IDS], rtol=1e-12, atol=1e-12)
        assert grad.abs().min(1).values.max() > 0
    assert part.embed.weight.grad is None
    assert part.head.weight.grad is None


@TIED
def test_gradients_through_the_logits(tied: bool) -> None:
    """An objective of its own on ``model.logits`` gets the same gradients as through the whole tables."""
    whole, part = (in_double(random_model(tie_embeddings=tied)) for _ in range(2))
    rows = add_token_rows(part, IDS)
    ids = random_ids()
    for model in (whole, part):
        first, second = model.logits(model(ids)), model.logits(model(ids.flip(1)))  # two forwards, then a backward
        (first.sigmoid() * second.cos()).sum().backward()
    for name, one in rows.items():
        wanted = whole.get_submodule(name).get_parameter("weight").grad
        assert wanted is not None
        torch.testing.assert_close(one.values.grad, wanted[IDS], rtol=1e-12, atol=1e-12)


def test_a_batch_without_a_target_gives_zero() -> None:
    """Guards B25: a micro-batch in which nothing is trained adds nothing, and is no error."""
    model = random_model(tie_embeddings=True)
    rows = add_token_rows(model, IDS)["embed"]
    ids = random_ids()
    loss, denominator = model.loss(model(ids), torch.full_like(ids, IGNORE))
    loss.backward()
    assert (float(loss), float(denominator)) == (0.0, 0.0)
    assert rows.values.grad is not None
    assert not rows.values.grad.any()


@TIED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_is_the_base_bit_for_bit(tied: bool, dtype: torch.dtype) -> None:
    """Guards B46 with rows: float32 copies of rows of any type give the same logits and the same loss."""
    model = random_model(tie_embeddings=tied).to(dtype)
    model.compute_dtype = dtype
    model.tie()
    ids = random_ids()
    before, loss = logits_of(model), model.loss(model(ids), targets_of(ids))[0].detach()
    add_lora(model, LoRAConfig(rank=3))
    rows = add_token_rows(model, IDS)
    assert torch.equal(logits_of(model), before)
    assert torch.equal(model.loss(model(ids), targets_of(ids))[0].detach(), loss)
    assert {one.values.dtype for one in rows.values()} == {torch.float32}


@TIED
def test_a_step_moves_these_rows_and_no_others(tied: bool) -> None:
    """Other rows are the base's to the last bit, after a step and after the merge; there is one set where tied."""
    model = random_model(tie_embeddings=tied)
    before = {name: model.get_submodule(name).get_parameter("weight").clone() for name in ("embed", "head")}
    add_lora(model, LoRAConfig(rank=2))
    add_token_rows(model, IDS)
    trained = {name: w for name, w in model.named_parameters() if w.requires_grad and "lora" not in name}
    assert [tuple(w.shape) for w in trained.values()] == [(len(IDS), 24)] * (1 if tied else 2)
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    ids = random_ids()
    model.loss(model(ids), targets_of(ids))[0].backward()
    optimizer.step()
    tuned = logits_of(model)
    assert merge_token_rows(model) == len(IDS)
    assert not token_rows(model)
    assert torch.equal(logits_of(model), tuned)
    others = torch.ones(V, dtype=torch.bool).index_fill(0, torch.tensor(IDS), value=False)
    for name, old in before.items():
        new = model.get_submodule(name).get_parameter("weight")
        assert torch.equal(new[others], old[others])
        assert ((new[IDS] - old[IDS]).abs().amax(1) > 0).all()
    assert (model.head.weight is model.embed.weight) == tied


def test_no_buffer_of_the_size_of_a_table() -> None:
    """Neither forward nor backward makes anything of the shape of the embedding; a trained embedding's does."""

    def tables_made(model: LanguageModel) -> int:
        with Made() as made:
            model.loss(model(random_ids()), targets_of(random_ids()))[0].backward()
        return sum(shape in ((V, 24), (24, V)) for shape in made.shapes)

    model = random_model(tie_embeddings=True)
    assert tables_made(model) > 0
    add_token_rows(model, IDS)
    assert tables_made(model) == 0


class Made(TorchDispatchMode):
    """Notes the shape of every tensor with memory of its own that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in given:
                self.shapes.append(tuple(t.shape))
        return result


def test_both_tables_of_operations_agree() -> None:
    """The loss asks the model's own table of operations for its cross-entropy."""
    found = []
    for ops in (BUILTIN, REFERENCE):
        model = in_double(random_model())
        model.ops = ops
        rows = add_token_rows(model, IDS)["head"]
        ids = random_ids()
        model.loss(model(ids), targets_of(ids))[0].backward()
        found.append(rows.values.grad)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


# ---- more rows


@TIED
def test_new_rows_are_the_mean_and_take_no_probability(tied: bool) -> None:
    """A new token is nowhere likelier than 1 / V, so that what the base says changes by no more than that."""
    model = random_model(tie_embeddings=tied)
    before = logits_of(model).softmax(-1)
    head = model.head.weight.detach().clone()
    model.resize(V + 2)
    assert model.config.vocab_size == V + 2
    after = logits_of(model).softmax(-1)
    assert after.shape[-1] == V + 2
    assert float(after[..., V:].max()) <= 1 / V
    torch.testing.assert_close(after[..., :V] / after[..., :V].sum(-1, keepdim=True), before)
    torch.testing.assert_close(model.head.weight[V], head.mean(0))
    assert torch.equal(model.head.weight[:V], head)
    assert torch.equal(model.head.weight[V], model.head.weight[V + 1])
    assert (model.head.weight is model.embed.weight) == tied


def test_rows_that_were_never_trained_do_not_count_in_the_mean() -> None:
    """Guards padded vocabularies: a hundred rows of zeros behind the true ones would pull the mean to nothing."""
    model = random_model()
    with torch.no_grad():
        model.embed.weight[40:] *= 1e-4
    model.resize(V + 1)
    torch.testing.assert_close(model.embed.weight[V], model.embed.weight[:40].mean(0))


# ---- PEFT


PICKED = [case for case in CASES if case.name in ("qwen3, wide heads, biases", "gemma2, window, caps, scale", "gpt2")]
PICKED += [case for case in CASES if case.name == "gpt_neox, parallel"]


def peft_model(reference: Any, indices: Any, **more: Any) -> Any:
    """A model of the reference with LoRA and trained rows of random values."""
    from peft import LoraConfig, get_peft_model

    settings: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    torch.manual_seed(11)
    model: Any = get_peft_model(reference, LoraConfig(**settings | more, trainable_token_indices=indices))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "trainable_tokens_delta" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model.eval()


def their_logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


def names_of(reference: Any) -> tuple[str, str]:
    """The last names of the reference's embedding and head."""
    modules = {id(module): name.rpartition(".")[2] for name, module in reference.named_modules()}
    return modules[id(reference.get_input_embeddings())], modules[id(reference.get_output_embeddings())]


@pytest.mark.parametrize("case", PICKED, ids=lambda case: case.family)
def test_rows_go_both_ways(case: Case, tmp_path: Path) -> None:
    """Logits are equal whoever wrote the folder; the ids keep their rows, in whatever order the file has them."""
    from peft import PeftModel

    reference = reference_model(case)
    reference.save_pretrained(tmp_path / "base")
    ids, tied = [9, 4, 7], bool(reference.config.tie_word_embeddings)
    embedding, head = names_of(reference)
    theirs = peft_model(reference, ids if tied else {embedding: ids, head: [4, 9, 8]})
    theirs.save_pretrained(tmp_path / "theirs")
    text = torch.arange(20)[None] % case.settings["vocab_size"]
    want = their_logits(theirs, text)

    model = load_checkpoint(tmp_path / "base").model.eval()
    assert relative(logits_of(model, text), want) > 1e-2
    config = load_adapter(model, tmp_path / "theirs")
    assert relative(logits_of(model, text), want) <= 1e-5
    assert token_rows(model)["embed"].ids.tolist() == [4, 7, 9]

    move(model, seed=4)
    want = logits_of(model, text)
    save_adapter(model, tmp_path / "ours", config, base=str(tmp_path / "base"))
    back = PeftModel.from_pretrained(reference_model(case), tmp_path / "ours").eval()
    assert relative(their_logits(back, text), want) <= 1e-5
    again = load_checkpoint(tmp_path / "base").model.eval()
    load_adapter(again, tmp_path / "ours")
    assert torch.equal(logits_of(again, text), want)
    # PEFT's own file of the same rows has the same names and settings as ours.
    back.save_pretrained(str(tmp_path / "back"))
    assert set(load_file(tmp_path / "back" / "adapter_model.safetensors")) == set(
        load_file(tmp_path / "ours" / "adapter_model.safetensors")
    )
    settings = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("back", "ours")]
    assert settings[0]["trainable_token_indices"] == settings[1]["trainable_token_indices"]


@TIED
def test_a_longer_vocabulary_goes_both_ways(tied: bool, tmp_path: Path) -> None:
    """PEFT writes whole tables where they were made longer; ours are the rows alone, for a base made longer anyhow."""
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    base = tmp_path / "base"
    save_checkpoint(random_model(tie_embeddings=tied), base)
    reference: Any = LlamaForCausalLM.from_pretrained(base)
    reference.resize_token_embeddings(V + 2, mean_resizing=False)
    ids = [5, V, V + 1]
    theirs = peft_model(reference, ids if tied else {"embed_tokens": ids, "lm_head": ids})
    theirs.save_pretrained(tmp_path / "theirs")
    assert any("base_layer" in name for name in load_file(tmp_path / "theirs" / "adapter_model.safetensors"))
    text = random_ids(V + 2)
    model = load_checkpoint(base).model.eval()
    config = load_adapter(model, tmp_path / "theirs")
    assert model.config.vocab_size == V + 2
    assert relative(logits_of(model, text), their_logits(theirs, text)) <= 1e-5

    save_adapter(model, tmp_path / "ours", config, base=str(base))
    assert not any("base_layer" in name for name in load_file(tmp_path / "ours" / "adapter_model.safetensors"))
    longer: Any = LlamaForCausalLM.from_pretrained(base)
    longer.resize_token_embeddings(V + 2, mean_resizing=False)
    back = PeftModel.from_pretrained(longer, tmp_path / "ours").eval()
    assert relative(their_logits(back, text), logits_of(model, text)) <= 1e-5
    again = load_checkpoint(base).model.eval()
    load_adapter(again, tmp_path / "ours")
    assert torch.equal(logits_of(again, text), logits_of(model, text))


def test_rows_of_the_embedding_alone(tmp_path: Path) -> None:
    """A list of ids on a model whose head is not tied means the embedding alone, here as in PEFT."""
    from transformers import LlamaForCausalLM

    save_checkpoint(random_model(), tmp_path / "base")
    theirs = peft_model(LlamaForCausalLM.from_pretrained(tmp_path / "base"), [5, 6])
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_checkpoint(tmp_path / "base").model.eval()
    load_adapter(model, tmp_path / "theirs")
    assert set(token_rows(model)) == {"embed"}
    assert relative(logits_of(model), their_logits(theirs, random_ids())) <= 1e-5


# ---- refusals


Change = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ([3, 3], r"is \[3, 3\]; it must be a list of ids, each of them once"),
        (["a"], "it must be a list of ids"),
        ({"q_proj": [3]}, "names 'q_proj'; rows are trained in model.embed_tokens, lm_head only"),
        ({"embed_tokens": [3, 17], "lm_head": [3, 18]}, "which this model ties"),
        ([3, 17, 18, 99], "has the id 99; this base has ids 0 to 52"),
        ([3, 17], r"trainable_tokens_delta has shape \(4, 24\), but this base asks for \(2, 24\)"),
        (None, "1 tensors have no layer in this base"),
    ],
)
def test_rows_that_do_not_fit_are_refused(setting: Any, said: str, tmp_path: Path) -> None:
    """Guards B45 for rows: nothing is left unused or guessed, and the model stays as it was."""
    model, config = random_model(tie_embeddings=True), LoRAConfig(rank=2)
    add_lora(model, config)
    add_token_rows(model, IDS)
    save_adapter(model, tmp_path / "adapter", config, base="base")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trainable_token_indices": setting}))
    fresh = random_model(tie_embeddings=True)
    before = logits_of(fresh)
    with pytest.raises(CheckpointError, match=said):
        load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(logits_of(fresh), before)
    assert not token_rows(fresh)


def test_rows_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model, config = random_model(), LoRAConfig(rank=2)
    add_lora(model, config)
    with torch.no_grad():
        add_token_rows(model, IDS)["head"].values[1, 1] = float("inf")
    with pytest.raises(CheckpointError, match="a trained row has values that are not finite"):
        save_adapter(model, tmp_path / "adapter", config, base="base")
    assert not (tmp_path / "adapter").exists()
