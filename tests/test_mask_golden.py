"""The loss mask of six rows, written out: every id with its label, as training must see them.

The ids were put together by hand with the ``tokenizers`` library and not with this package: the start token, the ids
of the prompt, the ids of the answer without a dummy prefix (the Prepend normaliser taken out), the stop token. The
last test does it again.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minitune.chat import ALPACA, Encoded, Message, render
from minitune.data.batch import pad_rows
from minitune.mask_report import RULES, Checks, MaskReport
from minitune.ops import IGNORE
from minitune.tokenizer import Tokenizer, load_tokenizer

BOS, STOP, UNKNOWN = 1, 2, 0
X = IGNORE


@dataclass(frozen=True)
class Golden:
    """One row of instruction data, its ids, and for each id itself where it is trained, else ``X``."""

    instruction: str
    context: str
    answer: str
    ids: list[int]
    labels: list[int]

    @property
    def turns(self) -> list[Message]:
        return [Message("user", self.instruction, self.context), Message("assistant", self.answer)]

    @property
    def encoded(self) -> Encoded:
        return Encoded.of(list(self.ids), [label != X for label in self.labels])

    @property
    def start(self) -> int:
        """The place of the first trained id."""
        return self.labels.count(X)


# The vocabulary of TinyStories-656K has no "#", no Chinese and no bytes: they are the unknown token, which is also
# the padding token of these files. In the last two rows it is trained, and typed control strings are plain text.
GOLDEN = {
    "no_input": Golden(
        instruction="What are the three primary colors?",
        context="",
        answer="The three primary colors are red, blue, and yellow.",
        ids=[
            1, 80, 27, 57, 133, 172, 360, 1137, 96, 726, 488, 548, 391, 234, 56, 233, 1141, 164, 1010, 292, 289, 84,
            48, 70, 777, 134, 123, 415, 111, 267, 1068, 85, 151, 219, 635, 232, 2006, 466, 125, 317, 368, 93, 123,
            514, 845, 122, 3, 0, 80, 1615, 726, 488, 548, 111, 21, 3, 48, 924, 482, 93, 1161, 81, 862, 110, 101, 87,
            933, 71, 25, 3, 3, 0, 80, 43, 233, 68, 111, 178, 21, 3, 247, 1161, 81, 862, 110, 101, 87, 933, 71, 482,
            1370, 94, 1830, 1916, 1233, 378, 10, 2,
        ],
        labels=[
            *[X] * 80,
            247, 1161, 81, 862, 110, 101, 87, 933, 71, 482, 1370, 94, 1830, 1916, 1233, 378, 10, 2,
        ],
    ),
    "with_input": Golden(
        instruction="Identify the odd one out.",
        context="Twitter, Instagram, Telegram",
        answer="Telegram",
        ids=[
            1, 80, 27, 57, 133, 172, 360, 1137, 96, 726, 488, 548, 391, 234, 56, 233, 1141, 164, 1010, 292, 289, 94,
            457, 126, 92, 146, 1137, 96, 491, 234, 1647, 74, 121, 368, 1903, 395, 1242, 72, 375, 72, 84, 48, 70, 777,
            134, 123, 415, 111, 267, 1068, 85, 151, 219, 635, 232, 2006, 466, 125, 317, 368, 93, 123, 514, 845, 122,
            3, 0, 80, 1615, 726, 488, 548, 111, 21, 3, 34, 56, 443, 61, 58, 87, 93, 524, 82, 425, 392, 122, 3, 0, 80,
            1615, 495, 72, 21, 3, 45, 75, 207, 91, 94, 1615, 1138, 1428, 127, 94, 45, 1887, 1428, 127, 3, 3, 0, 80,
            43, 233, 68, 111, 178, 21, 3, 45, 1887, 1428, 127, 2,
        ],
        labels=[
            *[X] * 120,
            45, 1887, 1428, 127, 2,
        ],
    ),
    "answer_of_several_lines": Golden(
        instruction="Classify the following into animals, plants, and minerals",
        context="Oak tree, copper ore, elephant",
        answer="Oak tree: Plant\n Copper ore: Mineral\n Elephant: Animal",
        ids=[
            1, 80, 27, 57, 133, 172, 360, 1137, 96, 726, 488, 548, 391, 234, 56, 233, 1141, 164, 1010, 292, 289, 94,
            457, 126, 92, 146, 1137, 96, 491, 234, 1647, 74, 121, 368, 1903, 395, 1242, 72, 375, 72, 84, 48, 70, 777,
            134, 123, 415, 111, 267, 1068, 85, 151, 219, 635, 232, 2006, 466, 125, 317, 368, 93, 123, 514, 845, 122,
            3, 0, 80, 1615, 726, 488, 548, 111, 21, 3, 28, 291, 71, 601, 58, 87, 93, 1522, 149, 96, 88, 1461, 699,
            935, 72, 1375, 1527, 91, 383, 71, 3, 3, 0, 80, 1615, 495, 72, 21, 3, 40, 53, 310, 307, 215, 321, 151, 120,
            117, 215, 1887, 68, 560, 72, 3, 3, 0, 80, 43, 233, 68, 111, 178, 21, 3, 40, 53, 310, 1074, 1608, 41, 64,
            1568, 3, 80, 28, 67, 151, 120, 117, 57, 1608, 38, 96, 91, 383, 3, 80, 30, 161, 68, 560, 72, 1608, 708,
            739, 2,
        ],
        labels=[
            *[X] * 129,
            40, 53, 310, 1074, 1608, 41, 64, 1568, 3, 80, 28, 67, 151, 120, 117, 57, 1608, 38, 96, 91, 383, 3, 80, 30,
            161, 68, 560, 72, 1608, 708, 739, 2,
        ],
    ),
    "instruction_of_several_lines": Golden(
        instruction='Rewrite the following sentence:\n\n"The candidate is a highly motivated individual"',
        context="",
        answer="The candidate has an intense desire to succeed and to reach their goals.",
        ids=[
            1, 80, 27, 57, 133, 172, 360, 1137, 96, 726, 488, 548, 391, 234, 56, 233, 1141, 164, 1010, 292, 289, 84,
            48, 70, 777, 134, 123, 415, 111, 267, 1068, 85, 151, 219, 635, 232, 2006, 466, 125, 317, 368, 93, 123,
            514, 845, 122, 3, 0, 80, 1615, 726, 488, 548, 111, 21, 3, 43, 57, 1437, 119, 573, 1522, 149, 71, 443, 102,
            682, 21, 3, 3, 5, 247, 687, 697, 1223, 1220, 918, 508, 605, 548, 74, 232, 92, 96, 535, 74, 121, 73, 383,
            256, 3, 0, 80, 43, 233, 68, 111, 178, 21, 3, 247, 687, 697, 1223, 105, 71, 1137, 1124, 102, 267, 56, 233,
            126, 627, 71, 488, 682, 252, 98, 407, 350, 334, 254, 383, 71, 10, 2,
        ],
        labels=[
            *[X] * 100,
            247, 687, 697, 1223, 105, 71, 1137, 1124, 102, 267, 56, 233, 126, 627, 71, 488, 682, 252, 98, 407, 350,
            334, 254, 383, 71, 10, 2,
        ],
    ),
    "chinese": Golden(
        instruction="法国的首都是什么？",
        context="",
        answer="法国的首都是巴黎。",
        ids=[
            1, 80, 27, 57, 133, 172, 360, 1137, 96, 726, 488, 548, 391, 234, 56, 233, 1141, 164, 1010, 292, 289, 84,
            48, 70, 777, 134, 123, 415, 111, 267, 1068, 85, 151, 219, 635, 232, 2006, 466, 125, 317, 368, 93, 123,
            514, 845, 122, 3, 0, 80, 1615, 726, 488, 548, 111, 21, 3, 0, 3, 3, 0, 80, 43, 233, 68, 111, 178, 21, 3, 0,
            2,
        ],
        labels=[
            *[X] * 68,
            0, 2,
        ],
    ),
    "typed_control_strings": Golden(
        instruction="Tell me what <|end_story|> means.",
        context="<|start_story|>",
        answer="It ends: <|end_story|> <|start_story|>!",
        ids=[
            1, 80, 27, 57, 133, 172, 360, 1137, 96, 726, 488, 548, 391, 234, 56, 233, 1141, 164, 1010, 292, 289, 94,
            457, 126, 92, 146, 1137, 96, 491, 234, 1647, 74, 121, 368, 1903, 395, 1242, 72, 375, 72, 84, 48, 70, 777,
            134, 123, 415, 111, 267, 1068, 85, 151, 219, 635, 232, 2006, 466, 125, 317, 368, 93, 123, 514, 845, 122,
            3, 0, 80, 1615, 726, 488, 548, 111, 21, 3, 45, 57, 159, 797, 563, 208, 183, 209, 210, 80, 452, 116, 1463,
            3, 0, 80, 1615, 495, 72, 21, 3, 208, 212, 210, 3, 3, 0, 80, 43, 233, 68, 111, 178, 21, 3, 1044, 183, 71,
            21, 211, 183, 209, 210, 214, 4, 2,
        ],
        labels=[
            *[X] * 110,
            1044, 183, 71, 21, 211, 183, 209, 210, 214, 4, 2,
        ],
    ),
}  # fmt: skip
EACH = pytest.mark.parametrize("name", GOLDEN)


@pytest.fixture(scope="session")
def tokenizer(material: Path) -> Tokenizer:
    found = load_tokenizer(material / "weights/TinyStories-656K")
    assert (found.bos_id, found.eos_id, found.pad_id) == (BOS, STOP, UNKNOWN)
    return found


def encode(tokenizer: Tokenizer, turns: list[Message]) -> Encoded:
    return render(turns, ALPACA, tokenizer, STOP)


def check(rows: list[Encoded], answers: list[str], tokenizer: Tokenizer) -> MaskReport:
    report = MaskReport()
    for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        report.add(f"row {i}", [row], [[answer]], Checks.of(tokenizer, ALPACA, [STOP]))
    return report


# -- the golden rows


@EACH
def test_ids_and_labels(tokenizer: Tokenizer, name: str) -> None:
    """Guards B4: exactly these ids, exactly these labels."""
    row = GOLDEN[name]
    encoded = encode(tokenizer, row.turns)
    labels = [token if trained else X for token, trained in zip(encoded.ids, encoded.trained, strict=True)]
    assert list(zip(encoded.ids, labels, strict=True)) == list(zip(row.ids, row.labels, strict=True))


@EACH
def test_one_row_as_a_batch(name: str) -> None:
    """Guards the shift: position t has the label of id t + 1 as its target, so the first answer id is predicted."""
    row = GOLDEN[name]
    batch = pad_rows([row.encoded])
    assert batch.ids.tolist() == [row.ids[:-1]]
    assert batch.targets.tolist() == [row.labels[1:]]
    first = row.start - 1  # the last id of the prompt predicts the first of the answer
    assert batch.targets[0, : first + 1].tolist() == [X] * first + [row.ids[first + 1]]
    assert batch.targets[0, -1] == STOP
    assert batch.trained_tokens == len(row.ids) - row.start
    assert batch.denominator == float(batch.trained_tokens)


def test_all_rows_as_a_padded_batch() -> None:
    """Guards B1 and B28: padding is at the end and never a target; an id that equals it is one all the same."""
    batch = pad_rows([row.encoded for row in GOLDEN.values()])
    longest = max(len(row.ids) for row in GOLDEN.values()) - 1
    assert batch.ids.shape == batch.targets.shape == (6, longest)
    for i, row in enumerate(GOLDEN.values()):
        n = len(row.ids) - 1
        assert batch.ids[i].tolist() == row.ids[:-1] + [0] * (longest - n)
        assert batch.targets[i].tolist() == row.labels[1:] + [X] * (longest - n)
    assert batch.targets[4].tolist().count(UNKNOWN) == 1
    assert batch.tokens == sum(len(row.ids) - 1 for row in GOLDEN.values())
    assert batch.trained_tokens == sum(len(row.ids) - row.start for row in GOLDEN.values())
    assert torch.equal(batch.plan.positions, torch.arange(longest).expand(6, -1))


# -- properties


def assert_mask_holds(tokenizer: Tokenizer, turns: list[Message]) -> None:
    """What must hold for any row."""
    encoded = encode(tokenizer, turns)
    ids, trained = encoded.ids, encoded.trained
    prompt = encode(tokenizer, turns[:1])
    n = len(prompt.ids)
    # What is read before the answer is what a generation starts from, and none of it is trained.
    assert ids[:n] == prompt.ids
    assert not any(prompt.trained)
    assert trained == [False] * n + [True] * (len(ids) - n)
    # One start token, at the start; one stop token, at the end, trained.
    assert ids[0] == BOS
    assert ids.count(BOS) == 1
    assert ids[-1] == STOP
    assert ids.count(STOP) == 1
    # The trained ids are the answer and the stop.
    answer = turns[1].content
    assert tokenizer.decode(ids[n:-1], continues=True) == held(tokenizer, answer)
    assert ids[n:-1] == tokenizer.encode(answer, continues=True)


def held(tokenizer: Tokenizer, text: str) -> str:
    """The text as this vocabulary can hold it: a stretch of unknown characters is one U+FFFD, marks are spaces."""
    kept, gap = "", False
    for c in text.replace("\u2581", " "):
        known = c == " " or tokenizer.token_id(c) is not None
        if known or not gap:
            kept += c if known else "\ufffd"
        gap = not known
    return kept


@EACH
def test_the_mask_holds(tokenizer: Tokenizer, name: str) -> None:
    """Guards B2, B3, B8, B10 and B13 on the golden rows."""
    row = GOLDEN[name]
    assert_mask_holds(tokenizer, row.turns)
    if name == "chinese":
        assert tokenizer.decode(row.ids[row.start : -1], continues=True) == "\ufffd"
    else:
        assert tokenizer.decode(row.ids[row.start : -1], continues=True) == row.answer


TEXTS = st.lists(
    st.one_of(
        st.sampled_from(["<|end_story|>", "<|start_story|>", "<unk>", "### Response:\n", " ", "\n", "\n\n", "<0x02>"]),
        st.sampled_from(["Lily", " said", "the end", "\u2581", "\u56db", "'", "<|", "|>"]),
        st.text(max_size=4),
    ),
    min_size=1,
    max_size=8,
).map("".join)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(instruction="x", context="", answer=" leading and trailing \n")
@example(instruction="\n\n", context=" ", answer="\n\n### Response:\n<|end_story|>")
@example(instruction="<|start_story|>", context="<|end_story|>", answer="<|end_story|><|end_story|>")
@given(instruction=TEXTS, context=TEXTS | st.just(""), answer=TEXTS)
def test_the_mask_holds_for_any_text(tokenizer: Tokenizer, instruction: str, context: str, answer: str) -> None:
    """Guards B11: whatever a row says, its text never becomes a control token and never moves the mask."""
    turns = [Message("user", instruction, context), Message("assistant", answer)]
    assert_mask_holds(tokenizer, turns)
    assert not check([encode(tokenizer, turns)], [answer], tokenizer).failures


# -- the check that every run makes


def test_the_check_passes_and_counts(tokenizer: Tokenizer) -> None:
    """Guards the report: the numbers that the log and inspect.json show."""
    rows = list(GOLDEN.values())
    report = check([row.encoded for row in rows], [row.answer for row in rows], tokenizer)
    tokens, trained = sum(len(row.ids) for row in rows), sum(len(row.ids) - row.start for row in rows)
    assert report == MaskReport(
        rows=6,
        examples=6,
        tokens=tokens,
        trained_tokens=trained,
        altered_answers=1,
        longest=161,
        tokens_by_role=Counter(user=tokens - trained, assistant=trained),
        trained_by_role=Counter(assistant=trained),
    )


Corruption = Callable[[Golden], Encoded]
CORRUPTIONS: dict[str, Corruption] = {
    "mask_one_later": lambda row: Encoded.of(row.ids, [False, *row.encoded.trained[:-1]]),
    "mask_one_earlier": lambda row: Encoded.of(row.ids, [*row.encoded.trained[1:], False]),
    "mask_starts_earlier": lambda row: Encoded.of(row.ids, [*row.encoded.trained[1:], True]),
    "first_answer_id_not_trained": lambda row: Encoded.of(row.ids, masked(row, row.start, False)),
    "everything_trained": lambda row: Encoded.of(row.ids, [True] * len(row.ids)),
    "prompt_trained": lambda row: Encoded.of(row.ids, [False] + [True] * (len(row.ids) - 1)),
    "one_prompt_id_trained": lambda row: Encoded.of(row.ids, masked(row, 3, True)),
    "nothing_trained": lambda row: Encoded.of(row.ids, [False] * len(row.ids)),
    "mask_inverted": lambda row: Encoded.of(row.ids, [not trained for trained in row.encoded.trained]),
    "mask_too_short": lambda row: Encoded.of(row.ids, row.encoded.trained[:-1]),
    "stop_dropped": lambda row: Encoded.of(row.ids[:-1], row.encoded.trained[:-1]),
    "stop_not_trained": lambda row: Encoded.of(row.ids, masked(row, len(row.ids) - 1, False)),
    "stop_twice": lambda row: put(row, len(row.ids), STOP),
    "stop_is_another_id": lambda row: Encoded.of([*row.ids[:-1], BOS], row.encoded.trained),
    "trained_after_the_stop": lambda row: put(row, len(row.ids), 3),
    "padding_after_the_stop": lambda row: put(row, len(row.ids), UNKNOWN, trained=False),
    "stop_in_the_answer": lambda row: put(row, row.start + 1, STOP),
    "stop_before_the_answer": lambda row: put(row, row.start, STOP, trained=False),
    "stop_in_the_prompt": lambda row: put(row, 5, STOP, trained=False),
    "start_twice": lambda row: put(row, 0, BOS, trained=False),
    "start_in_the_answer": lambda row: put(row, row.start + 1, BOS),
    "start_missing": lambda row: Encoded.of(row.ids[1:], row.encoded.trained[1:]),
    "start_not_at_the_start": lambda row: Encoded.of([row.ids[1], BOS, *row.ids[2:]], row.encoded.trained),
    "dummy_prefix_in_the_answer": lambda row: put(row, row.start, 80),
    "answer_cut": lambda row: Encoded.of([*row.ids[:-2], STOP], row.encoded.trained[:-1]),
}


def masked(row: Golden, place: int, value: bool) -> list[bool]:
    trained = row.encoded.trained
    trained[place] = value
    return trained


def put(row: Golden, place: int, token: int, *, trained: bool = True) -> Encoded:
    """The row with one more id."""
    mask = row.encoded.trained
    return Encoded.of([*row.ids[:place], token, *row.ids[place:]], [*mask[:place], trained, *mask[place:]])


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@EACH
def test_the_check_finds(tokenizer: Tokenizer, name: str, corruption: str) -> None:
    """Guards the guard: each way of breaking a row is found, in one line that names the row."""
    row, good = GOLDEN[name], GOLDEN["no_input"]
    report = check([good.encoded, CORRUPTIONS[corruption](row)], [good.answer, row.answer], tokenizer)
    assert report.failures.total() == 1
    [(where, rule, found)] = report.problems
    assert (where, rule in RULES) == ("row 1", True)
    assert "\n" not in found


# -- the golden rows once more, by the reference


@EACH
def test_the_lists_above_are_those_of_the_reference(material: Path, name: str) -> None:
    """Guards the truth itself: the ids come from ``tokenizers``, the prompt is written out once more."""
    from tokenizers import Tokenizer as Reference

    row = GOLDEN[name]
    spec: dict[str, Any] = json.loads((material / "weights/TinyStories-656K/tokenizer.json").read_text("utf-8"))
    whole = Reference.from_str(json.dumps(spec))
    assert spec["normalizer"]["normalizers"].pop(0)["type"] == "Prepend"
    behind = Reference.from_str(json.dumps(spec))
    whole.encode_special_tokens = behind.encode_special_tokens = True
    if row.context:
        prompt = (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{row.instruction}\n\n### Input:\n{row.context}\n\n### Response:\n"
        )
    else:
        prompt = (
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{row.instruction}\n\n### Response:\n"
        )
    before = [BOS, *whole.encode(prompt, add_special_tokens=False).ids]
    after = [*behind.encode(row.answer, add_special_tokens=False).ids, STOP]
    assert row.ids == before + after
    assert row.labels == [X] * len(before) + after
