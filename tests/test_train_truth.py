"""Training must be what plain transformers, PEFT and torch.optim do with the same rows, and what the formulas say."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from minitune.adapters import LoRAConfig, add_lora
from minitune.chat import ALPACA, Encoded, Message, render
from minitune.checkpoint import load_checkpoint
from minitune.config import ModelConfig, SFTConfig
from minitune.data.batch import Batch, pad_rows
from minitune.errors import TrainingError
from minitune.jobs.sft import sft
from minitune.models import Decoder, LanguageModel
from minitune.ops import BUILTIN, IGNORE, REFERENCE, Ops, rows_plan
from minitune.optim import AdamW, clip_gradients, learning_rate, warmup_steps
from minitune.tokenizer import load_tokenizer
from minitune.train import NonFinite, accumulate, evaluate, next_token_loss, train

TABLES = [pytest.param(ops, id=ops.name) for ops in (REFERENCE, BUILTIN)]
SCHEDULES = ["constant", "linear", "cosine", "wsd"]
LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def error(a: Tensor, b: Tensor) -> float:
    """The largest difference relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def random_model(ops: Ops = BUILTIN, dtype: torch.dtype = torch.float64) -> LanguageModel:
    config = ModelConfig(
        vocab_size=71, hidden_size=24, intermediate_size=40, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6,
        tie_embeddings=True, qkv_bias=True, o_bias=True,
    )  # fmt: skip
    model = Decoder(config, ops, dtype)
    model.initialize(seed=2, std=0.2)
    model.to(dtype).tie()
    return model


def random_row(prompt: int, answer: int, seed: int) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 71, (prompt + answer,), generator=generator).tolist()
    return Encoded.of(ids, [False] * prompt + [True] * answer)


def uneven_rows() -> list[Encoded]:
    """Eight rows of very different trained lengths."""
    sizes = [(3, 40), (30, 1), (9, 2), (2, 17), (21, 5), (5, 33), (14, 1), (6, 8)]
    return [random_row(prompt, answer, seed) for seed, (prompt, answer) in enumerate(sizes)]


def gradients(model: LanguageModel) -> dict[str, Tensor]:
    """The gradient of every parameter; they are taken away from the model."""
    found = {}
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        found[name], weight.grad = weight.grad, None
    return found


# -- against transformers and PEFT

STEPS, BATCH, LONGEST = 50, 8, 160
LR = {"lora": 1e-3, "full": 3e-4}
BETAS, EPS, CLIP = (0.9, 0.999), 1e-8, 1.0


@cache
def alpaca_steps(material: Path) -> list[list[Encoded]]:
    """The first Alpaca rows with an answer and at most ``LONGEST`` tokens, by steps."""
    tokenizer = load_tokenizer(material / "weights/TinyStories-656K")
    assert tokenizer.eos_id == 2
    rows: list[Encoded] = []
    for row in json.loads((material / "data/en/alpaca.json").read_text("utf-8")):
        if row["output"].strip():
            turns = [Message("user", row["instruction"], row["input"]), Message("assistant", row["output"])]
            encoded = render(turns, ALPACA, tokenizer, tokenizer.eos_id)
            rows += [encoded] if len(encoded.ids) <= LONGEST else []
        if len(rows) == STEPS * BATCH:
            break
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


def our_run(model: LanguageModel, steps: Sequence[Sequence[Encoded]], lr: float) -> list[tuple[float, float]]:
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = AdamW(trainable, betas=BETAS, eps=EPS)
    reports = train(model, optimizer, ([pad_rows(rows)] for rows in steps), lr=lambda step: lr, clip=CLIP)
    return [(report.loss, report.grad_norm) for report in reports]


def their_run(model: Any, steps: Sequence[Sequence[Encoded]], lr: float) -> list[tuple[float, float]]:
    """The plain loop: labels with -100, an attention mask, the loss summed and divided by the trained tokens."""
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=BETAS, eps=EPS, weight_decay=0.0)
    model.train()
    found = []
    for rows in steps:
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            mask[i, : len(row.ids)] = 1
            for place, (token, trained) in enumerate(zip(row.ids, row.trained, strict=True)):
                labels[i, place] = token if trained else -100
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
        loss_sum = nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
        loss = loss_sum / sum(sum(row.trained) for row in rows)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        found.append((loss.item(), norm.item()))
    return found


def assert_same_run(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> None:
    assert len(ours) == len(theirs) == STEPS
    mean = [sum(loss for loss, _ in part) / 10 for part in (theirs[:10], theirs[-10:])]
    assert mean[1] < mean[0] - 0.5  # it learns, so later steps do depend on the earlier updates
    for step, ((loss, norm), (their_loss, their_norm)) in enumerate(zip(ours, theirs, strict=True), start=1):
        limits = (1e-5, 1e-5) if step == 1 else (1e-4, 1e-3)
        assert abs(loss - their_loss) <= limits[0] * their_loss, f"loss of step {step}"
        assert abs(norm - their_norm) <= limits[1] * their_norm, f"gradient norm of step {step}"


def test_50_full_steps_are_those_of_transformers(material: Path) -> None:
    """Guards the whole loop: masks, shift, divisor, backward, clipping and AdamW, step after step."""
    from transformers import LlamaForCausalLM

    folder, steps = material / "weights/TinyStories-656K", alpaca_steps(material)
    ours = our_run(load_checkpoint(folder).model, steps, LR["full"])
    assert_same_run(ours, their_run(LlamaForCausalLM.from_pretrained(folder), steps, LR["full"]))


# PEFT asks transformers for an attribute that transformers has renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_50_lora_steps_are_those_of_peft(material: Path) -> None:
    """Guards the same loop with LoRA: scale, the frozen base, and the gradients of A and B."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    folder, steps = material / "weights/TinyStories-656K", alpaca_steps(material)
    model = load_checkpoint(folder).model
    add_lora(model, LoRAConfig(rank=8, alpha=16.0), seed=1)
    starts = {name: w.detach().clone() for name, w in model.named_parameters() if name.endswith("lora_A")}
    settings: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": list(LEAVES), "task_type": "CAUSAL_LM"}
    theirs = get_peft_model(LlamaForCausalLM.from_pretrained(folder), LoraConfig(**settings))
    for name, start in starts.items():
        # blocks.0.attention.q_proj.lora_A -> ...layers.0.self_attn.q_proj.lora_A.default.weight
        place = name.replace("blocks.", "layers.").replace("attention.", "self_attn.")
        with torch.no_grad():
            theirs.get_parameter(f"base_model.model.model.{place}.default.weight").copy_(start)
    assert len(starts) == 2 * len(LEAVES)
    assert_same_run(our_run(model, steps, LR["lora"]), their_run(theirs, steps, LR["lora"]))


# -- accumulation


@pytest.mark.parametrize("ops", TABLES)
def test_accumulation_is_one_batch(ops: Ops) -> None:
    """Guards B19: eight rows at once, by fours, or one by one are the same step; no mean of means."""
    model, rows = random_model(ops), uneven_rows()
    found = []
    for size in (8, 4, 1):
        loss = accumulate(model, [pad_rows(rows[start : start + size]) for start in range(0, 8, size)])
        found.append((loss, gradients(model)))
    loss, whole = found[0]
    for other_loss, other in found[1:]:
        assert abs(other_loss - loss) <= 1e-12 * loss
        for name, gradient in whole.items():
            assert error(other[name], gradient) <= 1e-12, name


def test_a_mean_of_means_would_be_seen() -> None:
    """Guards the test above: on these rows the mean of the rows' means is far from the mean over tokens."""
    model, rows = random_model(), uneven_rows()
    each = [evaluate(model, [pad_rows([row])]).loss for row in rows]
    assert abs(sum(each) / len(each) - evaluate(model, [pad_rows(rows)]).loss) > 1e-3


@pytest.mark.parametrize("ops", TABLES)
def test_a_micro_batch_without_a_trained_token_adds_nothing(ops: Ops) -> None:
    """Guards B25: no 0/0; the gradient is the same to the last bit, and the denominator is that of the others."""
    model, rows = random_model(ops), uneven_rows()
    nothing = pad_rows([Encoded.of(row.ids, [False] * len(row.ids)) for row in rows[:3]])
    assert (nothing.denominator, nothing.trained_tokens) == (0.0, 0)
    loss = accumulate(model, [pad_rows(rows)])
    expected = gradients(model)
    assert accumulate(model, [nothing, pad_rows(rows), nothing]) == loss
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, expected[name]), name
    loss_sum, denominator = next_token_loss(model, nothing)
    loss_sum.backward()
    assert (float(loss_sum.detach()), float(denominator)) == (0.0, 0.0)
    assert all(float(gradient.abs().max()) == 0.0 for gradient in gradients(model).values())


def test_a_step_without_a_trained_token_is_refused() -> None:
    """Guards B25: a step on nothing is an error, and changes nothing."""
    model = random_model()
    nothing = pad_rows([Encoded.of(row.ids, [False] * len(row.ids)) for row in uneven_rows()])
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    optimizer = AdamW(dict(model.named_parameters()))
    with pytest.raises(TrainingError, match="no trained token"):
        next(train(model, optimizer, [[nothing, nothing]], lr=lambda step: 1.0))
    assert optimizer.steps == 0
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


# -- the loss


@pytest.mark.parametrize("ops", TABLES)
def test_the_loss_is_the_sum_over_trained_tokens(ops: Ops) -> None:
    """Guards B20: loss times N is the sum of -log p of each trained token, by a loop over single numbers."""
    model, rows = random_model(ops), uneven_rows()
    nll, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = model.logits(model(torch.tensor([row.ids])))[0].tolist()
            for place in range(1, len(row.ids)):
                if row.trained[place]:
                    scores = logits[place - 1]
                    nll += math.log(math.fsum(math.exp(score) for score in scores)) - scores[row.ids[place]]
                    count += 1
    found = evaluate(model, [pad_rows(rows)])
    assert found.tokens == count == sum(row.trained_tokens for row in rows) == 107
    assert abs(found.nll - nll) <= 1e-12 * nll
    assert abs(accumulate(model, [pad_rows(rows)]) * count - nll) <= 1e-12 * nll


def with_padding(batch: Batch, more: int) -> Batch:
    """The batch with ``more`` columns of padding, of any ids."""
    rows, columns = batch.ids.shape
    filler = torch.randint(0, 71, (rows, more), generator=torch.Generator().manual_seed(8))
    return replace(
        batch,
        ids=torch.cat([batch.ids, filler], dim=1),
        targets=torch.cat([batch.targets, torch.full((rows, more), IGNORE)], dim=1),
        plan=rows_plan(rows, columns + more, "cpu"),
    )


@pytest.mark.parametrize("ops", TABLES)
def test_padding_changes_nothing(ops: Ops) -> None:
    """Guards B21 and B28: loss and gradients with more padding, or with the rows in other batches, are the same."""
    model, batch = random_model(ops), pad_rows(uneven_rows())
    loss = accumulate(model, [batch])
    expected = gradients(model)
    assert abs(accumulate(model, [with_padding(batch, 29)]) - loss) <= 1e-12 * loss
    for name, gradient in gradients(model).items():
        assert error(gradient, expected[name]) <= 1e-12, name
    for size in (1, 3):
        parts = [pad_rows(uneven_rows()[start : start + size]) for start in range(0, 8, size)]
        assert abs(evaluate(model, parts).loss - loss) <= 1e-12 * loss


@pytest.mark.parametrize("ops", TABLES)
def test_what_predicts_the_prompt_is_not_trained(ops: Ops) -> None:
    """Guards B5: noise on the hidden states that predict prompt or padding changes neither loss nor gradient."""
    model, batch = random_model(ops), pad_rows(uneven_rows())
    kept = batch.targets != IGNORE
    noise = torch.randn(*kept.shape, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * 5
    hidden = model(batch.ids, plan=batch.plan).detach().requires_grad_()
    loss, _ = model.loss(hidden, batch.targets)
    loss.backward()
    other, _ = model.loss(hidden + noise * ~kept[..., None], batch.targets)
    assert torch.equal(other, loss)
    assert hidden.grad is not None
    assert torch.equal(hidden.grad.abs().sum(-1) > 0, kept)
    changed, _ = model.loss(hidden + noise * kept[..., None], batch.targets)
    assert not torch.equal(changed, loss)


@pytest.mark.parametrize("ops", TABLES)
def test_prompt_logits_may_be_anything(ops: Ops) -> None:
    """Guards B5 at the logits: the scores that predict the prompt do not enter the loss, whatever they are."""
    batch = pad_rows(uneven_rows())
    targets = batch.targets.flatten()
    logits = torch.randn(len(targets), 71, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    loss, count = ops.cross_entropy(logits, targets)
    logits[targets == IGNORE] = 1e30
    again, again_count = ops.cross_entropy(logits, targets)
    assert torch.equal(again, loss)
    assert float(count) == float(again_count) == 107


# -- the optimizer


def some_parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"matrix": (7, 5), "vector": (9,), "another": (3, 4)}
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.8, 0.95), 1e-3)])
def test_adamw_is_that_of_torch(decay: float, betas: tuple[float, float], eps: float) -> None:
    """Guards the optimizer over 20 steps of a changing rate: corrections, eps outside the root, decay of matrices."""
    ours, theirs = some_parameters(), some_parameters()
    optimizer = AdamW(ours, betas=betas, eps=eps, weight_decay=decay)
    groups = [
        {"params": [w for w in theirs.values() if w.ndim > 1], "weight_decay": decay},
        {"params": [w for w in theirs.values() if w.ndim == 1], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=eps)
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        rate = 0.1 / (1 + step)
        for name in ours:
            scale = 10.0 ** (step % 5 - 4)
            gradient = torch.randn(ours[name].shape, generator=generator, dtype=torch.float64) * scale
            ours[name].grad, theirs[name].grad = gradient.clone(), gradient.clone()
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
        optimizer.step(rate)
        optimizer.zero_grad()
        assert all(weight.grad is None for weight in ours.values())
        for name in ours:
            assert error(ours[name].detach(), theirs[name].detach()) <= 1e-12, (step, name)


@pytest.mark.parametrize("limit", [0.0, 0.5, 3.0, 1e6])
def test_clipping_is_that_of_torch(limit: float) -> None:
    """Guards clipping: the norm of the whole gradient is returned as it was, and the direction is kept."""
    ours, theirs = some_parameters(), some_parameters()
    for name in ours:
        ours[name].grad, theirs[name].grad = ours[name].detach().clone(), ours[name].detach().clone()
    del ours["vector"], theirs["vector"]
    ours["idle"] = theirs["idle"] = nn.Parameter(torch.ones(3))  # a parameter without a gradient
    norm = clip_gradients(ours.values(), limit)
    expected = nn.utils.clip_grad_norm_(theirs.values(), limit or math.inf)
    assert error(norm, expected) <= 1e-12
    for name in ("matrix", "another"):
        ours_grad, theirs_grad = ours[name].grad, theirs[name].grad
        assert ours_grad is not None
        assert theirs_grad is not None
        assert error(ours_grad, theirs_grad) <= 1e-12


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    steps=st.integers(1, 2000),
    warmup=st.integers(0, 2100),
    schedule=st.sampled_from(SCHEDULES),
    peak=st.floats(1e-8, 1.0),
)
def test_no_step_has_a_rate_of_zero(steps: int, warmup: int, schedule: Any, peak: float) -> None:
    """Guards B30: every rate is above 0 and at most the peak; it rises to the peak, then never rises again."""
    rates = [learning_rate(step, steps, peak=peak, warmup=warmup, schedule=schedule) for step in range(steps)]
    rounding = 1 + 1e-15
    assert all(0 < rate <= peak * rounding for rate in rates)
    top = max(warmup - 1, 0)
    if top < steps:
        assert rates[top] * rounding >= peak
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a * rounding >= b for a, b in pairwise(rates[top:]))


def test_rates_worked_out_by_hand() -> None:
    """Guards the schedule as documented: equal parts up, then towards the 0 that would come at ``steps``."""
    for schedule, expected in {
        "constant": [0.25, 0.5, 0.75, 1, 1, 1, 1, 1],
        "linear": [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25],
        "wsd": [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.5],
        "cosine": [0.25, 0.5, 0.75, 1, 1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5],
    }.items():
        rates = [learning_rate(step, 8, peak=1.0, warmup=4, schedule=schedule) for step in range(9)]  # pyright: ignore[reportArgumentType]
        assert rates[:8] == pytest.approx(expected, abs=1e-15), schedule
        assert rates[8] == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=1e-15)
    assert [warmup_steps(warmup, 200) for warmup in (0, 0.03, 0.5, 1, 7)] == [0, 6, 100, 1, 7]


@pytest.mark.parametrize("ops", TABLES)
def test_checkpointing_changes_no_gradient(ops: Ops) -> None:
    """Guards that a block computed again is the block that was computed, and that the mode is on at all."""
    batch = pad_rows(uneven_rows())
    found = []
    for on in (False, True):
        model = random_model(ops).train()
        model.checkpointing = on
        calls = [0]
        model.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1))
        loss = accumulate(model, [batch])
        assert calls[0] == 1 + on
        found.append((loss, gradients(model)))
    assert found[0][0] == found[1][0]
    for name, gradient in found[0][1].items():
        assert torch.equal(gradient, found[1][1][name]), name


def test_label_smoothing_is_the_formula() -> None:
    """Guards ``--label-smoothing``: (1 - e) of the loss of the target, e of the mean loss over all V ids; float64."""
    model, batch, share = random_model(), pad_rows(uneven_rows()), 0.1
    with torch.no_grad():
        logp = model.logits(model(batch.ids, plan=batch.plan)).log_softmax(-1)
        kept = batch.targets != IGNORE
        target = logp[kept].gather(1, batch.targets[kept][:, None])[:, 0]
        expected = -((1 - share) * target + share * logp[kept].mean(-1)).sum()
        loss, count = next_token_loss(model, batch, smoothing=share)
    assert float(count) == float(kept.sum())
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)


# -- precision, and numbers that are not finite


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_small_updates_are_not_rounded_away(material: Path, kept: torch.dtype) -> None:
    """Guards B36: under bfloat16 compute a step of 1e-5 moves float32 weights; bfloat16 weights would stand still."""
    folder = material / "weights/TinyStories-656K"
    model = load_checkpoint(folder, dtype=kept, compute_dtype=torch.bfloat16).model
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    assert {weight.dtype for weight in before.values()} == {kept}
    optimizer = AdamW(dict(model.named_parameters()))
    next(train(model, optimizer, [[pad_rows(alpaca_steps(material)[0])]], lr=lambda step: 1e-5))
    moved = {name: float((w != before[name]).float().mean()) for name, w in model.named_parameters()}
    assert len(moved) == 20
    if kept == torch.float32:
        assert min(moved.values()) >= 0.5, min(moved, key=lambda name: moved[name])
    else:
        assert min(moved.values()) < 0.5  # so this test does see it


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_a_number_that_is_not_finite_stops_before_the_weights(where: str, value: float) -> None:
    """Guards B38: weights and optimizer are as the last good step left them, and the batches are handed over."""
    model, batches = random_model(), [pad_rows(uneven_rows()[:4]), pad_rows(uneven_rows()[4:])]
    optimizer = AdamW(dict(model.named_parameters()))
    steps = train(model, optimizer, [batches] * 3, lr=lambda step: 1e-3)
    assert math.isfinite(next(steps).loss)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    moments = [tensor.clone() for tensor in [*optimizer.m.values(), *optimizer.v.values()]]

    if where == "gradient":

        def spoil(gradient: Tensor) -> Tensor:
            return torch.full_like(gradient, value)

        model.get_parameter("blocks.1.mlp.up_proj.weight").register_hook(spoil)
    else:

        def shift(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return output + value

        model.norm.register_forward_hook(shift)
    with pytest.raises(NonFinite, match="the weights were not touched") as caught:
        next(steps)
    assert caught.value.step == 2
    assert caught.value.batches == batches
    assert optimizer.steps == 1
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    after = [*optimizer.m.values(), *optimizer.v.values()]
    assert all(torch.equal(old, new) for old, new in zip(moments, after, strict=True))


def test_a_run_that_breaks_keeps_its_batch_and_writes_no_model(material: Path, tmp_path: Path) -> None:
    """Guards B38 at the job: a rate that is far too high ends in one line, with the batch in bad_step.json."""
    rows = json.loads((material / "data/en/alpaca.json").read_text("utf-8"))
    short = [row for row in rows[:200] if row["output"].strip() and len(str(row)) < 300][:12]
    data, out = tmp_path / "rows.json", tmp_path / "run"
    data.write_text(json.dumps(short), "utf-8")
    run = sft(
        SFTConfig(
            model=str(material / "weights/TinyStories-656K"),
            data=str(data),
            out=str(out),
            val="0",
            method="full",
            lr=1e30,
            warmup=0,
            batch_size=4,
            micro_batch=2,
            packing=False,
            max_steps=5,
            device="cpu",
            dtype="float32",
        )
    )
    with pytest.raises(TrainingError) as caught:
        run.finish()
    message = str(caught.value)
    assert "\n" not in message
    assert str(out / "bad_step.json") in message
    kept = json.loads((out / "bad_step.json").read_text("utf-8"))
    assert 2 <= kept["step"] <= 3
    assert len(kept["batches"]) == 2
    assert all(len(batch["ids"]) == len(batch["targets"]) == 2 for batch in kept["batches"])
    encoded = {tuple(row.ids[:-1]) for row in run.ready.data.train}
    for batch in kept["batches"]:
        for ids in batch["ids"]:
            assert any(tuple(ids[: len(row)]) == row and not any(ids[len(row) :]) for row in encoded)
    assert not (out / "model").exists()
    assert not (out / "result.json").exists()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(kept["step"]))
    assert all(math.isfinite(line["loss"]) for line in lines[1:])
