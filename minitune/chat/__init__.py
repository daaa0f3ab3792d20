"""A conversation becomes ids and mask together, segment by segment, as inference will see them.

A template is data: for each role an ordered list of segments. Nothing is searched for in the finished ids, so a mask
can be neither lost nor shifted:

* text of the prompt that stands together is encoded together, since a prompt at inference is one text too;
* the answer is encoded by itself, going on after the prompt, since at inference it is generated after it;
* the end of the answer is the model's stop id, trained; nothing after it is.

Text of a row never becomes a control token: the tokenizer's ``encode`` yields none, and control tokens enter only by
what the template says.
"""

from minitune.chat.encoded import Encoded, Part, Span
from minitune.chat.jinja import JinjaTemplate
from minitune.chat.message import Message, Role
from minitune.chat.recognise import template_for
from minitune.chat.render import (
    AnyTemplate,
    TrainOn,
    examples,
    missing_tokens,
    render,
    rendered_text,
    terminator,
)
from minitune.chat.segments import Template
from minitune.chat.templates import ALPACA, TEMPLATES

__all__ = [
    "ALPACA",
    "TEMPLATES",
    "AnyTemplate",
    "Encoded",
    "JinjaTemplate",
    "Message",
    "Part",
    "Role",
    "Span",
    "Template",
    "TrainOn",
    "examples",
    "missing_tokens",
    "render",
    "rendered_text",
    "template_for",
    "terminator",
]
