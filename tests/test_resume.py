"""Checkpoints: bit for bit, whole or absent, refused where they are of another run."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from minitune.config import ModelConfig
from minitune.errors import TrainingError
from minitune.models.decoder import Decoder
from minitune.optim import AdamW
from minitune.resume import differences, newest, restore, save, saved_steps

SHAPE = ModelConfig(
    vocab_size=23, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8
)


def made(seed: int = 0) -> AdamW:
    model = Decoder(SHAPE)
    model.initialize(seed=seed)
    return AdamW(dict(model.named_parameters()), weight_decay=0.1)


def walk(optimizer: AdamW, steps: int) -> None:
    """Steps whose gradients are drawn from torch's random numbers, as dropout would be."""
    for _ in range(steps):
        for w in optimizer.parameters.values():
            w.grad = torch.randn_like(w)
        optimizer.step(1e-2)
        optimizer.zero_grad()


def state(optimizer: AdamW) -> dict[str, Any]:
    kinds = {"w": optimizer.parameters, "m": optimizer.m, "v": optimizer.v}
    found: dict[str, Any] = {f"{k} {n}": t.detach().clone() for k, named in kinds.items() for n, t in named.items()}
    return found | {"steps": torch.tensor(optimizer.steps), "random": torch.get_rng_state()}


def test_going_on_is_bit_for_bit_the_whole_way(tmp_path: Path) -> None:
    """Guards B48: weights, both moments, the step of the bias correction, the random numbers."""
    torch.manual_seed(4)
    whole = made()
    walk(whole, 7)
    expected = state(whole)

    torch.manual_seed(4)
    first = made()
    walk(first, 3)
    save(tmp_path, first, facts={"best": 1.5})
    torch.manual_seed(99)
    second = made(seed=5)
    saved = newest(tmp_path)
    assert (saved.step, saved.facts) == (3, {"best": 1.5})
    restore(saved, second)
    walk(second, 4)
    found = state(second)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_the_newest_are_kept(tmp_path: Path) -> None:
    optimizer = made()
    for _ in range(4):
        walk(optimizer, 1)
        save(tmp_path, optimizer, facts={}, keep=2)
    assert saved_steps(tmp_path) == [3, 4]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = made()
    walk(optimizer, 1)
    save(tmp_path, optimizer, facts={})
    walk(optimizer, 1)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("minitune.resume.write_file", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, optimizer, facts={})
    assert newest(tmp_path).step == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


def test_what_was_changed_is_refused(tmp_path: Path) -> None:
    """Guards B49: a file that is not the one that was saved is told by its hash."""
    optimizer = made()
    with pytest.raises(TrainingError, match="no checkpoint"):
        newest(tmp_path)
    walk(optimizer, 1)
    folder = save(tmp_path, optimizer, facts={}).folder
    data = bytearray((folder / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "state.safetensors").write_bytes(bytes(data))
    with pytest.raises(TrainingError, match="is not the file that was saved"):
        newest(tmp_path)


def test_another_run_is_refused_and_untouched(tmp_path: Path) -> None:
    optimizer = made()
    walk(optimizer, 1)
    saved = save(tmp_path, optimizer, facts={})
    fewer = made(seed=3)
    dropped = next(iter(fewer.parameters))
    for named in (fewer.parameters, fewer.m, fewer.v):
        del named[dropped]
    before = state(fewer)
    with pytest.raises(TrainingError, match="but not by both"):
        restore(saved, fewer)
    wider = AdamW({name: torch.nn.Parameter(torch.zeros(2, 2)) for name in optimizer.parameters})
    with pytest.raises(TrainingError, match="this run has"):
        restore(saved, wider)
    after = state(fewer)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_differences_are_named() -> None:
    then, now = {"data": {"a": "1"}, "seed": 0, "code": "x"}, {"data": {"a": "1"}, "seed": 1}
    assert differences(then, now) == ["seed was 0, now 1", "code was x, now nothing"]
    assert differences(now, json.loads(json.dumps(now))) == []
