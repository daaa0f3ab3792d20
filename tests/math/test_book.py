"""The book docs/math, held to the truth: every id is code and test, every example runs, every number is right."""

import ast
import re
from pathlib import Path

import book
import pytest

CHAPTERS = book.chapters()
EACH = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.path.stem)


# ---- the rules: each takes a chapter and returns what is wrong


def wrong_shape(chapter: book.Chapter) -> list[str]:
    """A chapter has its number, its sections in order, and ids of one prefix, numbered from 1."""
    found = []
    if chapter.number != int(chapter.path.name[:2]) or not chapter.title:
        found.append(f"its title is not '# {int(chapter.path.name[:2])}. Something'")
    if tuple(chapter.sections) != book.SECTIONS:
        found.append(f"its sections are {chapter.sections}, expected {list(book.SECTIONS)}")
    ids = [equation.id for equation in chapter.equations]
    if ids and ids != [f"{ids[0].split('-')[0]}-{n}" for n in range(1, len(ids) + 1)]:
        found.append(f"its ids are not one prefix numbered from 1: {ids}")
    if not any(example.section == "By hand" and example.output for example in chapter.examples):
        found.append("it has no worked example under 'By hand'")
    return found


def unknown_references(chapter: book.Chapter, known: set[str]) -> list[str]:
    """An id in the text is an id of the book."""
    mentioned = book.ids_in(chapter.text, {id.split("-")[0] for id in known})
    return sorted(set(mentioned) - known)


def without_home(
    chapter: book.Chapter, code: dict[str, list[book.Place]], tests: dict[str, list[book.Place]]
) -> list[str]:
    """Every id stands in a function of the code, and in a test that names something of that file."""
    found = []
    for equation in chapter.equations:
        homes, checks = code.get(equation.id, []), tests.get(equation.id, [])
        if not homes or not all(place.name for place in homes):
            found.append(f"{equation.id} stands in no function of the code" if not homes else f"{homes} is no function")
        if not any(re.match(r"test_", place.name) for place in checks):
            found.append(f"{equation.id} stands in no test")
        elif homes and not any(uses(check, home) for check in checks for home in homes):
            found.append(f"the test of {equation.id} uses nothing of {[home.path for home in homes]}")
    return found


def uses(check: book.Place, home: book.Place) -> bool:
    """Whether a test names something public of the file, itself or in a helper of its own file that it calls."""
    source = (book.CHECKOUT / check.path).read_text(encoding="utf-8")
    functions = {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    words = words_of(functions[check.name.split(".")[-1]])
    for helper in words & set(functions):
        words |= words_of(functions[helper])
    return bool(words & book.public_names(home.module))


def words_of(function: ast.FunctionDef) -> set[str]:
    nodes = list(ast.walk(function))
    words = {node.id for node in nodes if isinstance(node, ast.Name)}
    return words | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def wrong_numbers(chapter: book.Chapter) -> list[str]:
    """A decimal or long number in the prose of 'By hand' is one that its examples were given or have printed."""
    shown = "\n".join(f"{e.code}\n{e.output or ''}" for e in chapter.examples if e.section == "By hand")
    there = {value(number) for number in re.findall(r"\d+\.?\d*", re.sub(r"(?<=\d)[,_](?=\d{3})", "", shown))}
    displays = [(line, math) for line, math in chapter.displays if section_of(chapter, line) == "By hand"]
    found = []
    for line, text in [(n, text) for n, section, text in chapter.prose if section == "By hand"] + displays:
        numbers = re.findall(r"\d{1,3}(?:,\d{3})+|\d+\.\d+", text)
        found += [f"line {line}: {number}" for number in numbers if value(number) not in there]
    return found


def value(number: str) -> float:
    return float(number.replace(",", ""))


def section_of(chapter: book.Chapter, line: int) -> str:
    return max((n, section) for n, section, _ in chapter.prose if n < line)[1]


def unsafe_math(chapter: book.Chapter) -> list[str]:
    r"""Mathematics that a page's Markdown would change before its mathematics is drawn.

    A backslash before punctuation is an escape there (``\\``, ``\{``, ``\,``), an underscore behind punctuation or a
    star may begin emphasis, ``<`` a tag, and ``$`` counts only with space or punctuation around it.
    """
    formulas = list(chapter.displays)
    for line, _, text in chapter.prose:
        plain = re.sub(r"`[^`]*`", "", text)
        for found in re.finditer(r"\$([^$]+)\$", plain):
            before, after = plain[: found.start()][-1:], plain[found.end() :][:1]
            formulas.append((line, found[1]))
            if (before and before not in " (|") or (after and after not in " .,;:)?|") or found[1] != found[1].strip():
                formulas.append((line, f"$ {before}{found[0]}{after} $<"))
        if plain.count("$") % 2:
            formulas.append((line, f"$<: {text}"))
    bad = re.compile(r"\\[^A-Za-z]|(?<![A-Za-z0-9])_|[*<~`|]|\\$")
    return [f"line {line}: {math}" for line, math in formulas if bad.search(math)]


# ---- the book


def test_the_book_is_there() -> None:
    assert len(CHAPTERS) >= 1
    assert [chapter.number for chapter in CHAPTERS] == sorted({chapter.number for chapter in CHAPTERS})


@EACH
def test_a_chapter_has_its_shape(chapter: book.Chapter) -> None:
    assert not wrong_shape(chapter)


def test_no_id_is_doubled_and_none_is_unknown() -> None:
    """Also in the code and the tests: an id that no chapter has is a formula that was renamed or dropped."""
    ids = [equation.id for chapter in CHAPTERS for equation in chapter.equations]
    assert sorted(ids) == sorted(set(ids))
    for chapter in CHAPTERS:
        assert not unknown_references(chapter, set(ids)), chapter.path.name
    assert not set(book.code_places()) - set(ids)
    assert not set(book.test_places()) - set(ids)


@EACH
def test_every_equation_is_code_and_test(chapter: book.Chapter) -> None:
    assert not without_home(chapter, book.code_places(), book.test_places())


@EACH
def test_worked_examples_print_what_the_book_says(chapter: book.Chapter) -> None:
    for example, printed in zip(chapter.examples, book.run_examples(chapter), strict=True):
        assert printed == (example.output or ""), f"{chapter.path.name}:{example.line}"


@EACH
def test_numbers_by_hand_are_those_of_the_code(chapter: book.Chapter) -> None:
    assert not wrong_numbers(chapter)


@EACH
def test_formulas_survive_markdown(chapter: book.Chapter) -> None:
    assert not unsafe_math(chapter)


def test_generated_parts_are_fresh() -> None:
    """Mended by ``python tests/math/book.py``."""
    for chapter in CHAPTERS:
        assert chapter.text == book.filled(chapter.text, book.code_table(chapter)), chapter.path.name
    readme = (book.BOOK / "README.md").read_text(encoding="utf-8")
    assert readme == book.filled(readme, book.contents())


def test_links_and_pictures_lead_somewhere() -> None:
    for path in sorted(book.BOOK.glob("*.md")):
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"https?:", link):
                assert (path.parent / link.split("#")[0]).exists(), f"{path.name}: {link}"


# ---- the rules see what they should: a small chapter, each time with one fault


GOOD = """# 7. Halves

## What it is for
## Forward

**CE-1** the half

$$
y = x / 2
$$

## Backward
## By hand

A half of $x$, which is 3, is 1.5 (CE-1).

```python
print(3 / 2)
```

```text
1.5
```

## In low precision
## What it costs
## In the code

<!-- generated by tests/math/book.py -->

<!-- end -->

## Sources
"""


def small(old: str = "", new: str = "") -> book.Chapter:
    assert old in GOOD
    return book.read(Path("07-halves.md"), GOOD.replace(old, new, 1) if old else GOOD)


def test_a_good_chapter_passes() -> None:
    chapter = small()
    assert [(e.id, e.words, e.math) for e in chapter.equations] == [("CE-1", "the half", "y = x / 2")]
    assert not wrong_shape(chapter)
    assert not wrong_numbers(chapter)
    assert not unsafe_math(chapter)
    assert not unknown_references(chapter, {"CE-1"})
    assert book.run_examples(chapter) == ["1.5"] == [chapter.examples[0].output]


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        (wrong_shape, "# 7.", "# 8."),
        (wrong_shape, "## Backward\n", ""),
        (wrong_shape, "**CE-1**", "**CE-2**"),
        (wrong_shape, "```text\n1.5\n```\n", ""),
        (wrong_numbers, "is 1.5", "is 1.6"),
        (wrong_numbers, "is 1.5", "is 1.5 and not 1,500"),
        (wrong_numbers, "```python", "$$\nx = 0.25\n$$\n\n```python"),
        (unsafe_math, "y = x / 2", r"a \\ b"),
        (unsafe_math, "y = x / 2", r"\{a\}"),
        (unsafe_math, "y = x / 2", r"\hat{x}_i"),
        (unsafe_math, "y = x / 2", "a * b"),
        (unsafe_math, "y = x / 2", "a <b"),
        (unsafe_math, "$x$,", r"$\hat{x}_i$,"),
        (unsafe_math, "$x$,", "$x$-axis,"),
        (unsafe_math, "$x$,", "$x,"),
        (unsafe_math, "$x$,", "$ x$,"),
    ],
)
def test_a_fault_is_seen(rule, old: str, new: str) -> None:
    assert rule(small(old, new))


def test_an_id_without_a_home_is_seen() -> None:
    code = [book.Place("minitune/ops/cross_entropy.py", "cross_entropy", 1)]
    tests = [book.Place("tests/math/test_book.py", "test_an_id_without_a_home_is_seen", 1)]
    assert without_home(small(), {}, {"CE-1": tests}) == ["CE-1 stands in no function of the code"]
    assert without_home(small(), {"CE-1": code}, {}) == ["CE-1 stands in no test"]
    assert "uses nothing of" in without_home(small(), {"CE-1": code}, {"CE-1": tests})[0]
    assert without_home(small(), {"CE-1": [book.Place("minitune/optim.py", "", 1)]}, {"CE-1": tests})
    assert unknown_references(small("(CE-1)", "(CE-2)"), {"CE-1"}) == ["CE-2"]


def test_an_equation_without_its_formula_is_seen() -> None:
    with pytest.raises(AssertionError, match="CE-1 has no equation below it"):
        small("$$\ny = x / 2\n$$", "Nothing.")
    with pytest.raises(AssertionError, match="is not closed"):
        small("$$\n\n## Backward", "\n## Backward")
