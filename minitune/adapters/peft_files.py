"""The two files of an adapter folder, and the tensors in it taken one by one, each checked."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from minitune.errors import CheckpointError, nearest
from minitune.storage import is_finite

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of an adapter folder by name; CheckpointError where there is no readable file of them."""
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{folder}: {ADAPTER_WEIGHTS} is missing (a pickled adapter is never opened)")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    """Take one tensor out of the file's, of the right shape and type and finite."""
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise CheckpointError(f"{path}: tensor {name!r} is missing{nearest(name, tensors)}")
    if tuple(tensor.shape) != shape:
        got = tuple(tensor.shape)
        raise CheckpointError(f"{path}: {name} has shape {got}, but this base asks for {shape}")
    if not tensor.is_floating_point():
        raise CheckpointError(f"{path}: {name} is stored as {tensor.dtype}; an adapter holds floating-point numbers")
    if not is_finite(tensor):
        raise CheckpointError(f"{path}: {name} has values that are not finite")
    return tensor
