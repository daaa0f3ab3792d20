"""An inspection for people: the lines of its report, and the whole of it as a page that needs nothing but a browser."""

from html import escape
from typing import NamedTuple

from minitune.jobs.inspect import Inspection, Shown, Token
from minitune.mask_report import RULES

MARK = "<!doctype html><!-- minitune inspect -->"
"""How a page starts, by which one is known."""


class Check(NamedTuple):
    """One assertion over all examples."""

    holds: bool
    verdict: str
    text: str


def summary(found: Inspection) -> list[tuple[str, str]]:
    """What was read and what of it is trained: pairs of a title and a line."""
    report, prepared = found.prepared.report, found.prepared
    share = f" ({100 * report.trained_tokens / report.tokens:.1f} %)" if report.tokens else ""
    roles = [
        f"{role} {report.trained_by_role[role]:,} of {report.tokens_by_role[role]:,}"
        for role in ("assistant", *sorted(report.tokens_by_role.keys() - {"assistant"}))
        if role in report.tokens_by_role
    ]
    stops = ", ".join(map(str, found.stop_ids))
    lines = [
        ("model", f"{found.model}; template {found.template} ({found.why_template})"),
        ("answers", f"end with {found.terminator[1]!r} (id {found.terminator[0]}); the generator stops on {stops}"),
        ("rows", f"{prepared.rows:,} in {', '.join(found.files)}"),
        ("examples", f"{report.examples:,} of {report.rows:,} rows; the longest has {report.longest:,} of "
                     f"{found.max_length:,} tokens"),
        ("trained", f"{report.trained_tokens:,} of {report.tokens:,} tokens{share}: {', '.join(roles) or 'none'}"),
    ]  # fmt: skip
    counts = (
        (prepared.bad_rows, "bad"),
        (prepared.long_rows, "too long"),
        (report.shortened_rows, "without their oldest turns"),
        (report.cut_rows, "with a cut answer"),
        (report.split_rows, "split into an example for each answer"),
    )
    lines.append(("changed", "; ".join(f"{n:,} {what}" for n, what in counts)))
    if report.altered_answers:
        lines.append(("altered", f"{report.altered_answers:,} answers have characters that this tokenizer lacks"))
    if found.otherwise:
        lines.append(
            ("joined", f"{found.otherwise:,} of the first {found.sampled:,} rows would have other ids as one text; "
                       "here an answer is encoded by itself, as it is generated")
        )  # fmt: skip
    return lines


def assertions(found: Inspection) -> list[Check]:
    """What must hold for every example, and for how many it does."""
    report = found.prepared.report
    checks = []
    for rule, text in RULES.items():
        failed = report.failures.get(rule, 0)
        count = f"{failed:,} of {report.rows:,} rows fail" if failed else f"{report.examples:,} examples"
        checks.append(Check(not failed, "FAILED" if failed else "holds", f"{text} ({count})"))
    return checks


def page(found: Inspection) -> str:
    """The report and the rows that are shown; trained tokens are coloured, and say on hover what decided."""
    verdict = "".join(f"<p class=no>Refused: {escape(reason)}</p>" for reason in found.refused)
    verdict = verdict or "<p class=yes>sft would start on these rows.</p>"
    lines = "".join(f"<tr><th>{escape(title)}<td>{escape(value)}" for title, value in summary(found))
    checks = "".join(
        f"<tr class={'yes' if check.holds else 'no'}><th>{check.verdict}<td>{escape(check.text)}"
        for check in assertions(found)
    )
    problems = [f"{where}: {rule}: {what}" for where, rule, what in found.prepared.report.problems]
    problems += [f"{where}: bad: {reason}" for where, reason in found.prepared.bad]
    problems += [f"{where}: {tokens:,} tokens" for where, tokens in found.prepared.long]
    listed = f"<ul>{''.join(f'<li>{escape(problem)}' for problem in problems)}</ul>" if problems else ""
    warned = "".join(f"<p class=warning>Warning: {escape(warning)}</p>" for warning in found.warnings)
    rows = "".join(_row(row) for row in found.shown)
    text = (
        f"{MARK}<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Loss mask: {escape(', '.join(found.files))}</title><style>{_STYLE}</style>"
        f"<h1>The loss mask of {escape(', '.join(found.files))}</h1>{verdict}"
        f"<table class=report>{lines}</table><table class=report>{checks}</table>{listed}{warned}"
        "<p class=legend><span class='t on'>trained</span> <span class=t>read, not trained</span> "
        "<span class='t c'>token of the template</span>; hover for position, id and the rule that decided</p>"
        f"{rows}</html>\n"
    )
    return text.encode("utf-8", "replace").decode()


def _row(row: Shown) -> str:
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in row.notes)
    return f"<h2>{escape(row.where)}</h2>{notes}{''.join(map(_example, row.examples))}"


def _example(tokens: list[Token]) -> str:
    inline = "".join(map(_inline, tokens))
    lines = "".join(
        f"<tr{' class=on' if token.trained else ''}><td>{token.position}<td>{token.id}<td><code>{_visible(token.text)}"
        f"</code><td>{escape(token.role or 'template')}<td>{token.part}<td>{_trained(token)}<td>{escape(token.rule)}"
        for token in tokens
    )
    head = "<tr><th>position<th>id<th>token<th>role<th>segment<th>trained<th>rule"
    table = f"<details><summary>All {len(tokens):,} tokens as a table</summary><table>{head}{lines}</table></details>"
    return f"<div class=row>{inline}</div>{table}"


def _inline(token: Token) -> str:
    kind = "t on" if token.trained else "t c" if token.part in ("start", "terminator") else "t"
    who = f"{token.role or 'template'}, {token.part}"
    title = f"position {token.position}, id {token.id}\n{who}\ntrained: {_trained(token)}\n{token.rule}"
    broken = "<br>" * token.text.count("\n")
    return f'<span class="{kind}" title="{escape(title)}">{_visible(token.text) or "&empty;"}</span>{broken}'


def _trained(token: Token) -> str:
    if not token.trained:
        return "no"
    return "yes" if token.weight == 1 else f"yes, weight {token.weight:g}"


def _visible(text: str) -> str:
    """Escaped, with a sign for what cannot be seen."""
    signs = {"\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d"}
    seen = (signs.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)
    return escape("".join(seen))


_STYLE = """
:root{color-scheme:light dark;--on:#bfe8c8;--line:#8886}
@media(prefers-color-scheme:dark){:root{--on:#1d5a2e}}
body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}
table{border-collapse:collapse;margin:.6em 0}th,td{text-align:left;vertical-align:top;padding:.1em .8em .1em 0}
.report th{min-width:5em;font-weight:600}.yes th,p.yes{color:#1a8a3a}.no th,p.no{color:#c62828;font-weight:600}
.warning{color:#b26a00}.note{font-style:italic}
.row{font-family:ui-monospace,monospace;border:1px solid var(--line);border-radius:6px;padding:.8em;
overflow-wrap:anywhere;line-height:1.9}
.t{white-space:pre-wrap;border-radius:3px;box-shadow:inset 0 -1px var(--line);margin-right:1px}
.c{opacity:.6}.on{background:var(--on)}
details{margin:.5em 0}details td,details th{border-bottom:1px solid var(--line);font-size:.9em}
"""
