"""Golden (id, label) lists of every template, written out by hand: a byte is its own id.

What is in ``T(...)`` is trained. The forms are those that the models' own templates are published with.
"""

from dataclasses import dataclass
from typing import Any

import pytest
from chat_cases import BOS, CONTROL, EOS, FAMILY, byte_tokenizer

from minitune.chat import TEMPLATES, Message, examples, render, terminator
from minitune.tokenizer import Tokenizer

IM_START, IM_END = 259, 260
START_HEADER, END_HEADER, EOT = 259, 260, 261
INST, INST_END = 259, 260
TURN, TURN_END = 259, 260
SYSTEM, USER, ASSISTANT, END = 259, 260, 261, 262


class T(tuple[int, ...]):
    """Trained ids."""

    def __new__(cls, *ids: int) -> "T":
        return super().__new__(cls, ids)


@dataclass(frozen=True)
class Golden:
    """A template, a conversation, and what it becomes: ids and trained stretches."""

    template: str
    turns: list[Message]
    parts: list[Any]

    @property
    def pairs(self) -> list[tuple[int, bool]]:
        found: list[tuple[int, bool]] = []
        for part in self.parts:
            ids = part if isinstance(part, T | bytes) else [part]
            found += [(token, isinstance(part, T)) for token in ids]
        return found


def said(*turns: str, system: str = "") -> list[Message]:
    roles = ("user", "assistant")
    found = [Message("system", system)] if system else []
    return [*found, *(Message(roles[i % 2], text) for i, text in enumerate(turns))]


TWO = said(" Hi ", "Yo", "Go", "Ok ")
TWO_SYSTEM = said(" Hi ", "Yo", "Go", "Ok ", system=" Be kind. ")
PREAMBLE = b"Below is an instruction that describes a task"
WRITE = b". Write a response that appropriately completes the request."
DATES = b"Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


def chatml_turns() -> list[Any]:
    return [
        IM_START, b"user\n Hi ", IM_END, b"\n", IM_START, b"assistant\n", T(*b"Yo", IM_END),
        b"\n", IM_START, b"user\nGo", IM_END, b"\n", IM_START, b"assistant\n", T(*b"Ok ", IM_END), b"\n",
    ]  # fmt: skip


def default_system(text: bytes) -> list[Any]:
    return [IM_START, b"system\n" + text, IM_END, b"\n"]


def header(role: bytes) -> list[Any]:
    return [START_HEADER, role, END_HEADER, b"\n\n"]


GOLDEN = {
    "alpaca": Golden(
        "alpaca", TWO,
        [PREAMBLE + WRITE + b"\n\n### Instruction:\n Hi \n\n### Response:\n", T(*b"Yo", EOS),
         b"\n\n### Instruction:\nGo\n\n### Response:\n", T(*b"Ok ", EOS)],
    ),
    "alpaca with input": Golden(
        "alpaca", [Message("user", "Add.", "1 2"), Message("assistant", "3")],
        [PREAMBLE + b", paired with an input that provides further context" + WRITE
         + b"\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n", T(*b"3", EOS)],
    ),
    "alpaca with system": Golden(
        "alpaca", said("Hi", "Yo", system="Be kind."),
        [b"Be kind.\n\n### Instruction:\nHi\n\n### Response:\n", T(*b"Yo", EOS)],
    ),
    "chatml": Golden("chatml", TWO, chatml_turns()),
    "chatml with system": Golden("chatml", TWO_SYSTEM, [*default_system(b" Be kind. "), *chatml_turns()]),
    "chatml with a tool": Golden(
        "chatml", [Message("user", "Hi"), Message("assistant", "?"), Message("tool", "7"), Message("assistant", "!")],
        [IM_START, b"user\nHi", IM_END, b"\n", IM_START, b"assistant\n", T(*b"?", IM_END), b"\n", IM_START, b"tool\n7",
         IM_END, b"\n", IM_START, b"assistant\n", T(*b"!", IM_END), b"\n"],
    ),
    "qwen": Golden(
        "qwen", TWO,
        [*default_system(b"You are Qwen, created by Alibaba Cloud. You are a helpful assistant."), *chatml_turns()],
    ),
    "qwen with a tool": Golden(
        "qwen", [Message("system", "S"), Message("user", "Hi"), Message("assistant", "?"), Message("tool", "7"),
                 Message("tool", "8"), Message("assistant", "!")],
        [*default_system(b"S"), IM_START, b"user\nHi", IM_END, b"\n", IM_START, b"assistant\n", T(*b"?", IM_END), b"\n",
         IM_START, b"user\n<tool_response>\n7\n</tool_response>\n<tool_response>\n8\n</tool_response>", IM_END, b"\n",
         IM_START, b"assistant\n", T(*b"!", IM_END), b"\n"],
    ),
    "qwen2": Golden("qwen2", TWO, [*default_system(b"You are a helpful assistant."), *chatml_turns()]),
    "smollm2": Golden(
        "smollm2", TWO,
        [*default_system(b"You are a helpful AI assistant named SmolLM, trained by Hugging Face"), *chatml_turns()],
    ),
    "llama2": Golden(
        "llama2", TWO,
        [BOS, b"[INST] Hi [/INST]", T(*b" Yo ", EOS), BOS, b"[INST] Go [/INST]", T(*b" Ok ", EOS)],
    ),
    "llama2 with system": Golden(
        "llama2", TWO_SYSTEM,
        [BOS, b"[INST] <<SYS>>\n Be kind. \n<</SYS>>\n\n Hi [/INST]", T(*b" Yo ", EOS), BOS, b"[INST] Go [/INST]",
         T(*b" Ok ", EOS)],
    ),
    "llama3": Golden(
        "llama3", TWO,
        [BOS, *header(b"user"), b"Hi", EOT, *header(b"assistant"), T(*b"Yo", EOT), *header(b"user"), b"Go", EOT,
         *header(b"assistant"), T(*b"Ok", EOT)],
    ),
    "llama3 with system": Golden(
        "llama3", said("Hi", "Yo", system=" Be kind. "),
        [BOS, *header(b"system"), b"Be kind.", EOT, *header(b"user"), b"Hi", EOT, *header(b"assistant"),
         T(*b"Yo", EOT)],
    ),
    "llama3.1": Golden(
        "llama3.1", said(" Hi ", "Yo"),
        [BOS, *header(b"system"), DATES, EOT, *header(b"user"), b"Hi", EOT, *header(b"assistant"), T(*b"Yo", EOT)],
    ),
    "llama3.1 with system": Golden(
        "llama3.1", said("Hi", "Yo", system=" Be kind. "),
        [BOS, *header(b"system"), DATES + b"Be kind.", EOT, *header(b"user"), b"Hi", EOT, *header(b"assistant"),
         T(*b"Yo", EOT)],
    ),
    "mistral-v1": Golden(
        "mistral-v1", TWO_SYSTEM,
        [BOS, b" [INST]  Be kind. \n\n Hi  [/INST]", T(*b" Yo", EOS), b" [INST] Go [/INST]", T(*b" Ok ", EOS)],
    ),
    "mistral-v2": Golden(
        "mistral-v2", TWO,
        [BOS, INST, b"  Hi ", INST_END, T(*b" Yo", EOS), INST, b" Go", INST_END, T(*b" Ok ", EOS)],
    ),
    "mistral-v3": Golden(
        "mistral-v3", said("Hi", "Yo", system="Be kind."),
        [BOS, INST, b" Be kind.\n\nHi", INST_END, T(*b" Yo", EOS)],
    ),
    "mistral-v3-tekken": Golden(
        "mistral-v3-tekken", TWO,
        [BOS, INST, b" Hi ", INST_END, T(*b"Yo", EOS), INST, b"Go", INST_END, T(*b"Ok ", EOS)],
    ),
    "gemma": Golden(
        "gemma", TWO,
        [BOS, TURN, b"user\nHi", TURN_END, b"\n", TURN, b"model\n", T(*b"Yo", TURN_END), b"\n", TURN, b"user\nGo",
         TURN_END, b"\n", TURN, b"model\n", T(*b"Ok", TURN_END), b"\n"],
    ),
    "gemma3": Golden(
        "gemma3", said("Hi", "Yo", system="Be kind."),
        [BOS, TURN, b"user\nBe kind.\n\nHi", TURN_END, b"\n", TURN, b"model\n", T(*b"Yo", TURN_END), b"\n"],
    ),
    "zephyr": Golden(
        "zephyr", TWO_SYSTEM,
        [b"<|system|>\n Be kind. ", EOS, b"\n<|user|>\n Hi ", EOS, b"\n<|assistant|>\n", T(*b"Yo", EOS),
         b"\n<|user|>\nGo", EOS, b"\n<|assistant|>\n", T(*b"Ok ", EOS), b"\n"],
    ),
    # Every line break of the template is swallowed by the token before it; the white space of an answer is not.
    "phi3": Golden(
        "phi3", said(" Hi ", "\nYo", "Go", "Ok ", system="Be kind."),
        [SYSTEM, b"Be kind.", END, USER, b"Hi ", END, ASSISTANT, T(*b"\nYo", END), USER, b"Go", END, ASSISTANT,
         T(*b"Ok ", END), EOS],
    ),
    "plain": Golden("plain", TWO, [b" Hi ", T(*b"Yo", EOS), b"Go", T(*b"Ok ", EOS)]),
}  # fmt: skip


def tokenizer_of(template: str) -> Tokenizer:
    return byte_tokenizer(FAMILY[template])


def test_every_template_has_a_golden_list() -> None:
    assert {golden.template for golden in GOLDEN.values()} == set(TEMPLATES) == set(FAMILY)


@pytest.mark.parametrize("name", GOLDEN)
def test_ids_and_labels(name: str) -> None:
    """Guards B2, B4, B8, B10, B13 and B16: exactly these ids, exactly these labels."""
    golden = GOLDEN[name]
    template, tokenizer = TEMPLATES[golden.template], tokenizer_of(golden.template)
    found = render(golden.turns, template, tokenizer, terminator(template, tokenizer))
    assert list(zip(found.ids, found.trained, strict=True)) == golden.pairs


@pytest.mark.parametrize("name", GOLDEN)
def test_what_a_generation_reads_is_what_stands_before_the_answer(name: str) -> None:
    """Guards B7 and B14: the prompt at inference has the ids that training puts before the answer."""
    golden = GOLDEN[name]
    template, tokenizer = TEMPLATES[golden.template], tokenizer_of(golden.template)
    stop = terminator(template, tokenizer)
    pairs = golden.pairs
    starts = [i for i, (_, trained) in enumerate(pairs) if trained and not pairs[i - 1][1]]
    answers = [i for i, turn in enumerate(golden.turns) if turn.role == "assistant"]
    for start, turn in zip(starts, answers, strict=True):
        assert render(golden.turns[:turn], template, tokenizer, stop).ids == [token for token, _ in pairs[:start]]


@pytest.mark.parametrize("name", ["mistral-v2", "mistral-v3", "mistral-v3-tekken"])
def test_a_system_text_that_moves_on_makes_an_example_of_each_answer(name: str) -> None:
    """Guards B6: the system text goes to the last user turn, so no one text holds the prompts of both answers."""
    template, tokenizer = TEMPLATES[name], tokenizer_of(name)
    lead = b"" if name == "mistral-v3-tekken" else b" "
    turns = said("Hi", "Yo", "Go", "Ok", system="S")
    found = examples(turns, template, tokenizer, EOS)
    first = [BOS, INST, lead + b"S\n\nHi", INST_END, T(*lead, *b"Yo", EOS)]
    second = [BOS, INST, lead + b"Hi", INST_END, lead + b"Yo", EOS, INST, lead + b"S\n\nGo", INST_END]
    want = [Golden(name, turns, parts).pairs for parts in (first, [*second, T(*lead, *b"Ok", EOS)])]
    assert [list(zip(one.ids, one.trained, strict=True)) for one in found] == want


@pytest.mark.parametrize("train_on", ["all", "last"])
def test_rows_and_flags_choose_what_is_trained(train_on: Any) -> None:
    template, tokenizer = TEMPLATES["chatml"], tokenizer_of("chatml")
    turns = [
        Message("user", "a"), Message("assistant", "b", train=False), Message("user", "c"), Message("assistant", "d"),
        Message("user", "e"), Message("assistant", "f", weight=0.5), Message("user", "g"),
        Message("assistant", "h", weight=0), Message("user", "i"), Message("assistant", "j", train=True),
        Message("user", "k"), Message("assistant", "l"),
    ]  # fmt: skip
    found = render(turns, template, tokenizer, IM_END, train_on=train_on)
    trained = bytes(token for token, yes in zip(found.ids, found.trained, strict=True) if yes and token < 256)
    assert trained == (b"dfjl" if train_on == "all" else b"jl")
    half = [weight for token, weight in zip(found.ids, found.weights, strict=True) if token == ord("f")]
    assert half == [0.5 if train_on == "all" else 0.0]


def test_padding_that_is_the_end_of_text_changes_no_label() -> None:
    """Guards B1: a pad token equal to the end-of-text token leaves ids and labels as they are."""
    template = TEMPLATES["plain"]
    a, b = (render(TWO, template, byte_tokenizer("text", pad_is_eos=same), EOS) for same in (False, True))
    assert byte_tokenizer("text", pad_is_eos=True).pad_id == EOS
    assert (a.ids, a.trained) == (b.ids, b.trained)


def test_control_tokens_have_the_ids_that_the_lists_say() -> None:
    for family, names in CONTROL.items():
        tokenizer = byte_tokenizer(family)
        assert [tokenizer.token_id(name) for name in ("<s>", "</s>", *names)] == [
            BOS,
            EOS,
            *range(259, 259 + len(names)),
        ]
        assert tokenizer.encode("".join(names)) == list("".join(names).encode())
