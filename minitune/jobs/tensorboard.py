"""The metrics of a run for TensorBoard, where it is installed (the ``tensorboard`` extra)."""

import importlib
from pathlib import Path
from typing import Any

from minitune.errors import ConfigError


class Board:
    """Writes every number of a line of the metrics as a curve of its name."""

    def __init__(self, folder: Path):
        try:
            module = importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            raise ConfigError('--tensorboard needs TensorBoard: pip install -e ".[tensorboard]"') from None
        self._writer = module.SummaryWriter(str(folder))

    def add(self, line: dict[str, Any]) -> None:
        """Put one line of the metrics into the curves."""
        for name, value in line.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, line["step"])
        self._writer.flush()
