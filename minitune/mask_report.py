"""The proof of the mask: what must hold for every row before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

from minitune.chat import Encoded
from minitune.errors import DataError
from minitune.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class MaskReport:
    """Counts over all rows, for the log and for ``inspect.json``."""

    rows: int
    tokens: int
    trained_tokens: int
    altered_answers: int
    """Answers that this tokenizer cannot hold exactly: characters without a token, or normalised ones."""
    longest: int


def check_mask(
    rows: Sequence[Encoded], answers: Sequence[str], places: Sequence[str], tokenizer: Tokenizer, stop_ids: set[int]
) -> MaskReport:
    """Assert of every row that its answer and one stop id are trained, and no more; DataError names the first failure.

    ``answers`` are the texts that must be trained, ``places`` where the rows come from, ``stop_ids`` what the
    generator stops on.
    """
    altered = 0
    for row, answer, place in zip(rows, answers, places, strict=True):
        held = tokenizer.decode(tokenizer.encode(answer, continues=True), continues=True)
        altered += held != answer
        problem = _problem(row, held, tokenizer, stop_ids)
        if problem:
            raise DataError(f"{place}: the loss mask is wrong: {problem}")
    return MaskReport(
        rows=len(rows),
        tokens=sum(len(row.ids) for row in rows),
        trained_tokens=sum(row.trained_tokens for row in rows),
        altered_answers=altered,
        longest=max((len(row.ids) for row in rows), default=0),
    )


def _problem(row: Encoded, answer: str, tokenizer: Tokenizer, stop_ids: set[int]) -> str:
    """What is wrong with one row, or nothing; ``answer`` is the text as the tokenizer can hold it."""
    if len(row.ids) != len(row.trained):
        return f"{len(row.ids)} ids but {len(row.trained)} mask entries"
    first = row.trained.index(True) if True in row.trained else len(row.ids)
    trained = row.ids[first:]
    if not trained:
        return "no token is trained"
    if first == 0:
        return "the first token is trained, but nothing predicts it"
    if not all(row.trained[first:]):
        return "tokens after the answer are not trained as one piece"
    if trained[-1] not in stop_ids:
        return f"the last trained id {trained[-1]} is not one that the generator stops on {sorted(stop_ids)}"
    # A start token may have the stop id's number; it is where it belongs or the check below tells.
    inside = row.ids[1:-1] if tokenizer.adds_bos else row.ids[:-1]
    if any(token in stop_ids for token in inside):
        return "a stop id stands before the end of the answer"
    text = tokenizer.decode(trained[:-1], continues=True)
    if text != answer:
        return f"the trained ids decode to {text[:60]!r}, not to the answer {answer[:60]!r}"
    starts = [i for i, token in enumerate(row.ids) if token == tokenizer.bos_id]
    if tokenizer.adds_bos and tokenizer.bos_id not in (None, trained[-1]) and starts != [0]:
        return f"the start token {tokenizer.bos_id} stands at {starts or 'no place'}, not once at the start"
    return ""
