"""What a conversation becomes: ids, and for each stretch of them where it comes from and why it is trained or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

Part = Literal["start", "header", "content", "terminator", "after"]

# The rules, in words for people. Each is one object, however many spans it decides.
ANSWER = "answer of an assistant turn"
BY_ROW = "train is true in the row"
NOT_BY_ROW = "train is false in the row"
NO_WEIGHT = "the weight is 0 in the row"
ONLY_LAST = "only the last answer is trained"
OTHERWISE = "a later prompt writes this turn otherwise, so it is trained in an example of its own"
UNPREDICTED = "nothing stands before it, so nothing predicts it"
PROMPT = "text of the prompt"
HEADER = "opens an answer; given when the model is asked"
AFTER = "stands behind the end of an answer"
START = "start of the text"


class Span(NamedTuple):
    """Ids ``start`` to before ``end``, all of one kind.

    ``turn`` is the index of the message, -1 for none. In a prompt, text of the template and of messages that stand
    together are encoded together, and such a span is "content". ``rule`` is why it is trained or not. ``text``, of
    the content of an answer: what its ids must decode to (an answer whose first id nothing predicts has two spans,
    and each says the text of both).
    """

    start: int
    end: int
    turn: int
    role: str
    part: Part
    trained: bool
    weight: float
    rule: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of a conversation, and the spans that they are made of, in order and without a gap."""

    ids: list[int]
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, ids: Sequence[int], trained: Sequence[bool]) -> "Encoded":
        """Ids with a mask from elsewhere; what is trained counts as an answer's."""
        cuts = [0, *(i for i in range(1, len(trained)) if trained[i] != trained[i - 1]), len(trained)]
        spans = [
            Span(a, b, -1, "assistant" if trained[a] else "user", "content", trained[a], float(trained[a]), "")
            for a, b in pairwise(cuts)
            if a < b
        ]
        return cls(list(ids), tuple(spans))

    @property
    def trained(self) -> list[bool]:
        """For each id, whether it is trained."""
        mask: list[bool] = []
        for span in self.spans:
            mask += [span.trained] * (span.end - span.start)
        return mask

    @property
    def trained_tokens(self) -> int:
        return sum(span.end - span.start for span in self.spans if span.trained)

    @property
    def weights(self) -> list[float]:
        """For each id, what its loss is multiplied by; 0 where it is not trained."""
        weights: list[float] = []
        for span in self.spans:
            weights += [span.weight if span.trained else 0.0] * (span.end - span.start)
        return weights
