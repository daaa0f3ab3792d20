"""Which language a text is in, from its script and, in Latin script, its function words: sure, or not said at all."""

import re
from collections import Counter

from minitune.errors import ConfigError, nearest

_SCRIPTS = {
    "latin": r"[A-Za-z\u00c0-\u024f']+",
    "zh": r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]",
    "ja": r"[\u3040-\u30ff]",
    "ko": r"[\uac00-\ud7af\u1100-\u11ff]+",
    "cyrillic": r"[\u0400-\u052f]+",
    "greek": r"[\u0370-\u03ff]+",
    "arabic": r"[\u0600-\u06ff]+",
    "hebrew": r"[\u0590-\u05ff]+",
    "devanagari": r"[\u0900-\u097f]+",
    "thai": r"[\u0e00-\u0e7f]",
}
_UNIT = re.compile("|".join(f"({pattern})" for pattern in _SCRIPTS.values()))
_NAMES = list(_SCRIPTS)
_FUNCTION_WORDS = {
    "en": "the and of to in is that for with as was on are by this be from or which you it have not your can"
    " what how do does they their there",
    "fr": "le la les des et est une du dans qui que pour au sur pas par avec sont il elle vous nous ce cette",
    "de": "der die das und ist nicht ein eine mit den von zu auf für dem im sich des auch als werden wird sind",
    "es": "el los las y es una del que en por con para se su no más como este está son pero lo al",
    "it": "il gli della e di è che un una per con non sono del nel si più alla dei le anche questo come",
    "pt": "os uma do da e não que em para com é dos das mais por como se ao na no são você seu",
    "nl": "het een en van is dat niet op te zijn voor met die aan er ook als maar bij wordt naar je deze",
}
_LANGUAGES: dict[str, list[str]] = {}
for _code, _words in _FUNCTION_WORDS.items():
    for _word in _words.split():
        _LANGUAGES.setdefault(_word, []).append(_code)
_ALIASES = {
    **{code: code for code in (*_FUNCTION_WORDS, "zh", "ja", "ko")},
    **dict.fromkeys(("ru", "uk", "bg", "sr"), "cyrillic"),
    **dict.fromkeys(("ar", "fa", "ur"), "arabic"),
    "el": "greek",
    "he": "hebrew",
    "th": "thai",
    "hi": "devanagari",
}
_MAIN = 0.8  # the share of a text's units that decides its script
_FEWEST_UNITS = 4
_FEWEST_WORDS, _SURE_WORDS = 4, 25  # to tell languages of one script apart
_SHARE = 0.16  # of function words
_LETTERS = r"[a-z\u00df-\u024f']"
_WORD = re.compile(rf"(?<![\w.@/]){_LETTERS}+(?![\w@/]|\.\w)")  # no part of an address


def wanted_language(code: str) -> str:
    """Return what ``language_of`` says of texts in a language by its two letters; ``ConfigError`` for another word."""
    if code not in _ALIASES:
        raise ConfigError(f"--language {code!r} is not known{nearest(code, _ALIASES)}; known: {', '.join(_ALIASES)}")
    return _ALIASES[code]


def language_of(text: str, *, sure: bool = False) -> str:
    """Return the language or, of scripts that several share, the script; "" where a text is short, mixed or not known.

    ``sure``: of the Latin script only texts of 25 words and more, not from 4 on.
    """
    if text.isascii():
        return _latin(text, sure)
    kinds = Counter(_NAMES[match.lastindex - 1] for match in _UNIT.finditer(text) if match.lastindex)
    if kinds["ja"] and kinds["ja"] >= 0.1 * (kinds["zh"] + kinds["ja"]):
        kinds["ja"] += kinds.pop("zh", 0)  # Japanese is written with Chinese characters too, Chinese without kana
    total = kinds.total()
    if total < _FEWEST_UNITS:
        return ""
    name, most = kinds.most_common(1)[0]
    if most < _MAIN * total:
        return ""
    return _latin(text, sure) if name == "latin" else name


def differ(one: str, other: str) -> bool:
    """Whether two texts are surely in different languages."""
    if one.isascii() and other.isascii() and min(one.count(" "), other.count(" ")) < _SURE_WORDS - 1:
        return False  # neither is long enough; most rows end here
    first, second = language_of(one), language_of(other)
    if not first or not second or first == second:
        return False
    if first in _FUNCTION_WORDS and second in _FUNCTION_WORDS:  # told apart by a few words only
        return bool(language_of(one, sure=True) and language_of(other, sure=True))
    return True


def _latin(text: str, sure: bool) -> str:
    words = _WORD.findall(text.lower())
    if len(words) < (_SURE_WORDS if sure else _FEWEST_WORDS):
        return ""
    votes = Counter(code for word in words for code in _LANGUAGES.get(word, ()))
    (best, most), (_, second) = [*votes.most_common(2), ("", 0), ("", 0)][:2]
    return best if most >= max(2, _SHARE * len(words)) and most >= 2 * second else ""
