"""Folders of tensors: damage is told in one line, nothing outside is read, nothing is loaded by half."""

import json
import os
import random
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minitune.checkpoint import load_checkpoint, save_checkpoint
from minitune.config import ModelConfig
from minitune.errors import CheckpointError
from minitune.models import build
from minitune.storage import INDEX, WEIGHTS, is_finite, open_folder

SHAPE = ModelConfig(
    vocab_size=8, hidden_size=4, intermediate_size=6, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=2
)


def fresh(folder: Path, **settings: Any) -> Path:
    model = build(SHAPE)
    model.initialize(seed=0)
    save_checkpoint(model, folder, **settings)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_shards_and_one_file_are_the_same_model(tmp_path: Path) -> None:
    one, many = fresh(tmp_path / "one"), fresh(tmp_path / "many", max_shard_bytes=300)
    assert len(list(many.glob("model-*-of-*.safetensors"))) > 2
    assert not (many / WEIGHTS).exists()
    index = json.loads((many / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in load_file(one / WEIGHTS).values())
    a, b = load_checkpoint(one), load_checkpoint(many)
    for (name, x), (_, y) in zip(a.model.named_parameters(), b.model.named_parameters(), strict=True):
        assert torch.equal(x, y), name
    # No shard is larger than asked, but for a single tensor that is.
    assert all(len(load_file(file)) == 1 or file.stat().st_size < 1500 for file in many.glob("*.safetensors"))


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/hosts", "sub/x.safetensors", "x\\y.safetensors", "x.bin", ""]
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = fresh(tmp_path / "model", max_shard_bytes=300)
    save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = name
    (folder / INDEX).write_text(json.dumps(index))
    assert "must be a .safetensors file beside it" in refused(folder)


def test_an_index_and_its_files_must_agree(tmp_path: Path) -> None:
    folder = fresh(tmp_path / "model", max_shard_bytes=300)
    index = json.loads((folder / INDEX).read_text())
    for change, message in (
        ({"weight_map": {}}, "must be an object"),
        ({"weight_map": [1]}, "must be an object"),
        ({"weight_map": index["weight_map"] | {"more": index["weight_map"]["lm_head.weight"]}}, "'more' is not in"),
        ({"weight_map": {k: v for k, v in index["weight_map"].items() if "lm_head" not in k}}, "does not place there"),
    ):
        (folder / INDEX).write_text(json.dumps(change))
        assert message in refused(folder)
    (folder / INDEX).write_text(json.dumps(index))
    next(folder.glob("model-00002*")).unlink()
    assert "is missing, which" in refused(folder)


def test_finite_is_told_without_a_copy() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        x = torch.ones(5, dtype=dtype)
        assert is_finite(x)
        for bad in (torch.nan, torch.inf, -torch.inf):
            x[3] = bad
            assert not is_finite(x)
    assert is_finite(torch.zeros(0))
    assert is_finite(torch.zeros(3, dtype=torch.int64))


def overlapping(header: dict[str, Any]) -> None:
    first, second = [key for key in header if key != "__metadata__"][:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]
    header[second]["shape"] = header[first]["shape"]


def rewrite(path: Path, change: Any) -> None:
    """Change the JSON header of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_overlapping_offsets_are_refused(tmp_path: Path) -> None:
    folder = fresh(tmp_path / "model")
    rewrite(folder / WEIGHTS, overlapping)
    assert "not a readable safetensors file" in refused(folder)


def test_a_file_of_the_body_alone_and_older_buffers_are_read(tmp_path: Path) -> None:
    folder = fresh(tmp_path / "model")
    tensors = load_file(folder / WEIGHTS)
    renamed = {key.removeprefix("model."): value for key, value in tensors.items()}
    renamed["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(1)
    save_file(renamed, folder / WEIGHTS)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.certificate.recomputed == ("layers.0.self_attn.rotary_emb.inv_freq",)
    assert torch.equal(checkpoint.model.embed.weight, tensors["model.embed_tokens.weight"])
    assert checkpoint.certificate.shared == {}


class Mutations:
    """Damage of every kind, the same for a seed."""

    VALUES = (
        None, True, -1, 0, 1, 3, 2**31, 10**30, -0.5, 1e308, float("nan"), float("inf"), "", "x", "silu", [], [1], {},
        {"a": 1}, [None] * 3, "../x", "\0",
    )  # fmt: skip

    def __init__(self, seed: int):
        self.rng = random.Random(seed)

    def of_json(self, text: bytes) -> bytes:
        """Change a value somewhere, drop or add a key, or break the text itself."""
        if self.rng.random() < 0.25:
            return self.of_bytes(text)
        value = json.loads(text)
        self._change(value)
        return json.dumps(value).encode()

    def of_bytes(self, data: bytes, reach: int | None = None) -> bytes:
        """Flip, cut, insert or double bytes."""
        damaged = bytearray(data)
        at = self.rng.randrange(max(1, min(len(data), reach or len(data))))
        match self.rng.randrange(5):
            case 0:
                damaged[at : at + 1] = bytes([self.rng.randrange(256)])
            case 1:
                del damaged[at:]
            case 2:
                damaged[at:at] = self.rng.randbytes(self.rng.randrange(1, 9))
            case 3:
                del damaged[at : at + self.rng.randrange(1, 9)]
            case 4:
                damaged[at:at] = damaged[at : at + 16]
        return bytes(damaged)

    def of_safetensors(self, data: bytes) -> bytes:
        """Damage the header as JSON, or the first bytes of the file."""
        if self.rng.random() < 0.5:
            return self.of_bytes(data, reach=600)
        (length,) = struct.unpack("<Q", data[:8])
        header = self.of_json(data[8 : 8 + length])
        claimed = len(header) if self.rng.random() < 0.9 else self.rng.choice((0, 1, 2**32, 2**63))
        return struct.pack("<Q", claimed) + header + data[8 + length :]

    def _change(self, value: Any) -> None:
        while isinstance(value, (dict, list)) and value:
            keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
            key = self.rng.choice(keys)
            if isinstance(value[key], (dict, list)) and value[key] and self.rng.random() < 0.7:
                value = value[key]
                continue
            roll = self.rng.random()
            if roll < 0.2:
                del value[key]
            elif roll < 0.3 and isinstance(value, dict):
                value[str(key) + "x"] = value.pop(key)
            elif roll < 0.5 and isinstance(value[key], int):
                value[key] += self.rng.choice((-1, 1, 7, 10**9))
            else:
                value[key] = self.rng.choice(self.VALUES)
            return


def fuzz(tmp_path: Path, cases: int, seed: int) -> tuple[int, int]:
    """Damage a folder ``cases`` times; every time it loads whole and finite, or fails in one clear line."""
    one, many = fresh(tmp_path / "one"), fresh(tmp_path / "many", max_shard_bytes=300)
    mutate = Mutations(seed)
    shard = next(many.glob("model-00001*"))
    targets = [
        (one / "config.json", mutate.of_json),
        (one / WEIGHTS, mutate.of_safetensors),
        (many / INDEX, mutate.of_json),
        (shard, mutate.of_safetensors),
    ]
    originals = {path: path.read_bytes() for path, _ in targets}
    loaded = failed = 0
    for case in range(cases):
        path, damage = targets[case % len(targets)]
        path.write_bytes(damage(originals[path]))
        try:
            model = load_checkpoint(path.parent).model
            assert all(weight.isfinite().all() and not weight.is_meta for weight in model.parameters())
            loaded += 1
        except CheckpointError as error:
            message = str(error)
            assert str(path.parent) in message
            assert "\n" not in message
            assert len(message) < 2000
            failed += 1
        finally:
            path.write_bytes(originals[path])
    return loaded, failed


def test_damage_never_crashes_or_loads_by_half(tmp_path: Path) -> None:
    loaded, failed = fuzz(tmp_path, 10_000, seed=0)
    # Both must really happen: some damage changes nothing that matters.
    assert loaded > 100
    assert failed > 5000


@pytest.mark.slow
def test_more_damage_never_crashes_or_loads_by_half(tmp_path: Path) -> None:
    loaded, failed = fuzz(tmp_path, 100_000, seed=1)
    assert min(loaded, failed) > 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the process's anonymous memory from /proc")
def test_loading_holds_the_model_once(tmp_path: Path) -> None:
    """Anonymous memory at the peak is at most the model in its target type plus 100 MB."""
    model = build(
        ModelConfig(
            vocab_size=40_000, hidden_size=1024, intermediate_size=2816, num_layers=6, num_heads=16, num_kv_heads=4,
            head_dim=64,
        )
    )  # fmt: skip
    model.initialize(seed=0)
    save_checkpoint(model, tmp_path / "model", max_shard_bytes=150 * 10**6)
    parameters = sum(weight.numel() for weight in model.parameters())
    del model
    code = """
        import sys, threading, time
        from pathlib import Path
        import torch
        from minitune.checkpoint import load_checkpoint

        def anonymous():
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

        torch.ones(8) @ torch.ones(8)
        start = peak = anonymous()
        done = False
        def watch():
            global peak
            while not done:
                peak = max(peak, anonymous())
                time.sleep(0.002)
        thread = threading.Thread(target=watch); thread.start()
        model = load_checkpoint(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[2])).model
        done = True; thread.join()
        print(peak - start)
    """
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "model"), dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        assert int(done.stdout) <= parameters * size + 100e6, dtype


def test_nothing_outside_the_folder_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fresh(tmp_path / "model", max_shard_bytes=300)
    opened = []
    import minitune.storage

    real = minitune.storage.safe_open
    monkeypatch.setattr(minitune.storage, "safe_open", lambda path, **kw: opened.append(Path(path)) or real(path, **kw))
    with open_folder(folder):
        pass
    assert opened
    assert all(path.parent == folder for path in opened)
