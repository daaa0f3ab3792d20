"""The templates that are known by name, as data. ``tests/chat`` compares them with the published ones."""

from minitune.chat.segments import End, Field, Segment, Segments, Special, Start, Stop, Template, Text, When

CONTENT = Field("content")
QUESTION: Segments = (CONTENT, When("context", (Text("\n"), Field("context"))))
"""What the user says; a separate input follows on a line of its own, where a template has no other place for it."""
_TRIMMED = Field("content", trim="both")
_QUESTION_TRIMMED: Segments = (_TRIMMED, When("context", (Text("\n"), Field("context", trim="right"))))
LLAMA_DATE = "26 Jul 2024"
"""The day on which it always is: the date that Llama 3.1's own template falls back to."""


def _chatml(name: str, *, default: str = "", tool: Segments | None = None) -> Template:
    """ChatML as published for one family: ``default`` is the system text of a conversation that brings none."""

    def turn(role: str, *body: Segment) -> Segments:
        return (Special("<|im_start|>"), Text(f"{role}\n"), *body, Special("<|im_end|>"), Text("\n"))

    system = turn("system", Field("system"))
    return Template(
        name=name,
        opening=(When("system", system, turn("system", Text(default)) if default else ()),),
        system=turn("system", CONTENT),
        user=turn("user", *QUESTION),
        header=(Special("<|im_start|>"), Text("assistant\n")),
        answer=(CONTENT,),
        after=(Text("\n"),),
        tool=tool or turn("tool", CONTENT),
        end="<|im_end|>",
    )


CHATML = _chatml("chatml")
"""The form itself: any role, no default system text."""
QWEN = _chatml(
    "qwen",
    default="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    tool=(
        When("opens", (Special("<|im_start|>"), Text("user"))),
        Text("\n<tool_response>\n"),
        CONTENT,
        Text("\n</tool_response>"),
        When("closes", (Special("<|im_end|>"), Text("\n"))),
    ),
)
"""Qwen2.5: results of tools that follow each other stand in one user turn."""
QWEN2 = _chatml("qwen2", default="You are a helpful assistant.")
"""Qwen2."""
SMOLLM2 = _chatml("smollm2", default="You are a helpful AI assistant named SmolLM, trained by Hugging Face")

_PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_PREAMBLE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_INSTRUCTION: Segments = (
    Text("\n\n### Instruction:\n"),
    CONTENT,
    When("context", (Text("\n\n### Input:\n"), Field("context"))),
)
ALPACA = Template(
    name="alpaca",
    user=(
        When(
            "system",
            (Field("system"),),
            (When("context", (Text(_PREAMBLE_WITH_INPUT),), (Text(_PREAMBLE),)),),
            filled=True,
        ),
        *_INSTRUCTION,
    ),
    user_again=_INSTRUCTION,
    header=(Text("\n\n### Response:\n"),),
    answer=(CONTENT,),
    system_in="first user",
    alternates=True,
)
"""The form of Stanford Alpaca, with a line break behind its last heading; for base models that bring no template.

A system text takes the place of the preamble; later turns start with their heading.
"""

PLAIN = Template(name="plain", user=QUESTION, header=(), answer=(CONTENT,), system_in="refused")
"""Prompt, answer and end of text with nothing between; a conversation of one assistant message is text to learn."""

LLAMA2 = Template(
    name="llama2",
    user=(
        Start(),
        Text("[INST] "),
        When(
            "system",
            (
                Text("<<SYS>>\n"),
                Field("system"),
                Text("\n<</SYS>>\n\n"),
                Field("content", trim="right"),
                When("context", (Text("\n"), Field("context", trim="right"))),
            ),
            _QUESTION_TRIMMED,
        ),
        Text(" [/INST]"),
    ),
    header=(),
    answer=(Text(" "), _TRIMMED, Text(" ")),
    system_in="first user",
    start=False,  # its user turns bring it, each of them
    alternates=True,
)
"""Llama 2: the spaces around an answer are made by the model, so they are trained with it."""


def _llama3_turn(role: str, *body: Segment) -> Segments:
    return (
        Special("<|start_header_id|>"),
        Text(role),
        Special("<|end_header_id|>"),
        Text("\n\n"),
        *body,
        Special("<|eot_id|>"),
    )


def _llama3(name: str, opening: Segments, tool: Segments) -> Template:
    return Template(
        name=name,
        opening=opening,
        system=_llama3_turn("system", _TRIMMED),
        user=_llama3_turn("user", *_QUESTION_TRIMMED),
        header=_llama3_turn("assistant")[:-1],
        answer=(_TRIMMED,),
        tool=tool,
        start=True,
        end="<|eot_id|>",
    )


LLAMA3 = _llama3(
    "llama3",
    (When("system", _llama3_turn("system", Field("system", trim="both"))),),
    tool=_llama3_turn("tool", _TRIMMED),
)
"""Llama 3."""
LLAMA31 = _llama3(
    "llama3.1",
    _llama3_turn(
        "system",
        Text(f"Cutting Knowledge Date: December 2023\nToday Date: {LLAMA_DATE}\n\n"),
        When("system", (Field("system", trim="both"),)),
    ),
    tool=_llama3_turn("ipython", Field("content", json=True)),
)
"""Llama 3.1, 3.2 and 3.3: a system block with dates, always; the clock stands still at ``LLAMA_DATE``."""

_SYSTEM_AHEAD = When("system", (Field("system"), Text("\n\n")))


def _mistral(name: str, before: str, behind: str, lead: str, *, control: bool, last: bool) -> Template:
    opens, closes = (Special("[INST]"), Special("[/INST]")) if control else (Text("[INST]"), Text("[/INST]"))
    return Template(
        name=name,
        user=(
            *((Text(" "),) if not control else ()),
            opens,
            *((Text(before),) if before else ()),
            _SYSTEM_AHEAD,
            *QUESTION,
            *((Text(behind),) if behind else ()),
            closes,
        ),
        header=(),
        answer=(*((Text(lead),) if lead else ()), CONTENT),
        system_in="last user" if last else "first user",
        start=True,
        alternates=True,
    )


MISTRAL_V1 = _mistral("mistral-v1", " ", " ", " ", control=False, last=False)
"""Mistral 7B Instruct v0.1, v0.2 and Mixtral: brackets are text; the system text goes to the first user turn."""
MISTRAL_V2 = _mistral("mistral-v2", " ", "", " ", control=True, last=True)
"""Brackets are control tokens; the system text goes to the last user turn."""
MISTRAL_V3 = _mistral("mistral-v3", " ", "", " ", control=True, last=True)
"""Mistral 7B Instruct v0.3: as v2 where no tools are called."""
MISTRAL_V3_TEKKEN = _mistral("mistral-v3-tekken", "", "", "", control=True, last=True)
"""Mistral Nemo: as v3 without the spaces."""


def _gemma(name: str, *, system: bool) -> Template:
    def turn(role: str, *body: Segment) -> Segments:
        return (Special("<start_of_turn>"), Text(f"{role}\n"), *body, Special("<end_of_turn>"), Text("\n"))

    return Template(
        name=name,
        user=turn("user", *((_SYSTEM_AHEAD,) if system else ()), *_QUESTION_TRIMMED),
        header=(Special("<start_of_turn>"), Text("model\n")),
        answer=(_TRIMMED,),
        after=(Text("\n"),),
        system_in="first user" if system else "refused",
        start=True,
        end="<end_of_turn>",
        alternates=True,
    )


GEMMA = _gemma("gemma", system=False)
"""Gemma 1 and 2, which know no system text."""
GEMMA3 = _gemma("gemma3", system=True)
"""Gemma 3, which puts it before the first user turn."""


def _zephyr_turn(role: str, *body: Segment) -> Segments:
    return (Text(f"<|{role}|>\n"), *body, Stop(), Text("\n"))


ZEPHYR = Template(
    name="zephyr",
    opening=(When("system", _zephyr_turn("system", Field("system"))),),
    system=_zephyr_turn("system", CONTENT),
    user=_zephyr_turn("user", *QUESTION),
    header=(Text("<|assistant|>\n"),),
    answer=(CONTENT,),
    after=(Text("\n"),),
)
"""Zephyr and TinyLlama: the markers are ordinary text, cut with what stands beside them."""


def _phi3_turn(role: str, *body: Segment) -> Segments:
    return (Special(f"<|{role}|>"), Text("\n"), *body, Special("<|end|>"), Text("\n"))


PHI3 = Template(
    name="phi3",
    opening=(When("system", _phi3_turn("system", Field("system")), filled=True),),
    system=_phi3_turn("system", CONTENT),
    user=_phi3_turn("user", *QUESTION),
    header=(Special("<|assistant|>"), Text("\n")),
    answer=(CONTENT,),
    after=(Text("\n"),),
    closing=(End(),),
    end="<|end|>",
)
"""Phi-3 and Phi-3.5; their tokenizer swallows the line breaks behind the markers."""

TEMPLATES = {
    template.name: template
    for template in (
        *(ALPACA, CHATML, QWEN, QWEN2, SMOLLM2, LLAMA2, LLAMA3, LLAMA31),
        *(MISTRAL_V1, MISTRAL_V2, MISTRAL_V3, MISTRAL_V3_TEKKEN, GEMMA, GEMMA3, ZEPHYR, PHI3, PLAIN),
    )
}
