"""The key/value cache: what every layer has already seen, in buffers allocated once.

Each row is a text of its own length; rows can start again, be cut back, be copied, and take part in a call or not. A
layer with a window of W keys never needs more than the last W - 1 of a text beside the tokens of the call itself, so
its buffer can be that short: what it holds then is a stretch of the text, and ``start`` says where the stretch begins.

    places of a row:    0 ... place ...              position = start + place
    full layers:        start = 0, one place for every position
    windowed layers:    W - 1 + chunk places; when they are full, the last W - 1 keys move to the front
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minitune.config import ModelConfig
from minitune.ops import AttentionPlan, rows_plan


@dataclass(frozen=True, kw_only=True)
class Span:
    """What the layers of one window read and write in a call.

    Keys of the call go to the places ``at`` of each row and those behind; places ``first`` to ``last`` are read, and
    ``plan`` says who sees which of them.
    """

    at: tuple[int, ...]
    first: int
    last: int
    plan: AttentionPlan


@dataclass(frozen=True, kw_only=True)
class CachePlan(AttentionPlan):
    """The plan of a call whose batch is some rows of a cache: positions in the texts, and a span for each window."""

    rows: tuple[int, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class StaticPlan(AttentionPlan):
    """The plan of one token for every row of a cache, of which the host knows nothing but ``keys``.

    places   (B,) int64: where the key of each row goes; which keys a row sees, ``offset (B,)`` says
    keys     how many places of every row attention is given
    """

    places: Tensor
    keys: int


class Buffer:
    """Keys and values ``(L, B, S, K, D)`` of all layers that have the same window."""

    def __init__(self, shape: tuple[int, ...], window: int | None, *, device: torch.device | str, dtype: torch.dtype):
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.layers = list(zip(self.k.unbind(), self.v.unbind(), strict=True))  # views, made once
        self.window = window
        self.start = [0] * shape[1]

    def span(self, rows: Sequence[int], lengths: Sequence[int], positions: Tensor) -> Span:
        """Make room for the next tokens of ``rows`` and say where everything stands."""
        T = positions.shape[1]
        for row, length in zip(rows, lengths, strict=True):
            if length - self.start[row] + T > self.k.shape[2]:
                self._move_to_front(row, length)
        at = [length - self.start[row] for row, length in zip(rows, lengths, strict=True)]
        first = 0 if self.window is None else max(0, min(at) - (self.window - 1))
        return Span(
            at=tuple(at),
            first=first,
            last=max(at) + T,
            plan=AttentionPlan(positions=positions, offset=_offset([a - first for a in at], positions.device)),
        )

    def update(self, layer: int, k: Tensor, v: Tensor, rows: Sequence[int], span: Span) -> tuple[Tensor, Tensor]:
        """Write ``k, v (B, T, K, D)`` of one layer; return what its queries may see, ``(B, last - first, K, D)``."""
        T = k.shape[1]
        together = rows[-1] - rows[0] + 1 == len(rows)  # rows are in ascending order
        which: slice | Tensor = slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows, device=k.device)
        for buffer, new in zip(self.layers[layer], (k, v), strict=True):
            if together and isinstance(span.plan.offset, int):
                buffer[which, span.at[0] : span.last] = new
            else:
                row = torch.tensor(rows, device=k.device)[:, None]  # (B, 1)
                place = torch.tensor(span.at, device=k.device)[:, None] + torch.arange(T, device=k.device)  # (B, T)
                buffer[row, place] = new
        keys, values = self.layers[layer]
        return keys[which, span.first : span.last], values[which, span.first : span.last]

    def put(self, layer: int, k: Tensor, v: Tensor, plan: StaticPlan) -> tuple[Tensor, Tensor]:
        """Write one token ``k, v (B, 1, K, D)`` a row of one layer; return what is read, ``(B, keys, K, D)``."""
        place = plan.places[:, None, None, None].expand_as(k)
        found = []
        for buffer, new in zip(self.layers[layer], (k, v), strict=True):
            buffer.scatter_(1, place, new)
            found.append(buffer[:, : plan.keys])
        return found[0], found[1]

    def holds(self, row: int, length: int) -> bool:
        """Whether the row still has every key that the token behind its first ``length`` may see."""
        return self.window is None or self.start[row] <= max(0, length - (self.window - 1))

    def copy(self, sources: Sequence[int], targets: Sequence[int], places: int) -> None:
        """Make the rows ``targets`` what the rows ``sources`` are, in their first ``places``."""
        for buffer in (self.k, self.v):
            buffer[:, targets, :places] = buffer[:, sources, :places]
        self.start = _replaced(self.start, targets, [self.start[row] for row in sources])

    def _move_to_front(self, row: int, length: int) -> None:
        assert self.window is not None  # a full layer has a place for every position
        end = length - self.start[row]
        keep = min(self.window - 1, end)
        for buffer in (self.k, self.v):
            buffer[:, row, :keep] = buffer[:, row, end - keep : end].clone()
        self.start[row] = length - keep


class KVCache:
    """Keys and values of ``batch`` rows of up to ``capacity`` tokens, with a length for each row.

    A model call writes its keys behind each row's length and reads them back together with what was there; the caller
    then says ``advance(tokens)``. Places behind a row's length hold nothing that any query can see. ``chunk`` promises
    that no call brings more tokens a row, which lets windowed layers keep ``W - 1 + chunk`` places only.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        chunk: int | None = None,
    ):
        self.config, self.device, self.dtype = config, device, dtype
        self.capacity, self.chunk = capacity, chunk
        self.lengths = [0] * batch
        windows = [config.window(layer) for layer in range(config.num_layers)]
        self._windows = list(dict.fromkeys(windows))
        # Layer -> its buffer, and its index in there.
        self._home = [(self._windows.index(w), windows[:layer].count(w)) for layer, w in enumerate(windows)]
        self.buffers = [self._buffer(window, windows.count(window)) for window in self._windows]

    def _buffer(self, window: int | None, layers: int) -> Buffer:
        size = self.capacity
        if window is not None and self.chunk is not None:
            size = min(size, window - 1 + self.chunk)
        shape = (layers, len(self.lengths), size, self.config.num_kv_heads, self.config.head_dim)
        return Buffer(shape, window, device=self.device, dtype=self.dtype)

    @property
    def bytes(self) -> int:
        """What the buffers take."""
        return sum(2 * buffer.k.numel() * buffer.k.itemsize for buffer in self.buffers)

    def plan(self, queries: int, rows: Sequence[int] | None = None) -> CachePlan:
        """The plan of the next ``queries`` tokens of ``rows``, ascending; of every row by itself.

        Makes room in windowed layers, so that the next call must be the one that was planned.
        """
        rows = range(len(self.lengths)) if rows is None else rows
        lengths = [self.lengths[row] for row in rows]
        if max(lengths) + queries > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} positions; {queries} more after {max(lengths)} do not fit"
            )
        if self.chunk is not None and queries > self.chunk:
            raise ValueError(f"this cache takes {self.chunk} tokens at a time, not {queries}")
        device = self.buffers[0].k.device
        offset = _offset(lengths, device)
        positions = rows_plan(len(lengths), queries, device, offset).positions  # (B, T)
        spans = tuple(buffer.span(rows, lengths, positions) for buffer in self.buffers)
        return CachePlan(positions=positions, offset=offset, rows=tuple(rows), spans=spans)

    def static_plan(self, positions: Tensor, places: Tensor, keys: int) -> StaticPlan:
        """The plan of one token for every row, by tensors ``(B,)``: the token's position, and the place of its key.

        The first ``keys`` places are read, of which a row sees those up to its position. Nothing is checked against
        ``lengths``. Raises ValueError where a layer has a window, whose places move.
        """
        if self._windows != [None]:
            raise ValueError("a layer with a window has no fixed place for a position; use cache.plan(tokens)")
        return StaticPlan(positions=positions[:, None], offset=positions, places=places, keys=keys)

    def update(self, layer: int, k: Tensor, v: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor, AttentionPlan]:
        """Write ``k, v (B, T, K, D)`` of one layer; return the keys and values to attend to, and who sees which."""
        if isinstance(plan, StaticPlan):
            return *self.buffers[0].put(layer, k, v, plan), plan
        if not isinstance(plan, CachePlan):
            raise ValueError(
                "a call with a cache needs a plan of that cache; leave plan out, or pass cache.plan(tokens)"
            )
        home, index = self._home[layer]
        span = plan.spans[home]
        return *self.buffers[home].update(index, k, v, plan.rows, span), span.plan

    def advance(self, tokens: int | Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Count what the last call wrote: as many tokens for every row of it, or one number a row."""
        rows = range(len(self.lengths)) if rows is None else rows
        more = [tokens] * len(rows) if isinstance(tokens, int) else tokens
        for row, n in zip(rows, more, strict=True):
            self.lengths[row] += n

    def holds(self, row: int, length: int) -> bool:
        """Whether a text can go on behind the first ``length`` tokens of a row; not where a window has let them go."""
        return length <= self.lengths[row] and all(buffer.holds(row, length) for buffer in self.buffers)

    def cut(self, row: int, length: int) -> None:
        """Forget what a row holds behind its first ``length`` tokens; 0 makes it free for another text."""
        if length == 0:
            for buffer in self.buffers:
                buffer.start[row] = 0
        elif not self.holds(row, length):
            raise ValueError(f"row {row} of the cache cannot go back to {length} tokens; cut it to 0 and start again")
        self.lengths[row] = length

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Make each row of ``targets`` what the row beside it in ``sources`` is now."""
        for buffer in self.buffers:
            buffer.copy(sources, targets, max(self.lengths[row] - buffer.start[row] for row in sources))
        self.lengths = _replaced(self.lengths, targets, [self.lengths[row] for row in sources])

    def reserve(self, capacity: int) -> None:
        """Make the buffers larger where they hold less than ``capacity``, and keep what is in them."""
        if capacity <= self.capacity:
            return
        self.capacity = capacity
        for i, old in enumerate(self.buffers):
            new = self._buffer(old.window, old.k.shape[0])
            new.k[:, :, : old.k.shape[2]] = old.k
            new.v[:, :, : old.v.shape[2]] = old.v
            new.start = old.start
            self.buffers[i] = new


def _offset(at: list[int], device: torch.device) -> int | Tensor:
    """One int where all rows are as long, which lets attention do without a mask; else ``(B,)``."""
    return at[0] if len(set(at)) == 1 else torch.tensor(at, device=device)


def _replaced(values: list[int], where: Sequence[int], by: Sequence[int]) -> list[int]:
    new = list(values)
    for i, value in zip(where, by, strict=True):
        new[i] = value
    return new
