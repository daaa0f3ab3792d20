"""What can be wrong with a row, each a rule with a name: of the row itself, and of the row among all others.

A rule looks at an answer and at what it answers, and returns in words what is wrong, or nothing. Rules are heuristics:
each is tuned to be right where it speaks, at the price of being silent where it is not sure.
"""

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minitune.data.formats import BadRow, Row
from minitune.data.language import differ, language_of
from minitune.data.minhash import tokens
from minitune.data.normal import folded
from minitune.errors import ConfigError, nearest


@dataclass(frozen=True)
class Limits:
    """What decides where a number or a language has to."""

    max_chars: int = 8000  # a row's, prompt and answers together
    language: str = ""  # as language_of says it; "" for that of the question


class Answer:
    """One answer with the question before it, and what several rules need of them."""

    def __init__(self, instruction: str, context: str, text: str):
        self.instruction = instruction
        self.context = context
        self.text = text

    @property
    def question(self) -> str:
        """The instruction and what it works on."""
        return f"{self.instruction}\n{self.context}" if self.context else self.instruction


def answers(row: Row) -> Iterator[Answer]:
    """Yield each turn of the assistant with the turn of the user before it, if any."""
    asked = context = ""
    for turn in row.messages:
        if turn.role == "assistant":
            yield Answer(asked, context, turn.content)
        elif turn.role in ("user", "tool"):
            asked, context = turn.content, turn.context


# ---- rules of one answer

_NOTHING = re.compile(
    r"[\s.…。,，\-–—_*#\"'()\[\]]*|<?no ?(input|output)>?|\[no output\]|n/?a\.?|nan|null", re.IGNORECASE
)


def _empty(answer: Answer, limits: Limits) -> str:
    if len(answer.text) > 40 or not _NOTHING.fullmatch(answer.text.strip()):
        return ""
    if folded(answer.text) in ("null", "nan", "na", "n/a") and folded(answer.text) in folded(answer.question):
        return ""  # a question about it
    return f"the answer is {answer.text.strip()!r}"


_CUT = re.compile(
    r"[,;(\[{，、；（]|(?:follow(?:s|ing)|below|these)\s?:|(?:如下|以下)：|\n\s*(?:\d+[.)]|[-*•])"
    r"|(?<=\s)(?:the|an|and|or|their|its|such as|because|which|whose)",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"```|[{};]\s*$|^\s*(?:def|class|import|from|#include|SELECT|CREATE|public|function|var|let|const|print)\b"
    r"|</\w+>|=>|\w\(\)|\\(?:frac|begin|boxed)",
    re.MULTILINE,
)


def _truncated(answer: Answer, limits: Limits) -> str:
    text = answer.text.rstrip()
    if text.count("```") % 2:
        return "a block of code is opened and not closed"
    tail = text[-24:]
    for match in _CUT.finditer(tail):
        # Of a text of a few words, an odd end is more likely what was asked for than a cut.
        last = text.rsplit("\n", 1)[-1]
        greets = match[0] == "," and len(last) < 25  # a letter's "Sincerely,"
        if match.end() == len(tail) and len(text) > 60 and not greets and not _CODE.search(text):
            return f"the answer ends with {tail.strip()!r}"
    return ""


_TRANSLATES = re.compile(
    r"translat|language|english|french|spanish|german|italian|portuguese|dutch|chinese|mandarin|japanese|korean|russian"
    r"|arabic|hindi|latin|greek|hebrew|thai|pinyin|romaji|翻译|译|英文|英语|中文|汉语|法语|德语|日语|西班牙语|意大利语|拉丁"
    r"|语言|拼音|单词|词汇|句子|字母|code|program|script|function|代码|程序|编程|脚本|函数|html|sql|python|java|api|url",
    re.IGNORECASE,
)


def _language(answer: Answer, limits: Limits) -> str:
    if limits.language:
        found = language_of(answer.text, sure=True)
        wrong = bool(found) and found != limits.language
    else:
        wrong = differ(answer.text, answer.instruction)
        if wrong and answer.context:
            wrong = differ(answer.text, answer.context)
    if not wrong or _TRANSLATES.search(answer.question) or _CODE.search(answer.text):
        return ""
    asked = limits.language or language_of(answer.instruction)
    return f"the answer is in {language_of(answer.text)}, {'wanted' if limits.language else 'the question in'} {asked}"


_TAG = re.compile(
    r"</?(?:p|div|span|br|a|li|ul|ol|td|tr|th|table|h[1-6]|b|i|em|strong|font|img|script|style|html|body)"
    r"(?:\s+[\w-]+\s*=[^<>]*)?\s*/?>",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:nbsp|amp|lt|gt|quot|apos|#\d{2,5}|#x[0-9a-f]{2,5});", re.IGNORECASE)
_ABOUT_MARKUP = re.compile(
    r"html|xml|css|svg|\bweb|markup|\btags?\b|code|script|program|react|php|jsx|template|regex|url|link|网页|标签|代码|网站"
    r"|</?\w+>|\bui\b|\bpages?\b|entit|escape|bold|italic|format",
    re.IGNORECASE,
)
_FENCED = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


def _html(answer: Answer, limits: Limits) -> str:
    text = answer.text
    if ("<" not in text and "&" not in text) or _ABOUT_MARKUP.search(answer.question):
        return ""
    prose = _FENCED.sub("", text)
    found = [*_TAG.finditer(prose), *_ENTITY.finditer(prose)]
    return f"{len(found):,} HTML tags or entities, the first {found[0][0][:30]!r}" if found else ""


# A first byte of UTF-8 and those that follow it, as Windows-1252 and Latin-1 show them.
_FOLLOWS = "\u0080-\u00bf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d"
_FOLLOWS += "\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178"
_MISREAD = re.compile(f"[\u00c2-\u00df][{_FOLLOWS}]|[\u00e0-\u00ef][{_FOLLOWS}]{{2}}|\u00f0[{_FOLLOWS}]{{3}}")
_BROKEN = re.compile("[\ufffd\u0080-\u0084\u0086-\u009f]|锟斤拷|烫烫烫|屯屯屯")


def _mojibake(answer: Answer, limits: Limits) -> str:
    for name, text in (("answer", answer.text), ("question", answer.question)):
        if text.isascii():
            continue
        match = _BROKEN.search(text)
        if match:
            return f"the {name} holds {match[0]!a}, left by a wrong decoding"
        for match in _MISREAD.finditer(text):
            meant = _reread(match[0])
            if meant:
                return f"the {name} holds {match[0]!r}, UTF-8 read as Windows-1252: {meant!r} was meant"
    return ""


def _reread(text: str) -> str:
    """Return what a text means whose UTF-8 bytes were shown one by one; nothing where its bytes are no UTF-8."""
    data = bytearray()
    for char in text:
        try:
            data += char.encode("cp1252")
        except UnicodeEncodeError:
            if ord(char) > 0xFF:
                return ""
            data.append(ord(char))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return ""


_REFUSES = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b(?!-)"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|^(?:i(?:'m| am) )?(?:very |really )?sorry,? (?:but )?(?:i |this |that |it )"
    r"(?:am not|'m not|can(?:no|')t|can not|do(?:n't| not)|(?:am|is) unable|instruction)"
    r"|^(?:unfortunately,? )?i(?:'m| am)? (?:cannot|can't|can not|unable to|not able to|not capable of)"
    r" (?:answer|assist|help|provid|fulfil|comply|complet|do (?:that|this)|access|generat|perform|process|creat|produc)"
    r"|^(?:this|the)(?: is an? inappropriate)? (?:instruction|request|prompt|task|question)s?"
    r" (?:cannot be|can't be|is (?:invalid|inappropriate|not appropriate|not possible)|(?:because|since|as) it)"
    r"|^(?:an? )?(?:gpt )?language models? (?:cannot|can't|is (?:not able|unable)|do(?:es)? not have)"
    r"|^no(?:t applicable| output| answer)\.?$"
    r"|^作为(?:一个|一名|一款)?(?:ai|人工智能|大型?语言模型|语言模型)|^(?:很|非常)?(?:抱歉|对不起|遗憾)[，,。]?(?:但)?(?:是)?[，,]?"
    r"(?:我|作为|这个|该|此)(?:.{0,8})?(?:无法|不能|不会|没有)|^我(?:无法|不能)(?:回答|提供|协助|完成|满足|帮助|执行|访问|生成)",
    re.IGNORECASE,
)


def _refusal(answer: Answer, limits: Limits) -> str:
    start = answer.text[:200].lstrip("\"' \n\t").replace("\u2019", "'")
    match = _REFUSES.search(start)
    if match is None or match.start() > 80:
        return ""
    return f"the answer refuses: {' '.join(match[0].split())!r}"


def _repetition(answer: Answer, limits: Limits) -> str:
    # Neither the lines of a table nor T T F F of a truth table are a loop.
    units = [u for u in tokens(answer.text.lower()) if u.isalnum() and (len(u) > 1 or not u.isascii() or u.isdigit())]
    if len(units) < 12:
        return ""
    triples = len(units) - 2
    lost = triples - len(set(zip(units, units[1:], units[2:], strict=False)))
    if lost < 8 or _asks_for_repetition(answer):
        return ""
    period, run, end = _longest_loop(units, lost)
    if run >= max(5 * period, 12):
        what = " ".join(units[end - period : end])
        return f"{what[:60]!r} stands {run // period} times in a row"
    if triples >= 60 and lost > 0.7 * triples:
        return f"{lost / triples:.0%} of its runs of three words stood before"
    return ""


def _asks_for_repetition(answer: Answer) -> bool:
    return bool(_CODE.search(answer.text) or re.search(r"\brepeat|times|重复|遍|次", answer.question, re.IGNORECASE))


def _longest_loop(units: Sequence[str], lost: int) -> tuple[int, int, int]:
    """Return the period, length and end of the longest loop, counted in periods: a run in which u[i] = u[i - p].

    A loop of n units and period p makes n - p - 2 triples that stood before, so ``lost`` bounds the periods to look at.
    """
    best = (1, 0, 0)
    for period in range(1, min(12, (lost + 2) // 4) + 1):
        equal = bytes(map(operator.eq, units[period:], units))
        longest = max(equal.split(b"\0"), key=len)
        run = len(longest) + period
        if longest and run * best[0] > best[1] * period:
            best = (period, run, equal.find(longest) + run)
    return best


def _echo(answer: Answer, limits: Limits) -> str:
    if not answer.instruction or len(answer.text) > len(answer.question) + 20:
        return ""
    said = folded(answer.text)
    if len(tokens(said)) >= 4 and said in (folded(answer.instruction), folded(answer.question)):
        return "the answer is the question, word for word"
    return ""


# ---- all rules


@dataclass(frozen=True)
class Rule:
    """A rule by its name: what it says, and whether ``data clean`` follows it unless told otherwise."""

    says: str
    removes: bool
    answer: Callable[[Answer, Limits], str] | None = None  # None: decided by the row as a whole or among the others


RULES: dict[str, Rule] = {
    "unreadable": Rule("broken, in no known layout, or with a value of the wrong kind", True),
    "empty": Rule("no text where there should be some, or an answer such as 'n/a' or '...'", True, _empty),
    "duplicate": Rule("says what an earlier row says (case, spaces and Unicode form aside)", True),
    "near-duplicate": Rule("says nearly what an earlier row says (Jaccard similarity of --threshold or more)", True),
    "contradiction": Rule("asks what an earlier row asks and answers something else", False),
    "truncated": Rule(
        "an answer that stops in the middle: a comma, 'and the', an open block of code", False, _truncated
    ),
    "long": Rule("more than --max-chars characters", False),
    "language": Rule("answered in another language than asked in (or than --language)", False, _language),
    "mojibake": Rule("text that was decoded wrongly: 'cafÃ©', U+FFFD", True, _mojibake),
    "html": Rule("left-over HTML tags or entities where nothing asks for any", False, _html),
    "refusal": Rule(
        "an answer that refuses, or that speaks of itself: 'I'm sorry, but I cannot', 'As an AI language model'",
        True,
        _refusal,
    ),
    "repetition": Rule("an answer that runs in a loop", True, _repetition),
    "echo": Rule("an answer that is the question again", False, _echo),
}


def chosen_rules(said: str, *, cleaning: bool) -> list[str]:
    """Return the names in ``said``: "default", "all", or names with commas between them; "-name" leaves one out.

    "default" is every rule where files are checked, and where they are cleaned those that hardly need a judge.
    """
    default = [name for name, rule in RULES.items() if rule.removes or not cleaning]
    words = [word.strip() for word in said.split(",") if word.strip()]
    chosen: set[str] = set(default) if not words or words[0].startswith("-") else set()
    for word in words:
        name = word.removeprefix("-")
        names = {"all": list(RULES), "default": default}.get(name, [name])
        if not RULES.keys() >= set(names):
            known = ", ".join(RULES)
            raise ConfigError(f"--rules: there is no rule {name!r}{nearest(name, RULES)}; known: all, default, {known}")
        chosen = chosen - set(names) if word.startswith("-") else chosen | set(names)
    if not chosen:
        raise ConfigError(f"--rules {said!r} leaves no rule")
    return [name for name in RULES if name in chosen]


class Fault(NamedTuple):
    """What is wrong with a row in words, and the answer that it is about; None for the row as a whole."""

    words: str
    answer: Answer | None = None


def row_faults(row: Row, rules: Sequence[str], limits: Limits) -> dict[str, Fault]:
    """Return what is wrong with a row by itself, by the rules that say so: the first answer of each."""
    faults: dict[str, Fault] = {}
    if "long" in rules:
        chars = sum(len(turn.content) + len(turn.context) for turn in row.messages)
        if chars > limits.max_chars:
            faults["long"] = Fault(f"{chars:,} characters, more than {limits.max_chars:,}")
    checks = [(name, check) for name in rules if (check := RULES[name].answer) is not None]
    several = sum(turn.role == "assistant" for turn in row.messages) > 1
    for number, answer in enumerate(answers(row), start=1):
        for name, check in checks:
            if name not in faults:
                words = check(answer, limits)
                if words:
                    faults[name] = Fault(f"answer {number}: {words}" if several else words, answer)
    return faults


def bad_rule(bad: BadRow) -> str:
    """Return the rule that a row breaks which cannot be read."""
    return "empty" if re.search(r" is (empty|blank)\b", bad.reason) and not bad.unread else "unreadable"
