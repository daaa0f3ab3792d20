"""The decode step of slots as one CUDA graph.

The ordinary step (slots.py) knows by Python's numbers how long every row is, and starts some hundreds of small kernels
one after another; a GPU is through with each before the next is started. Here all that changes from token to token lies
in tensors on the device,

    ids, positions, places (B,)   ->   embedding, blocks, head   ->   logits (B, V), the largest of each row, and its id

so that every step is the same kernels on the same memory: recorded once (the capture), then started as one (a replay).
Every row takes part. One without a text, or whose prompt is being fed, looks at its first key only and writes behind
what it holds, where nobody looks; what comes out of it is not read.

One number is recorded with it: how many places of the cache attention is given. Each power of two has a graph of its
own. Off a GPU the step is run as it is; so the tests compare it with the ordinary one, which stays the reference.

What is recorded must not wait for the device or ask it for a number, copy from the host, or take from an earlier call
what depends on the inputs. So the tables of rotary positions lie on the device (``models/layers.py``), and every run
makes a plan of its own, since plans remember their masks.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from minitune.errors import ConfigError
from minitune.models import LanguageModel
from minitune.models.cache import KVCache

LEAST_KEYS = 256
"""Places that attention is given at least; from so many on the kernel for decoding shares them out to programs."""
WORTH_CAPTURING = 16
"""A capture takes the time of some ordinary steps; it is made where at least so many are likely to follow."""
WARM_UPS = 2
"""Runs before a capture: kernels are compiled and loaded, libraries take their workspace, tables come to the device."""

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes the work that is to be recorded, which must be in order to run now, and returns what does it again."""


class DecodeGraph:
    """One token at a time for the rows of ``cache``, whose buffers must stay where they are, as must the weights.

    Hooks of modules and other Python of the model run at the capture only.
    """

    def __init__(self, model: LanguageModel, cache: KVCache):
        self.model, self.cache = model, cache
        device, B = cache.buffers[0].k.device, len(cache.lengths)
        self.failed = False
        """Whether a capture failed; then there will be no other."""
        self._capture = capture_on(device)
        self._steps: dict[int, Callable[[], None]] = {}  # by the places that attention is given
        self._pinned = device.type == "cuda"
        self._inputs = torch.zeros(3, B, dtype=torch.int64, device=device)  # ids, positions, places
        # Results lie outside the memory of the graphs, which they share.
        self._logits = torch.zeros(B, model.config.vocab_size, dtype=model.compute_dtype, device=device)
        self._best = torch.zeros(2, B, dtype=torch.float64, device=device)  # the largest logit and its id

    @torch.inference_mode()
    def step(self, tokens: Mapping[int, int], left: int) -> tuple[Tensor, list[float], list[int]] | None:
        """Feed row ``r`` the id ``tokens[r]``: logits ``(B, V)``, the largest of each row, and its id.

        The caller advances the cache. Rows without a token have no result. The logits are there until the next step.
        None where the ordinary step is to be taken: fewer than WORTH_CAPTURING tokens are ``left`` for a new graph, the
        cache is full, or a capture failed, which is told once.
        """
        lengths, capacity = self.cache.lengths, self.cache.capacity
        needed = 1 + max(lengths[row] for row in tokens)
        if needed > capacity or self.failed:
            return None
        keys = bucket(needed, capacity)
        if keys not in self._steps and min(left, keys - needed + 1) < WORTH_CAPTURING:
            return None
        self._fill(tokens)
        if keys not in self._steps and not self._add(keys):
            return None
        self._steps[keys]()
        largest, ids = self._best.tolist()  # the only time that the host waits
        return self._logits, largest, [int(id) for id in ids]

    def _fill(self, tokens: Mapping[int, int]) -> None:
        """Put what this step is about where the recorded work reads it."""
        cache, rows = self.cache, range(len(self.cache.lengths))
        for row in rows:
            if row not in tokens and cache.lengths[row] == cache.capacity:
                cache.cut(row, cache.capacity - 1)  # it needs a place that may be written
        ids = [tokens.get(row, 0) for row in rows]
        positions = [cache.lengths[row] if row in tokens else 0 for row in rows]
        filled = torch.tensor([ids, positions, cache.lengths], pin_memory=self._pinned)
        self._inputs.copy_(filled, non_blocking=True)

    def _add(self, keys: int) -> bool:
        """Record the step that reads ``keys`` places; False where that fails."""
        try:
            self._steps[keys] = self._capture(functools.partial(self._run, keys))
        except Exception as error:  # whatever it was, the ordinary step does the same work
            self.failed = True
            self._steps.clear()
            causes = [str(e).partition("\n")[0] for e in (error.__context__, error) if e is not None]
            warnings.warn(
                "the decode step could not be captured as a CUDA graph and is slower without: "
                f"{'; then: '.join(causes)} (Slots(graph=False) does not try)",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        return True

    def _run(self, keys: int) -> None:
        """The recorded work: from ``_inputs`` to ``_logits`` and ``_best``."""
        ids, positions, places = self._inputs
        plan = self.cache.static_plan(positions, places, keys)
        hidden = self.model(ids[:, None], plan=plan, cache=self.cache)  # (B, 1, C)
        logits = self.model.logits(hidden[:, 0])  # (B, V)
        self._logits.copy_(logits)
        for result, found in zip(self._best, logits.max(-1), strict=True):
            result.copy_(found)


def decode_graph(model: LanguageModel, cache: KVCache, wanted: bool) -> DecodeGraph | None:
    """The graph of this model where it is ``wanted``; ConfigError where the model has layers with a window."""
    if not wanted:
        return None
    if any(model.config.window(layer) for layer in range(model.config.num_layers)):
        raise ConfigError("graph=True: the layers of this model have windows, whose keys move; leave graph out")
    return DecodeGraph(model, cache)


def bucket(keys: int, capacity: int) -> int:
    """How many places are read where ``keys`` are needed: the power of two above, at least LEAST_KEYS, or all."""
    return min(capacity, max(LEAST_KEYS, 1 << (keys - 1).bit_length()))


def capture_on(device: torch.device) -> Capture:
    """How work is recorded on ``device``: as CUDA graphs, or, elsewhere, not at all."""
    return cuda_capture(device) if device.type == "cuda" else lambda work: work


def cuda_capture(device: torch.device) -> Capture:
    """Records CUDA graphs that share their memory, so that one may run at a time; one capture at a time in a process.

    Raises what the work or CUDA raises, and leaves torch as it was.
    """
    pool = torch.cuda.graph_pool_handle()

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        current, side = torch.cuda.current_stream(device), _side_stream(device)
        try:
            # On the stream of the capture, so that workspaces of libraries, one a stream, are not part of the graph.
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    work()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # What other threads do with the device does not concern this capture.
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                work()
        except BaseException:
            torch.cuda.set_stream(current)  # a capture that ends in an error leaves its stream the current one
            _end_failed_capture(side.device_index, pool)
            raise
        return graph.replay

    return capture


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures, since libraries keep a workspace for every stream they were ever called on."""
    return torch.cuda.Stream(device)


def _end_failed_capture(device: int, pool: tuple[int, int]) -> None:
    """Tell torch's allocator that no capture is under way, which torch itself leaves out where one ends in an error.

    Otherwise the next ``torch.cuda.empty_cache()`` would fail. It refuses where it knows already.
    """
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
