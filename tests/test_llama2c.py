"""Files of llama2.c: the same model as its published folder, or one clear line."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minitune.checkpoint import load_checkpoint
from minitune.errors import CheckpointError
from minitune.jobs.load import load
from minitune.llama2c import convert, main


def test_the_converted_file_is_the_published_folder(material: Path, tmp_path: Path) -> None:
    """Interleaved rotary pairs and the permuted folder must be one model: every tensor equal, so every logit."""
    source = material / "weights" / "stories260K"
    assert main([str(source / "stories260K.bin"), str(source / "tok512.model"), str(tmp_path / "out")]) == 0
    ours, published = load_checkpoint(tmp_path / "out").model, load_checkpoint(source / "hf").model
    for (name, a), (_, b) in zip(ours.named_parameters(), published.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    model, tokenizer = load(tmp_path / "out", device="cpu", dtype="float32")
    assert model.stop_ids == (2,)
    assert tokenizer.encode("Once upon a time") == [403, 407, 261, 378]


def tiny_file(tied: bool) -> bytes:
    C, F, L, H, K, V, T = 8, 12, 2, 2, 1, 5, 4
    kv = C // H * K
    sizes = V * C + L * (2 * C + 2 * C * C + 2 * kv * C + 3 * F * C) + C + T * (C // H)
    header = struct.pack("<7i", C, F, L, H, K, V if tied else -V, T)
    values = torch.arange(sizes + (0 if tied else V * C)).float()
    return header + values.numpy().astype("<f4").tobytes()


@pytest.mark.parametrize("tied", [True, False])
def test_the_sign_of_the_vocabulary_says_whether_the_head_is_tied(tmp_path: Path, tied: bool) -> None:
    (tmp_path / "m.bin").write_bytes(tiny_file(tied))
    convert(tmp_path / "m.bin", tmp_path / "out")
    model = load_checkpoint(tmp_path / "out").model
    assert (model.head.weight is model.embed.weight) == tied


@pytest.mark.parametrize(
    "damage", [lambda b: b[:10], lambda b: b[:-4], lambda b: b + b"\0" * 4, lambda b: b"\0" * 28 + b]
)
def test_damage_is_told_in_one_line(
    tmp_path: Path, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.bin"
    file.write_bytes(damage(tiny_file(True)))
    with pytest.raises(CheckpointError):
        convert(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert main([str(file), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
