"""What the compilers make of every kernel that ships, without a GPU: registers, spills, shared memory, instructions.

    python -m bench.compiled [OPERATION ...] [--arch 90] [--only WORD]

The operations are called on ``meta`` tensors inside ``launch.recording()``, so what is compiled is exactly what would
have been launched. Triton compiles each launch for the architecture named, and ``ptxas -v`` reports on its PTX. The
table goes to ``bench/results/compiled.jsonl`` with the hash of the kernels' sources; a fast test fails where that is
stale.
"""

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.measure import CHECKOUT, RESULTS
from bench.ops import OPERATIONS

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one program may ask for."""
KERNELS = CHECKOUT / "kernels" / "minitune_kernels"


@dataclass(frozen=True)
class Report:
    """What came out of one launch's compilation."""

    operation: str
    case: str
    kernel: str
    arch: int
    num_warps: int
    num_stages: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_cores: str  # wgmma, mma or none
    warnings: tuple[str, ...]  # C75xx: wgmma serialised
    triton: str


def compile_launch(item: Any, arch: int) -> tuple[dict[str, Any], Any]:
    """Compile one recorded launch for ``sm_<arch>``; the compiled kernel and its metadata."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    target = GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    f = item.kernel
    bind = create_function_from_signature(f.signature, f.params, backend)
    bound, specialization, options = bind(*item.args, **{**item.meta, "debug": False})
    options, signature, constants, attributes = f._pack_args(backend, item.meta, bound, specialization, options)
    source_type: Any = ASTSource
    if hasattr(f, "is_gluon") and f.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource

        source_type = GluonASTSource
    source = source_type(f, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=options.__dict__)
    return {"num_warps": options.num_warps, "num_stages": options.num_stages}, compiled


def examine(operation: str, case: str, item: Any, arch: int) -> Report:
    """Compile one launch and read what the assembler says of it."""
    import triton

    meta, compiled = compile_launch(item, arch)
    ptx = compiled.asm["ptx"]
    said = assemble(ptx, arch)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", said)]
    spills = [int(n) for pair in re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said) for n in pair]
    return Report(
        operation=operation,
        case=case,
        kernel=item.kernel.__name__,
        arch=arch,
        registers=max(registers, default=0),
        spill_bytes=sum(spills),
        shared_bytes=compiled.metadata.shared,
        tensor_cores="wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "none",
        warnings=tuple(sorted(set(re.findall(r"C75\d\d", said)))),
        triton=triton.__version__,
        **meta,
    )


def assemble(ptx: str, arch: int) -> str:
    """What ``ptxas -v`` prints for this PTX, with the assembler that Triton itself uses for the architecture."""
    from triton.backends.nvidia.compiler import get_ptxas

    ptxas = get_ptxas(arch)
    suffix = "a" if arch >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        run = subprocess.run(
            [ptxas.path, "-v", f"--gpu-name=sm_{arch}{suffix}", str(source), "-o", str(Path(folder) / "kernel.cubin")],
            capture_output=True,
            text=True,
            check=False,
        )
    if run.returncode:
        raise RuntimeError(f"ptxas refuses the PTX for sm_{arch}{suffix}: {(run.stderr or run.stdout)[-500:]}")
    return run.stdout + run.stderr


def launches(shipped: dict[str, Callable[[], object]], arch: int, only: str = "") -> Iterable[tuple[str, Any]]:
    """Every launch of the calls on ``sm_<arch>``, each kernel with the same constants once."""
    from minitune_kernels.launch import recording

    seen: set[str] = set()
    for name, call in shipped.items():
        if only not in name:
            continue
        with recording((arch // 10, arch % 10)) as items:
            call()
        for item in items:
            key = repr((item.kernel.__name__, [_kind(a) for a in item.args], sorted(item.meta.items(), key=str)))
            if key not in seen:
                seen.add(key)
                yield name, item


def _kind(value: Any) -> Any:
    """What of an argument decides about the code."""
    if hasattr(value, "dtype"):
        return str(value.dtype)
    if hasattr(value, "block_shape"):
        return f"descriptor {value.base.dtype} {value.block_shape}"
    if isinstance(value, int) and not isinstance(value, bool):
        return "1" if value == 1 else "16" if value % 16 == 0 else "int"
    return type(value).__name__


def source_hash() -> str:
    """Of all kernel sources together."""
    digest = hashlib.sha256()
    for path in sorted(KERNELS.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def table(reports: Sequence[Report]) -> str:
    """As text, a line a kernel."""
    head = f"{'operation':22}{'case':44}{'kernel':34}{'sm':>3}{'warps':>6}{'stages':>7}{'regs':>5}{'spill':>7}"
    head += f"{'shared':>8}  cores"
    lines = [
        f"{r.operation:22}{r.case[:43]:44}{r.kernel[:33]:34}{r.arch:3}{r.num_warps:6}{r.num_stages:7}{r.registers:5}"
        f"{r.spill_bytes:7}{r.shared_bytes:8}  {r.tensor_cores} {' '.join(r.warnings)}"
        for r in reports
    ]
    return "\n".join([head, *lines])


def examine_all(operation: str, arch: int, only: str) -> list[Report]:
    """Every launch of one operation on one architecture. Raises RuntimeError at the end for what did not compile."""
    module = importlib.import_module(f"bench.ops.{operation}")
    reports: list[Report] = []
    failed: list[str] = []
    for name, item in launches(module.shipped(), arch, only):
        try:
            reports.append(examine(operation, name, item, arch))
        except Exception as error:
            failed.append(f"{operation} {name} {item.kernel.__name__} sm_{arch}: {error}")
            continue
        print(table(reports[-1:]).splitlines()[1], flush=True)
    if failed:
        raise RuntimeError("\n".join(failed))
    return reports


def main() -> None:
    """Compile, print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.compiled", description=__doc__)
    parser.add_argument("operations", nargs="*", default=[])
    parser.add_argument("--arch", type=int, action="append", help="80, 90; both by default")
    parser.add_argument("--only", default="", help="only cases whose name holds this word; nothing is written then")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    work = [(operation, arch) for operation in args.operations or OPERATIONS for arch in args.arch or (80, 90)]
    with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = list(pool.map(examine_all, *zip(*work, strict=True), [args.only] * len(work)))
    if not args.operations and not args.only and not args.arch:
        rows = [json.dumps({"source": source_hash(), **asdict(report)}) for reports in parts for report in reports]
        (RESULTS / "compiled.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
