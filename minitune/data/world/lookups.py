"""Documents in which nearly every second word can be told from what stands before: for looking up, both ways.

A model of a million parameters learns from a story, where a lookup is needed now and then among much that cannot
be foretold, ten times as slowly as from these. It learns in this order, each from the one before: to say a few words
over and over (``cycling``), which needs the place of the word before; what stood behind a word the last time
(``neighbours``), behind a word and a mark (``gaps``), and behind a word and a phrase (``phrases``); to go on with a
list that it has seen (``copying``); to give the second of a pair by the first (``pairs``); and what stands behind a
word in whole sentences (``asked``, ``drill``).
"""

from collections.abc import Sequence
from itertools import pairwise

from minitune.data.world.phrases import ASK, SAY
from minitune.data.world.scenes import Maker
from minitune.data.world.stories import COPIED, GAPS, LEADS, ORDERS, PAIRED, STATED, WIDE_GAPS
from minitune.data.world.words import Words, any_held_out, held_out


def cycling(make: Maker) -> str:
    """Two to four words over and over, with nothing between them."""
    rng = make.rng
    while True:
        words = rng.sample(_pool(make.words), rng.choice((2, 2, 3, 4)))
        out = (words * 12)[: rng.randrange(12, 24)]
        if _may_stand(make.words, out):
            return make.join(out)


def neighbours(make: Maker) -> str:
    """Two to four pairs of words over and over, each time in another order, with nothing between them."""
    rng = make.rng
    while True:
        count = rng.choice((2, 2, 3, 3, 4))
        drawn = rng.sample(_pool(make.words), 2 * count)
        found = list(zip(drawn[:count], drawn[count:], strict=True))
        out = []
        while len(out) < 48:
            out += [word for pair in rng.sample(found, count) for word in pair]
        if _may_stand(make.words, out):
            return make.join(out)


def gaps(make: Maker) -> str:
    """Two to four pairs with a mark or a word between the two of a pair, over and over, each time in another order.

    Most texts tell them first side by side: what is asked of the second word is then easier to find.
    """
    between, behind = (make.rng.choice(choices) for choices in GAPS[make.words.name])
    return _over_and_over(make, 18, between, behind, first=make.joint, often=0.6)


def phrases(make: Maker) -> str:
    """The same with several words between the two of a pair, as between who and what in a sentence."""
    choices, ends = WIDE_GAPS[make.words.name]
    between, first = (make.rng.choice(choices) for _ in range(2))
    return _over_and_over(make, 15, between, make.rng.choice(ends), first=first, often=0.5)


def _over_and_over(make: Maker, times: int, between: str, behind: str, *, first: str, often: float) -> str:
    """Two to four pairs, at least ``times`` of them; ``often`` they are told before with ``first`` between the two."""
    rng = make.rng
    while True:
        count = rng.choice((2, 2, 3, 3, 4))
        drawn = rng.sample(_pool(make.words), 2 * count)
        found = list(zip(drawn[:count], drawn[count:], strict=True))
        told = found if rng.random() < often else []
        asked = [pair for _ in range(-(-times // count)) for pair in rng.sample(found, count)]
        if _may_stand(make.words, [word for pair in told + asked for word in pair]):
            break
    opening = "".join(f"{a}{first}{b}{behind}" for a, b in told).rstrip()
    again = "".join(f"{a}{between}{b}{behind}" for a, b in asked).rstrip()
    return f"{opening}\n{again}" if opening else again


def copying(make: Maker) -> str:
    """A list of any words, and all of it or a part of it again, once to three times."""
    rng, words = make.rng, make.words
    while True:
        listed = rng.sample(_pool(words), rng.choice((4, 6, 8, 10)))
        out = list(listed)
        for _ in range(rng.choice((1, 2, 3))):
            start = rng.randrange(len(listed))
            out += listed if rng.random() < 0.5 else listed[start : rng.randrange(start + 1, len(listed) + 1)]
        if _may_stand(words, out):
            break
    return _lead(make) + rng.choice(COPIED[words.name]).join(out)


def pairs(make: Maker) -> str:
    """Pairs of any words, and the same again in another order."""
    rng, words = make.rng, make.words
    count = rng.choice((2, 3, 4, 5, 6))
    while True:
        drawn = rng.sample(_pool(words), 2 * count)
        found = list(zip(drawn[:count], drawn[count:], strict=True))
        if not any(_is_held_out(words, a, b) for a, b in found):
            break
    told, asked, end = rng.choice(PAIRED[words.name])
    out = [f"{a}{told}{b}{end}" for a, b in found]
    for _ in range(rng.choice((1, 2))):
        again = rng.sample(found, count)
        out += [f"{a}{asked}{b}{end}" for a, b in again]
    return _lead(make) + "".join(out).rstrip()


def asked(make: Maker) -> str:
    """Who has what, who is where, what belongs to whom or who has how many: told once, and asked once in any order."""
    rng, words = make.rng, make.words
    told_by, asked_by, rules = rng.choice(_ASKED)
    count = rng.choice((2, 2, 3, 3, 4))
    food = rng.choice(words.foods)
    while True:
        drawn = zip(
            make.pick(words.people, count), make.pick(tuple(words.things), count), make.pick(words.colours, count),
            make.pick(words.places, count), make.pick(range(2, 13), count), strict=True,
        )  # fmt: skip
        slots = [
            {"p": p, "t": t, "c": c, "l": l, "n": words.quantity(n), "f": food, "m": words.things[t]}
            for p, t, c, l, n in drawn
        ]
        if not any_held_out((rule, s[x], s[y]) for rule, x, y in rules for s in slots):
            break
    say, way = SAY[words.name][told_by], rng.choice(ASK[words.name][rng.choice(asked_by)])
    frame = rng.choice(say)
    told = [(frame if rng.random() < 0.5 else rng.choice(say)).format(**s) for s in slots]
    answers = [make.join([way[0].format(**s), way[1].format(**s)]) for s in rng.sample(slots, count)]
    return rng.choice((make.joint, "\n")).join(told + answers)


_ASKED = (
    ("has", ("has",), (("has", "p", "t"), ("colour", "t", "c"))),
    ("of", ("who", "colour"), (("has", "p", "t"), ("colour", "t", "c"))),
    ("at", ("where",), (("at", "p", "l"),)),
    ("count", ("counted",), ()),
)
"""What is told, what is asked about it, and which combinations must not be held out."""


def drill(make: Maker) -> str:
    """A scene with all its questions, in several ways and rounds."""
    rng = make.rng
    scene = make.make(rng.choice(("holding", "holding", "owning", "owning", "counting", "moving")))
    frame = rng.choice(STATED[make.words.name]["asks"])
    out = [scene.story]
    for _ in range(rng.choice((1, 2))):
        p, q = make.pick([name for name in make.words.people if name not in scene.story], 2)
        for one in rng.sample(scene.questions, len(scene.questions)):
            out.append(frame.format(question=one.question, answer=one.answer, p=p, q=q))
    return ("\n" if "\n" in frame else make.joint).join(out)


def comparing(make: Maker) -> str:
    """Several small counts, each with who has more and who has fewer."""
    out = []
    for _ in range(make.rng.choice((2, 3, 4))):
        scene = make.make("counting")
        out.append(make.join([scene.story, *(make.join([a.question, a.answer]) for a in scene.questions)]))
    return "\n".join(out)


def ordering(make: Maker) -> str:
    """Short rows of numbers, each with the most and the fewest of them."""
    rng, words = make.rng, make.words
    out = []
    for _ in range(rng.choice((4, 6, 8))):
        numbers = rng.sample(range(2, 13), rng.choice((2, 2, 3)))
        row = words.comma.join(words.quantity(n) for n in numbers)
        most, least = words.quantity(max(numbers)), words.quantity(min(numbers))
        out.append(rng.choice(ORDERS[words.name]).format(list=row, most=most, least=least))
    return rng.choice((make.joint, "\n")).join(out)


def _lead(make: Maker) -> str:
    return make.rng.choice(LEADS[make.words.name]).format(p=make.rng.choice(make.words.people))


def _pool(words: Words) -> list[str]:
    """Words that stand for one thing each."""
    return [
        *words.people, *words.things, *words.colours, *words.places, *words.foods, *words.numbers[:12],
    ]  # fmt: skip


def _may_stand(words: Words, listed: Sequence[str]) -> bool:
    """Whether no two neighbours in a list are a combination that the test asks for."""
    return not any(_is_held_out(words, a, b) for a, b in set(pairwise(listed)))


def _is_held_out(words: Words, a: str, b: str) -> bool:
    """Whether two words, in either order, are a combination that the test asks for."""
    for x, y in ((a, b), (b, a)):
        if x in words.people and y in words.things and held_out("has", x, y):
            return True
        if x in words.people and y in words.places and held_out("at", x, y):
            return True
        if x in words.things and y in words.colours and held_out("colour", x, y):
            return True
    return False


LOOKUPS = {
    "cycling": cycling, "neighbours": neighbours, "gaps": gaps, "phrases": phrases, "copying": copying, "pairs": pairs,
    "asked": asked, "drill": drill, "comparing": comparing, "ordering": ordering,
}  # fmt: skip
