"""The order of training: which examples stand in which row, and which rows make which optimizer step."""

import math
from collections.abc import Iterator
from itertools import count

import numpy as np

from minitune.config import TrainConfig
from minitune.data.batch import epoch_order
from minitune.data.pack import Packed, fill, packed_epoch
from minitune.jobs.dataset import Dataset


class Feed:
    """Endless epochs of rows of examples; a function of the data, the settings and the seed alone.

    With packing a row is as many examples as fit into ``max_length`` inputs, else one. A step is ``batch_size`` rows;
    the last of an epoch may be fewer, so that every example is seen exactly once an epoch (or as the weights say).
    """

    def __init__(self, config: TrainConfig, data: Dataset):
        self.config, self.data = config, data
        self.lengths = data.train.lengths.astype(np.int32)

    def rows(self, epoch: int) -> Packed:
        """The rows of one epoch in their order, each a list of places in the training part."""
        chosen, seed = self.data.epoch(epoch, self.config.seed), self.config.seed
        if not self.config.packing:
            return Packed.each(chosen[epoch_order(len(chosen), seed=seed, epoch=epoch)])
        packed = packed_epoch(self.lengths[chosen], self.data.max_length, seed=seed, epoch=epoch)
        return Packed(chosen[packed.places], packed.ends)

    def steps(self, start: int = 0) -> Iterator[list[list[int]]]:
        """The rows of optimizer step ``start``, ``start`` + 1, ..."""
        for epoch in count():
            rows = self.rows(epoch)
            steps = math.ceil(len(rows) / self.config.batch_size)
            for step in range(min(start, steps), steps):
                yield rows[step * self.config.batch_size : (step + 1) * self.config.batch_size]
            start = max(0, start - steps)

    def steps_of(self, epochs: float) -> int:
        """How many optimizer steps so many epochs are; at least one."""
        whole, part = int(epochs), epochs - int(epochs)
        steps = sum(self._steps(epoch) for epoch in range(whole))
        return max(1, steps + (math.ceil(part * self._steps(whole)) if part else 0))

    def first(self) -> tuple[int, int, float]:
        """How many examples the first epoch sees, in how many rows, and how full these are."""
        rows = self.rows(0)
        return len(rows.places), len(rows), fill(self.lengths, rows, self.data.max_length)

    def _steps(self, epoch: int) -> int:
        return math.ceil(len(self.rows(epoch)) / self.config.batch_size)
