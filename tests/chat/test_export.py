"""Templates as Jinja source: whoever reads chat_template.jinja writes what was trained with."""

import pytest
from chat.named_tokens import named

from minitune.chat import TEMPLATES, Message
from minitune.chat.export import as_jinja
from minitune.chat.jinja_env import render_jinja
from minitune.chat.recognise import recognise
from minitune.chat.script import as_text, script

# Two names for one form of text: what differs is the ids.
SAME_TEXT = {"mistral-v3": "mistral-v2"}


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_source_writes_what_the_template_writes(name: str, start: bool) -> None:
    """Guards every segment, condition and refusal, over the whole battery of the recogniser."""
    template = TEMPLATES[name]
    found = recognise(as_jinja(template, start=start), named())
    assert found is not None
    assert found.name == SAME_TEXT.get(name, name)
    assert found.start == (template.start if template.start is not None else start)


def test_an_input_of_its_own_is_written_too() -> None:
    """Guards Alpaca's second preamble and heading, for a reader that hands the input on."""
    template = TEMPLATES["alpaca"]
    for context in ("", "a, b", " \n"):
        wanted = as_text(
            script(template, [Message("user", "Sort.", context)], header=True), bos="", eos="</s>", stop=""
        )
        messages = [{"role": "user", "content": "Sort.", "context": context}]
        source = as_jinja(template, start=False)
        flags = {"eos_token": "</s>", "bos_token": "<s>", "add_generation_prompt": True}
        assert render_jinja(source, {"messages": messages, **flags}) == wanted
    assert "further context" in wanted or not context.strip()


def test_transformers_reads_it() -> None:
    """Guards against a source that only our own sandbox accepts."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]]
    for name, template in TEMPLATES.items():
        source = as_jinja(template, start=True)
        texts, _ = utils.render_jinja_template(messages, chat_template=source, bos_token="<s>", eos_token="</s>")
        stop = template.end or "</s>"
        wanted = as_text(
            script(template, [Message("user", "Hi"), Message("assistant", "Ho")], header=False),
            bos="<s>",
            eos="</s>",
            stop=stop,
        )
        assert texts[0].removeprefix("<s>") == wanted.removeprefix("<s>"), name
