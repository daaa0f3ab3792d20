"""Contestants in processes of their own, so that the peak memory of each is its, and in turns all the same.

A worker is a module that calls ``serve(step)``: it says ``ready`` with facts, then for each line that it is sent it
calls ``step()`` once and answers with a JSON object. What it prints otherwise goes to standard error.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

import torch

from bench.measure import CHECKOUT, process_peak_bytes


@dataclass(frozen=True)
class Peer:
    """Another tool: its modules, and how to get it."""

    name: str
    modules: tuple[str, ...]
    get: str
    gpu_only: bool = False
    cpu_only: bool = False

    @property
    def missing(self) -> list[str]:
        return [module for module in self.modules if importlib.util.find_spec(module) is None]


PEERS = {
    "transformers": Peer("transformers", ("transformers", "peft"), "pip install transformers peft"),
    "trl": Peer("trl", ("transformers", "peft", "trl", "datasets"), "pip install trl peft"),
    "liger": Peer("liger", ("transformers", "peft", "liger_kernel"), "pip install liger-kernel peft", gpu_only=True),
    "llama.cpp": Peer("llama.cpp", ("llama_cpp", "gguf"), "pip install llama-cpp-python gguf", cpu_only=True),
}


def able(wanted: Iterable[str], device: str) -> list[str]:
    """Those of ``wanted`` that can run here; of the others it is said what is missing and how to get it."""
    found = []
    for name in wanted:
        peer = PEERS.get(name.partition(" ")[0])
        if peer is not None and peer.gpu_only and device != "cuda":
            print(f"{name}: left out, it needs a GPU")
        elif peer is not None and peer.cpu_only and device != "cpu":
            print(f"{name}: left out, it is timed on a CPU")
        elif peer is not None and peer.missing:
            print(f"{name}: left out, {' and '.join(peer.missing)} cannot be imported; {peer.get}")
        else:
            found.append(name)
    return found


class WorkerDied(RuntimeError):
    """A contestant that ended before it answered."""


class Worker:
    """A contestant that waits for its turn."""

    def __init__(self, module: str, arguments: Mapping[str, Any], threads: int):
        words = [f"--{key}={value}" for key, value in arguments.items()]
        place = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
        place |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} if threads else {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("BENCH_VERBOSE") else None,
            text=True,
            cwd=CHECKOUT,
            env=os.environ | place,
        )
        try:
            self.facts = self._read()
        except WorkerDied:
            self.close()
            raise

    def step(self) -> dict[str, Any]:
        """Let it take its turn, and return what it measured."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerDied(f"ended with {self._process.wait()}; BENCH_VERBOSE=1 shows what it says") from None
        return self._read()

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerDied(f"ended with {self._process.wait()}; BENCH_VERBOSE=1 shows what it says")
        return json.loads(line)


class Channel:
    """The worker's end: answers on what was standard output, which from then on is standard error."""

    def __init__(self) -> None:
        self._out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def say(self, **facts: Any) -> None:
        """One answer, the peak of memory with it."""
        self._out.write(json.dumps(facts | {"peak_bytes": peak_bytes()}) + "\n")
        self._out.flush()

    @staticmethod
    def turn() -> bool:
        """Wait for a turn; False where there will be none."""
        return bool(sys.stdin.readline())


def serve(channel: Channel, step: Callable[[], Mapping[str, Any]]) -> None:
    """Say that all is loaded, then take turns; each is timed."""
    channel.say(threads=torch.get_num_threads())
    while channel.turn():
        start = time.perf_counter()
        facts = dict(step())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        channel.say(**({"seconds": time.perf_counter() - start} | facts))


def peak_bytes() -> int:
    """The most memory so far: the GPU allocator's count, or the process's own."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else process_peak_bytes()


def race_workers(
    module: str, contestants: Mapping[str, Mapping[str, Any]], *, rounds: int, threads: int, apart: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """What ``rounds`` turns of each contestant measured; ``contestants`` has the arguments of each one's worker.

    All workers stay loaded and take turns; ``apart`` runs one after the other, where memory is short. A contestant
    that dies is named and left out; every worker is closed.
    """
    if apart:
        found: dict[str, list[dict[str, Any]]] = {}
        for name, arguments in contestants.items():
            found |= race_workers(module, {name: arguments}, rounds=rounds, threads=threads)
        return found
    workers: dict[str, Worker] = {}
    try:
        for name, arguments in contestants.items():
            try:
                workers[name] = Worker(module, {"contestant": name, **arguments}, threads)
            except WorkerDied as died:
                print(f"{name}: {died}")
        return in_turns(workers, rounds)
    finally:
        for worker in workers.values():
            worker.close()


def in_turns(workers: Mapping[str, Worker], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """``rounds`` turns of each; who is first changes. A contestant that dies is named and left out."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    alive = dict(workers)
    for i in range(rounds):
        for name in list(alive)[:: -1 if i % 2 else 1]:
            try:
                found[name].append(alive[name].step())
            except WorkerDied as died:
                print(f"{name}: {died}")
                alive[name].close()
                del alive[name], found[name]
    return found
