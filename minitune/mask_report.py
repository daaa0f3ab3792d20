"""The proof of the mask: what must hold for every example before anything is trained.

The check starts from the ids, the mask and the texts of the answers, and not from the spans that made the mask: the
trained ids fall into stretches, each of which must decode to one answer and end with an id that the generator stops on.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from minitune.chat import AnyTemplate, Encoded, Template
from minitune.tokenizer import Tokenizer

RULES = {
    "mask": "every id has one mask entry, and the spans cover all ids in order",
    "trained": "every row has a trained token",
    "first": "the first id of a row is not trained, since nothing predicts it",
    "answer": "every trained answer decodes to its text exactly",
    "terminator": "every trained answer ends with a trained id that the generator stops on",
    "behind": "nothing that stands behind an answer's end is trained",
    "role": "only what the assistant says is trained",
    "control": "no stop, start or padding id stands in the text of a message",
    "start": "a text starts with the start token exactly once, where it has one",
}
MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Checks:
    """What examples are checked against.

    ``stop_ids``: what the generator stops on; ``starts``: whether a text begins with the start token, None where the
    template decides that by itself.
    """

    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    starts: bool | None

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: AnyTemplate, stop_ids: Sequence[int]) -> "Checks":
        """The checks of examples that ``template`` writes."""
        starts = None
        if isinstance(template, Template):
            starts = tokenizer.adds_bos if template.start is None else template.start
            starts = bool(starts) and tokenizer.bos_id is not None
        return cls(tokenizer, frozenset(stop_ids), starts)


@dataclass
class MaskReport:
    """Counts over all rows, and the first failures; reports of parts add up."""

    rows: int = 0
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    altered_answers: int = 0
    """Answers that this tokenizer cannot hold exactly: characters without a token, or normalised ones."""
    split_rows: int = 0
    """Rows that became several examples, since their template writes earlier turns otherwise in later prompts."""
    shortened_rows: int = 0
    """Rows whose oldest turns were left out to fit."""
    cut_rows: int = 0
    """Rows whose last answer was cut to fit; it ends without a stop id."""
    tokens_by_role: Counter[str] = field(default_factory=Counter)
    trained_by_role: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    """The first failures: the place, the rule, and what was found."""

    def add(self, where: str, examples: Sequence[Encoded], answers: Sequence[Sequence[str]], checks: Checks,
            *, cut: bool = False) -> None:  # fmt: skip
        """Check and count the examples of one row; ``answers`` are the texts of the trained answers of each."""
        self.rows += 1
        self.examples += len(examples)
        self.split_rows += len(examples) > 1
        self.cut_rows += cut
        if not examples:
            self.fail(where, "trained", "no answer of this row is trained")
        for example, texts in zip(examples, answers, strict=True):
            self.tokens += len(example.ids)
            self.trained_tokens += example.trained_tokens
            self.longest = max(self.longest, len(example.ids))
            for span in example.spans:
                self.tokens_by_role[span.role or "template"] += span.end - span.start
                if span.trained:
                    self.trained_by_role[span.role or "template"] += span.end - span.start
            verdict = check_example(example, texts, checks, cut=cut)
            self.altered_answers += verdict.altered
            if verdict.rule:
                self.fail(where, verdict.rule, verdict.found)

    def fail(self, where: str, rule: str, found: str) -> None:
        """Count a failure, and keep it where it is among the first."""
        self.failures[rule] += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append((where, rule, found))

    def as_json(self) -> dict[str, Any]:
        """Every count by its name; ``from_json`` takes it back."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in found.items()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "MaskReport":
        """The report that ``as_json`` gave."""
        values: dict[str, Any] = {
            name: Counter(value) if isinstance(value, dict) else value for name, value in found.items()
        }
        values["problems"] = [tuple(problem) for problem in values["problems"]]
        return cls(**values)

    def merge(self, other: "MaskReport") -> None:
        """Add the counts of rows that come after these."""
        for name in ("rows", "examples", "tokens", "trained_tokens", "altered_answers", "split_rows", "shortened_rows",
                     "cut_rows"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)
        self.tokens_by_role += other.tokens_by_role
        self.trained_by_role += other.trained_by_role
        self.failures += other.failures
        self.problems = (self.problems + other.problems)[:MOST_PROBLEMS]


class Verdict(NamedTuple):
    """The first rule that an example breaks, "" for none; what was found; how many answers it cannot hold exactly."""

    rule: str = ""
    found: str = ""
    altered: int = 0


def check_example(example: Encoded, answers: Sequence[str], checks: Checks, *, cut: bool = False) -> Verdict:
    """What is wrong with an example.

    ``answers``: the texts that must be trained, in order. ``cut``: the last of them was cut to fit, and must lack its
    end.
    """
    ids, trained, tokenizer = example.ids, example.trained, checks.tokenizer
    if len(ids) != len(trained):
        return Verdict("mask", f"{len(ids)} ids but {len(trained)} mask entries")
    places = [0, *(span.end for span in example.spans)]
    if [span.start for span in example.spans] != places[:-1] or places[-1] != len(ids):
        return Verdict("mask", "the spans leave a gap or overlap")
    if True not in trained:
        return Verdict("trained", "no token is trained")
    if trained[0]:
        return Verdict("first", "the first id is trained")
    problem = _outside(example, checks)
    if problem is not None:
        return Verdict(*problem)
    altered = 0
    found = _stretches(ids, trained, checks.stop_ids)
    if len(found) != len(answers):
        return Verdict("answer", f"{len(found)} stretches of trained ids for {len(answers)} answers")
    for number, ((start, end), text) in enumerate(zip(found, answers, strict=True)):
        whole = not cut or number + 1 < len(found)
        if whole and ids[end - 1] not in checks.stop_ids:
            allowed = sorted(checks.stop_ids)
            found_id = f"the last trained id {ids[end - 1]} is not one that the generator stops on {allowed}"
            return Verdict("terminator", found_id)
        if not whole and ids[end - 1] in checks.stop_ids:
            return Verdict("terminator", "a cut answer ends with a stop id, as if it were complete")
        inside = ids[start : end - 1] if whole else ids[start:end]
        control = {token for token in (tokenizer.bos_id, tokenizer.pad_id) if token not in (None, tokenizer.unk_id)}
        if control & set(inside):
            return Verdict("control", f"control id {min(control & set(inside))} stands in the answer {text[:60]!r}")
        # Where nothing but the start token stands before it, an answer begins as a text does by itself.
        begins = start == 0 or (start == 1 and (ids[0] == tokenizer.bos_id or _unpredicted(example)))
        if start == 1 and _unpredicted(example):
            inside = [ids[0], *inside]
        decoded = tokenizer.decode(inside, continues=not begins)
        altered += whole and decoded != text
        held = text if decoded == text else _held(text, tokenizer, continues=not begins)
        if decoded != held and (whole or not held.startswith(decoded.rstrip("\ufffd"))):
            return Verdict("answer", f"the trained ids decode to {decoded[:60]!r}, not to the answer {text[:60]!r}")
    return Verdict(altered=altered)


def _unpredicted(example: Encoded) -> bool:
    """Whether the first id of all belongs to an answer."""
    first = example.spans[0]
    return first.role == "assistant" and first.part == "content"


def _outside(example: Encoded, checks: Checks) -> tuple[str, str] | None:
    """What is wrong with roles, control ids in messages, and what stands behind the last answer."""
    ids, tokenizer = example.ids, checks.tokenizer
    last = max(i for i, span in enumerate(example.spans) if span.trained)
    for i, span in enumerate(example.spans):
        if span.trained and span.role != "assistant":
            return "role", f"ids {span.start} to {span.end - 1} are trained and belong to {span.role or 'the template'}"
        if i > last and span.part != "after":
            return "behind", f"ids {span.start} to {span.end - 1} stand behind the last trained one"
        if span.part != "content" or span.trained:
            continue
        control = {token for token in (*checks.stop_ids, tokenizer.bos_id) if token not in (None, tokenizer.unk_id)}
        inside = control & set(ids[span.start : span.end])
        if inside and not (span.start == 0 and {ids[0]} == inside and ids[1 : span.end].count(ids[0]) == 0):
            return "control", f"control id {min(inside)} stands in the text of message {span.turn + 1}"
    if tokenizer.bos_id is not None and checks.starts is not None:
        doubled = ids[:2] == [tokenizer.bos_id] * 2
        if checks.starts != (ids[0] == tokenizer.bos_id) or doubled:
            places = [i for i, token in enumerate(ids) if token == tokenizer.bos_id][:4]
            return "start", f"the start token {tokenizer.bos_id} stands at {places or 'no place'}"
    return None


def _stretches(ids: Sequence[int], trained: Sequence[bool], stop_ids: frozenset[int]) -> list[tuple[int, int]]:
    """Where the trained answers stand: each ends with a stop id, or where the mask does."""
    found: list[tuple[int, int]] = []
    start = -1
    for place, flag in enumerate(trained):
        if flag and start < 0:
            start = place
        if start >= 0 and (not flag or ids[place] in stop_ids):
            found.append((start, place + 1 if flag else place))
            start = -1
    if start >= 0:
        found.append((start, len(ids)))
    return found


def _held(text: str, tokenizer: Tokenizer, *, continues: bool = True) -> str:
    """The text as the tokenizer can hold it."""
    return tokenizer.decode(tokenizer.encode(text, continues=continues), continues=continues)
