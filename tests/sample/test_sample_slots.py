"""Texts in slots: with the cache as without, together as alone, whenever they join and leave."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_cases import POSITIONS, alone, assert_greedy, assert_same, ours, reference, run, some_ids

from bench.parity import CASES
from minitune.checkpoint import load_checkpoint
from minitune.errors import ConfigError
from minitune.models import LanguageModel
from minitune.ops import BUILTIN, REFERENCE, Ops
from minitune.sample import SamplerSettings, Slots

pytestmark = [
    # The reference warns of unusual rope factors; they are meant here.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

NAMES = [case.name for case in CASES]
SOME = ["llama, grouped, wide heads, biases", "mistral, window 8", "gemma2, window, caps, scale", "gpt2"]
WINDOWED = ["mistral, window 8", "qwen2, yarn, window in upper layers", "gemma2, without caps, biases"]
GREEDY_200 = SamplerSettings(max_tokens=200)


def counted(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes of ids that the model is called with from now on."""
    shapes: list[tuple[int, int]] = []
    hidden = model.hidden

    def counting(ids: torch.Tensor, plan: Any, cache: Any) -> torch.Tensor:
        shapes.append((ids.shape[0], ids.shape[1]))
        return hidden(ids, plan, cache)

    monkeypatch.setattr(model, "hidden", counting)
    return shapes


@pytest.mark.parametrize("name", NAMES)
def test_200_greedy_tokens_are_those_of_the_full_pass(name: str) -> None:
    """Guards the cache of every family (B41), behind a prompt longer than a window and longer than a chunk."""
    model, prompt = ours(name), some_ids(30)
    slots = Slots(model, 1, chunk=16)
    slots.add(prompt, GREEDY_200, stop_ids=())
    made = run(slots)[0]
    assert len(made) == 200
    assert_greedy(model, prompt, made)


@pytest.mark.parametrize("name", SOME)
def test_greedy_is_that_of_transformers(name: str) -> None:
    prompt = some_ids(9, seed=4)
    ids = torch.tensor([prompt])
    expected = reference(name).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False, pad_token_id=0
    )
    made = alone(ours(name), prompt, SamplerSettings(max_tokens=60))
    assert_same(ours(name), prompt, made, expected[0, len(prompt) :].tolist())


def test_a_repetition_penalty_is_that_of_transformers() -> None:
    """Guards which tokens count as seen: those of the prompt, and those made."""
    name, prompt = SOME[0], some_ids(9, seed=4)
    ids = torch.tensor([prompt])
    expected = reference(name).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False, pad_token_id=0,
        repetition_penalty=1.15,
    )  # fmt: skip
    made = alone(ours(name), prompt, SamplerSettings(max_tokens=60, repetition_penalty=1.15))
    assert made == expected[0, len(prompt) :].tolist()
    assert made != alone(ours(name), prompt, SamplerSettings(max_tokens=60))


@pytest.mark.parametrize("ops", [pytest.param(ops, id=ops.name) for ops in (REFERENCE, BUILTIN)])
@pytest.mark.parametrize("name", SOME)
def test_batched_is_single(name: str, ops: Ops) -> None:
    """Guards padding and rows of different lengths (B39, B42): prompts of 1, 5 and 100 tokens in one batch."""
    model = ours(name, ops)
    prompts = [some_ids(n, seed=n) for n in (1, 5, 100)]
    slots = Slots(model, 3, chunk=64)
    for prompt in prompts:
        slots.add(prompt, GREEDY_200, stop_ids=())
    found = run(slots)
    for slot, prompt in enumerate(prompts):
        assert_greedy(model, prompt, found[slot])
        assert_same(model, prompt, found[slot], alone(model, prompt, GREEDY_200))


DRAWN = SamplerSettings(max_tokens=40, temperature=1.0, top_k=20, top_p=0.95)


def test_a_seed_means_the_same_alone_and_in_a_batch() -> None:
    """Guards the noise: it must not depend on the row, the neighbours, or how long they have been there.

    In float64, where the order of sums cannot tip a draw.
    """
    model = ours(SOME[0]).double()
    model.compute_dtype = torch.float64
    try:
        prompts = [some_ids(n, seed=n) for n in (3, 17, 1, 60, 8)]
        singles = [alone(model, prompt, DRAWN, seed) for seed, prompt in enumerate(prompts)]
        slots = Slots(model, 8)
        slots.add(some_ids(5), SamplerSettings(max_tokens=100, temperature=2.0), seed=99, stop_ids=())
        for _ in range(3):
            slots.step()
        at = {slots.add(prompt, DRAWN, seed=s, stop_ids=()): s for s, prompt in enumerate(prompts)}
        found = run(slots)
        assert [found[slot] for slot in sorted(at, key=lambda slot: at[slot])] == singles
        assert alone(model, prompts[0], DRAWN, seed=0) == singles[0]
        assert alone(model, prompts[0], DRAWN, seed=1) != singles[0]
    finally:
        model.float().compute_dtype = torch.float32


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("seed", range(3))
def test_texts_join_and_leave_when_they_like(name: str, seed: int) -> None:
    """Guards slots that are used again (stale keys of a longer text behind a shorter one, a window's place), whatever
    the order: every text must be what it is alone."""
    rng, model = random.Random(seed), ours(name)
    slots = Slots(model, 3, positions=8, chunk=rng.choice((4, 16, 512)))
    pending = [(some_ids(rng.choice((1, 2, 7, 30, 90)), seed=i), rng.randint(1, 40)) for i in range(12)]
    under_way: dict[int, tuple[list[int], int, list[int]]] = {}
    ended = 0
    while pending or under_way:
        while pending and slots.free and rng.random() < 0.7:
            prompt, tokens = pending.pop()
            slot = slots.add(prompt, SamplerSettings(max_tokens=tokens), stop_ids=())
            under_way[slot] = (prompt, tokens, [])
        for event in slots.step():
            under_way[event.slot][2].append(event.token)
            if event.finish:
                prompt, tokens, made = under_way.pop(event.slot)
                assert len(made) == tokens
                assert_greedy(model, prompt, made)
                ended += 1
        if under_way and rng.random() < 0.02:  # one leaves in the middle
            slot = rng.choice(list(under_way))
            slots.remove(slot)
            prompt, _, made = under_way.pop(slot)
            if made:
                assert_greedy(model, prompt, made)
            ended += 1
    assert ended == 12


@pytest.mark.parametrize("name", SOME)
def test_a_text_that_goes_on_computes_only_what_is_new(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the turns of a conversation: the tokens in common are kept, and the answer is that of recomputing."""
    model = ours(name)
    shapes = counted(model, monkeypatch)
    slots = Slots(model, 1)
    prompt = some_ids(40)
    for turn in range(3):
        shapes.clear()
        slots.add(prompt, SamplerSettings(max_tokens=12), stop_ids=())
        made = run(slots)[0]
        # The last token of an answer was never fed.
        assert shapes[0] == (1, 40 if turn == 0 else 1 + 9)
        assert shapes[1:] == [(1, 1)] * 11
        monkeypatch.undo()
        assert_greedy(model, prompt, made)
        assert_same(model, prompt, made, alone(model, prompt, SamplerSettings(max_tokens=12)))
        shapes = counted(model, monkeypatch)
        prompt = prompt + made + some_ids(9, seed=turn)


@pytest.mark.parametrize("name", SOME)
def test_going_back_in_a_text_is_recomputing(name: str) -> None:
    """Guards /undo and /retry: what a window has let go cannot be gone back to, and is computed again."""
    model, slots = ours(name), Slots(ours(name), 1, chunk=8)
    long = some_ids(60)
    for prompt in (long, long[:50], long[:20], long[:3], long, [*long[:55], 7, 7]):
        slots.add(prompt, SamplerSettings(max_tokens=10), stop_ids=())
        assert_greedy(model, prompt, run(slots)[0])


@pytest.mark.parametrize("name", SOME)
def test_samples_of_one_prompt_share_its_computation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards copying: the prompt is fed once, and each row goes on as if it had been fed it itself."""
    model, prompt = ours(name), some_ids(80)
    slots = Slots(model, 4)
    shapes = counted(model, monkeypatch)
    for seed in range(4):
        slots.add(prompt, DRAWN, seed=seed, stop_ids=())
    first = slots.step()
    assert shapes == [(1, 80)]
    second = slots.step()
    assert shapes[1:] == [(4, 1)]
    found = {slot: [e.token for e in (*first, *second) if e.slot == slot] for slot in range(4)}
    run(slots, found)
    monkeypatch.undo()
    assert len({tuple(made) for made in found.values()}) == 4
    logprobs = SamplerSettings(max_tokens=1, logprobs=0)
    for made in found.values():  # every row's keys are right: the next token has the full pass's probability
        again = Slots(model, 1)
        again.add(prompt + made, logprobs, stop_ids=())
        with torch.no_grad():
            full = torch.log_softmax(model.logits(model(torch.tensor([prompt + made]))[0, -1]), -1)
        (event,) = again.step()
        assert event.logprob == pytest.approx(float(full.max()), abs=1e-4)
    assert found[2] == alone(model, prompt, DRAWN, seed=2)


@pytest.mark.parametrize("name", WINDOWED)
def test_a_window_is_all_that_its_layers_hold_and_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards memory and time beyond the window: W - 1 + chunk places, and W keys for a token."""
    model = ours(name)
    slots = Slots(model, 2, positions=POSITIONS, chunk=16)
    windows = [model.config.window(layer) for layer in range(model.config.num_layers)]
    for window, buffer in zip(dict.fromkeys(windows), slots.cache.buffers, strict=True):
        assert buffer.k.shape[2] == (POSITIONS if window is None else window - 1 + 16)
        assert buffer.k.shape[0] == windows.count(window)
    read: list[tuple[int | None, int]] = []
    attention = model.ops.attention

    def watching(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        read.append((options["window"], k.shape[1]))
        return attention(q, k, v, **options)

    for block in model.blocks:
        monkeypatch.setattr(block.attention, "ops", dataclasses.replace(model.ops, attention=watching))
    slots.add(some_ids(100), SamplerSettings(max_tokens=100), stop_ids=())
    made = run(slots)[0]
    monkeypatch.undo()
    assert {keys for window, keys in read[-3:] if window} == {8}
    assert all(keys <= 16 + 7 for window, keys in read if window)
    assert_greedy(model, some_ids(100), made)


def test_logprobs_are_the_models_own() -> None:
    """Guards what logprobs mean: the full pass's distribution, untouched by temperature, penalty and filters."""
    model, prompt = ours(SOME[0]), some_ids(6)
    settings = SamplerSettings(max_tokens=15, temperature=1.5, top_k=10, repetition_penalty=1.3, logprobs=5)
    slots = Slots(model, 2)
    slots.add(prompt, settings, seed=3, stop_ids=())
    slots.add(some_ids(3), SamplerSettings(max_tokens=15), stop_ids=())  # asks for none
    events = []
    while slots.busy:
        events += slots.step()
    assert all((e.logprob, e.top) == (None, ()) for e in events if e.slot == 1)
    mine = [e for e in events if e.slot == 0]
    ids = prompt + [e.token for e in mine]
    with torch.no_grad():
        full = torch.log_softmax(model.logits(model(torch.tensor([ids])))[0, len(prompt) - 1 : -1], -1)
    for event, row in zip(mine, full, strict=True):
        assert event.logprob == pytest.approx(float(row[event.token]), abs=1e-4)
        values, best = row.topk(5)
        assert [i for i, _ in event.top] == best.tolist()
        assert [v for _, v in event.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_what_ends_a_text() -> None:
    model, prompt = ours(SOME[0]), some_ids(6)
    made = alone(model, prompt, SamplerSettings(max_tokens=8))
    slots = Slots(model, 1)
    slots.add(prompt, SamplerSettings(max_tokens=8), stop_ids=[made[3]])
    events = [event for _ in range(made.index(made[3]) + 1) for event in slots.step()]
    assert [event.finish for event in events] == [None] * made.index(made[3]) + ["stop"]
    assert not slots.busy
    slots.add(some_ids(POSITIONS - 2), SamplerSettings(max_tokens=8), stop_ids=())
    events = []
    while slots.busy:
        events += slots.step()
    assert [event.finish for event in events] == [None, None, "context"]


def test_a_short_prompt_joins_where_padding_would_run_over_the_end() -> None:
    """Guards the last positions: a long chunk beside a row that is almost full must not be padded beyond them."""
    model = ours("gpt2")  # whose positions are a table
    slots = Slots(model, 2, chunk=100)
    prompts = [some_ids(POSITIONS - 3), some_ids(150, seed=1)]
    for prompt in prompts:
        slots.add(prompt, SamplerSettings(max_tokens=3), stop_ids=())
    found = run(slots)
    for slot, prompt in enumerate(prompts):
        assert_greedy(model, prompt, found[slot])


@pytest.mark.parametrize(
    ("prompt", "seed", "said"),
    [
        ([], 0, "the prompt is empty"),
        ([1] * POSITIONS, 0, f"the prompt has {POSITIONS} tokens; this model has {POSITIONS} positions"),
        ([1, 61], 0, "the prompt has the id 61; the model has 0 to 60"),
        ([-1], 0, "the prompt has the id -1"),
        ([1], -1, "seed is -1"),
        ([1], 2**63, "seed is 9223372036854775808"),
    ],
    ids=["empty", "full", "beyond", "negative", "seed", "large_seed"],
)
def test_what_cannot_join(prompt: list[int], seed: int, said: str) -> None:
    slots = Slots(ours(SOME[0]), 1)
    with pytest.raises(ConfigError, match=said):
        slots.add(prompt, seed=seed)
    assert not slots.busy


def test_weights_that_overflow_are_told() -> None:
    """Guards against a text drawn from nothing: NaN logits stop the generation in one line."""
    model = load_checkpoint(Path(__file__).parents[2] / "minitune/assets/tiny").model.eval()
    with torch.no_grad():
        model.norm.weight.mul_(torch.nan)
    slots = Slots(model, 1)
    slots.add([1], SamplerSettings(temperature=1.0))
    with pytest.raises(ConfigError, match="logits are not finite"):
        slots.step()


def test_200_tokens_with_and_without_cache_on_real_weights(material: Path) -> None:
    """Guards a trained model (B41): a full pass for every token, and the same 200 tokens."""
    for folder in ("weights/stories260K/hf", "weights/TinyStories-656K"):
        model = load_checkpoint(material / folder).model.eval()
        prompt = [1, 80, 147]
        made = alone(model, prompt, GREEDY_200)
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(200):
                ids.append(int(model.logits(model(torch.tensor([ids]))[0, -1]).argmax()))
        assert_same(model, prompt, made, ids[3:])
