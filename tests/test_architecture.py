"""The plan of the house, held: imports point down, never in a circle; nothing forbidden comes in; rooms stay small."""

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent

# Where a module stands: it may import its own floor and those below. The first part of a name decides for all below it.
FLOORS = {
    "errors": 0,
    "files": 0,
    "config": 0,
    "eval_config": 0,
    "tokenizer": 0,
    "ops": 1,
    "optim": 1,
    "chat": 1,
    "by_hand": 1,
    "device": 1,
    "models": 2,
    "data": 2,
    "storage": 2,
    "checkpoint": 3,
    "adapters": 3,
    "sample": 3,
    "train": 4,
    "resume": 4,
    "evaluate": 4,
    "mask_report": 4,
    "memory_plan": 4,
    "export": 4,
    "llama2c": 4,
    "plot": 4,
    "jobs": 5,
    "cli": 6,
    "serve": 6,
    "hub": 6,
    "study": 6,
    "assets": 6,  # what ships as data, with the script that made it
}
TOP = 7  # minitune/__init__.py and minitune/__main__.py

REFERENCES = {"transformers", "peft", "tokenizers", "huggingface_hub", "datasets", "accelerate", "trl"}
PICKLES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve"}
KERNEL_DEPENDENCIES = {"torch", "triton"}
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 80


class Import(NamedTuple):
    line: int
    target: str
    functions: tuple[str, ...]  # the functions it stands in, outermost first; none at module level
    typing_only: bool


@dataclass
class Module:
    path: str
    source: str
    imports: list[Import] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts = list(Path(self.path).with_suffix("").parts)
        if parts[0] == "kernels":
            parts = parts[1:]
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        self.tree = ast.parse(self.source, self.path)

    @property
    def in_kernels(self) -> bool:
        return self.name.split(".")[0] == "minitune_kernels"


def floor_of(name: str) -> int | None:
    parts = name.split(".")
    return TOP if len(parts) == 1 or parts[1] == "__main__" else FLOORS.get(parts[1])


def load(files: dict[str, str]) -> dict[str, Module]:
    modules = {module.name: module for module in (Module(path, source) for path, source in files.items())}
    for module in modules.values():
        module.imports = list(imports_of(module, modules))
    return modules


def imports_of(module: Module, modules: dict[str, Module]) -> Iterator[Import]:
    def walk(node: ast.AST, functions: tuple[str, ...], typing_only: bool) -> Iterator[Import]:
        for name in targets(node):
            yield Import(getattr(node, "lineno", 0), name, functions, typing_only)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions = (*functions, node.name)
        guard = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        body = node.body if isinstance(node, ast.If) else []
        for child in ast.iter_child_nodes(node):
            yield from walk(child, functions, typing_only or (guard and child in body))

    def targets(node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names if alias.name != "minitune" or not reads_version_only(module)]
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.name.split(".")
                here = here[: len(here) - node.level + module.is_package]
                base = ".".join([*here, base] if base else here)
            names = [alias.name for alias in node.names if (base, alias.name) != ("minitune", "__version__")]
            return [inner if (inner := f"{base}.{name}") in modules else base for name in names]
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("__import__", "import_module")):
            named = node.args[0] if node.args else None
            return [named.value] if isinstance(named, ast.Constant) and isinstance(named.value, str) else []
        return []

    return walk(module.tree, (), False)


def reads_version_only(module: Module) -> bool:
    """Whether all that a module takes from the root is the version: a constant that is there before anything else."""
    nodes = list(ast.walk(module.tree))
    used = [node for node in nodes if isinstance(node, ast.Name) and node.id == "minitune"]
    read = [node.value for node in nodes if isinstance(node, ast.Attribute) and node.attr == "__version__"]
    return bool(used) and all(node in read for node in used)


# ---- the rules: each takes all modules and yields "file:line: what is wrong"


def upward_imports(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if module.in_kernels:
            continue
        floor = floor_of(module.name)
        if floor is None:
            yield f"{module.path}:1: {module.name} stands on no floor; give it a floor in FLOORS"
            continue
        for found in module.imports:
            if found.target.split(".")[0] != "minitune":
                continue
            below = floor_of(found.target)
            if below is None:
                yield f"{module.path}:{found.line}: imports {found.target}, which stands on no floor; give it a floor"
            elif below > floor:
                yield f"{module.path}:{found.line}: floor {floor} imports {found.target} of floor {below}"


def circles(modules: dict[str, Module]) -> Iterator[str]:
    """Imports that run while a module loads; the packages above a target load with it."""
    edges: dict[str, list[str]] = {}
    for module in modules.values():
        edges[module.name] = []
        for found in module.imports:
            if found.functions or found.typing_only:
                continue
            parts = found.target.split(".")
            above = [".".join(parts[:length]) for length in range(2, len(parts) + 1)] or [found.target]
            edges[module.name] += [name for name in above if name in modules and not is_inside(module.name, name)]
            if found.target in modules and found.target != module.name:
                edges[module.name].append(found.target)
    done: set[str] = set()

    def follow(name: str, trail: list[str]) -> Iterator[str]:
        if name in trail:
            yield " -> ".join([*trail[trail.index(name) :], name])
        elif name not in done:
            for target in dict.fromkeys(edges[name]):
                yield from follow(target, [*trail, name])
            done.add(name)

    for name in edges:
        for circle in follow(name, []):
            yield f"{modules[circle.split(' ')[0]].path}:1: imports in a circle: {circle}"


def is_inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def kernel_borders(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        for found in module.imports:
            top = found.target.split(".")[0]
            if module.in_kernels and top == "minitune":
                yield f"{module.path}:{found.line}: the kernels know nothing of minitune, but import {found.target}"
            if not module.in_kernels and top == "minitune_kernels" and "triton_ops" not in found.functions:
                yield f"{module.path}:{found.line}: imports {found.target} outside a function named triton_ops"


def foreign_imports(modules: dict[str, Module]) -> Iterator[str]:
    own = {"minitune", "minitune_kernels"}
    for module in modules.values():
        allowed = KERNEL_DEPENDENCIES if module.in_kernels else declared_dependencies()
        for found in module.imports:
            top = found.target.split(".")[0]
            if top in REFERENCES:
                yield f"{module.path}:{found.line}: imports {top}, which only tests may"
            elif top in PICKLES:
                yield f"{module.path}:{found.line}: imports {top}; no pickle is ever loaded"
            elif top not in allowed | own and top not in sys.stdlib_module_names:
                yield f"{module.path}:{found.line}: imports {top}, which is no dependency of the package"


def declared_dependencies() -> set[str]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(name for extra in ("plot", "parquet", "eval") for name in extras[extra])]
    return {re.split(r"[^\w-]", requirement)[0].replace("-", "_") for requirement in wanted}


def unsafe_calls(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        for node in ast.walk(module.tree):
            found = ""
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
                found = "torch.load"
            elif isinstance(node, ast.ImportFrom) and node.module == "torch":
                found = "torch.load" if any(alias.name == "load" for alias in node.names) else ""
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found = node.func.id
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                found = "allow_pickle"
            if found:
                yield f"{module.path}:{getattr(node, 'lineno', 0)}: {found} can run what a file says"


def not_ascii(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        for token in tokenize.generate_tokens(io.StringIO(module.source).readline):
            # From Python 3.12 on, an f-string is several tokens, FSTRING_START to FSTRING_END.
            if "STRING" not in tokenize.tok_name[token.type] and not token.string.isascii():
                yield f"{module.path}:{token.start[0]}: not ASCII: {token.string!r}"


def too_long(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if module.in_kernels:
            continue
        lines = len(module.source.splitlines())
        if lines > MAX_FILE_LINES:
            yield f"{module.path}:1: {lines} lines, more than {MAX_FILE_LINES}: two ideas share a room"
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    yield f"{module.path}:{node.lineno}: {node.name} has {lines} lines, more than {MAX_FUNCTION_LINES}"


RULES = [upward_imports, circles, kernel_borders, foreign_imports, unsafe_calls, not_ascii, too_long]


# ---- the house itself


@pytest.fixture(scope="module")
def house() -> dict[str, Module]:
    paths = [path for folder in ("minitune", "kernels") for path in sorted((CHECKOUT / folder).rglob("*.py"))]
    return load({path.relative_to(CHECKOUT).as_posix(): path.read_text(encoding="utf-8") for path in paths})


def test_the_house_is_there(house: dict[str, Module]) -> None:
    assert {"minitune", "minitune.errors", "minitune.data.formats", "minitune_kernels"} <= set(house)
    assert any(found.target == "minitune.errors" for found in house["minitune.data.formats"].imports)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(house: dict[str, Module], rule) -> None:
    assert not list(rule(house)), "\n" + "\n".join(rule(house))


# ---- the rules see what they should: small houses, each with one fault


BASE = {"minitune/__init__.py": "", "minitune/errors.py": "", "kernels/minitune_kernels/__init__.py": ""}
NESTED = "def f():\n    class C:\n        def g(self):\n            "


def faults(rule, files: dict[str, str]) -> list[str]:
    return list(rule(load(BASE | files)))


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        (
            "minitune/ops/norms.py",
            "import minitune.models.decoder",
            "floor 1 imports minitune.models.decoder of floor 2",
        ),
        ("minitune/ops/norms.py", "from minitune.models import decoder", "imports minitune.models.decoder of floor 2"),
        ("minitune/ops/norms.py", "from minitune import models", "imports minitune.models of floor 2"),
        ("minitune/ops/norms.py", "from ..models.decoder import Decoder", "imports minitune.models.decoder of floor 2"),
        ("minitune/ops/__init__.py", "from ..models.decoder import Decoder", "imports minitune.models.decoder of"),
        (
            "minitune/ops/__init__.py",
            "from ..nowhere import x",
            "minitune.nowhere, which stands on no floor; give it a",
        ),
        ("minitune/chat.py", "from . import train", "floor 1 imports minitune.train of floor 4"),
        ("minitune/chat.py", "from minitune import sft", "floor 1 imports minitune of floor 7"),
        ("minitune/chat.py", "from minitune import __version__, sft", "floor 1 imports minitune of floor 7"),
        ("minitune/chat.py", "import minitune\nminitune.__version__\nminitune.sft()", "imports minitune of floor 7"),
        ("minitune/chat.py", "import minitune", "floor 1 imports minitune of floor 7"),
        ("minitune/chat.py", NESTED + "import minitune.cli", "floor 1 imports minitune.cli of floor 6"),
        ("minitune/chat.py", "if TYPE_CHECKING:\n    import minitune.jobs", "imports minitune.jobs of floor 5"),
        ("minitune/chat.py", "importlib.import_module('minitune.jobs')", "imports minitune.jobs of floor 5"),
        ("minitune/new_room.py", "", "minitune.new_room stands on no floor; give it a floor"),
        ("minitune/new_room/a.py", "", "minitune.new_room.a stands on no floor; give it a floor"),
        ("minitune/cli/sft.py", "import minitune.__main__", "floor 6 imports minitune.__main__ of floor 7"),
    ],
)
def test_an_import_that_points_up_is_seen(path: str, source: str, words: str) -> None:
    others = {"minitune/models/__init__.py": "", "minitune/models/decoder.py": "", "minitune/train.py": ""}
    found = faults(upward_imports, others | {path: source})
    assert len(found) == 1
    assert found[0].startswith(f"{path}:")
    assert words in found[0]


def test_imports_that_point_down_are_fine() -> None:
    files = {
        "minitune/__main__.py": "from minitune.cli import main",
        "minitune/cli/__init__.py": "from minitune.jobs import sft\nfrom minitune.cli import parse\nimport os.path",
        "minitune/cli/parse.py": "from minitune.errors import nearest",
        "minitune/ops/__init__.py": "from minitune.ops.norms import rms_norm\nfrom .plan import AttentionPlan",
        "minitune/ops/norms.py": "from . import plan\nfrom .plan import AttentionPlan",
        "minitune/optim.py": "import minitune\nprint(minitune.__version__)",
        "minitune/ops/plan.py": "def triton_ops():\n    import minitune_kernels",
        "minitune/jobs/__init__.py": "from minitune import __version__, errors, ops",
    }
    for rule in RULES:
        assert faults(rule, files) == []


def test_a_circle_is_seen() -> None:
    two = {"minitune/chat.py": "import minitune.optim", "minitune/optim.py": "from minitune.chat import render"}
    found = faults(circles, two)
    assert len(found) == 1
    assert "minitune.chat -> minitune.optim -> minitune.chat" in found[0]
    three = {
        "minitune/ops/a.py": "from . import b",
        "minitune/ops/b.py": "from . import c",
        "minitune/ops/c.py": "import minitune.ops.a",
    }
    assert len(faults(circles, three)) == 1
    package = {
        "minitune/ops/__init__.py": "from minitune.ops.a import x",
        "minitune/ops/a.py": "from minitune.ops import y",
    }
    assert len(faults(circles, package)) == 1
    # A package loads before what is in it, so naming only the inside still runs the outside.
    through = {
        "minitune/ops/__init__.py": "import minitune.optim",
        "minitune/ops/a.py": "",
        "minitune/optim.py": "import minitune.ops.a",
    }
    assert len(faults(circles, through)) == 1
    late = "def f():\n    from minitune.chat import render"
    assert faults(circles, two | {"minitune/optim.py": late}) == []
    typing_only = "if typing.TYPE_CHECKING:\n    from minitune.chat import render"
    assert faults(circles, two | {"minitune/optim.py": typing_only}) == []
    otherwise = "if TYPE_CHECKING:\n    import os\nelse:\n    from minitune.chat import render"
    assert len(faults(circles, two | {"minitune/optim.py": otherwise})) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/minitune_kernels/rope.py", "from minitune.errors import nearest"),
        ("kernels/minitune_kernels/rope.py", "def f():\n    import minitune"),
        ("minitune/ops/__init__.py", "import minitune_kernels"),
        ("minitune/ops/__init__.py", "def builtin_ops():\n    from minitune_kernels.rope import rope"),
        ("minitune/ops/__init__.py", "def f():\n    importlib.import_module('minitune_kernels')"),
    ],
)
def test_a_step_over_the_border_of_the_kernels_is_seen(path: str, source: str) -> None:
    assert len(faults(kernel_borders, {path: source})) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        *(("minitune/chat.py", f"import {name}") for name in sorted(REFERENCES)),
        ("minitune/chat.py", "def f():\n    from transformers.models import llama"),
        ("minitune/chat.py", "try:\n    import peft as p\nexcept ImportError:\n    pass"),
        ("minitune/chat.py", "__import__('trl')"),
        ("kernels/minitune_kernels/rope.py", "import accelerate"),
        ("minitune/chat.py", "import pickle"),
        ("minitune/chat.py", "from pickle import loads"),
        ("minitune/chat.py", "import requests"),
        ("kernels/minitune_kernels/rope.py", "import numpy"),
    ],
)
def test_a_forbidden_import_is_seen(path: str, source: str) -> None:
    assert len(faults(foreign_imports, {path: source})) == 1


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(p)",
        "f = torch.load",
        "from torch import load",
        "eval('1')",
        NESTED + "exec(a)",
        "np.load(p, allow_pickle=True)",
    ],
)
def test_an_unsafe_call_is_seen(source: str) -> None:
    assert len(faults(unsafe_calls, {"minitune/chat.py": source})) == 1
    assert len(faults(unsafe_calls, {"kernels/minitune_kernels/rope.py": source})) == 1


def test_safe_calls_are_fine() -> None:
    source = "model.eval()\nimport torch\ntokenizer.tokenizers = 'eval(1)'  # exec(\nnp.load(p, allow_pickle=False)"
    assert faults(unsafe_calls, {"minitune/chat.py": source}) == []
    assert faults(foreign_imports, {"minitune/chat.py": source}) == []


def test_characters_beyond_ascii_are_seen_outside_strings() -> None:
    assert len(faults(not_ascii, {"minitune/chat.py": "x = 1  # \u2264 2"})) == 1
    assert len(faults(not_ascii, {"minitune/chat.py": "\u03b1 = 1"})) == 1
    fine = '"""caf\u00e9"""\nx = f"\u597d{1}\u597d"\n'
    assert faults(not_ascii, {"minitune/chat.py": fine}) == []


def test_rooms_that_grew_too_large_are_seen() -> None:
    body = "    x = 1\n"
    assert faults(too_long, {"minitune/chat.py": "x = 1\n" * MAX_FILE_LINES}) == []
    assert len(faults(too_long, {"minitune/chat.py": "x = 1\n" * (MAX_FILE_LINES + 1)})) == 1
    assert faults(too_long, {"minitune/chat.py": "def f():\n" + body * (MAX_FUNCTION_LINES - 1)}) == []
    assert len(faults(too_long, {"minitune/chat.py": "async def f():\n" + body * MAX_FUNCTION_LINES})) == 1
    assert faults(too_long, {"kernels/minitune_kernels/rope.py": "def f():\n" + body * 500}) == []
