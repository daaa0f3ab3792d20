"""Recipes: settings of runs that ship with the package, each with what it was measured to take and to give."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitune.config import SFTConfig, checked_types
from minitune.errors import ConfigError, nearest

FOLDER = Path(__file__).parents[1] / "recipes"
MEASURED = FOLDER / "measured.json"


@dataclass(frozen=True)
class Recipe:
    """One recipe: its name, what it is for, its file, its settings, and how it went where it was measured."""

    name: str
    about: str
    path: Path
    settings: dict[str, Any]
    measured: dict[str, Any]


def recipes() -> list[Recipe]:
    """All recipes, by name; the first comment of the file says what each is for."""
    found = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}
    out = []
    for path in sorted(FOLDER.glob("*.toml")):
        text = path.read_text(encoding="utf-8")
        about = next((line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), "")
        out.append(Recipe(path.stem, about, path, tomllib.loads(text), found.get(path.stem, {})))
    return out


def recipe_path(name: str) -> Path:
    """The file of a recipe; ConfigError with the nearest name where there is none."""
    known = {recipe.name: recipe.path for recipe in recipes()}
    if name not in known:
        what = f"{name!r} is neither a flag, a .toml file of settings nor a recipe{nearest(name, known)}"
        raise ConfigError(f"{what}; see minitune recipes")
    return known[name]


def check(recipe: Recipe) -> None:
    """Raise ConfigError where a setting is unknown or of another type."""
    checked_types(SFTConfig, recipe.settings, str(recipe.path))
