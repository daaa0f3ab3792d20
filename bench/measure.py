"""The protocol of every timing in this project.

* The contestants run in one process, in turns, round after round, so that a clock that drifts is shared by all.
* Before the first round the device works for a while, so that its clock has settled.
* A GPU is held back while the launches of a call are queued, so that its time is the device's; what Python spends on
  them is reported beside it, and is what a small model waits for.
* Every call gets the next of several input sets, and on a GPU the second-level cache is overwritten in between, so
  that nobody reads from a cache what a real run would not find there.
* A figure is the median of the rounds, with the 20th and 80th percentile beside it.
* Peak memory is what a call adds at its highest: the allocator's own count on a GPU. On a CPU it is the process's, so
  there each contestant is measured in a process of its own (``peak_of``).
* The environment goes with every row: device, versions, threads, commit, date.

Accuracy comes first: a case says how its results are checked, and a contestant that is wrong is not timed.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / "bench" / "results"
Thunk = Callable[[], object]
HELD_BACK = 3_000_000
"""Clock cycles, about 2 ms, for which a GPU waits before a call that is timed."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, over the rounds; its peak of memory in bytes and, on a GPU, what queueing it took."""

    p20_ms: float
    p50_ms: float
    p80_ms: float
    rounds: int
    peak_bytes: int | None = None
    host_ms: float | None = None


def race(
    contestants: Mapping[str, Sequence[Thunk]],
    *,
    device: torch.device,
    budget_ms: float = 300.0,
    least_rounds: int = 5,
    most_rounds: int = 100,
) -> dict[str, Timing]:
    """Time each contestant, given as one thunk per input set, for about ``budget_ms`` each."""
    once = {name: _call_ms(thunks[0], device, warm=2) for name, thunks in contestants.items()}
    peaks = {name: gpu_peak(thunks[0]) if device.type == "cuda" else None for name, thunks in contestants.items()}
    slowest = max(once.values())
    rounds = max(least_rounds, min(most_rounds, int(budget_ms / max(slowest, 1e-3))))
    flush = torch.empty(64 << 20, dtype=torch.float32, device=device) if device.type == "cuda" else None
    times: dict[str, list[float]] = {name: [] for name in contestants}
    hosts: dict[str, list[float]] = {name: [] for name in contestants}
    if device.type == "cuda":
        _times_gpu(contestants, times, hosts, rounds, flush)
    else:
        for i in range(rounds):
            for name, thunks in contestants.items():
                times[name].append(_call_ms(thunks[i % len(thunks)], device))
    return {name: summary(times[name], peaks[name], hosts[name]) for name in contestants}


def summary(times: Sequence[float], peak: int | None = None, hosts: Sequence[float] = ()) -> Timing:
    ordered = sorted(times)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Timing(at(0.2), at(0.5), at(0.8), len(ordered), peak, sorted(hosts)[len(hosts) // 2] if hosts else None)


def _times_gpu(
    contestants: Mapping[str, Sequence[Thunk]],
    times: dict[str, list[float]],
    hosts: dict[str, list[float]],
    rounds: int,
    flush: torch.Tensor | None,
) -> None:
    """Milliseconds on the device and on the host; the device waits until a call's launches are all queued."""
    marks: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in contestants}
    for i in range(rounds):
        for name, thunks in contestants.items():
            if flush is not None:
                flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(HELD_BACK)
            start.record()
            before = time.perf_counter()
            thunks[i % len(thunks)]()
            hosts[name].append((time.perf_counter() - before) * 1e3)
            end.record()
            marks[name].append((start, end))
    torch.cuda.synchronize()
    for name, pairs in marks.items():
        times[name] += [start.elapsed_time(end) for start, end in pairs]


def _call_ms(thunk: Thunk, device: torch.device, warm: int = 0) -> float:
    for _ in range(warm):
        thunk()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    thunk()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def settle(device: torch.device, seconds: float = 1.0) -> None:
    """Keep a GPU busy until its clock has settled."""
    if device.type != "cuda":
        return
    a = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(20):
            torch.mm(a, a)
        torch.cuda.synchronize()


def gpu_peak(thunk: Thunk) -> int:
    """Bytes that one call adds at its highest, by the allocator's count."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = thunk()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def peak_of(module: str, *arguments: str) -> dict[str, Any]:
    """Run ``python -m module arguments`` in a process of its own and return the JSON object on its last line.

    The module measures itself and prints ``process_peak_bytes()`` among its figures.
    """
    command = [sys.executable, "-m", module, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT)
    return json.loads(run.stdout.strip().splitlines()[-1])


def process_peak_bytes() -> int:
    """The highest resident size that this process has had (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def reset_process_peak() -> int:
    """Forget the highest resident size so far (Linux), and return the size now."""
    Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches in a large product, by the faster of torch's libraries, and in a large copy (bytes read
    and written)."""

    product_flops: float
    copy_bytes: float


def ceilings(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Ceilings:
    """Measure both in ``dtype``: a square product of 8,192 (1,024 on a CPU), a copy of 1 GiB (256 MiB)."""
    gpu = device.type == "cuda"
    n, size = (8192, 1 << 30) if gpu else (1024, 1 << 28)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    products: dict[str, list[Thunk]] = {"product": [lambda: a @ b]}
    if not gpu and dtype == torch.float32 and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        products["oneDNN"] = [lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")]
    timing = race(products | {"copy": [lambda: target.copy_(source)]}, device=device, budget_ms=200)
    product_ms = min(timing[name].p50_ms for name in products)
    return Ceilings(2 * n**3 / product_ms * 1e3, 2 * size / timing["copy"].p50_ms * 1e3)


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure depends on besides the code."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=CHECKOUT
    ).stdout.strip()
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else platform.processor() or platform.machine(),
        "threads": None if gpu else torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "triton": triton_version,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": os.environ.get("MINITUNE_COMMIT") or commit or None,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)


def as_row(timing: Timing) -> dict[str, Any]:
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(timing).items()}
