"""Documents in which nearly every word can be told from what stands before: for looking up, both ways.

A model of a million parameters learns from a story, where a lookup is needed now and then among much that cannot be
foretold, ten times as slowly as from these. Forward (what does Tom have?) comes by itself, since the answer follows the
name; backward (who has the ball?) must step from the thing to what stood before it, and needs documents that ask for
nothing else.
"""

from minitune.data.world.phrases import ASK, SAY
from minitune.data.world.scenes import Maker
from minitune.data.world.stories import ORDERS, REGISTERS, STATED
from minitune.data.world.words import held_out


def register(make: Maker) -> str:
    """Pairs at their plainest, and the same again in another order."""
    return _pairs(make, backward=False)


def reversed_pairs(make: Maker) -> str:
    """Pairs that are asked for by their second word only; half of them in whole sentences."""
    return _sentences(make) if make.rng.random() < 0.6 else _pairs(make, backward=True)


def _pairs(make: Maker, *, backward: bool) -> str:
    """Told, then asked once each by the first word, or by the second where ``backward``.

    Once, since of what was asked before, the second time could be told without looking back at what was told.
    """
    rng, words = make.rng, make.words
    count = rng.choice((2, 3, 4, 5, 6))
    kinds = [("people", words.people), ("things", tuple(words.things)), ("colours", words.colours)]
    kinds += [("places", words.places), ("foods", words.foods), ("numbers", words.numbers[:12])]
    held = {("people", "things"): "has", ("people", "places"): "at", ("things", "colours"): "colour"}
    while True:
        (left, keys), (right, values) = rng.sample(kinds, 2)
        pairs = list(zip(make.pick(keys, count), make.pick(values, count), strict=True))
        straight, turned = held.get((left, right)), held.get((right, left))
        kept = ((straight and held_out(straight, a, b)) or (turned and held_out(turned, b, a)) for a, b in pairs)
        if not any(kept):
            break
    told, asked = REGISTERS[words.name]
    frame = rng.choice(told)
    out = [(frame if rng.random() < 0.8 else rng.choice(told)).format(x=a, y=b) for a, b in pairs]
    frame = rng.choice(asked)
    out += [frame.format(x=b, y=a) if backward else frame.format(x=a, y=b) for a, b in rng.sample(pairs, count)]
    return rng.choice((make.joint, "\n")).join(out)


def _sentences(make: Maker) -> str:
    """Who has what, who is where or who has how many, each told by the person's name and asked for by the rest."""
    rng, words = make.rng, make.words
    say, ask = SAY[words.name], ASK[words.name]
    kind = rng.choice(("has", "has", "at", "count"))
    count = rng.choice((2, 2, 3, 3, 4))
    food = rng.choice(words.foods)
    question = {"has": "who", "at": "stands", "count": "counted"}[kind]
    choices = {"has": tuple(words.things), "at": words.places, "count": [words.quantity(n) for n in range(2, 13)]}
    while True:
        people, values = make.pick(words.people, count), make.pick(choices[kind], count)
        colours = make.pick(words.colours, count)
        tinted = kind == "has" and any(held_out("colour", t, c) for t, c in zip(values, colours, strict=True))
        if not tinted and not any(held_out(kind, p, v) for p, v in zip(people, values, strict=True)):
            break
    slots = [
        {"p": p, "t": v, "l": v, "n": v, "f": food, "c": c, "m": words.things.get(v, "")}
        for p, v, c in zip(people, values, colours, strict=True)
    ]
    frame = rng.choice(say[kind])
    told = [(frame if rng.random() < 0.5 else rng.choice(say[kind])).format(**s) for s in slots]
    way = rng.choice(ask[question])
    asked = [make.join([way[0].format(**s), way[1].format(**s)]) for s in rng.sample(slots, count)]
    return rng.choice((make.joint, "\n")).join(told + asked)


def drill(make: Maker) -> str:
    """A scene with all its questions, in several ways and rounds."""
    rng = make.rng
    scene = make.make(rng.choice(("holding", "holding", "holding", "counting", "moving")))
    frame = rng.choice(STATED[make.words.name]["asks"])
    out = [scene.story] if scene.story else []
    for _ in range(rng.choice((1, 2))):
        p, q = make.pick([name for name in make.words.people if name not in scene.story], 2)
        for asked in rng.sample(scene.questions, len(scene.questions)):
            out.append(frame.format(question=asked.question, answer=asked.answer, p=p, q=q))
    return ("\n" if "\n" in frame else make.joint).join(out)


def comparing(make: Maker) -> str:
    """Several small counts, each with who has more and who has fewer."""
    rng = make.rng
    out = []
    for _ in range(rng.choice((2, 3, 4))):
        scene = make.make("counting")
        out.append(make.join([scene.story, *(make.join([a.question, a.answer]) for a in scene.questions)]))
    return "\n".join(out)


def ordering(make: Maker) -> str:
    """Short rows of numbers, each with the most and the fewest of them, or counted in order."""
    rng, words = make.rng, make.words
    out = []
    for _ in range(rng.choice((4, 6, 8))):
        numbers = rng.sample(range(2, 13), rng.choice((2, 2, 3)))
        row = words.comma.join(words.quantity(n) for n in numbers)
        most, least = words.quantity(max(numbers)), words.quantity(min(numbers))
        out.append(rng.choice(ORDERS[words.name]).format(list=row, most=most, least=least))
    return rng.choice((make.joint, "\n")).join(out)


LOOKUPS = {
    "register": register, "reversed": reversed_pairs, "pairs_back": lambda make: _pairs(make, backward=True), "sent_back": _sentences, "drill": drill, "comparing": comparing, "ordering": ordering,
}  # fmt: skip
