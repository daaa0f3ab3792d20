"""Instruction files cleaned: the rows that stay as they stand, those that went with the reason, and a report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitune.data.clean import RULES
from minitune.data.formats import Entry
from minitune.errors import DataError
from minitune.files import whole_folder
from minitune.jobs.data_check import CheckConfig, Checked, CheckReport, Finding, check_files
from minitune.jobs.data_files import Progress, check_out, json_line, write_report

_OURS = ("clean.json", "clean.jsonl", "removed.jsonl")


@dataclass(frozen=True, kw_only=True)
class CleanConfig(CheckConfig):
    """What ``minitune data clean`` is asked for."""

    out: str
    """Folder to write: clean.jsonl, removed.jsonl and clean.json; must be new or empty (see --force)."""
    force: bool = False
    """Replace what an earlier cleaning left in --out."""


@dataclass(frozen=True, kw_only=True)
class CleanReport:
    """What became of every row."""

    out: str
    rows: int
    kept: int
    removed: int
    by_first_rule: dict[str, int]  # of the rows that went, by the first rule that each broke
    check: CheckReport


def clean_files(config: CleanConfig, progress: Progress | None = None) -> CleanReport:
    """Check the files, write what stays and what goes, and return the report.

    Every row is in one of the two files: in ``clean.jsonl`` as it stands, or in ``removed.jsonl`` with its place, every
    rule that it broke and the row that it is a copy of. Raises ``ConfigError`` or ``DataError`` in one line.
    """
    out = Path(config.out)
    check_out(out, force=config.force, inputs=config.files, ours=_OURS)
    checked = check_files(config, progress, cleaning=True)
    if checked.unread is not None:
        place, reason = checked.unread
        raise DataError(f"{place.where}: {reason}; mend the file")
    gone: dict[int, list[Finding]] = {}
    for finding in checked.findings:
        gone.setdefault(finding.row, []).append(finding)
    bad = [row for row in checked.bad if row not in gone]
    if bad:
        raise DataError(
            f"{checked.places[bad[0]].where} cannot be used, and --rules {config.rules} keeps it; add the rules "
            "unreadable and empty, or mend the row"
        )
    if len(gone) == len(checked.places):
        raise DataError(f"every one of the {len(gone):,} rows would be removed; see minitune data check")
    first = [found[0].rule for found in gone.values()]
    report = CleanReport(
        out=str(out),
        rows=len(checked.places),
        kept=len(checked.places) - len(gone),
        removed=len(gone),
        by_first_rule={rule: first.count(rule) for rule in RULES if rule in first},
        check=checked.report(20),
    )
    _write(checked, gone, report, out)
    return report


def _write(checked: Checked, gone: dict[int, list[Finding]], report: CleanReport, out: Path) -> None:
    with whole_folder(out) as folder:
        with (
            (folder / "clean.jsonl").open("w", encoding="utf-8", newline="\n") as kept,
            (folder / "removed.jsonl").open("w", encoding="utf-8", newline="\n") as removed,
        ):
            for row, entry in enumerate(checked.files.read("writing")):
                if row in gone:
                    removed.write(json.dumps(_removed(checked, row, gone[row], entry), ensure_ascii=False) + "\n")
                else:
                    kept.write(json_line(entry))
        write_report(folder / "clean.json", report)


def _removed(checked: Checked, row: int, findings: list[Finding], entry: Entry) -> dict[str, Any]:
    place = checked.places[row]
    reasons = []
    for finding in findings:
        reason: dict[str, Any] = {"rule": finding.rule, "detail": finding.detail}
        if finding.of is not None:
            of = checked.places[finding.of]
            reason["of"] = {"file": of.file, "line": of.line, "row": of.row + 1}
        reasons.append(reason)
    held = {"raw": entry.found.raw} if entry.found.value is None else {"value": json.loads(json_line(entry))}
    return {"file": place.file, "line": place.line, "row": place.row + 1, "reasons": reasons, **held}
