"""The newest results of the benches of the whole as tables in bench/README.md, between its marks; nothing is typed.

python -m bench.tables
"""

import json
from collections.abc import Callable
from typing import Any

from bench.measure import CHECKOUT, RESULTS
from minitune.files import write_text

PAGE = CHECKOUT / "bench" / "README.md"
Line = dict[str, Any]


def newest(name: str, *keys: str) -> list[Line]:
    """The newest line of each combination of ``keys``, in the order in which these first appear."""
    path = RESULTS / f"{name}.jsonl"
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    found = {tuple(line.get(key) for key in keys): line for line in lines if keys[-1] in line}
    return list(found.values())


def table(head: str, rows: list[str], lines: list[Line]) -> list[str]:
    """A table and under it where its lines were measured."""
    align = ["---" if i < head.count("<") else "--:" for i in range(head.count("|") - 1)]
    where = sorted({
        f"{line['device']}, {line['threads'] or line['cpus']} threads, torch {line['torch']}, {line['date']}, "
        f"commit {line['commit']}" for line in lines
    })  # fmt: skip
    return [head.replace("<", ""), f"|{'|'.join(align)}|", *rows, "", f"Measured on {'; '.join(where)}.", ""]


def ratio(lines: list[Line], line: Line, value: str, *same: str) -> str:
    """How much of minitune's ``value`` a contestant has, in the same case; empty for minitune itself."""
    ours = [o for o in lines if o["contestant"] == "minitune" and all(o[key] == line[key] for key in same)]
    if not ours or line is ours[-1] or value not in ours[-1] or value not in line:
        return ""
    return f"{ours[-1][value] / line[value]:.2f} x"


def train() -> list[str]:
    lines = newest("train", "device", "shape", "setting", "method", "dtype", "contestant")
    rows = []
    for line in lines:
        case = f"| {line['shape']} {line['method']}, {line['setting']} rows, {line['dtype']} | {line['contestant']} |"
        if "failed" in line:
            rows.append(f"{case} {line['failed']} | | | | | | | |")
            continue
        faster = ratio(lines, line, "trained_tokens_per_s", "device", "shape", "setting", "method", "dtype")
        rows.append(
            f"{case} {line['trained_tokens_per_s']:.1f} | {line['tokens_per_s']:.1f} | {line['rows_per_s']:.2f} | "
            f"{line['peak_bytes'] / 2**30:.2f} | {line['mfu']:.1%} | {line['loss']:.4f} | {line['grad_norm']:.4f} | "
            f"{faster} |"
        )
    head = "| <case | <contestant | trained tokens/s | tokens/s | rows/s | peak GiB | MFU | loss | gradient norm "
    return table(head + "| minitune is |", rows, lines)


def sample() -> list[str]:
    lines = newest("sample", "device", "shape", "batch", "dtype", "contestant")
    rows = []
    for line in lines:
        case = f"| {line['shape']}, {line['batch']} rows, {line['dtype']} | {line['contestant']} |"
        if "failed" in line:
            rows.append(f"{case} {line['failed']} | | | | | |")
            continue
        faster = ratio(lines, line, "tokens_per_s", "device", "shape", "batch", "dtype")
        rows.append(
            f"{case} {line['tokens_per_s']:.1f} | {line['of_bandwidth']:.0%} | {line['first_token_ms']:.0f} | "
            f"{line['prompt_tokens_per_s']:.0f} | {line['peak_bytes'] / 2**30:.2f} | {faster} |"
        )
    head = "| <case | <contestant | tokens/s | of the bandwidth | first token ms | prompt tokens/s | peak GiB "
    text = table(head + "| minitune is |", rows, lines)
    costs = newest("sample", "perplexity_of")
    rows = [f"| {c['perplexity_of']} | {c['float32']:.4f} | {c['int8']:.4f} | {c['change']:+.2%} |" for c in costs]
    return text + table("| <perplexity of | float32 weights | int8 weights | change |", rows, costs)


def load() -> list[str]:
    lines = newest("load", "device", "shape", "what", "contestant")
    rows = [
        f"| {line['what']} {line['shape']} | {line['contestant']} | {line['p50_ms'] / 1e3:.2f} | "
        f"{line['peak_bytes'] / 2**20:.0f} |"
        for line in lines
    ]
    text = table("| <what | <contestant | seconds | peak MiB |", rows, lines)
    starts = newest("load", "start")
    rows = [f"| `{line['start']}` | {line['p50_ms'] / 1e3:.3f} |" for line in starts]
    return text + table("| <a process that does | seconds |", rows, starts)


def data() -> list[str]:
    lines = newest("data", "device", "tokenizer", "contestant")
    rows = [
        f"| {line['contestant']} | {line['rows']:,} | {line['tokens']:,} | {line['packed_rows']:,} | "
        f"{line['rows_per_s']:.0f} | {ratio(lines, line, 'rows_per_s', 'device', 'tokenizer')} |"
        for line in lines
    ]
    return table("| <contestant | rows | tokens | packed rows | rows/s | minitune is |", rows, lines)


SECTIONS: dict[str, Callable[[], list[str]]] = {"train": train, "sample": sample, "load": load, "data": data}


def filled(page: str) -> str:
    """The page with every table made again."""
    for name, section in SECTIONS.items():
        start, end = f"<!-- {name}: python -m bench.tables -->", f"<!-- end of {name} -->"
        before, _, rest = page.partition(start)
        _, _, after = rest.partition(end)
        page = f"{before}{start}\n\n{chr(10).join(section())}\n{end}{after}"
    return page


def main() -> None:
    """Fill the page."""
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
