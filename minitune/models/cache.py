"""The key/value cache: what every layer has already seen, in buffers allocated once."""

import torch
from torch import Tensor

from minitune.config import ModelConfig
from minitune.ops import AttentionPlan, rows_plan


class KVCache:
    """Keys and values ``(L, B, S, K, D)`` with a length for each row, so that rows may have different ones.

    A model call writes its keys behind each row's length and reads them back together with what was there; the caller
    then says ``advance(tokens)``. Room behind a row's length holds nothing that any query can see.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, *, device: torch.device | str, dtype: torch.dtype
    ):
        shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.lengths = [0] * batch

    def plan(self, queries: int) -> AttentionPlan:
        """The plan of the next ``queries`` tokens of every row; an int offset where all rows are as long."""
        if max(self.lengths) + queries > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} positions; {queries} more after {max(self.lengths)} do not fit"
            )
        device = self.k.device
        offset = self.lengths[0] if len(set(self.lengths)) == 1 else torch.tensor(self.lengths, device=device)
        return rows_plan(len(self.lengths), queries, device, offset)

    def update(self, layer: int, k: Tensor, v: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor]:
        """Write ``k, v (B, T, K, D)`` of one layer at the plan's offset; return all keys and values so far."""
        T = k.shape[1]
        if isinstance(plan.offset, int):
            end = plan.offset + T
            self.k[layer][:, plan.offset : end] = k
            self.v[layer][:, plan.offset : end] = v
        else:
            end = max(self.lengths) + T
            row = torch.arange(len(self.lengths), device=k.device)[:, None]  # (B, 1)
            self.k[layer][row, plan.positions] = k
            self.v[layer][row, plan.positions] = v
        return self.k[layer][:, :end], self.v[layer][:, :end]

    def advance(self, tokens: int | list[int]) -> None:
        """Count what the last call wrote: as many tokens for every row, or one number a row."""
        more = [tokens] * len(self.lengths) if isinstance(tokens, int) else tokens
        self.lengths = [length + n for length, n in zip(self.lengths, more, strict=True)]
