"""Templates against the published ones: what the reference renders, and which of ours writes the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat.named_tokens import named

from minitune.chat import TEMPLATES, Message, rendered_text
from minitune.chat.jinja_env import render_jinja
from minitune.chat.recognise import battery, recognise
from minitune.errors import DataError

PUBLISHED = {
    "Qwen-Qwen2.5-7B-Instruct": "qwen",
    "meta-llama-Llama-3.1-8B-Instruct": "llama3.1",
    "meta-llama-Llama-3.2-3B-Instruct": "llama3.1",
    "microsoft-Phi-3.5-mini-instruct": None,  # an empty system message is left out there by another rule
    "google-gemma-2-2b-it": None,  # writes a system turn in the middle, which its model has never read
    "mistralai-Mistral-Nemo-Instruct-2407": None,  # leaves a system message out behind an answer
    "HuggingFaceTB-SmolLM3-3B": None,  # has a mode that thinks
    "Qwen-Qwen3-0.6B": None,
    "Qwen-QwQ-32B": None,
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": None,
}
"""Published template -> ours that writes and refuses the same over the whole battery; None: rendered by jinja2."""

ALIKE = {
    "gemma": ("google-gemma-2-2b-it-simple", False),
    "mistral-v3-tekken": ("mistralai-Mistral-Nemo-Instruct-2407-simple", False),
    "mistral-v1": ("mistralai-Mistral-7B-Instruct-v0.2-simple", True),
    "zephyr": ("HuggingFaceH4/zephyr-7b-beta (add_generation_prompt=false)", True),
    "phi3": ("microsoft-Phi-3.5-mini-instruct-simple", False),
    "qwen2": ("Qwen-Qwen2-7B-Instruct-simple", True),
    "chatml": ("teknium-OpenHermes-2.5-Mistral-7B-simple", True),
}
"""Ours -> the published one that writes the same of every conversation of user and assistant (True: and system)."""


@pytest.fixture(scope="module")
def cases(material: Path) -> list[dict[str, Any]]:
    return json.loads((material / "templates/rendered.json").read_text(encoding="utf-8"))


def test_every_published_rendering_is_met_byte_for_byte(cases: list[dict[str, Any]]) -> None:
    """Guards the sandbox and its settings: tools, documents, tojson, white space, and a clock that stands still."""
    assert len(cases) == 96
    wrong = [case["name"] for case in cases if render_jinja(case["template"], case["context"]) != case["expected"]]
    assert not wrong


def test_what_is_recognised_writes_the_published_rendering(cases: list[dict[str, Any]]) -> None:
    """Guards the templates as data against texts that the reference made of templates as published."""
    met = set()
    for case in cases:
        context = case["context"]
        if set(context) - {"messages", "add_generation_prompt", "bos_token", "eos_token"}:
            continue
        if not all(isinstance(m.get("content"), str) and set(m) == {"role", "content"} for m in context["messages"]):
            continue
        tokenizer = named(context.get("bos_token", ""), context.get("eos_token", ""))
        template = recognise(case["template"], tokenizer)
        if template is None:
            continue
        messages = [Message(m["role"], m["content"]) for m in context["messages"]]
        header = bool(context.get("add_generation_prompt"))
        assert rendered_text(messages, template, tokenizer, header=header) == case["expected"], case["name"]
        met.add(template.name)
    assert met >= {"chatml", "qwen", "qwen2", "llama3.1"}, met


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_template_is_recognised_by_what_it_writes(material: Path, name: str) -> None:
    source = (material / f"templates/jinja/{name}.jinja").read_text(encoding="utf-8")
    found = recognise(source, named("<bos>", "<eos>"))
    assert (found.name if found else None) == PUBLISHED[name]


@pytest.mark.parametrize("name", ALIKE)
def test_conversations_that_both_write_are_the_same(cases: list[dict[str, Any]], name: str) -> None:
    """Guards the templates whose published form is not recognised for an odd turn or two that it writes otherwise."""
    published, with_system = ALIKE[name]
    case = next(case for case in cases if case["name"] == published)
    bos, eos = case["context"].get("bos_token") or "", case["context"].get("eos_token") or ""
    tokenizer = named(bos, eos)
    compared = 0
    for row in battery():
        roles = [message.role for message in row]
        start = 1 if roles[0] == "system" else 0
        in_turn = roles[start:] == [("user", "assistant")[i % 2] for i in range(len(roles) - start)]
        if (
            "user" not in roles
            or not in_turn
            or (start and not with_system)
            or not all(message.content.strip() for message in row)
        ):
            continue
        for header in (True, False):
            if header and row[-1].role == "assistant":
                continue  # nobody asks for an answer behind an answer
            messages = [{"role": message.role, "content": message.content} for message in row]
            flags = {"bos_token": bos, "eos_token": eos, "add_generation_prompt": header}
            wanted = render_jinja(case["template"], {"messages": messages, **flags})
            found = rendered_text(row, TEMPLATES[name], tokenizer, header=header)
            assert found.removeprefix(bos) == wanted.removeprefix(bos)
            compared += 1
    assert compared >= 8


def test_a_template_that_refuses_is_one_line() -> None:
    with pytest.raises(DataError, match=r"refuses this conversation: roles must alternate"):
        render_jinja("{{ raise_exception('roles must\nalternate') }}", {})
