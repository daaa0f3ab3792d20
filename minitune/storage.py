"""Folders of tensors: one ``model.safetensors``, or several files with an index; read memory-mapped, written whole.

Names and files in an index are somebody else's words: a file outside the folder is refused, and so is an index that
does not say exactly what the files hold.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minitune.errors import CheckpointError
from minitune.files import read_json, write_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_SHARD_BYTES = 5 * 10**9
REMAP_BYTES = 1 << 28
_PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl")


class TensorFolder:
    """The tensors of an open folder, by name, whatever file each is in."""

    def __init__(self, files: Mapping[str, Any], places: Mapping[str, Path], paths: tuple[Path, ...]):
        self._files, self._places = files, places
        self.paths = paths
        self._mapping: tuple[Path, Any] | None = None
        self._mapped_bytes = 0
        self.metadata: dict[str, str] = {}
        for file in dict.fromkeys(files.values()):
            self.metadata |= file.metadata() or {}

    @property
    def names(self) -> list[str]:
        """The name of every stored tensor."""
        return list(self._files)

    def where(self, name: str = "") -> Path:
        """The file of a tensor, for messages; without a name the only file, or the folder of several."""
        if name in self._places:
            return self._places[name]
        return self.paths[0] if len(self.paths) == 1 else self.paths[0].parent

    def kind(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Stored type and shape of a tensor, without reading it."""
        view = self._files[name].get_slice(name)
        return view.get_dtype(), tuple(view.get_shape())

    def read(self, name: str) -> Tensor:
        """The tensor, mapped from its file; CheckpointError where it has values that are not finite."""
        tensor = self._mapped(self._places[name]).get_tensor(name)
        self._mapped_bytes += tensor.nbytes
        if not is_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{self.where(name)}: tensor {name!r} has {bad} values that are not finite (NaN or infinite)"
            )
        return tensor

    def _mapped(self, path: Path) -> Any:
        """The file, mapped anew now and then: what was read of a mapping stays in memory for as long as it is there."""
        if self._mapping is None or self._mapping[0] != path or self._mapped_bytes > REMAP_BYTES:
            self._mapping, self._mapped_bytes = None, 0  # the old one goes first
            self._mapping = path, safe_open(path, framework="pt")
        return self._mapping[1]

    @property
    def aliases(self) -> dict[str, str]:
        """Tensors that were left out since another holds the same values: metadata ``{left out: kept}``."""
        return {name: kept for name, kept in self.metadata.items() if kept in self._files and name not in self._files}


@contextlib.contextmanager
def open_folder(folder: Path) -> Iterator[TensorFolder]:
    """Open the safetensors of ``folder``; CheckpointError, in one line, where they are missing, damaged or unsafe."""
    paths, index = weight_files(folder)
    with contextlib.ExitStack() as stack:
        files: dict[str, Any] = {}
        places: dict[str, Path] = {}
        for path in paths:
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
                names = list(file.keys())
            # The library's own reader is in Rust and says what is wrong as one of these.
            except (SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None
            for name in names:
                if index is not None and index.get(name) != path.name:
                    raise CheckpointError(f"{path}: holds {name!r}, which {INDEX} does not place there")
                files[name], places[name] = file, path
        missing = [] if index is None else [name for name in index if name not in files]
        if missing:
            raise CheckpointError(f"{folder / INDEX}: {missing[0]!r} is not in {index and index[missing[0]]!r}")
        try:
            yield TensorFolder(files, places, paths)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder}: its safetensors cannot be read ({error}); fetch them again") from None


def weight_files(folder: Path) -> tuple[tuple[Path, ...], dict[str, str] | None]:
    """The safetensors files of a folder, and for several of them the index {tensor: file name}."""
    single, index_path = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return (single,), None
    if not index_path.is_file():
        raise CheckpointError(_no_weights(folder))
    index = read_json(index_path, CheckpointError).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{index_path}: 'weight_map' must be an object of tensor names and file names")
    for name in dict.fromkeys(map(str, index.values())):
        if not name.endswith(".safetensors") or name != Path(name).name or "\\" in name or "\0" in name:
            raise CheckpointError(f"{index_path}: names the file {name!r}; it must be a .safetensors file beside it")
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name!r} is missing, which {INDEX} names; fetch it again")
    return tuple(folder / str(name) for name in sorted(set(map(str, index.values())))), index


def write_tensors(
    folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write ``tensors`` as one file, or as several with an index where they are larger than ``max_shard_bytes``."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    if len(shards) == 1:
        write_file(folder / WEIGHTS, shards[0], metadata)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / name, shard, metadata)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file, readable by whom the user's other files are (the library makes it private)."""
    save_file(dict(tensors), path, metadata=dict(metadata))
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; without a temporary of the tensor's size."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor)  # NaN wins over everything
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _no_weights(folder: Path) -> str:
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        return (
            f"{folder}: its weights are a pickle ({json.dumps(pickles[0])[1:-1]}); a pickle can run code and is never "
            "opened; get the safetensors of this model, or convert it where you trust it"
        )
    return f"{folder}: {WEIGHTS} is missing"
