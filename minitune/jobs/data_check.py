"""Instruction files against the rules of ``data.clean``: what is wrong, where, and of which row it is a copy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from minitune.data.clean import RULES, Fault, Limits, bad_rule, chosen_rules, row_faults
from minitune.data.formats import Entry
from minitune.data.language import wanted_language
from minitune.data.minhash import Near, grams, near_pairs
from minitune.data.normal import digest, turns_text
from minitune.errors import ConfigError
from minitune.jobs.data_files import EXCERPT, Files, Place, Progress, excerpt, place_of, row_excerpt, write_report


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What ``minitune data check`` is asked for."""

    files: Sequence[str]
    """Instruction files: JSON, JSON Lines, CSV, TSV, Parquet or text, in any layout."""
    rules: str = "default"
    """Rules to apply: all, default, or names with commas between them; -NAME leaves one out: duplicate,empty."""
    threshold: float = 0.8
    """Jaccard similarity of their words, in pairs of two, from which rows are nearly the same; 1 is equal."""
    max_chars: int = 8000
    """Characters of a row, prompt and answers together, from which it is too long."""
    language: str = ""
    """What answers must be written in (en, zh, fr, ...); if not given, the language of their question."""
    columns: str = ""
    """Keys of other layouts, ours=theirs: instruction=question,output=answer."""


class Finding(NamedTuple):
    """What one rule says of one row."""

    rule: str
    row: int  # place among all objects of all files, counted from 0
    detail: str
    of: int | None = None  # the earlier row that it is a copy of, or contradicts
    text: str = ""  # the turn that it is about, where the row has several


@dataclass(frozen=True)
class Example:
    """A finding as a reader sees it."""

    where: str
    detail: str
    text: str
    of: str = ""  # where the earlier row is
    of_text: str = ""


@dataclass(frozen=True)
class RuleReport:
    """What one rule found: rows, and some of them."""

    says: str
    count: int
    examples: list[Example]


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What was found about the rows of some files."""

    files: dict[str, str]  # SHA-256 by name
    rows: int
    flagged: int  # rows with at least one finding
    rules: dict[str, RuleReport]  # every rule that was applied
    threshold: float


@dataclass
class Checked:
    """Every finding, in the order of the rows, and of each row what is needed to name it."""

    files: Files
    findings: list[Finding]
    places: list[Place]
    texts: list[str]  # excerpts
    rules: list[str]
    threshold: float
    bad: list[int]  # rows that cannot be read as one
    unread: tuple[Place, str] | None  # where a file could not be read any further, and why

    @property
    def flagged(self) -> set[int]:
        """The rows with at least one finding."""
        return {finding.row for finding in self.findings}

    def example(self, finding: Finding) -> Example:
        """A finding in words."""
        where, text = self.places[finding.row].where, finding.text or self.texts[finding.row]
        if finding.of is None:
            return Example(where, finding.detail, text)
        return Example(where, finding.detail, text, self.places[finding.of].where, self.texts[finding.of])

    def report(self, examples: int | None) -> CheckReport:
        """Return the report, with so many examples of each rule (None: all that there are)."""
        by_rule: dict[str, list[Finding]] = {name: [] for name in self.rules}
        for finding in self.findings:
            by_rule[finding.rule].append(finding)
        rules = {
            name: RuleReport(RULES[name].says, len(found), [self.example(one) for one in found[:examples]])
            for name, found in by_rule.items()
        }
        flagged = len(self.flagged)
        return CheckReport(
            files=self.files.hashes, rows=len(self.places), flagged=flagged, rules=rules, threshold=self.threshold
        )


@dataclass
class _Scan:
    """One pass over the files: what each row says by itself, and what it shares with those before it."""

    rules: list[str]
    limits: Limits
    findings: list[Finding] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)  # of the texts that were yielded
    bad: list[int] = field(default_factory=list)
    unread: tuple[Place, str] | None = None
    _first_text: dict[bytes, int] = field(default_factory=dict)
    _first_question: dict[bytes, int] = field(default_factory=dict)

    def run(self, entries: Iterator[Entry]) -> Iterator[str]:
        """Go over all rows, and yield the text of each that is to be compared with the others."""
        for place, entry in enumerate(entries):
            self.places.append(place_of(entry))
            if entry.bad is not None:
                rule = bad_rule(entry.bad)
                self.bad.append(place)
                if entry.bad.unread:
                    self.unread = self.unread or (self.places[place], entry.bad.reason)
                self.texts.append(excerpt(entry.found.raw))
                if rule in self.rules:
                    self.findings.append(Finding(rule, place, entry.bad.reason))
                continue
            self.texts.append(row_excerpt(entry.rows[0]))
            for rule, fault in self._faults(entry).items():
                asked = fault.answer
                shown = f"{excerpt(asked.question, EXCERPT // 2)} => {excerpt(asked.text)}" if asked else ""
                self.findings.append(Finding(rule, place, fault.words, text=shown))
            text = "\n".join(turns_text(row.messages) for row in entry.rows)
            if not self._is_copy(place, entry, text):
                self.rows.append(place)
                yield text

    def _faults(self, entry: Entry) -> dict[str, Fault]:
        """What is wrong with an object by itself: with any of its rows, the first where several."""
        faults: dict[str, Fault] = {}
        for row in entry.rows:
            faults = {**row_faults(row, self.rules, self.limits), **faults}
        return faults

    def _is_copy(self, place: int, entry: Entry, text: str) -> bool:
        """Whether an earlier row says the same; notes it, and an earlier row that answers otherwise."""
        first = self._first_text.setdefault(digest(text), place)
        if first != place:
            if "duplicate" in self.rules:
                self.findings.append(Finding("duplicate", place, "the same as an earlier row", first))
            return True
        if "contradiction" in self.rules:
            prompts = [turns_text(row.prompt) for row in entry.rows if row.prompt]
            first = self._first_question.setdefault(digest("\n".join(prompts)), place) if prompts else place
            if first != place:
                self.findings.append(Finding("contradiction", place, "another answer to the same question", first))
        return False


def check_files(config: CheckConfig, progress: Progress | None = None, *, cleaning: bool = False) -> Checked:
    """Apply the rules to every row. Raises ``ConfigError`` or ``DataError`` in one line.

    A row that nearly says what several earlier ones say is a copy of the nearest of those that no other rule and no
    earlier copy takes away: where copies are removed, one of them stays.
    """
    if not 0 < config.threshold <= 1:
        raise ConfigError(f"--threshold is {config.threshold}; it must be above 0 and at most 1")
    if config.max_chars < 1:
        raise ConfigError(f"--max-chars is {config.max_chars}; it must be at least 1")
    rules = chosen_rules(config.rules, cleaning=cleaning)
    limits = Limits(config.max_chars, wanted_language(config.language) if config.language else "")
    files, scan = Files(config.files, config.columns, progress), _Scan(rules, limits)
    texts = scan.run(files.read("checking"))
    if "near-duplicate" in rules:
        found = grams(texts)
        if progress:
            progress("near duplicates", 0, 0)
        scan.findings += _near(near_pairs(found, config.threshold), scan)
    else:
        for _ in texts:
            pass
    order = {name: number for number, name in enumerate(RULES)}
    findings = sorted(scan.findings, key=lambda one: (one.row, order[one.rule]))
    return Checked(files, findings, scan.places, scan.texts, rules, config.threshold, scan.bad, scan.unread)


def _near(pairs: Sequence[Near], scan: _Scan) -> Iterator[Finding]:
    gone = {finding.row for finding in scan.findings}
    earlier: dict[int, list[tuple[float, int]]] = {}
    for pair in pairs:
        first, second = sorted((scan.rows[pair.first], scan.rows[pair.second]))
        earlier.setdefault(second, []).append((-pair.jaccard, first))
    for second in sorted(earlier):
        staying = sorted((distance, first) for distance, first in earlier[second] if first not in gone)
        if staying:
            distance, first = staying[0]
            gone.add(second)
            yield Finding("near-duplicate", second, f"nearly an earlier row, Jaccard {-distance:.2f}", first)


def write_findings(path: Path, checked: Checked) -> None:
    """Write the whole report, with every finding, as JSON."""
    write_report(path, checked.report(None))
