"""A conversation becomes ids and mask: for training, and, up to the opening of an answer, for a generation."""

from collections.abc import Mapping, Sequence
from typing import Literal

from minitune.chat.encoded import (
    ANSWER,
    BY_ROW,
    NO_WEIGHT,
    NOT_BY_ROW,
    ONLY_LAST,
    OTHERWISE,
    Encoded,
)
from minitune.chat.jinja import JinjaTemplate, jinja_script, own_terminator, own_text
from minitune.chat.message import Message
from minitune.chat.script import as_text, script
from minitune.chat.segments import Template
from minitune.chat.writer import Decision, Writer
from minitune.errors import ConfigError
from minitune.tokenizer import Tokenizer

AnyTemplate = Template | JinjaTemplate
TrainOn = Literal["all", "last"]


def render(
    messages: Sequence[Message],
    template: AnyTemplate,
    tokenizer: Tokenizer,
    stop_id: int,
    *,
    train_on: TrainOn = "all",
) -> Encoded:
    """Ids of a conversation, with for each stretch whether it is trained and why.

    Where the last message is no answer, they end with the opening of one: the prompt of a generation, the very ids
    that training puts before that answer. An answer that later prompts write otherwise is not trained in this one
    (``examples`` gives it one of its own). ``stop_id``: see ``terminator``.

    Raises DataError for turns that the template has no form for, ConfigError for a tokenizer that lacks its tokens.
    """
    return _render(messages, template, tokenizer, stop_id, decide(messages, train_on))[0]


def examples(
    messages: Sequence[Message],
    template: AnyTemplate,
    tokenizer: Tokenizer,
    stop_id: int,
    *,
    train_on: TrainOn = "all",
) -> list[Encoded]:
    """What to train a conversation by: one example, in which every answer stands behind the prompt that it would have.

    Where a template writes earlier turns otherwise in later prompts, no one text holds all of these prompts; then
    each trained answer gets an example of its own. What follows the last trained answer is left out, and there is no
    example where none is trained. Raises as ``render`` does.
    """
    decisions = decide(messages, train_on)
    trained = [turn for turn, found in decisions.items() if found.trained]
    if not trained:
        return []
    whole, nests = _render(messages[: trained[-1] + 1], template, tokenizer, stop_id, decisions)
    if nests:
        return [whole]
    earlier = [_render(messages[: turn + 1], template, tokenizer, stop_id, decisions)[0] for turn in trained[:-1]]
    return [*earlier, whole]


def _render(
    messages: Sequence[Message],
    template: AnyTemplate,
    tokenizer: Tokenizer,
    stop_id: int,
    decisions: Mapping[int, Decision],
) -> tuple[Encoded, bool]:
    """The ids, and whether the prompt of every answer is the start of the whole text."""
    if isinstance(template, JinjaTemplate):
        pieces, end, nests = jinja_script(template, messages, tokenizer)
        if end not in (-1, stop_id):
            raise ConfigError(
                f"the model's own chat template ends an answer with {tokenizer.token(end)!r} (id {end}), but the id to "
                f"stop on is {stop_id}; take the one that terminator() names"
            )
        start = False
    else:
        asks = not messages or messages[-1].role != "assistant"
        pieces, nests = script(template, messages, header=asks), prompts_nest(messages, template)
        start = tokenizer.adds_bos if template.start is None else False
    if not nests:
        last = len(messages) - 1
        decisions = {
            turn: found if turn == last or not found.trained else Decision(False, 0.0, OTHERWISE)
            for turn, found in decisions.items()
        }
    return Writer(template.name, tokenizer, stop_id, decisions).write(pieces, start=start), nests


def decide(messages: Sequence[Message], train_on: TrainOn) -> dict[int, Decision]:
    """For each answer, by its index, whether it is trained and why: the row's own word goes before the run's."""
    turns = [turn for turn, message in enumerate(messages) if message.role == "assistant"]
    found = {}
    for turn in turns:
        message = messages[turn]
        if message.train is False:
            found[turn] = Decision(False, 0.0, NOT_BY_ROW)
        elif message.weight == 0:
            found[turn] = Decision(False, 0.0, NO_WEIGHT)
        elif message.train:
            found[turn] = Decision(True, message.weight, BY_ROW)
        elif train_on == "last" and turn != turns[-1]:
            found[turn] = Decision(False, 0.0, ONLY_LAST)
        else:
            found[turn] = Decision(True, message.weight, ANSWER)
    return found


def prompts_nest(messages: Sequence[Message], template: Template) -> bool:
    """Whether the prompt of every answer is the start of the whole text: not where a system text moves on."""
    if template.system_in != "last user" or not messages or messages[0].role != "system":
        return True
    return sum(message.role == "user" for message in messages) < 2


def terminator(template: AnyTemplate, tokenizer: Tokenizer) -> int:
    """The id that ends an answer in this template; the generator must stop on it. ConfigError where there is none."""
    if isinstance(template, JinjaTemplate):
        return own_terminator(template, tokenizer)
    token = tokenizer.eos_id if template.end is None else tokenizer.token_id(template.end)
    if token is None and template.end is None:
        raise ConfigError(
            f"the tokenizer has no end-of-text token, with which the {template.name} template ends an answer; "
            "choose another --template, or name the token in tokenizer_config.json (eos_token)"
        )
    if token is None:
        raise ConfigError(
            f"the tokenizer has no token {template.end!r}, with which the {template.name} template ends an answer; "
            "choose another --template, such as alpaca, or tune with --train-tokens, which adds it"
        )
    return token


def missing_tokens(template: AnyTemplate, tokenizer: Tokenizer) -> list[str]:
    """The control tokens of a template that a tokenizer lacks; a model's own template is written in its own tokens."""
    names = template.tokens if isinstance(template, Template) else ()
    return [name for name in names if tokenizer.token_id(name) is None]


def rendered_text(messages: Sequence[Message], template: AnyTemplate, tokenizer: Tokenizer, *, header: bool) -> str:
    """The conversation as one text, as published templates render it; ``header``: add_generation_prompt is true."""
    if isinstance(template, JinjaTemplate):
        return own_text(template, messages, tokenizer, header=header)

    def name(token: int | None) -> str:
        return "" if token is None else tokenizer.token(token)

    stop = name(terminator(template, tokenizer))
    return as_text(
        script(template, messages, header=header), bos=name(tokenizer.bos_id), eos=name(tokenizer.eos_id), stop=stop
    )
