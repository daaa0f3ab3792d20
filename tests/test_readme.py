"""The README, held to the truth: its commands parse, its map shows what is there, its links lead somewhere."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
SHELLS = {"sh", "bash", "shell", "console"}
UNMAPPED = {"py.typed"}  # a marker with nothing in it


class Block(NamedTuple):
    language: str
    heading: str  # the nearest heading above
    lines: list[str]


class Command(NamedTuple):
    subcommand: str  # "" for minitune itself
    flags: list[str]
    line: str


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a Markdown page, in order."""
    blocks: list[Block] = []
    heading, fence = "", ""
    for line in text.splitlines():
        mark = re.match(r"\s*(`{3,}|~{3,})\s*(\w*)", line)
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2]:
                fence = ""
            else:
                blocks[-1].lines.append(line)
        elif mark:
            fence = mark[1]
            blocks.append(Block(mark[2], heading, []))
        elif line.startswith("#"):
            heading = line.lstrip("#").strip()
    assert not fence, "the last fenced block is not closed"
    return blocks


def commands_of(blocks: list[Block]) -> list[Command]:
    """Every call of minitune in the shell blocks: ``minitune``, ``.venv/bin/minitune`` or ``python -m minitune``."""
    found = []
    for block in blocks:
        if block.language not in SHELLS:
            continue
        lines = "\n".join(block.lines).replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in lines):  # with prompts, the other lines are output
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        for line in lines:
            found += [command for words in simple_commands(line) if (command := as_minitune(words, line))]
    return found


def simple_commands(line: str) -> list[list[str]]:
    """A shell line cut at ``&&``, ``|``, ``;`` and redirections, each part cut into words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("();<>|&"):
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


def as_minitune(words: list[str], line: str) -> Command | None:
    while words and re.match(r"\w+=", words[0]):  # settings of the environment
        words = words[1:]
    names = [Path(word).name for word in words[:3]]
    if names[:1] == ["minitune"]:
        arguments = words[1:]
    elif len(names) == 3 and names[0].startswith("python") and names[1:] == ["-m", "minitune"]:
        arguments = words[3:]
    else:
        return None
    subcommand = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    flags = [word.split("=")[0] for word in arguments if re.match(r"--?[A-Za-z]", word)]
    return Command(subcommand, flags, line.strip())


def map_of(blocks: list[Block]) -> list[str]:
    """The paths of the file map: the ``text`` block under a heading with the word "map"; two spaces mean inside."""
    maps = [block for block in blocks if block.language == "text" and re.search(r"\bmap\b", block.heading, re.I)]
    assert maps, "there is no ```text block under a heading with the word 'map'"
    paths: list[str] = []
    above: list[str] = []
    for line in maps[0].lines:
        depth, odd = divmod(len(line) - len(line.lstrip()), 2)
        if line.strip() and not odd and depth <= len(above):  # anything deeper goes on with the text of the line above
            above = [*above[:depth], line.split()[0].strip("/")]
            paths.append("/".join(above))
    return paths


def local_links_of(text: str) -> list[str]:
    prose = re.sub(r"^(\s*)(```|~~~).*?^\s*\2", "", text, flags=re.M | re.S)
    prose = re.sub(r"`[^`\n]*`", "`code`", prose)
    links = re.findall(r"\]\(\s*<?([^)\s>]+)", prose) + re.findall(r"^\[[^\]]+\]:\s*<?([^\s>]+)", prose, re.M)
    links += re.findall(r"<(?:img|a)\s[^>]*?(?:src|href)=[\"']([^\"']+)", prose)
    return [link.split("#")[0] for link in links if not re.match(r"[a-z][a-z+.-]*:|#|//", link, re.I)]


@functools.cache
def help_of(*words: str) -> str:
    """What ``minitune WORDS --help`` prints."""
    path = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "kernels")])
    run = subprocess.run(
        [sys.executable, "-m", "minitune", *words, "--help"],
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert run.returncode == 0, f"minitune {' '.join(words)} --help: {run.stderr[-2000:]}"
    return run.stdout


def tracked_files() -> list[str]:
    try:
        run = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    return [path for path in run.stdout.split("\0") if path]


@pytest.fixture(scope="module")
def readme() -> str:
    path = CHECKOUT / "README.md"
    if not path.is_file():
        pytest.skip("README.md does not exist yet")
    return path.read_text(encoding="utf-8")


def test_the_two_setup_commands_are_one_line_each(readme: str) -> None:
    setups = [block.lines for block in blocks_of(readme) if block.language == "sh"][:2]
    assert len(setups) == 2, "the README needs two ```sh blocks: the set-up of a user, and that of a developer"
    for lines in setups:
        assert len(lines) == 1, f"a set-up command is one line; got {lines}"
        assert lines[0].startswith("python3 -m venv ")


def test_every_command_line_parses(readme: str) -> None:
    commands = commands_of(blocks_of(readme))
    assert commands, "the README shows no minitune command"
    wrong = []
    for command in commands:
        if command.subcommand and not re.search(rf"(?m)^\W*{re.escape(command.subcommand)}\b", help_of()):
            wrong.append(f"minitune --help does not list {command.subcommand!r}: {command.line}")
            continue
        page = help_of(command.subcommand) if command.subcommand else help_of() + " --help --version"
        wrong += [
            f"minitune {command.subcommand} --help does not know {flag}: {command.line}"
            for flag in command.flags
            if not re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", page)
        ]
    assert not wrong, "\n".join(wrong)


def test_every_path_in_the_map_exists(readme: str) -> None:
    missing = [path for path in map_of(blocks_of(readme)) if not (CHECKOUT / path).exists()]
    assert not missing, f"the map names what is not there: {missing}"


def test_the_map_shows_every_room(readme: str) -> None:
    paths = [Path(path).parts for path in map_of(blocks_of(readme))]
    shown = {path[:length] for path in paths for length in range(1, len(path) + 1)}
    tracked = [Path(path).parts for path in tracked_files()]
    rooms = {path[:1] for path in tracked if len(path) > 1}
    rooms |= {path[:2] for path in tracked if path[0] == "minitune" and path[1] not in UNMAPPED}
    missing = sorted("/".join(room) for room in rooms - shown)
    assert not missing, f"the map does not show: {missing}"


def test_local_links_lead_somewhere(readme: str) -> None:
    broken = [link for link in local_links_of(readme) if not (CHECKOUT / link).exists()]
    assert not broken, f"links to files that are not there: {broken}"


# ---- the readers of the README, on a small one

SMALL = """# tool

```sh
python3 -m venv .venv && .venv/bin/minitune info tiny --json
```

## Map of the files

```text
minitune/       the package
                goes on here
  data/         rows
    split.py    parts
  cli           commands
.ci/run         checks
```

````console
$ A=1 minitune sft --data=a.json \\
    --lr 1e-4 -n 3 | tee log  # minitune nothing
minitune: this is output
$ python3 -m minitune --help; echo "minitune info"
````

See [a](docs/a.md#part), [b](https://example.org/b), [c](#map), `[d](no.md)`, <img src="x.png"> and [e][1].

[1]: LICENSE
"""


def test_reading_a_small_readme() -> None:
    blocks = blocks_of(SMALL)
    assert [(block.language, block.heading) for block in blocks] == [
        ("sh", "tool"),
        ("text", "Map of the files"),
        ("console", "Map of the files"),
    ]
    assert [(command.subcommand, command.flags) for command in commands_of(blocks)] == [
        ("info", ["--json"]),
        ("sft", ["--data", "--lr", "-n"]),
        ("", ["--help"]),
    ]
    assert map_of(blocks) == ["minitune", "minitune/data", "minitune/data/split.py", "minitune/cli", ".ci/run"]
    assert sorted(local_links_of(SMALL)) == ["LICENSE", "docs/a.md", "x.png"]


def test_a_command_that_minitune_does_not_have_would_be_seen() -> None:
    small = "```sh\nminitune nosuch tiny\nminitune info tiny --no-such-flag\n```\n"
    with pytest.raises(AssertionError, match=r"(?s)does not list 'nosuch'.*does not know --no-such-flag"):
        test_every_command_line_parses(small)


def test_the_figures_are_the_measured_ones(readme: str) -> None:
    """What the README claims of speed, memory and loss is what the committed results say, to the letter."""
    from bench.report import with_section

    assert with_section(readme) == readme, "run: python -m bench.report"
