"""Decoding with the cache must be the full pass: one by one, in chunks, and with rows of different lengths."""

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minitune.checkpoint import load_checkpoint
from minitune.config import ModelConfig
from minitune.models import Decoder, LanguageModel
from minitune.models.cache import KVCache
from minitune.ops import BUILTIN, REFERENCE, Ops, rows_plan
from minitune.sample import generate_ids

TABLES = [pytest.param(ops, id=ops.name) for ops in (REFERENCE, BUILTIN)]
DTYPES = [pytest.param(torch.float32, 1e-4, id="float32"), pytest.param(torch.float64, 1e-10, id="float64")]
CHUNKS = [pytest.param([1] * 30, id="one_by_one"), pytest.param([7, 1, 1, 13, 3, 5], id="chunks")]
CHUNKS.append(pytest.param([29, 1], id="prompt_then_one"))


def random_model(ops: Ops, dtype: torch.dtype) -> LanguageModel:
    """A small model with grouped heads, in ``dtype``; weights large enough for attention to choose."""
    config = ModelConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=10,
        max_positions=64,
    )  # fmt: skip
    model = Decoder(config, ops, dtype)
    model.initialize(seed=4, std=0.3)
    return model.to(dtype).eval()


def random_ids(rows: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 61, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def full_pass(model: LanguageModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(model(ids))


def in_chunks(model: LanguageModel, ids: Tensor, chunks: list[int], capacity: int) -> Tensor:
    """The logits of ``ids``, decoded chunk by chunk through one cache."""
    cache = KVCache(model.config, len(ids), capacity, device="cpu", dtype=model.compute_dtype)
    parts = []
    with torch.no_grad():
        for chunk in ids.split(chunks, dim=1):
            parts.append(model.logits(model(chunk, cache=cache)))
            cache.advance(chunk.shape[1])
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize(("dtype", "limit"), DTYPES)
@pytest.mark.parametrize("ops", TABLES)
@pytest.mark.parametrize("chunks", CHUNKS)
def test_cached_is_the_full_pass(ops: Ops, dtype: torch.dtype, limit: float, chunks: list[int]) -> None:
    """Guards positions and visibility behind cached keys (B41), with the cache just as large as needed and larger."""
    model, ids = random_model(ops, dtype), random_ids(2, sum(chunks))
    expected = full_pass(model, ids)
    assert expected.std() > 0.5  # a flat output would be equal to anything
    for capacity in (sum(chunks), sum(chunks) + 9):
        assert (in_chunks(model, ids, chunks, capacity) - expected).abs().max() <= limit


@pytest.mark.parametrize(("dtype", "limit"), DTYPES)
@pytest.mark.parametrize("ops", TABLES)
@pytest.mark.parametrize("chunk", [1, 4])
def test_rows_of_different_lengths_in_one_cache(ops: Ops, dtype: torch.dtype, limit: float, chunk: int) -> None:
    """Guards batched decoding (B39, B42): a right-padded prefill, then every row goes on from its own length.

    What the padding wrote into the cache must never be seen, and must be overwritten.
    """
    model, lengths, more = random_model(ops, dtype), [3, 11, 1, 7], 12
    ids = random_ids(len(lengths), max(lengths) + more)
    expected = [full_pass(model, row[None, : n + more])[0] for row, n in zip(ids, lengths, strict=True)]
    padded = random_ids(len(lengths), max(lengths), seed=99)  # padding of any id
    for row, n in enumerate(lengths):
        padded[row, :n] = ids[row, :n]
    cache = KVCache(model.config, len(lengths), max(lengths) + more, device="cpu", dtype=dtype)
    with torch.no_grad():
        logits = model.logits(model(padded, cache=cache))
        cache.advance(lengths)
        for row, n in enumerate(lengths):
            assert (logits[row, :n] - expected[row][:n]).abs().max() <= limit
        for start in range(0, more, chunk):
            step = torch.stack([ids[r, n + start : n + start + chunk] for r, n in enumerate(lengths)])
            logits = model.logits(model(step, cache=cache))
            cache.advance(chunk)
            for row, n in enumerate(lengths):
                assert (logits[row] - expected[row][n + start : n + start + chunk]).abs().max() <= limit
    assert cache.lengths == [n + more for n in lengths]


def test_room_behind_a_row_is_never_seen() -> None:
    """Guards the unused part of the cache: whatever stands there, the logits are the same to the last bit."""
    model, ids = random_model(BUILTIN, torch.float32), random_ids(2, 6)
    results = []
    for filler in (0.0, 1e4):
        cache = KVCache(model.config, 2, 20, device="cpu", dtype=torch.float32)
        for buffer in cache.buffers:
            buffer.k.fill_(filler)
            buffer.v.fill_(filler)
        with torch.no_grad():
            model(ids, cache=cache)
            cache.advance([2, 6])
            results.append(model(ids[:, :1], cache=cache))
    assert torch.equal(results[0], results[1])


def test_a_full_cache_says_so() -> None:
    """Guards against writing past the end, which would lose tokens in silence."""
    model = random_model(BUILTIN, torch.float32)
    cache = KVCache(model.config, 1, 4, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        model(random_ids(1, 4), cache=cache)
    cache.advance(4)
    with pytest.raises(ValueError, match="the cache holds 4 positions; 1 more after 4 do not fit"):
        model(random_ids(1, 1), cache=cache)


def windowed_model(window: int) -> LanguageModel:
    """Windows in two of three layers."""
    config = dataclasses.replace(random_model(BUILTIN, torch.float64).config, windows=(window, 0, window))
    model = Decoder(config, BUILTIN, torch.float64)
    model.initialize(seed=4, std=0.3)
    return model.to(torch.float64).eval()


@pytest.mark.parametrize("window", [1, 2, 5, 12])
@pytest.mark.parametrize("chunk", [1, 3, 16, None])
def test_windowed_layers_hold_no_more_than_they_see(window: int, chunk: int | None) -> None:
    """Guards the short buffers (B40, B41): random rows of a call, random numbers of tokens, in float64."""
    model, rng = windowed_model(window), random.Random(window)
    ids = random_ids(4, 60)
    expected = full_pass(model, ids)
    cache = KVCache(model.config, 4, 60, device="cpu", dtype=torch.float64, chunk=chunk)
    sizes = sorted(buffer.k.shape[2] for buffer in cache.buffers)
    assert sizes == ([60, 60] if chunk is None else [window - 1 + chunk, 60])
    while min(cache.lengths) < 60:
        rows = sorted(rng.sample([row for row in range(4) if cache.lengths[row] < 60], 1))
        others = [row for row in range(4) if row not in rows and cache.lengths[row] < 60 and rng.random() < 0.6]
        rows = sorted(rows + others)
        room = 60 - max(cache.lengths[row] for row in rows)
        tokens = min(rng.randint(1, chunk or 9), room)
        starts = [cache.lengths[row] for row in rows]
        step = torch.stack([ids[row, start : start + tokens] for row, start in zip(rows, starts, strict=True)])
        with torch.no_grad():
            logits = model.logits(model(step, plan=cache.plan(tokens, rows), cache=cache))
        used = [rng.randint(1, tokens) for _ in rows]  # the rest was padding
        cache.advance(used, rows)
        for i, (row, start, n) in enumerate(zip(rows, starts, used, strict=True)):
            assert (logits[i, :n] - expected[row, start : start + n]).abs().max() <= 1e-10


def test_rows_are_cut_copied_and_moved_to_larger_buffers() -> None:
    """Guards what a row goes on behind: after a cut, a copy and a larger buffer it is the full pass of its text."""
    model, ids = windowed_model(5), random_ids(1, 40)
    cache = KVCache(model.config, 3, 24, device="cpu", dtype=torch.float64, chunk=8)

    def feed(row: int, text: Tensor, start: int) -> None:
        for part in text[:, start:].split(8, dim=1):
            with torch.no_grad():
                logits = model.logits(model(part, plan=cache.plan(part.shape[1], [row]), cache=cache))
            cache.advance(part.shape[1], [row])
            end = cache.lengths[row]
            expected = full_pass(model, text)[:, end - part.shape[1] : end]
            assert (logits - expected).abs().max() <= 1e-10

    feed(1, ids[:, :20], 0)
    cache.copy([1, 1], [0, 2])
    assert cache.lengths == [20, 20, 20]
    assert cache.holds(2, 19)
    assert not cache.holds(2, 3)  # its window has gone on
    assert not cache.holds(2, 21)
    other = torch.cat((ids[:, :19], random_ids(1, 15, seed=5)), dim=1)
    cache.cut(2, 19)
    cache.reserve(36)
    assert cache.capacity == 36
    feed(2, other, 19)
    feed(0, ids[:, :36], 20)
    with pytest.raises(ValueError, match="row 0 of the cache cannot go back to 3 tokens"):
        cache.cut(0, 3)
    cache.cut(0, 0)
    feed(0, random_ids(1, 30, seed=8), 0)
    feed(1, ids[:, :30], 20)
    assert cache.bytes == sum(2 * 8 * buffer.k.numel() for buffer in cache.buffers)


def test_a_plan_of_no_cache_and_a_chunk_too_long_are_refused() -> None:
    model = windowed_model(5)
    cache = KVCache(model.config, 2, 24, device="cpu", dtype=torch.float64, chunk=8)
    with pytest.raises(ValueError, match="this cache takes 8 tokens at a time, not 9"):
        cache.plan(9)
    with pytest.raises(ValueError, match=r"leave plan out, or pass cache\.plan"):
        model(random_ids(2, 3), plan=rows_plan(2, 3, "cpu"), cache=cache)


@pytest.mark.parametrize("ops", TABLES)
def test_200_greedy_tokens_with_and_without_cache(material: Path, ops: Ops) -> None:
    """Guards generation of a real model (B41): 200 greedy tokens are those of a full pass for every token."""
    model = load_checkpoint(material / "weights/stories260K/hf", ops=ops).model.eval()
    cached = [token for token, _ in generate_ids(model, [1], max_tokens=200, stop_ids=())]
    ids = [1]
    with torch.no_grad():
        for _ in range(200):
            hidden = model(torch.tensor([ids]))
            ids.append(int(model.logits(hidden[0, -1]).argmax()))
    assert len(cached) == 200
    assert cached == ids[1:]
