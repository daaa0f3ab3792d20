"""The small world: the same for a seed, its answers right, its held-out combinations never in what is trained on."""

import functools
import random
import re

import pytest

from minitune.data.world import KINDS, documents, instructions, tasks
from minitune.data.world.phrases import ASK
from minitune.data.world.scenes import SCENES, Maker
from minitune.data.world.words import CHINESE, ENGLISH, Words, bilingual, held_out

COUNT = 4 * len(KINDS)


def test_a_seed_means_the_same_and_another_does_not() -> None:
    assert list(documents(50, seed=1)) == list(documents(50, seed=1)) != list(documents(50, seed=2))
    assert instructions(50, seed=1) == instructions(50, seed=1) != instructions(50, seed=2)


@pytest.mark.parametrize("test", [False, True])
def test_every_kind_comes_equally_often_in_both_languages(test: bool) -> None:
    made = list(tasks(COUNT, seed=3, test=test))
    for language in ("en", "zh"):
        found = [task.kind for task in made if task.language == language]
        assert {kind: found.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 2)


def test_both_languages_have_the_same_words() -> None:
    for field in ("people", "things", "foods", "places", "colours", "sounds", "opposites", "days", "numbers"):
        assert len(getattr(ENGLISH, field)) == len(getattr(CHINESE, field)), field
    assert len({x for x, _ in bilingual()}) == len({y for _, y in bilingual()}) == len(bilingual())


def test_no_row_of_the_test_is_a_row_of_the_training() -> None:
    def keys(test: bool) -> set[tuple[str, str]]:
        return {(task.instruction, task.input) for task in tasks(4000, seed=0, test=test)}

    assert not keys(False) & keys(True)


def test_held_out_ways_of_asking_are_never_trained_and_always_tested() -> None:
    """Guards by construction, told from the words of the rows, not from what the generator says of them."""
    ways = [question for question, _ in ASK["en"]["sound"]]
    asked: dict[bool, set[tuple[str, int]]] = {False: set(), True: set()}
    for test, found in asked.items():
        for task in tasks(16_000, seed=5, test=test):
            if task.kind == "sound" and task.language == "en":
                said = re.fullmatch(r"The (\w+) says (\w+)\.", task.output)
                assert said
                assert ENGLISH.sounds[said[1]] == said[2]
                found.add((said[1], ways.index(task.instruction.replace(said[1], "{a}"))))
    every = {(animal, way) for animal in ENGLISH.animals for way in range(4)}
    assert asked[True] == {(animal, way) for animal, way in every if held_out("sound", animal, str(way), one_in=4)}
    assert asked[False] == every - asked[True]
    assert {animal for animal, _ in asked[False]} == set(ENGLISH.animals)  # every fact can be learned


STATEMENTS = {
    "en": {
        "has": r"(?P<p>{p}) (?:(?:is|plays|waits) in the \w+ (?:with|and has)|has|holds) a (?:{c}) (?P<t>{t})\b"
        r"|The (?P<t2>{t}) (?:is (?:{c}) and )?belongs to (?P<p2>{p})\b"
        r"|\b(?P<p3>{p})(?:: | and |\? )(?P<t3>{t})[.,;] ",
        "at": r"(?P<p>{p}) (?:(?:is|plays|waits) in|(?:goes|walks|runs) to) the (?P<l>{l})\b"
        r"|\b(?P<p2>{p})(?:: | and |\? )(?P<l2>{l})[.,;] ",
        "colour": r"\b(?P<c>{c}) (?P<t>{t})\b|The (?P<t2>{t}) (?:belongs to (?:{p}) and )?is (?P<c2>{c})\b"
        r"|\b(?P<t3>{t})(?:: | and |\? )(?P<c3>{c})[.,;] ",
    },
    "zh": {
        "has": r"(?P<p>{p})(?:在(?:{l})里，拿着|在(?:{l})里玩，有|有|拿着)一.(?:{c})的(?P<t>{t})"
        r"|(?P<t2>{t})(?:的颜色是(?:{c})，)?是(?P<p2>{p})的|(?P<p3>{p})[：？和，](?P<t3>{t})[。；]",
        "at": r"(?P<p>{p})(?:在|去了|走到|跑到)(?P<l>{l})|(?P<p2>{p})[：？和，](?P<l2>{l})[。；]",
        "colour": r"(?P<c>{c})的(?P<t>{t})|(?P<t2>{t})(?:是(?:{p})的，)?的?颜色是(?P<c2>{c})"
        r"|(?P<t3>{t})[：？和，](?P<c3>{c})[。；]",
    },
}
"""How the text says who has what, who is where and what has which colour, written down again by itself."""


@functools.cache
def much_text() -> list[str]:
    """Documents of all kinds, bare lists and pairs, and rows for training."""
    rows = (f"{task.input}\n{task.output}" for task in tasks(12_000, seed=0))
    bare = documents(8000, seed=8, shares={"copying": 1, "pairs": 1, "gaps": 1, "neighbours": 1})
    return [*documents(16_000, seed=9), *bare, *rows]


@pytest.mark.parametrize("words", [ENGLISH, CHINESE], ids=lambda words: words.name)
@pytest.mark.parametrize("kind", ["has", "at", "colour"])
def test_held_out_combinations_stand_in_no_text(words: Words, kind: str) -> None:
    """Guards the demo's test: what it asks about was in no document and no row, and all the rest was."""
    names = {"p": words.people, "t": tuple(words.things), "l": words.places, "c": words.colours}
    alternatives = {slot: "|".join(sorted(found, key=len, reverse=True)) for slot, found in names.items()}
    pattern = re.compile(STATEMENTS[words.name][kind].format(**alternatives))
    slots = {"has": "pt", "at": "pl", "colour": "tc"}[kind]
    every = {(a, b) for a in names[slots[0]] for b in names[slots[1]]}
    stated = set()
    for text in much_text():
        for match in pattern.finditer(text):
            found = {slot[0]: word for slot, word in match.groupdict().items() if word}
            stated.add((found[slots[0]], found[slots[1]]))
    assert stated == {pair for pair in every if not held_out(kind, *pair)}


def test_answers_follow_from_their_stories() -> None:
    """Guards the answers of some kinds by working them out again from the words of the story."""
    number = {word: n for n, word in enumerate(ENGLISH.numbers, 1)}
    for task in tasks(6000, seed=7):
        if task.language != "en":
            continue
        listed = task.input.split(", ")
        if task.kind in ("first", "second", "last"):
            place = {"first": 0, "second": 1, "last": -1}[task.kind]
            assert task.output == f"The {task.kind} is {listed[place]}."
        elif task.kind == "count":
            assert task.output == f"There are {ENGLISH.number(len(listed))} things."
        elif task.kind == "reverse":
            assert task.output == ", ".join(reversed(listed))
        elif task.kind == "moved":
            name = re.findall(r"(\w+) now\?", task.instruction)[0]
            went = re.findall(rf"{name} (?:goes|walks|runs) to the (\w+)", task.input)
            assert task.output == f"{name} is in the {went[-1]} now."
        elif task.kind in ("more", "fewer"):
            stated = re.findall(r"(\w+) \w+ (?:are )?on the table of (\w+)\.", task.input)
            counts = {p: number[n] for n, p in stated}
            best = (max if task.kind == "more" else min)(counts, key=counts.__getitem__)
            word = {"more": "most", "fewer": "fewest"}[task.kind]
            food = re.findall(r"(\w+)\?", task.instruction)[0]
            assert task.output == f"The {word} are {ENGLISH.number(counts[best])} {food} on the table of {best}."
        elif task.kind in ("who", "colour"):
            thing = re.findall(r"the (\w+)(?: have)?\?", task.instruction)[0]
            said = re.findall(
                rf"The {thing} (?:belongs to (\w+) and is (\w+)|is (\w+) and belongs to (\w+))\.", task.input
            )
            ((p, c, d, q),) = said
            right = {"who": f"belongs to {p or q}", "colour": f"is {c or d}"}[task.kind]
            assert task.output == f"The {thing} {right}."
        elif task.kind in ("has", "where"):
            name = re.findall(r"(?:does|of|is) (\w+)(?: have)?\?|is (\w+)\?", task.instruction)[0]
            p = name[0] or name[1]
            pattern = {"has": r"(?:has|holds|with) (a \w+ \w+)", "where": r"(?:is|plays|waits) in (the \w+)"}[task.kind]
            told = [re.findall(pattern, part) for part in re.findall(rf"{p} [^.]*\.", task.input)]
            (found,) = [match for matches in told for match in matches]
            assert task.output == (f"{p} has {found}." if task.kind == "has" else f"{p} is in {found}.")


def test_every_word_of_a_task_occurs_in_the_text() -> None:
    """Guards the base model: an instruction never uses a word that it has not read."""

    def words(text: str) -> set[str]:
        return set(re.findall(r"[A-Za-z]+|[\u4e00-\u9fff]", text))

    read = set().union(*(words(document) for document in documents(6000, seed=2)))
    for task in tasks(4000, seed=4):
        assert words(f"{task.instruction} {task.input} {task.output}") <= read


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_for_the_test_keeps_only_what_is_held_out(name: str) -> None:
    for words in (ENGLISH, CHINESE):
        make = Maker(words, random.Random(1), test=True)
        assert all(question.test for _ in range(20) for question in make.make(name).questions)
