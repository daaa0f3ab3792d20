"""The text that a base model is trained on: stories, facts, lists and scenes, in English and Chinese."""

import random
from collections.abc import Iterator

from minitune.data.world.phrases import ASK, SAY
from minitune.data.world.scenes import FACTS, Maker
from minitune.data.world.stories import STATED, STORIES
from minitune.data.world.words import ENGLISH, LANGUAGES, bilingual, held_out

# Which documents, how often. Scenes with several people are most of the text: who has what, and where, is what a
# small model learns last.
_SHARES = {
    "holding": 34,
    "counting": 10,
    "moving": 12,
    "listing": 14,
    "odd_one": 6,
    "ranging": 4,
    "facts": 10,
    "story": 10,
}


def documents(count: int, *, seed: int) -> Iterator[str]:
    """``count`` documents of the world, the two languages in turn; the same for a seed everywhere.

    No held-out combination is in them, except where a fact is stated (``FACTS``), which is never asked there.
    """
    rng = random.Random(f"minitune world {seed}")
    makers = [Maker(words, rng) for words in LANGUAGES]
    kinds, shares = list(_SHARES), list(_SHARES.values())
    for i in range(count):
        make = makers[i % 2]
        kind = rng.choices(kinds, shares)[0]
        if kind == "facts":
            yield _facts(make)
        elif kind == "story":
            yield _story(make)
        else:
            yield _scene(make, kind)


def _scene(make: Maker, kind: str) -> str:
    """A scene and, in one to six questions, what is the case in it."""
    scene = make.make(kind)
    asked = scene.questions[: make.rng.choice((1, 2, 3, 4, 6))]
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


def _frame(make: Maker, key: str, **slots: object) -> str:
    return make.rng.choice(STATED[make.words.name][key]).format(p=make.rng.choice(make.words.people), **slots)


def _facts(make: Maker) -> str:
    """Six to ten facts, each stated in one of several ways, and questions about those that are not held out."""
    rng = make.rng
    out = []
    for _ in range(rng.randrange(6, 11)):
        if rng.random() < 0.25:
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
        pairs = [("has", p, t), ("has", q, t), ("at", p, l), ("at", p, r), ("at", q, l), ("at", q, r), ("moved", p, l)]
        pairs += [("moved", p, r), ("moved", q, r), ("colour", t, c)]
        if not any(held_out(*pair) for pair in pairs):
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
