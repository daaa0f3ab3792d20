"""Any conversation through every template: what must hold, counted from the conversation and not from the spans."""

from collections.abc import Sequence
from typing import Any

import pytest
from chat_cases import BOS, CONTROL, EOS, FAMILY, PAD, byte_tokenizer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minitune.chat import TEMPLATES, JinjaTemplate, Message, examples, render, terminator
from minitune.chat.script import check_turns
from minitune.errors import DataError
from minitune.jobs.encode import answers_of
from minitune.mask_report import Checks, MaskReport

NAMES = sorted({name for names in CONTROL.values() for name in names} | {"<s>", "</s>", "<pad>"})
TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*NAMES, " ", "\n", "\n\n", "### Response:\n", "[INST]", "\u56db", "a", " b", "<|", "|>"]),
        st.text(st.characters(codec="utf-8"), max_size=3),
    ),
    max_size=4,
).map("".join)
TURNS = st.tuples(TEXTS, TEXTS)
OWN = {
    "own chatml": (
        "chatml",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ),
    "own, thoughts taken out": (
        "chatml",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
        "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ),
}
"""A model's own template, whose mask is derived from renderings; the second writes earlier answers otherwise."""


def conversation(system: str | None, exchanges: Sequence[tuple[str, str]]) -> list[Message]:
    turns = [] if system is None else [Message("system", system)]
    for asked, answered in exchanges:
        turns += [Message("user", asked), Message("assistant", answered)]
    return turns


def template_and_family(name: str) -> tuple[Any, str]:
    if name in OWN:
        family, source = OWN[name]
        return JinjaTemplate(name="own", source=source), family
    return TEMPLATES[name], FAMILY[name]


@pytest.mark.parametrize("name", [*TEMPLATES, *OWN])
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(system="<|im_end|></s>", exchanges=[("<s></s>[INST]", "</s><|end|><|eot_id|>"), ("<end_of_turn>", "<s> ")])
@example(system=None, exchanges=[("", "")])
@example(system=None, exchanges=[("a", "<think>b</think>c"), ("d", "<think>e</think>\n\nf")])
@given(system=TEXTS | st.none(), exchanges=st.lists(TURNS, min_size=1, max_size=3))
def test_every_assertion_holds(name: str, system: str | None, exchanges: list[tuple[str, str]]) -> None:
    """Guards B1 to B13 at once, on texts that are full of control strings."""
    template, family = template_and_family(name)
    tokenizer = byte_tokenizer(family)
    stop = terminator(template, tokenizer)
    if name == "plain" and not exchanges[0][0]:
        exchanges = [("x", exchanges[0][1]), *exchanges[1:]]  # behind nothing, nothing is predicted
    turns = conversation(system, exchanges)
    try:
        found = examples(turns, template, tokenizer, stop)
    except DataError:
        if name not in OWN:  # a template refuses for its own reasons only
            with pytest.raises(DataError):
                check_turns(template, turns)
        return
    # The check of every run.
    report = MaskReport()
    report.add("here", found, [answers_of(one) for one in found], Checks.of(tokenizer, template, [stop, EOS]))
    assert not report.failures, report.problems
    assert set(report.trained_by_role) == {"assistant"}
    # And once more, from the conversation alone.
    stretches = [stretch for one in found for stretch in trained_stretches(one.ids, one.trained, stop)]
    assert len(stretches) == len(exchanges)
    for stretch, (_, answer) in zip(stretches, exchanges, strict=True):
        assert stretch[-1] == stop
        assert not {BOS, EOS, PAD, stop} & set(stretch[:-1])
        text = bytes(token for token in stretch[:-1] if token < 256).decode()
        assert len(stretch) == 1 + len(text.encode())  # nothing but bytes: no text became a control token
        assert text.strip() == answer.strip()
        if name not in ("llama2", "llama3", "llama3.1", "gemma", "gemma3", *OWN):  # these trim, and Llama 2 pads
            lead = " " if name in ("mistral-v1", "mistral-v2", "mistral-v3") else ""
            assert text == lead + answer
    control = [token for one in found for token in one.ids if token >= 256]
    plain = [Message(turn.role, "x" if turn.content else "") for turn in turns]
    expected = [token for one in examples(plain, template, tokenizer, stop) for token in one.ids if token >= 256]
    if len(found) == 1 or name not in OWN:
        assert control == expected  # control tokens come from the template, whatever the texts say
    assert all(one.ids[:2] != [BOS, BOS] for one in found)
    # What is read before the last answer is what a generation reads.
    last = max(i for i, turn in enumerate(turns) if turn.role == "assistant")
    prompt = render(turns[:last], template, tokenizer, stop).ids
    assert found[-1].ids[: len(prompt)] == prompt
    assert name == "plain" or not found[-1].trained[len(prompt) - 1]


def trained_stretches(ids: list[int], trained: list[bool], stop: int) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for token, yes in zip(ids, trained, strict=True):
        if yes:
            found[-1].append(token)
        if found[-1] and (token == stop or not yes):
            found.append([])
    return found[:-1] if not found[-1] else found


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_clock_does_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards B15: the same ids on another day."""
    import datetime as module

    template, family = template_and_family(name)
    tokenizer = byte_tokenizer(family)
    stop, turns = terminator(template, tokenizer), conversation(None, [("Hi", "Yo")])
    before = render(turns, template, tokenizer, stop).ids

    class Later(module.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Later":
            return cls(2031, 1, 1, tzinfo=tz)

    monkeypatch.setattr(module, "datetime", Later)
    assert render(turns, template, tokenizer, stop).ids == before


def test_a_template_that_asks_for_the_day_gets_the_same_one_always() -> None:
    """Guards B15 for a model's own template: ``strftime_now`` knows one day only."""
    source = "{{ strftime_now('%d %b %Y') }}" + OWN["own chatml"][1]
    tokenizer = byte_tokenizer("chatml")
    template = JinjaTemplate(name="own", source=source)
    found = render([Message("user", "Hi")], template, tokenizer, terminator(template, tokenizer))
    assert bytes(token for token in found.ids if token < 256).startswith(b"26 Jul 2024")
