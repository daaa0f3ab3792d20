"""A template as Jinja source, for tools that read a conversation's form from ``chat_template.jinja``.

What it writes is what the template writes: ``recognise`` finds the template again in the source, byte for byte over the
whole battery (tests/chat/test_export.py). A message may bring a ``context`` beside its content, as here.
"""

import json

from minitune.chat.segments import End, Field, Segments, Special, Start, Stop, Template, Text, When

_PREPARE = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = none %}{% set turns = messages %}{% endif %}"
    "{% set user = namespace(first=-1, last=-1) %}"
    "{% for m in turns %}{% if m['role'] == 'user' %}"
    "{% if user.first < 0 %}{% set user.first = loop.index0 %}{% endif %}"
    "{% set user.last = loop.index0 %}{% endif %}{% endfor %}"
)
_CONDITIONS = {
    "system": "here is not none",
    "context": "(m['context'] or '') | trim",
    "opens": "loop.first or turns[loop.index0 - 1]['role'] != 'tool'",
    "closes": "loop.last or turns[loop.index0 + 1]['role'] != 'tool'",
}
_TRIMS = {"": "", "both": " | trim", "right": ".rstrip()"}


def as_jinja(template: Template, *, start: bool) -> str:
    """The source of ``template``; ``start``: whether a text starts with the start token where it leaves that open."""
    end = f"{{{{ {json.dumps(template.end)} }}}}" if template.end else "{{ eos_token }}"
    write = _Source(template, end)
    starts = start if template.start is None else template.start
    parts = [_PREPARE, *_refusals(template)]
    if starts:
        parts.append("{{ bos_token }}")
    if template.opening:
        parts.append("{% set here = system %}" + write.segments(template.opening))
    parts.append("{% for m in turns %}" + _checks(template))
    parts.append("{% if m['role'] == 'assistant' %}" + write.answer())
    parts.append("{% elif m['role'] == 'user' %}" + write.user())
    if template.tool is not None:
        parts.append("{% elif m['role'] == 'tool' %}" + write.segments(template.tool))
    if template.system is not None:
        parts.append("{% elif m['role'] == 'system' %}" + write.segments(template.system))
    parts.append(_raise("unknown role", "{% else %}") + "{% endif %}{% endfor %}")
    parts.append("{% if add_generation_prompt %}" + write.segments(template.header))
    if template.closing:
        parts.append("{% else %}" + write.segments(template.closing))
    return "".join([*parts, "{% endif %}"])


class _Source:
    """Writes the segments of one template."""

    def __init__(self, template: Template, end: str):
        self.template, self.end = template, end

    def segments(self, segments: Segments) -> str:
        return "".join(map(self._segment, segments))

    def answer(self) -> str:
        template = self.template
        return self.segments(template.header + template.answer) + self.end + self.segments(template.after)

    def user(self) -> str:
        template = self.template
        where = {"first user": "user.first", "last user": "user.last"}.get(template.system_in)
        found = f"{{% set here = system if loop.index0 == {where} else none %}}" if where else "{% set here = none %}"
        if template.user_again is None:
            return found + self.segments(template.user)
        again = self.segments(template.user_again)
        return (
            f"{found}{{% if loop.index0 == user.first %}}{self.segments(template.user)}{{% else %}}{again}{{% endif %}}"
        )

    def _segment(self, segment: object) -> str:
        match segment:
            case Text(text) | Special(text):
                return f"{{{{ {json.dumps(text)} }}}}"
            case Field(name, trim, as_json):
                value = "here" if name == "system" else f"m['{name}']"
                return f"{{{{ {value}{_TRIMS[trim]}{' | tojson' if as_json else ''} }}}}"
            case Start():
                return "{{ bos_token }}"
            case End():
                return "{{ eos_token }}"
            case Stop():
                return self.end
            case When(condition, then, otherwise, filled):
                asked = "here" if filled and condition == "system" else _CONDITIONS[condition]
                other = f"{{% else %}}{self.segments(otherwise)}" if otherwise else ""
                return f"{{% if {asked} %}}{self.segments(then)}{other}{{% endif %}}"
        raise TypeError(f"no segment: {segment!r}")


def _raise(message: str, before: str) -> str:
    return f"{before}{{{{ raise_exception({json.dumps(message)}) }}}}"


def _refusals(template: Template) -> list[str]:
    """What is refused of a whole conversation, as ``check_turns`` does."""
    if template.system_in == "refused":
        return [_raise("a system message has no place here", "{% if system is not none %}") + "{% endif %}"]
    if template.system_in in ("first user", "last user"):
        asked = "{% if system is not none and user.first < 0 %}"
        return [_raise("a system message needs a user turn to stand in", asked) + "{% endif %}"]
    return []


def _checks(template: Template) -> str:
    """What is refused of one turn."""
    if not template.alternates:
        return ""
    asked = "{% if m['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
    return _raise("user and assistant must take turns, the user first", asked) + "{% endif %}"
