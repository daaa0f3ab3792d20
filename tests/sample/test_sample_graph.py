"""The decode step for a CUDA graph: on the CPU what it computes and what it may not do, on a GPU the graphs themselves.

On the CPU a step is recorded as a graph would record it (bench/recorded.py) and done again, so that a number or a mask
which the recording took from the host is wrong in the next step here as it would be there.
"""

import contextlib
import dataclasses
import gc
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from sample_cases import POSITIONS, alone, assert_same, ours, run, some_ids
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench.parity import CASES
from bench.recorded import Recorded, tensors
from minitune.adapters import LoRAConfig, add_lora
from minitune.config import ModelConfig
from minitune.device import pick_ops
from minitune.errors import ConfigError
from minitune.models import Decoder, LanguageModel, build
from minitune.models.cache import KVCache
from minitune.ops import BUILTIN, REFERENCE, Ops
from minitune.sample import SamplerSettings, Slots, graph

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

WINDOWED = ["mistral, window 8", "qwen2, yarn, window in upper layers", "gemma2, window, caps, scale",
            "gemma2, without caps, biases"]  # fmt: skip
NAMES = [case.name for case in CASES if case.name not in WINDOWED]
GREEDY = SamplerSettings(max_tokens=40)
DRAWN = SamplerSettings(max_tokens=40, temperature=1.0, top_k=20, top_p=0.95)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """On the CPU: record, with small buckets, and at every step that has none."""
    if request.node.get_closest_marker("gpu"):
        return
    monkeypatch.setattr(graph, "capture_on", lambda device: Recorded)
    monkeypatch.setattr(graph, "LEAST_KEYS", 16)
    monkeypatch.setattr(graph, "WORTH_CAPTURING", 0)


@contextlib.contextmanager
def in_float64(model: LanguageModel) -> Iterator[LanguageModel]:
    model.double().compute_dtype = torch.float64
    model.tie()
    try:
        yield model
    finally:
        model.float().compute_dtype = torch.float32
        model.tie()


def filled(model: LanguageModel, prompts: list[list[int]], capacity: int) -> KVCache:
    """A cache whose rows hold ``prompts``."""
    cache = KVCache(model.config, len(prompts), capacity, device=model.embed.weight.device, dtype=model.compute_dtype)
    with torch.inference_mode():
        for row, prompt in enumerate(prompts):
            if prompt:
                model(torch.tensor([prompt], device=cache.device), plan=cache.plan(len(prompt), [row]), cache=cache)
                cache.advance(len(prompt), [row])
    return cache


@torch.inference_mode()
def ordinary(model: LanguageModel, cache: KVCache, tokens: dict[int, int]) -> Tensor:
    """The logits ``(rows, V)`` of one token for some rows, by the plan that knows all lengths."""
    rows = sorted(tokens)
    ids = torch.tensor([[tokens[row]] for row in rows], device=cache.device)
    return model.logits(model(ids, plan=cache.plan(1, rows), cache=cache)[:, 0])


@pytest.mark.parametrize("ops", [pytest.param(ops, id=ops.name) for ops in (REFERENCE, BUILTIN)])
@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_step_is_the_ordinary_step(name: str, ops: Ops) -> None:
    """Guards positions, places and visibility told by tensors: rows of different lengths, rows that take no part, rows
    that start again, and buckets that are crossed, in float64."""
    rng = random.Random(5)
    with in_float64(ours(name, ops)) as model:
        prompts = [some_ids(n, seed=n) for n in (13, 1, 30, 0, 60)]
        ordinary_cache, cache = (filled(model, prompts, 96) for _ in range(2))
        step = graph.DecodeGraph(model, cache)
        for turn in range(36):
            tokens = {row: rng.randrange(61) for row in range(5) if turn in (0, 35) or rng.random() < 0.6} or {0: 3}
            if turn == 20:  # a text ends, and another takes its row
                for one in (ordinary_cache, cache):
                    one.cut(2, 0)
            expected = ordinary(model, ordinary_cache, tokens)
            made = step.step(tokens, left=100)
            assert made is not None
            logits, largest, ids = made
            for i, row in enumerate(sorted(tokens)):
                assert (logits[row] - expected[i]).abs().max() <= 1e-12 * expected.abs().max()
                assert largest[row] == logits[row].max()
                assert ids[row] == logits[row].argmax()
            for one in (ordinary_cache, cache):
                one.advance(1, sorted(tokens))
        assert sorted(step._steps) == [32, 64, 96]


def test_rows_that_take_no_part_keep_what_they_hold() -> None:
    """Guards texts of free slots, which others go on behind: a step writes behind them, and a full one gives up its
    last place for it."""
    with in_float64(ours(NAMES[0])) as model:
        prompts = [some_ids(n, seed=n) for n in (5, 20, 24)]
        cache, untouched = (filled(model, prompts, 24) for _ in range(2))
        for token in range(4):
            assert graph.DecodeGraph(model, cache).step({0: token}, left=100) is not None
            cache.advance(1, [0])
        assert cache.lengths == [9, 20, 23]
        for buffer, before in (
            (cache.buffers[0].k, untouched.buffers[0].k),
            (cache.buffers[0].v, untouched.buffers[0].v),
        ):
            assert torch.equal(buffer[:, 0, :5], before[:, 0, :5])
            assert torch.equal(buffer[:, 1, :20], before[:, 1, :20])
            assert torch.equal(buffer[:, 2, :23], before[:, 2, :23])


@pytest.mark.parametrize("name", [NAMES[0], "qwen3, wide heads, biases", "gpt2"])
@pytest.mark.parametrize("seed", range(2))
def test_slots_with_a_graph_make_what_slots_without_make(name: str, seed: int) -> None:
    """Guards everything around the step: texts that join, leave and fill all positions, greedy and drawn, with
    penalties and logprobs. In float64, where the order of sums cannot tip a draw."""

    def events(graph: bool) -> list[list[Any]]:
        rng, found = random.Random(seed), []
        slots = Slots(model, 3, positions=8, chunk=16, graph=graph)
        kinds = [GREEDY, DRAWN, SamplerSettings(max_tokens=30, repetition_penalty=1.3, logprobs=3)]
        pending = [some_ids(rng.choice((1, 2, 7, 30, 90, POSITIONS - 5)), seed=i) for i in range(9)]
        while pending or slots.busy:
            while pending and slots.free and rng.random() < 0.7:
                slots.add(pending.pop(), rng.choice(kinds), seed=len(pending), stop_ids=(7,))
            found.append(slots.step())
        return found

    with in_float64(ours(name)) as model:
        one, other = events(graph=False), events(graph=True)
    for expected, got in zip(one, other, strict=True):
        assert [(e.slot, e.token, e.finish) for e in got] == [(e.slot, e.token, e.finish) for e in expected]
        for e, g in zip(expected, got, strict=True):
            assert g.logprob == (None if e.logprob is None else pytest.approx(e.logprob, abs=1e-9))
            assert [i for i, _ in g.top] == [i for i, _ in e.top]


def test_float32_and_an_adapter() -> None:
    """Guards LoRA, whose weights are of another type, and float32: the same greedy texts but for ties."""
    config = ModelConfig(
        vocab_size=61, hidden_size=48, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=12,
        max_positions=128,
    )  # fmt: skip
    model = build(config).eval()
    model.initialize(seed=3, std=0.2)
    add_lora(model, LoRAConfig(rank=4))
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    prompt = some_ids(9)
    slots = Slots(model, 2, graph=True)
    slots.add(prompt, GREEDY, stop_ids=())
    assert_same(model, prompt, run(slots)[0], alone(model, prompt, GREEDY))


class KeepsItsPlan(graph.DecodeGraph):
    """A wrong step: its plan, and with it the masks, are those of the recording."""

    def _run(self, keys: int) -> None:
        plans = self.__dict__.setdefault("plans", {})
        plan = self.cache.static_plan

        def kept(*args: Any) -> Any:
            return plans.setdefault(keys, plan(*args))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.cache, "static_plan", kept)
            super()._run(keys)
            plans[keys].visible(keys, causal=True, window=None)


def test_the_recording_sees_what_a_graph_could_not() -> None:
    """Guards the tests of this file: a step that uses a mask which an earlier call made must fail in them."""
    model = ours(NAMES[0])
    cache, before = (filled(model, [some_ids(20), some_ids(3)], 32) for _ in range(2))
    step = KeepsItsPlan(model, cache)
    with torch.inference_mode():
        step._run(32)  # warms up, and makes the mask
    for turn in range(2):
        expected = ordinary(model, before, {0: 5, 1: 6})
        made = step.step({0: 5, 1: 6}, left=100)
        assert made is not None
        assert (made[0] - expected).abs().max() > 1e-3, turn
        for one in (cache, before):
            one.advance(1)


class NoCopies(TorchDispatchMode):
    """Refuses tensors of the host that come to the device; one number may go along with a kernel as its argument."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        given = list(tensors((args, kwargs or {})))
        result = func(*args, **(kwargs or {}))
        if any(x.device.type == "meta" for x in tensors(result)):
            host = [x for x in given if x.device.type == "cpu"]
            assert all(x.ndim == 0 for x in host), f"{func} copies from the host"
            assert not host or len(host) < len(given), f"{func} copies from the host"
        return result


class NoLists(TorchFunctionMode):
    """Refuses tensors on the device that are made of numbers of the host, which a dispatch mode does not see."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor):
            assert result.device.type == "cpu", f"{func.__name__} copies from the host"
        return result


@pytest.mark.parametrize("name", NAMES)
def test_a_step_neither_waits_for_the_device_nor_copies_from_the_host(name: str) -> None:
    """Guards what a capture would refuse, on the meta device, which has no numbers to ask for."""
    config = ours(name).config
    model = build(config, BUILTIN).to("meta").eval()
    step = graph.DecodeGraph(model, KVCache(config, 3, 64, device="meta", dtype=torch.float32))
    with torch.inference_mode():
        step._run(32)  # warms up
        with NoLists(), NoCopies():
            step._run(32)


@pytest.mark.parametrize(
    "does",
    [
        lambda x: torch.tensor([1.0, 2.0]).to("meta"),
        lambda x: torch.tensor([1.0, 2.0], device="meta"),
        lambda x: torch.as_tensor(3, device="meta"),
        lambda x: torch.tensor(2.0).to("meta"),
        lambda x: x.copy_(torch.zeros(2)),
        lambda x: x + float(x.sum()),
        lambda x: x[x > 0],
    ],
)
def test_what_a_capture_would_refuse_is_refused_here(does: Callable[[Tensor], Any]) -> None:
    """Guards the test above."""
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), NoLists(), NoCopies():
        does(torch.zeros(2, device="meta"))
    with NoLists(), NoCopies():
        assert (torch.zeros(2, device="meta") * torch.tensor(0.5) + 2.0).shape == (2,)


def test_longrope_does_not_look_at_rows_that_take_no_part() -> None:
    """Guards frequencies that are chosen by the longest text of a call: one that only lies in the cache has no say."""
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [4.0] * 6, "factor": 4.0,
               "original_max_position_embeddings": 32}  # fmt: skip
    from minitune.models.published import model_config

    config = model_config(
        {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": 61,
            "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "rope_scaling": scaling,
        },
        "here",
    )  # fmt: skip
    model = build(config, BUILTIN, torch.float64).eval()
    model.initialize(seed=3, std=0.2)
    model.double()
    ordinary_cache, cache = (filled(model, [some_ids(50), some_ids(9)], 64) for _ in range(2))
    step = graph.DecodeGraph(model, cache)
    for tokens in ({1: 4}, {0: 3, 1: 4}, {1: 5}):
        expected = ordinary(model, ordinary_cache, tokens)
        made = step.step(tokens, left=100)
        assert made is not None
        assert (made[0][sorted(tokens)] - expected).abs().max() <= 1e-12
        for one in (ordinary_cache, cache):
            one.advance(1, sorted(tokens))


# ---- when it is taken


def test_it_is_taken_where_asked_for_and_never_with_windows() -> None:
    plain, windowed = ours(NAMES[0]), ours("mistral, window 8")
    assert Slots(plain, 1)._graph is None
    assert Slots(plain, 1, graph=False)._graph is None
    assert Slots(plain, 1, graph=True)._graph is not None
    assert Slots(windowed, 1)._graph is None
    with pytest.raises(ConfigError, match="have windows"):
        Slots(windowed, 1, graph=True)
    row = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="no fixed place"):
        KVCache(windowed.config, 1, 8, device="cpu", dtype=torch.float32).static_plan(row, row, 8)


def test_a_model_in_training_mode_takes_the_ordinary_step() -> None:
    """Guards dropout, which the recorded step would have or not have for ever."""
    model = ours(NAMES[0])
    slots = Slots(model, 1, graph=True)
    slots.add(some_ids(4), GREEDY, stop_ids=())
    assert slots._graph is not None
    model.train()
    for _ in range(2):
        slots.step()
    assert not slots._graph._steps
    model.eval()
    slots.step()
    assert slots._graph._steps


@pytest.mark.parametrize(("tokens", "captures"), [(20, 0), (21, 1), (84, 1), (85, 2), (150, 2)])
def test_a_graph_is_captured_where_it_will_be_used(tokens: int, captures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the time of a capture: not for a few last tokens, nor for the few before the next bucket."""
    monkeypatch.setattr(graph, "LEAST_KEYS", 64)
    monkeypatch.setattr(graph, "WORTH_CAPTURING", 16)
    recorded = []
    monkeypatch.setattr(graph, "capture_on", lambda device: lambda work: recorded.append(work) or work)
    model, prompt = ours(NAMES[0]), some_ids(60)
    slots = Slots(model, 1, positions=POSITIONS, graph=True)
    slots.add(prompt, SamplerSettings(max_tokens=tokens), stop_ids=())
    assert_same(model, prompt, run(slots)[0], alone(model, prompt, SamplerSettings(max_tokens=tokens)))
    assert len(recorded) == captures


def test_larger_buffers_are_recorded_anew() -> None:
    """Guards memory that is gone: a text that needs a larger cache must not be written to the old one."""
    model = ours(NAMES[0])
    slots = Slots(model, 2, positions=20, graph=True)
    prompts = [some_ids(5), some_ids(40, seed=1)]
    slots.add(prompts[0], GREEDY, stop_ids=())
    for _ in range(4):
        slots.step()
    first = slots._graph
    slots.add(prompts[1], SamplerSettings(max_tokens=80), stop_ids=())
    assert slots._graph is not first
    found = run(slots)
    assert len(found[0]) == 36
    assert_same(model, prompts[1], found[1], alone(model, prompts[1], SamplerSettings(max_tokens=80)))


def test_a_capture_that_fails_is_told_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(work: Callable[[], None]) -> Callable[[], None]:
        work()  # a warm-up writes keys, which the ordinary step writes again
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(graph, "capture_on", lambda device: refuses)
    model, prompt = ours(NAMES[0]), some_ids(9)
    slots = Slots(model, 1, graph=True)
    slots.add(prompt, GREEDY, stop_ids=())
    with pytest.warns(RuntimeWarning, match="could not be captured .* operation not permitted ") as said:
        made = run(slots)[0]
    assert len(said) == 1
    assert made == alone(model, prompt, GREEDY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slots.add(prompt[:4], SamplerSettings(max_tokens=300), stop_ids=())  # larger buffers do not try again
        for _ in range(2):
            slots.step()


def test_weights_that_overflow_are_told_by_a_graph_too() -> None:
    model = build(ours(NAMES[0]).config).eval()
    model.initialize(seed=1)
    slots = Slots(model, 1, graph=True)
    slots.add(some_ids(3), GREEDY, stop_ids=())
    slots.step()
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    with pytest.raises(ConfigError, match="logits are not finite"):
        slots.step()


class FakeCuda:
    """What ``cuda_capture`` calls, noting the order; the body of a capture ends in an error where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: bool):
        self.said: list[str] = []
        self.current = "main"
        note = self.said.append

        class Stream:
            device_index = 3

            def __init__(self, name: str):
                self.name = name

            def wait_stream(self, other: Any) -> None:
                note(f"{self.name} waits for {other.name}")

        main, side = Stream("main"), Stream("side")
        streams = {"main": main, "side": side}

        @contextlib.contextmanager
        def on(stream: Any) -> Iterator[None]:
            before, self.current = self.current, stream.name
            yield
            self.current = before

        class Graph:
            def replay(self) -> None:
                note("replay")

        @contextlib.contextmanager
        def capturing(made: Any, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
            self.current = stream.name
            note(f"capture in {pool}, {capture_error_mode}")
            yield
            if fails:
                raise RuntimeError("capture invalidated")  # as torch does, with its stream still the current one
            self.current = "main"

        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[self.current])
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: on(stream).__enter__())
        monkeypatch.setattr(torch.cuda, "stream", on)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", capturing)
        monkeypatch.setattr(graph, "_side_stream", lambda device: side)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *where: note(f"ended {where}"))
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *where: note(f"released {where}"))

    def work(self) -> None:
        self.said.append(f"work on {self.current}")


def test_the_order_of_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the rules of a capture as far as they show without a GPU: warm-ups on its own stream, one pool."""
    cuda = FakeCuda(monkeypatch, fails=False)
    replay = graph.cuda_capture(torch.device("cuda", 3))(cuda.work)
    assert cuda.said == [
        "side waits for main", "work on side", "work on side", "main waits for side",
        "capture in (0, 7), thread_local", "work on side",
    ]  # fmt: skip
    replay()
    assert cuda.said[-1] == "replay"
    assert cuda.current == "main"


def test_a_failed_capture_leaves_torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards what goes on after it: the stream is the caller's, and the allocator knows that the capture is over."""
    cuda = FakeCuda(monkeypatch, fails=True)
    with pytest.raises(RuntimeError, match="capture invalidated"):
        graph.cuda_capture(torch.device("cuda", 3))(cuda.work)
    assert cuda.current == "main"
    assert cuda.said[-2:] == ["ended (3, (0, 7))", "released (3, (0, 7))"]


# ---- on a GPU


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    there = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
    return pytest.mark.gpu(there(test))


def gpu_model(dtype: torch.dtype, ops: str = "auto") -> LanguageModel:
    device = torch.device("cuda")
    config = ModelConfig(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_layers=4, num_heads=8, num_kv_heads=4, head_dim=64,
        max_positions=2048,
    )  # fmt: skip
    model = Decoder(config, pick_ops(ops, device)[0], dtype)
    model.initialize(seed=1, std=0.1)
    return model.to(device, dtype).eval().requires_grad_(False)


def captured(slots: Slots) -> list[int]:
    """The buckets that have a graph."""
    assert slots._graph is not None
    return sorted(slots._graph._steps)


@on_gpu
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("ops", ["auto", "builtin"])
def test_replays_make_the_64_tokens_of_the_ordinary_step(ops: str, lora: bool) -> None:
    """Guards the graphs themselves, in float32, twice in the same slots: the second text has another length."""
    model = gpu_model(torch.float32, ops)
    if lora:
        add_lora(model, LoRAConfig(rank=4))
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight.data, std=0.1)
    found = []
    for slots in (Slots(model, 3, positions=400, graph=False), Slots(model, 3, positions=400, graph=True)):
        made = []
        for seed, length in enumerate((100, 9, 130, 61)):
            slots.add(some_ids(length, seed, 512), SamplerSettings(max_tokens=64), stop_ids=())
            made.append(run(slots))
        found.append(made)
    assert found[0] == found[1]
    assert captured(slots) == [256]


@on_gpu
def test_replays_cross_buckets() -> None:
    model, prompt = gpu_model(torch.float32), some_ids(240, 0, 512)
    found = []
    for slots in (Slots(model, 2, positions=840, graph=False), Slots(model, 2, positions=840, graph=True)):
        slots.add(prompt, SamplerSettings(max_tokens=600), stop_ids=())
        found.append(run(slots)[0])
    assert found[0] == found[1]
    assert captured(slots) == [256, 512, 840]


@on_gpu
def test_texts_join_and_leave_between_replays() -> None:
    """Guards prompts between replays, rows that take no part, larger buffers, and draws by the seed and step alone."""
    model = gpu_model(torch.float32)

    def texts(graph: bool) -> list[list[int]]:
        rng = random.Random(3)
        slots = Slots(model, 4, graph=graph)
        pending, under_way, made = list(range(12)), {}, [[] for _ in range(12)]
        while pending or slots.busy:
            while pending and slots.free and rng.random() < 0.5:
                number = pending.pop()
                prompt = some_ids(rng.choice((1, 9, 90, 300)), number, 512)
                settings = dataclasses.replace(DRAWN if number % 2 else GREEDY, max_tokens=rng.randint(1, 120))
                under_way[slots.add(prompt, settings, seed=number, stop_ids=())] = number
            for event in slots.step():
                made[under_way[event.slot]].append(event.token)
        assert (graph is False) == (slots._graph is None)
        return made

    assert texts(graph=False) == texts(graph=True)


@on_gpu
def test_replays_in_bfloat16_are_as_accurate_as_the_ordinary_step() -> None:
    """Guards logits: measured against float32, the error of a replay is that of the ordinary step."""
    exact, model = gpu_model(torch.float32), gpu_model(torch.bfloat16)
    prompts = [some_ids(n, n, 512) for n in (1, 40, 200, 333)]
    caches = [filled(exact, prompts, 600), filled(model, prompts, 600), filled(model, prompts, 600)]
    step = graph.DecodeGraph(model, caches[2])
    errors: list[list[float]] = [[], []]
    for token in range(8):
        tokens = dict.fromkeys(range(4), token)
        truth, plain = ordinary(exact, caches[0], tokens), ordinary(model, caches[1], tokens)
        made = step.step(tokens, left=100)
        assert made is not None
        for own, logits in zip(errors, (plain, made[0]), strict=True):
            own.append(float((logits.float() - truth).square().mean().sqrt() / truth.square().mean().sqrt()))
        for cache in caches:
            cache.advance(1)
    assert sum(errors[1]) <= 1.25 * sum(errors[0]) + 8 * torch.finfo(torch.bfloat16).eps


@on_gpu
def test_captures_do_not_pile_up_in_memory() -> None:
    """Guards the memory of graphs: it goes with the slots, and buckets share it."""
    model, reserved = gpu_model(torch.bfloat16), []
    for _ in range(6):
        slots = Slots(model, 8, positions=1500, graph=True)
        slots.add(some_ids(100, 0, 512), SamplerSettings(max_tokens=1300), stop_ids=())
        run(slots)
        assert captured(slots) == [256, 512, 1024, 1500]
        del slots
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] - reserved[1] <= 4 << 20


@on_gpu
def test_a_step_that_cannot_be_captured_is_told_and_the_next_one_is_captured() -> None:
    """Guards torch's allocator and the current stream after a capture that CUDA has ended."""
    model, prompt = gpu_model(torch.float32), some_ids(20, 0, 512)
    settings = SamplerSettings(max_tokens=64)
    plain = Slots(model, 1, positions=100, graph=False)
    plain.add(prompt, settings, stop_ids=())
    expected = run(plain)[0]

    def asks_the_device(module: torch.nn.Module, given: Any, x: Any) -> Any:
        return x + 0 * float(x.sum())

    asks = model.norm.register_forward_hook(asks_the_device)
    slots = Slots(model, 1, positions=100, graph=True)
    slots.add(prompt, settings, stop_ids=())
    with pytest.warns(RuntimeWarning, match="could not be captured"):
        assert run(slots)[0] == expected
    assert slots._graph is None
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.cuda.empty_cache()
    asks.remove()
    slots = Slots(model, 1, positions=100, graph=True)
    slots.add(prompt, settings, stop_ids=())
    assert run(slots)[0] == expected
    assert captured(slots) == [100]
