"""What is the case in the small world for the length of one text, and what can be asked about it.

A scene is a short story and its questions. A scene for training states nothing that is held out (who has which thing,
who is in which place, which thing has which colour) and asks no question that is held out (a comparison, a list, a way
of asking); a scene for the test is asked about what is held out only.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from minitune.data.world.phrases import ASK, SAY
from minitune.data.world.words import Words, any_held_out, bilingual, held_out

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with its only right answer; ``test`` where it is about a held-out combination."""

    kind: str
    question: str
    answer: str
    test: bool = False


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A story (empty where a question stands alone), the questions about it, and what of it may be held out.

    ``states`` are the combinations that the story names: ("has", person, thing), ("at", person, place) and
    ("colour", thing, colour).
    """

    story: str
    questions: list[Question] = field(default_factory=list)
    states: list[tuple[str, str, str]] = field(default_factory=list)


class Maker:
    """Makes scenes in one language from one stream of random numbers.

    ``test`` scenes have a held-out combination in them and keep only the questions about it.
    """

    def __init__(self, words: Words, rng: random.Random, *, test: bool = False):
        self.words, self.rng, self.test = words, rng, test
        self.say, self.ask = SAY[words.name], ASK[words.name]
        self.joint = " " if words.name == "en" else ""

    def make(self, name: str) -> Scene:
        """A scene of the kind ``name`` (a key of ``SCENES``); drawn again until it keeps the rule above."""
        while True:
            scene = SCENES[name](self)
            if self.test and (wanted := [question for question in scene.questions if question.test]):
                return replace(scene, questions=wanted)
            if not self.test and not any(q.test for q in scene.questions) and not any_held_out(scene.states):
                return scene

    def tell(self, key: str, **slots: object) -> str:
        return self.rng.choice(self.say[key]).format(**slots)

    def asked(self, kind: str, test: bool, **slots: object) -> Question:
        question, answer = self.rng.choice(self.ask[kind])
        return Question(kind=kind, question=question.format(**slots), answer=answer.format(**slots), test=test)

    def fact(self, kind: str, key: str, **slots: object) -> Question:
        """A question about the fact ``key``: one way in four of asking for it is held out."""
        way = self.rng.randrange(len(self.ask[kind]))
        question, answer = self.ask[kind][way]
        test = held_out(kind, key, str(way), one_in=4)
        return Question(kind=kind, question=question.format(**slots), answer=answer.format(**slots), test=test)

    def join(self, sentences: Sequence[str]) -> str:
        return self.joint.join(sentences)

    def pick(self, choices: Sequence[T], count: int) -> list[T]:
        return self.rng.sample(list(choices), count)


def holding(make: Maker) -> Scene:
    """Two or three people, each with a coloured thing, each in a place; told in any order."""
    words, rng = make.words, make.rng
    count = rng.choice((2, 2, 3))
    people, things = make.pick(words.people, count), make.pick(tuple(words.things), count)
    colours, places = make.pick(words.colours, count), make.pick(words.places, count)
    sentences, questions, states = [], [], []
    style = rng.random()
    for p, t, c, l in zip(people, things, colours, places, strict=True):
        slots = {"p": p, "t": t, "c": c, "l": l, "m": words.things[t]}
        if style < 0.25:
            sentences.append(make.tell("both", **slots))
        else:
            sentences += [make.tell("has", **slots)] + ([make.tell("at", **slots)] if style < 0.75 else [])
        questions.append(make.asked("has", held_out("has", p, t), **slots))
        states += [("has", p, t), ("colour", t, c)]
        if style < 0.75:
            questions.append(make.asked("where", held_out("at", p, l), **slots))
            states.append(("at", p, l))
    if style >= 0.5:
        rng.shuffle(sentences)
    rng.shuffle(questions)
    return Scene(story=make.join(sentences), questions=questions, states=states)


def owning(make: Maker) -> Scene:
    """Two or three things, each with its owner and its colour."""
    words, rng = make.words, make.rng
    count = rng.choice((2, 2, 3))
    people, things = make.pick(words.people, count), make.pick(tuple(words.things), count)
    sentences, questions, states = [], [], []
    for p, t, c in zip(people, things, make.pick(words.colours, count), strict=True):
        sentences.append(make.tell("of", p=p, t=t, c=c))
        questions.append(make.asked("who", held_out("has", p, t), p=p, t=t))
        questions.append(make.asked("colour", held_out("colour", t, c), t=t, c=c))
        states += [("has", p, t), ("colour", t, c)]
    rng.shuffle(questions)
    return Scene(story=make.join(sentences), questions=questions, states=states)


def counting(make: Maker) -> Scene:
    """Two or three people with different numbers of one food: who has more, who has fewer."""
    words, rng = make.words, make.rng
    people = make.pick(words.people, rng.choice((2, 2, 2, 3)))
    food = rng.choice(words.foods)
    numbers = rng.sample(range(2, 13), len(people))
    order = sorted(range(len(people)), key=numbers.__getitem__)
    test = held_out("more", *(f"{people[i]} {words.number(numbers[i])}" for i in order))
    sentences = [make.tell("count", p=p, n=words.quantity(n), f=food) for p, n in zip(people, numbers, strict=True)]
    questions = [
        make.asked(kind, test, p=people[i], n=words.quantity(numbers[i]), f=food)
        for kind, i in (("more", order[-1]), ("fewer", order[0]))
    ]
    rng.shuffle(questions)
    return Scene(story=make.join(sentences), questions=questions)


def moving(make: Maker) -> Scene:
    """Two people who go from place to place: where is each of them now?"""
    words, rng = make.words, make.rng
    people = make.pick(words.people, 2)
    places = make.pick(words.places, rng.choice((3, 4)))
    at: dict[str, str] = {}
    sentences, states = [], []
    for l in places:
        p = rng.choice(people)
        sentences.append(make.tell("then" if p in at else "goes", p=p, l=l))
        at[p] = l
        states.append(("at", p, l))
    questions = [make.asked("moved", held_out("at", p, l), p=p, l=l) for p, l in at.items()]
    return Scene(story=make.join(sentences), questions=questions, states=states)


def listing(make: Maker) -> Scene:
    """A list of three to six words of one kind: its first, second, last, its length, and it backwards."""
    words, rng = make.words, make.rng
    kind = rng.choice((words.animals, words.colours, tuple(words.things), words.places))
    listed = make.pick(kind, rng.choice((3, 4, 5, 6)))
    test = held_out("list", *listed)
    slots = {"first": listed[0], "second": listed[1], "last": listed[-1]}
    questions = [make.asked(name, test, x=x) for name, x in slots.items()]
    questions.append(make.asked("count", test, n=words.number(len(listed))))
    if len(listed) <= 4:
        questions.append(make.asked("reverse", test, list=words.comma.join(reversed(listed))))
    rng.shuffle(questions)
    return Scene(story=words.comma.join(listed), questions=questions)


def odd_one(make: Maker) -> Scene:
    """A list of one kind with a word of another kind in it."""
    words, rng = make.words, make.rng
    kinds = [words.animals, words.colours, tuple(words.things), words.places, words.numbers[:10]]
    main, other = rng.sample(kinds, 2)
    listed = make.pick(main, 3)
    odd = rng.choice(other)
    listed.insert(rng.randrange(4), odd)
    return Scene(story=words.comma.join(listed), questions=[make.asked("odd", held_out("odd", *listed), x=odd)])


def ranging(make: Maker) -> Scene:
    """Counting from one number to another, up or down."""
    words, rng = make.words, make.rng
    start = rng.randrange(1, 18)
    stop = start + rng.choice((2, 3, 4))
    if stop > 20:
        start, stop = 20 - (stop - start), 20
    numbers = list(range(start, stop + 1))
    if rng.random() < 0.4:
        numbers.reverse()
    n, k = words.number(numbers[0]), words.number(numbers[-1])
    spelled = words.comma.join(map(words.number, numbers))
    return Scene(story="", questions=[make.asked("range", held_out("range", n, k), n=n, k=k, list=spelled)])


def translating(make: Maker) -> Scene:
    """A word of this language in the other one."""
    pair = make.rng.choice(bilingual())
    x, y = pair if make.words.name == "en" else pair[::-1]
    return Scene(story="", questions=[make.fact("translate", x, x=x, y=y)])


def opposing(make: Maker) -> Scene:
    """The opposite of a word."""
    pair = list(make.rng.choice(make.words.opposites))
    make.rng.shuffle(pair)
    return Scene(story="", questions=[make.fact("opposite", pair[0], x=pair[0], y=pair[1])])


def sounding(make: Maker) -> Scene:
    """What an animal says."""
    a, s = make.rng.choice(list(make.words.sounds.items()))
    return Scene(story="", questions=[make.fact("sound", a, a=a, s=s)])


def dating(make: Maker) -> Scene:
    """The day after a day."""
    days = make.words.days
    i = make.rng.randrange(7)
    x, y = days[i], days[(i + 1) % 7]
    return Scene(story="", questions=[make.fact("day", x, x=x, y=y)])


SCENES: dict[str, Callable[[Maker], Scene]] = {
    "holding": holding, "owning": owning, "counting": counting, "moving": moving, "listing": listing,
    "odd_one": odd_one, "ranging": ranging, "translating": translating, "opposing": opposing, "sounding": sounding,
    "dating": dating,
}  # fmt: skip

FACTS = ("translating", "opposing", "sounding", "dating")
"""Scenes about what is always so. The text states all of it; held out are ways of asking for one of them."""
