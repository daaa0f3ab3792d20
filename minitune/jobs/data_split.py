"""Instruction files into train, validation and test parts that share no question, nor nearly one."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from minitune.data.formats import BadRow
from minitune.data.minhash import Near, grams, near_pairs
from minitune.data.normal import digest, question_text
from minitune.data.split import part_sizes, split_groups
from minitune.errors import ConfigError, DataError
from minitune.files import whole_folder
from minitune.jobs.data_files import Files, Place, Progress, check_out, excerpt, json_line, place_of, write_report

PARTS = ("train", "val", "test")
_REPORT = "split.json"
_OURS = (_REPORT, *(f"{part}.jsonl" for part in PARTS))


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """What ``minitune data split`` is asked for."""

    files: Sequence[str]
    """Instruction files: JSON, JSON Lines, CSV, TSV, Parquet or text, in any layout."""
    out: str
    """Folder to write: train.jsonl, val.jsonl, test.jsonl and split.json; must be new or empty (see --force)."""
    train: float | None = None
    """Rows to train on: a fraction below 1 or a count; all that the others leave if not given."""
    val: float = 0.05
    """Rows to validate on: a fraction below 1 (0.05), a count (200), or 0 for no such part."""
    test: float = 0.0
    """Rows to test on: a fraction below 1, a count, or 0 for no such part."""
    near: Literal["together", "report", "refuse"] = "together"
    """Questions that are nearly the same: keep them in one part, let them stand and list them, or write nothing."""
    threshold: float = 0.8
    """Jaccard similarity of their words, in pairs of two, from which questions are nearly the same; 1 is equal."""
    columns: str = ""
    """Keys of other layouts, ours=theirs: instruction=question,output=answer."""
    on_bad: Literal["error", "drop"] = "error"
    """A row that cannot be used: stop with its line and reason, or leave it out and list it in split.json."""
    seed: int = 0
    """Decides which questions go where; the same rows and seed give the same parts."""
    force: bool = False
    """Replace what an earlier split left in --out."""


@dataclass(frozen=True)
class Leak:
    """Two rows in different parts whose questions are nearly the same."""

    first: str  # where, in words
    first_part: str
    second: str
    second_part: str
    jaccard: float
    first_text: str
    second_text: str


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What became of every row."""

    out: str
    files: dict[str, str]  # SHA-256 by name
    rows: int  # objects that were split
    parts: dict[str, int]
    left_out: int  # rows that no part asked for
    bad: list[BadRow]
    groups: int  # different questions
    kept_together: int  # near duplicates that the parts were not allowed to tear apart
    near_pairs: int  # pairs of questions across the parts that are nearly the same
    leaks: list[Leak]  # which they are, the nearest first
    seed: int
    threshold: float


@dataclass
class _Read:
    """What is remembered of the files: of each object, where it is and which question it asks."""

    places: list[Place] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    texts: dict[bytes, str] = field(default_factory=dict)  # one of each question
    bad: list[BadRow] = field(default_factory=list)


def split_files(config: SplitConfig, progress: Progress | None = None) -> SplitReport:
    """Split the files, write the parts and the report, and return it.

    Objects are written as they stand in the file. Rows with the same question are in one part always; with
    ``near="together"`` so are those with nearly the same, and with "refuse" a pair across parts is an error and nothing
    is written. Raises ``ConfigError`` or ``DataError`` in one line.
    """
    if not 0 < config.threshold <= 1:
        raise ConfigError(f"--threshold is {config.threshold}; it must be above 0 and at most 1")
    out = Path(config.out)
    check_out(out, force=config.force, inputs=config.files, ours=_OURS)
    files = Files(config.files, config.columns, progress)
    read = _read(files, config.on_bad)
    sizes = part_sizes(len(read.places), train=config.train, val=config.val, test=config.test)
    questions = list(read.texts)
    if progress:
        progress("near duplicates", 0, 0)
    pairs = near_pairs(grams(read.texts.values()), config.threshold)
    keys = _joined(read.keys, questions, pairs) if config.near == "together" else read.keys
    named = list(sizes)
    rest = "train" if "train" not in sizes else ""
    parts = [named[part] if part >= 0 else rest for part in split_groups(keys, list(sizes.values()), seed=config.seed)]
    leaks = _leaks(read, questions, pairs, parts)
    if leaks and config.near == "refuse":
        one = leaks[0]
        raise DataError(
            f"{len(leaks):,} pairs of questions across the parts are nearly the same, the first with Jaccard "
            f"{one.jaccard:.2f}: {one.first} ({one.first_part}) and {one.second} ({one.second_part}); pass --near "
            "together to keep such rows in one part"
        )
    report = SplitReport(
        out=str(out),
        files=files.hashes,
        rows=len(parts),
        parts={part: parts.count(part) for part in PARTS if part in parts},
        left_out=parts.count(""),
        bad=read.bad,
        groups=len(questions),
        kept_together=len(questions) - len(set(keys)),
        near_pairs=len(leaks),
        leaks=leaks,
        seed=config.seed,
        threshold=config.threshold,
    )
    _write(files, parts, report, out)
    return report


def _read(files: Files, on_bad: str) -> _Read:
    read = _Read()
    for entry in files.read():
        if entry.bad is not None:
            read.bad.append(entry.bad)
            if entry.bad.unread:
                raise DataError(f"{entry.bad.where}: {entry.bad.reason}; mend the file")
            continue
        # The examples of a seed task are one object, which is not cut: its questions are one question.
        text = "\n".join(question_text(row) for row in entry.rows)
        key = digest(text)
        read.places.append(place_of(entry))
        read.keys.append(key)
        read.texts.setdefault(key, text)
    if read.bad and on_bad != "drop":
        first = read.bad[0]
        raise DataError(
            f"{len(read.bad):,} of {files.count:,} rows cannot be used, the first: {first.where}: {first.reason}; fix "
            "them, or pass --on-bad drop"
        )
    return read


def _joined(keys: Sequence[bytes], questions: Sequence[bytes], pairs: Sequence[Near]) -> list[bytes]:
    """Return for each row the key of its cluster: the smallest of the questions that near pairs tie together."""
    above: dict[bytes, bytes] = {}

    def top(key: bytes) -> bytes:
        while key in above:
            key = above[key]
        return key

    for pair in pairs:
        one, other = sorted((top(questions[pair.first]), top(questions[pair.second])))
        if one != other:
            above[other] = one
    return [top(key) for key in keys]


def _leaks(read: _Read, questions: Sequence[bytes], pairs: Sequence[Near], parts: Sequence[str]) -> list[Leak]:
    """Return the near pairs that stand in different parts, by one row of each question; the nearest first."""
    first: dict[bytes, int] = {}
    for place, key in enumerate(read.keys):
        first.setdefault(key, place)
    leaks = []
    for pair in pairs:
        one, other = first[questions[pair.first]], first[questions[pair.second]]
        if parts[one] != parts[other] and parts[one] and parts[other]:
            leaks.append(
                Leak(
                    read.places[one].where,
                    parts[one],
                    read.places[other].where,
                    parts[other],
                    round(pair.jaccard, 4),
                    excerpt(read.texts[questions[pair.first]]),
                    excerpt(read.texts[questions[pair.second]]),
                )
            )
    return sorted(leaks, key=lambda leak: -leak.jaccard)


def _write(files: Files, parts: Sequence[str], report: SplitReport, out: Path) -> None:
    with whole_folder(out) as folder:
        with ExitStack() as stack:
            open_files = {
                part: stack.enter_context((folder / f"{part}.jsonl").open("w", encoding="utf-8", newline="\n"))
                for part in report.parts
            }
            good = (entry for entry in files.read("writing") if entry.bad is None)
            for entry, part in zip(good, parts, strict=True):
                if part:
                    open_files[part].write(json_line(entry))
        write_report(folder / _REPORT, report)
