"""The order of training: which examples stand in which row, and which rows make which optimizer step."""

import math
from collections.abc import Iterator
from itertools import count

from minitune.config import SFTConfig
from minitune.data.batch import epoch_order
from minitune.data.pack import fill, packed_epoch
from minitune.jobs.dataset import Dataset


class Feed:
    """Endless epochs of rows of examples; a function of the data, the settings and the seed alone.

    With packing a row is as many examples as fit into ``max_length`` inputs, else one. A step is ``batch_size`` rows;
    the last of an epoch may be fewer, so that every example is seen exactly once an epoch (or as the weights say).
    """

    def __init__(self, config: SFTConfig, data: Dataset):
        self.config, self.data = config, data
        self.lengths = data.train.lengths.tolist()

    def rows(self, epoch: int) -> list[list[int]]:
        """The rows of one epoch in their order, each a list of places in the training part."""
        chosen, seed = self.data.epoch(epoch, self.config.seed), self.config.seed
        if not self.config.packing:
            return [[chosen[i]] for i in epoch_order(len(chosen), seed=seed, epoch=epoch)]
        lengths = [self.lengths[place] for place in chosen]
        packed = packed_epoch(lengths, self.data.max_length, seed=seed, epoch=epoch)
        return [[chosen[i] for i in row] for row in packed]

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

    def fill(self) -> float:
        """How full the rows of the first epoch are."""
        rows = self.rows(0)
        return fill(self.lengths, rows, self.data.max_length) if self.config.packing else 1.0

    def _steps(self, epoch: int) -> int:
        return math.ceil(len(self.rows(epoch)) / self.config.batch_size)
