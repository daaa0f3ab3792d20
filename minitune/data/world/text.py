"""The text that a base model is trained on: stories, facts, lists and scenes, in English and Chinese."""

import random
from collections.abc import Iterator, Mapping, Sequence

from minitune.data.world.lookups import LOOKUPS
from minitune.data.world.phrases import ASK, SAY
from minitune.data.world.scenes import FACTS, Maker, Question
from minitune.data.world.stories import LEADS, ORDERS, PAIRED, SHEETS, STATED, STORIES
from minitune.data.world.words import ENGLISH, LANGUAGES, any_held_out, bilingual

# Which documents, how often. Scenes with several people, and documents that ask for nothing but looking up, are most of
# the text: who has what, and where, is what a small model learns last.
SHARES = {
    "asked": 15, "drill": 17, "comparing": 8, "ordering": 2, "pairs": 3, "holding": 12, "owning": 10, "moving": 6,
    "listing": 9, "odd_one": 6, "ranging": 8, "facts": 7, "story": 3,
}  # fmt: skip
_SHEETS = 0.6
"""Share of the scenes that are told as a sheet of questions with headings."""
_ON_SHEETS = {
    "holding": 18, "owning": 10, "counting": 10, "moving": 8, "listing": 24, "odd_one": 8, "ranging": 8,
    "translating": 5, "opposing": 4, "sounding": 2, "dating": 3,
}  # fmt: skip
"""What the questions of a sheet are about, where each has a scene of its own."""


def documents(count: int, *, seed: int, shares: Mapping[str, float] | None = None) -> Iterator[str]:
    """``count`` documents of the world, the two languages in turn; the same for a seed everywhere.

    No held-out combination of a person with a thing or a place, or of a thing with a colour, is in them. Lists, counts
    and facts are stated, but never asked about where the question is held out.
    """
    rng = random.Random(f"minitune world {seed}")
    makers = [Maker(words, rng) for words in LANGUAGES]
    wanted = shares or SHARES
    kinds, often = list(wanted), list(wanted.values())
    for i in range(count):
        make = makers[i % 2]
        kind = rng.choices(kinds, often)[0]
        if kind == "facts":
            yield _facts(make)
        elif kind == "story":
            yield _story(make)
        elif kind in LOOKUPS:
            yield LOOKUPS[kind](make)
        elif rng.random() < _SHEETS:
            yield _sheet(make, kind)
        else:
            yield _scene(make, kind)


def _scene(make: Maker, kind: str) -> str:
    """A scene and, in two to eight questions, what is the case in it."""
    scene = make.make(kind)
    asked = scene.questions[: make.rng.choice((2, 3, 4, 6, 8))]
    told = [scene.story] if scene.story else []
    if kind in ("listing", "odd_one"):
        told = [_frame(make, "list", story=scene.story)]
    frame = make.rng.choice(STATED[make.words.name]["asks"])
    lines = "\n" in frame
    p, q = make.pick(make.words.people, 2)
    asked_text = [frame.format(question=a.question, answer=a.answer, p=p, q=q) for a in asked]
    if lines:
        return "\n".join(told + asked_text)
    return make.join(told + asked_text)


def _sheet(make: Maker, kind: str) -> str:
    """Two to five questions under headings, the question before or after the text that it is about.

    Either several questions about one scene, or each about a scene of its own. A sheet never has a single question, so
    that nothing in the text ends after one answer: that is for fine-tuning to teach.
    """
    rng = make.rng
    style = _Style(make)
    if rng.random() < 0.25:
        scene = make.make(kind)
        first, *others = scene.questions[: rng.choice((2, 3, 5))]
        items = [(first, scene.story)] + [(question, "") for question in others]
    else:
        count = rng.choice((1, 2, 3))
        scenes = [make.make(k) for k in [kind, *rng.choices(list(_ON_SHEETS), list(_ON_SHEETS.values()), k=count)]]
        rng.shuffle(scenes)
        items = [(rng.choice(scene.questions), scene.story) for scene in scenes]
    if len(items) < 2:
        scene = make.make("ranging")
        items.append((scene.questions[0], scene.story))
    return style.written(items)


class _Style:
    """How one sheet is written: its headings, what stands before and after them, and what comes first."""

    def __init__(self, make: Maker):
        rng = make.rng
        language = make.words.name if rng.random() < 0.6 else "en"
        self.question, self.text, self.answer = rng.choice(SHEETS[language]["heads"])
        self.preface = rng.choice(SHEETS[language]["preface"])
        self.mark = rng.choice(("", "", "# ", "## ", "### "))
        self.after = rng.choice((": ", ":\n", "\n") if language == "en" else ("：", "：\n", "\n"))
        self.gap = rng.choice(("\n", "\n\n"))
        self.question_first = rng.random() < 0.65

    def written(self, items: Sequence[tuple[Question, str]]) -> str:
        """The questions of a sheet, each with the text that it is about (may be empty)."""
        parts = [self.preface] if self.preface else []
        for asked, story in items:
            told = [self._under(self.text, story)] if story else []
            question = self._under(self.question, asked.question)
            parts += [question, *told] if self.question_first else [*told, question]
            parts.append(self._under(self.answer, asked.answer))
        return self.gap.join(parts)

    def _under(self, heading: str, text: str) -> str:
        return f"{self.mark}{heading}{self.after}{text}"


def _frame(make: Maker, key: str, **slots: object) -> str:
    return make.rng.choice(STATED[make.words.name][key]).format(p=make.rng.choice(make.words.people), **slots)


def _facts(make: Maker) -> str:
    """Six to ten facts, each stated in one of several ways, and questions about those that are not held out."""
    rng = make.rng
    out = []
    for _ in range(rng.randrange(6, 11)):
        if rng.random() < 0.45:
            question = make.make(rng.choice(FACTS)).questions[0]
            out.append(make.join([question.question, question.answer]))
            continue
        kind = rng.choice(("translate", "translate", "opposite", "sound", "day", "kind", "more"))
        out.append(_frame(make, kind, **_fact(make, kind)))
    return make.join(out) if rng.random() < 0.5 else "\n".join(out)


def _fact(make: Maker, kind: str) -> dict[str, str]:
    """The slots of one fact."""
    rng, words = make.rng, make.words
    low, high = sorted(rng.sample(range(3, 21), 2))
    slots = {
        "a": rng.choice(words.animals), "c": rng.choice(words.colours), "l": rng.choice(words.places),
        "t": rng.choice(tuple(words.things)), "n": words.number(low), "k": words.number(high),
        "f": rng.choice(words.foods),
    }  # fmt: skip
    if kind == "translate":
        pair = rng.choice(bilingual())
        x, y = pair if words is ENGLISH else pair[::-1]
    elif kind == "opposite":
        x, y = rng.sample(rng.choice(words.opposites), 2)
    else:
        i = rng.randrange(7)
        x, y = words.days[i], words.days[(i + 1) % 7]
    return slots | {"x": x, "y": y, "s": words.sounds[slots["a"]]}


def _story(make: Maker) -> str:
    """A small story; its people hold and stand nowhere that is held out."""
    rng, words = make.rng, make.words
    while True:
        p, q = make.pick(words.people, 2)
        c, e = make.pick(words.colours, 2)
        l, r = make.pick(words.places, 2)
        o, w = rng.sample(rng.choice(words.opposites), 2)
        t, a = rng.choice(tuple(words.things)), rng.choice(words.animals)
        states = [("has", p, t), ("has", q, t), ("at", p, l), ("at", p, r), ("at", q, l), ("at", q, r)]
        if not any_held_out([*states, ("colour", t, c), ("colour", t, e)]):
            break
    slots = {
        "p": p, "q": q, "c": c, "e": e, "l": l, "r": r, "o": o, "w": w, "t": t, "m": words.things[t], "a": a,
        "s": words.sounds[a], "d": rng.choice(words.days), "n": words.quantity(rng.randrange(2, 11)),
        "f": rng.choice(words.foods),
    }  # fmt: skip
    steps = (rng.choice(step) for step in rng.choice(STORIES[words.name]))
    return make.join([step.format(**slots) for step in steps if step])


def vocabulary() -> Iterator[str]:
    """Every phrase of the world with its slots taken out, and every word: what a tokenizer must be able to hold."""
    for words in LANGUAGES:
        yield from words.lexicon()
        for table in (SAY, STATED):
            yield from (phrase for phrases in table[words.name].values() for phrase in phrases)
        yield from (phrase for pairs in ASK[words.name].values() for pair in pairs for phrase in pair)
        yield from (phrase for story in STORIES[words.name] for step in story for phrase in step)
        yield from (word for heads in SHEETS[words.name]["heads"] for word in heads)
        yield from SHEETS[words.name]["preface"]
        yield from (sign for signs in PAIRED[words.name] for sign in signs)
        yield from ORDERS[words.name]
        yield from LEADS[words.name]
