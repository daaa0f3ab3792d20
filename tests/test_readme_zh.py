"""The Chinese front pages, held equal to the English ones: headings, commands, figures, links, and the map.

``python tests/test_readme_zh.py`` copies into the Chinese pages what is the same in both languages: the fenced blocks
(of the map only the paths count, and it stays) and the cells of tables that hold figures. What is prose is translated
by hand.
"""

import re
import sys
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
PAGES = ["README", "docs/README"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
FIGURE = re.compile(r"\d")
NUMBER = re.compile(r"\d+(?:[.,]\d+)+")


class Block(NamedTuple):
    """A fenced block, and the heading that it stands under."""

    language: str
    text: str
    heading: str


def read(page: str, *, chinese: bool = False) -> str:
    return (CHECKOUT / f"{page}{'.zh' if chinese else ''}.md").read_text(encoding="utf-8")


def without_blocks(text: str) -> str:
    """The page with its fenced blocks empty, so that a ``#`` of a shell is no heading."""
    return FENCE.sub("", text)


def headings_of(text: str) -> list[tuple[int, str]]:
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", without_blocks(text), re.M)]


def blocks_of(text: str) -> list[Block]:
    found = []
    for match in FENCE.finditer(text):
        above = headings_of(text[: match.start()])
        found.append(Block(match[1], match[2], above[-1][1] if above else ""))
    return found


def tables_of(text: str) -> list[list[list[str]]]:
    """Each table as rows of cells."""
    found = re.findall(r"(?:^\|.*\|\n)+", without_blocks(text), re.M)
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()] for table in found]


def links_of(text: str) -> list[str]:
    """Where the links lead, without the part of the page; a link to the other language's page is the same."""
    links = re.findall(r"\]\(([^)#\s]+)", without_blocks(text))
    return [link.replace(".zh.md", ".md") for link in links]


def prose_of(text: str) -> str:
    """What is neither a block nor a table, nor written by a command between two marks."""
    text = re.sub(r"<!--.*?<!-- end.*?-->", "", without_blocks(text), flags=re.S)
    return re.sub(r"^\|.*$|`[^`]*`|\]\([^)]*\)", "", text, flags=re.M)


def is_map(block: Block) -> bool:
    """Whether a block is the map of the files, whose remarks are translated."""
    return block.language == "text" and block.text.startswith("minitune/\n")


def paths_of(block: Block) -> list[str]:
    return [
        line[: len(line) - len(line.lstrip())] + line.split()[0] for line in block.text.splitlines() if line.split()
    ]


def differences(english: str, chinese: str) -> list[str]:
    """What is not the same in the two pages, each with its place."""
    found = []
    for number, (a, b) in enumerate(zip_longest(headings_of(english), headings_of(chinese)), 1):
        if a is None or b is None or a[0] != b[0]:
            found.append(f"heading {number}: English {a}, Chinese {b}")
            break  # those behind it are shifted
    for number, (a, b) in enumerate(zip_longest(blocks_of(english), blocks_of(chinese)), 1):
        if a is None or b is None or a.language != b.language:
            found.append(f"block {number}: English {a}, Chinese {b}")
            break
        if is_map(a):
            if paths_of(a) != paths_of(b):
                odd = sorted(set(paths_of(a)) ^ set(paths_of(b))) or "their order"
                found.append(f"block {number}, the map under {a.heading!r}: differs in {odd}")
        elif a.text != b.text:
            lines = zip_longest(a.text.splitlines(), b.text.splitlines())
            line, (left, right) = next((i, pair) for i, pair in enumerate(lines, 1) if pair[0] != pair[1])
            where = f"block {number} (```{a.language}) under {a.heading!r}, line {line}"
            found.append(f"{where}: English {left!r}, Chinese {right!r}")
    for number, (a, b) in enumerate(zip_longest(tables_of(english), tables_of(chinese)), 1):
        if a is None or b is None or [len(row) for row in a] != [len(row) for row in b]:
            found.append(f"table {number}: not of the same rows and columns")
            continue
        for row, (left, right) in enumerate(zip(a, b, strict=True), 1):
            for mine, other in zip(left, right, strict=True):
                if is_figure(mine) and mine != other:
                    found.append(f"table {number}, row {row}: English {mine!r}, Chinese {other!r}")
    if sorted(links_of(english)) != sorted(links_of(chinese)):
        odd = set(links_of(english)) ^ set(links_of(chinese)) or "how often one stands there"
        found.append(f"links: {odd}")
    numbers = [sorted(NUMBER.findall(prose_of(text))) for text in (english, chinese)]
    if numbers[0] != numbers[1]:
        found.append(f"numbers in the prose: {sorted(set(numbers[0]) ^ set(numbers[1])) or numbers}")
    return found


def is_figure(cell: str) -> bool:
    """Whether a cell is the same in every language: it has a digit and no link."""
    return bool(FIGURE.search(cell)) and "](" not in cell


def copied(english: str, chinese: str) -> str:
    """The Chinese page with the English one's blocks, but for the map, and figures; both need as many of them."""
    blocks = iter(blocks_of(english))

    def block(match: re.Match[str]) -> str:
        new = next(blocks, None)
        return match[0] if new is None or is_map(new) else f"```{new.language}\n{new.text}```"

    chinese = FENCE.sub(block, chinese)
    for a, b in zip(tables_of(english), tables_of(chinese), strict=False):
        for left, right in zip(a, b, strict=False):
            mixed = [mine if is_figure(mine) else other for mine, other in zip(left, right, strict=False)]
            chinese = chinese.replace(f"| {' | '.join(right)} |", f"| {' | '.join(mixed)} |", 1)
    return chinese


@pytest.mark.parametrize("page", PAGES)
def test_the_chinese_page_says_the_same(page: str) -> None:
    """Guards a reader of Chinese from commands and figures that are no longer true."""
    found = differences(read(page), read(page, chinese=True))
    assert not found, "\n".join([f"{page}.zh.md is not {page}.md:", *found, "run: python tests/test_readme_zh.py"])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Guards the links of both languages, and that each page leads to the other one."""
    for chinese in (False, True):
        text = read(page, chinese=chinese)
        links = [link for link in re.findall(r"\]\(([^)#\s]+)", without_blocks(text)) if "://" not in link]
        folder = (CHECKOUT / page).parent
        if not (CHECKOUT / "docs" / "math").is_dir():  # the chapters are written elsewhere
            links = [link for link in links if not link.startswith("math/")]
        assert not [link for link in links if not (folder / link).exists()]
        assert ("README.md" if chinese else "README.zh.md") in links


def test_the_chinese_page_is_chinese() -> None:
    """Guards against a page that was copied and not translated."""
    for page in PAGES:
        prose = prose_of(read(page, chinese=True))
        chinese, latin = len(re.findall(r"[\u4e00-\u9fff]", prose)), len(re.findall(r"[A-Za-z]+", prose))
        assert chinese > 3 * latin


SMALL = """# a

Text of 1,234 and [b](c.md).

```sh
run one
run two
```

## d

| x | 3.5 ms |
|---|--:|
| y | 7 % |
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("## d", "### d", "heading 2: English (2, 'd'), Chinese (3, 'd')"),
        ("run two", "run 2", "block 1 (```sh) under 'a', line 2: English 'run two', Chinese 'run 2'"),
        ("```sh", "```text", "block 1: English"),
        ("7 %", "8 %", "table 1, row 3: English '7 %', Chinese '8 %'"),
        ("| y | 7 % |\n", "", "table 1: not of the same rows"),
        ("c.md", "e.md", "links: "),
        ("1,234", "1,235", "numbers in the prose: ['1,234', '1,235']"),
    ],
)
def test_every_difference_is_named(old: str, new: str, said: str) -> None:
    """Guards the comparison: each kind of difference is seen, and the message says where it is."""
    other = SMALL.replace(old, new)
    assert differences(SMALL, SMALL.replace("Text", "文字").replace("c.md", "c.zh.md")) == []
    assert any(said in line for line in differences(SMALL, other)), differences(SMALL, other)


def test_copying_mends_what_is_no_prose() -> None:
    """Guards the command in the message."""
    stale = (
        SMALL.replace("run two", "run 2").replace("3.5 ms", "4 ms").replace("Text", "文字").replace("| y |", "| 乙 |")
    )
    mended = copied(SMALL, stale)
    assert differences(SMALL, mended) == []
    assert "文字" in mended
    assert "| 乙 | 7 % |" in mended


if __name__ == "__main__":
    for name in PAGES:
        path = CHECKOUT / f"{name}.zh.md"
        path.write_text(copied(read(name), read(name, chinese=True)), encoding="utf-8")
        for line in differences(read(name), read(name, chinese=True)):
            print(f"{name}.zh.md: {line}", file=sys.stderr)
