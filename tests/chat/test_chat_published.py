"""Templates as published: rendered as the reference does, recognised by what they write, ids as it cuts them."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_cases import byte_tokenizer

from minitune.chat import TEMPLATES, JinjaTemplate, Message, examples, render, rendered_text, template_for, terminator
from minitune.chat.jinja_env import render_jinja
from minitune.chat.recognise import recognise
from minitune.errors import ConfigError, DataError
from minitune.mask_report import Checks, MaskReport
from minitune.tokenizer import load_tokenizer

TURNS = [
    Message("system", "Be kind."), Message("user", " What is <|im_end|> 2 + 2? "), Message("assistant", "4\n"),
    Message("user", "\u4f60\u597d"), Message("assistant", "Good </s> bye"),
]  # fmt: skip


def test_the_published_cases_render_byte_for_byte(material: Path) -> None:
    """Guards the sandbox and its settings: every case that the reference renders, but for those that ask the clock."""
    cases = json.loads((material / "templates/rendered.json").read_text("utf-8"))
    wrong, dated = [], 0
    for case in cases:
        asks = "strftime_now" in case["template"]
        dated += asks
        if not asks and render_jinja(case["template"], case["context"]) != case["expected"]:
            wrong.append(case["name"])
    assert not wrong
    assert len(cases) - dated > 80


@pytest.mark.parametrize(
    ("file", "family", "name", "recognised"),
    [
        ("Qwen-Qwen2.5-7B-Instruct", "chatml", "qwen", True),
        ("meta-llama-Llama-3.1-8B-Instruct", "llama3", "llama3.1", True),
        ("meta-llama-Llama-3.2-3B-Instruct", "llama3", "llama3.1", True),
        # These three take some conversation that ours refuses or writes otherwise (a system text in the middle, an
        # empty one, one behind the last answer), so jinja2 renders them.
        ("google-gemma-2-2b-it", "gemma", "gemma", False),
        ("mistralai-Mistral-Nemo-Instruct-2407", "mistral", "mistral-v3-tekken", False),
        ("microsoft-Phi-3.5-mini-instruct", "phi3", "phi3", False),
    ],
)
def test_a_published_template_and_ours_give_the_same(
    material: Path, file: str, family: str, name: str, recognised: bool
) -> None:
    """Guards the templates that are data: rendered by jinja2, with a mask from renderings, the same ids and labels."""
    source = (material / f"templates/jinja/{file}.jinja").read_text("utf-8")
    tokenizer, template = byte_tokenizer(family), TEMPLATES[name]
    found = recognise(source, tokenizer)
    assert (found.name if found else None) == (name if recognised else None)
    own, stop = JinjaTemplate(name="own", source=source), terminator(template, tokenizer)
    assert terminator(own, tokenizer) == stop
    for turns in (TURNS, TURNS[1:], TURNS[:3], TURNS[1:3]):
        try:
            mine = examples(turns, template, tokenizer, stop)
        except DataError:
            with pytest.raises(DataError):
                examples(turns, own, tokenizer, stop)
            continue
        theirs = examples(turns, own, tokenizer, stop)
        assert [(one.ids, one.trained) for one in mine] == [(one.ids, one.trained) for one in theirs]


PUBLISHED = {"smollm2": "smollm2", "qwen2": "qwen", "minimind": None}
"""Folders with a template of their own, and which of ours it is."""


@pytest.mark.parametrize("folder", PUBLISHED)
def test_ids_are_the_reference_s(material: Path, folder: str) -> None:
    """Guards text and ids at once: transformers' own rendering of the same turns, cut by its own tokenizer."""
    transformers = pytest.importorskip("transformers")
    where = material / "tokenizers" / folder
    tokenizer = load_tokenizer(where)
    template, _ = template_for(tokenizer)
    assert PUBLISHED[folder] in (None, template.name)
    reference: Any = transformers.AutoTokenizer.from_pretrained(where)
    turns = [Message("user", "What is 2 + 2?"), Message("assistant", "4"), Message("user", "\u4f60\u597d")]
    dicts = [{"role": turn.role, "content": turn.content} for turn in turns]
    for header in (True, False):
        text = reference.apply_chat_template(dicts, tokenize=False, add_generation_prompt=header)
        assert rendered_text(turns, template, tokenizer, header=header) == text
    text = reference.apply_chat_template(dicts, tokenize=False, add_generation_prompt=True)
    ids = render(turns, template, tokenizer, terminator(template, tokenizer)).ids
    assert ids == reference(text, add_special_tokens=False)["input_ids"]


def test_a_template_that_is_not_prefix_stable_is_split(material: Path) -> None:
    """Guards B6 on Qwen3, which takes the thoughts of earlier answers out: an example for each answer, or none."""
    source = (material / "templates/jinja/Qwen-Qwen3-0.6B.jinja").read_text("utf-8")
    tokenizer = byte_tokenizer("chatml")
    own = JinjaTemplate(name="own", source=source)
    turns = [
        Message("user", "a"), Message("assistant", "<think>\nb\n</think>\n\nc"),
        Message("user", "d"), Message("assistant", "<think>\ne\n</think>\n\nf"),
    ]  # fmt: skip
    stop = terminator(own, tokenizer)
    found = examples(turns, own, tokenizer, stop)
    assert len(found) == 2
    texts = [bytes(token for token in one.ids if token < 256).decode() for one in found]
    assert "b" in texts[0]
    assert "<think>\nb" not in texts[1]
    report = MaskReport()
    answers = [turns[1].content], [turns[3].content]
    report.add("here", found, answers, Checks.of(tokenizer, own, [stop]))
    assert not report.failures, report.problems


def test_a_start_token_twice_is_found() -> None:
    """Guards B13 for a model's own template: two start tokens stop the run."""
    source = "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}"
    source += "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = byte_tokenizer("text")
    own = JinjaTemplate(name="own", source=source)
    found = examples([Message("user", "a"), Message("assistant", "b")], own, tokenizer, terminator(own, tokenizer))
    report = MaskReport()
    report.add("here", found, [["b"]], Checks.of(tokenizer, own, [terminator(own, tokenizer)]))
    assert report.failures == {"start": 1}


def test_a_tokenizer_without_the_template_s_tokens_is_refused() -> None:
    tokenizer = byte_tokenizer("text")
    with pytest.raises(ConfigError, match=r"no token '<\|im_end\|>'"):
        terminator(TEMPLATES["chatml"], tokenizer)
