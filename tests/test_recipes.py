"""Recipes: found by name, every setting real, and the figures that are shown are those that were measured."""

import json
from pathlib import Path

import pytest

from bench.recipes import RESULTS, measured
from minitune.cli import main
from minitune.cli.parse import parse, with_toml
from minitune.config import SFTConfig
from minitune.errors import ConfigError
from minitune.jobs.load import TINY
from minitune.jobs.recipes import MEASURED, check, recipe_path, recipes

NEEDED = ["--model", "m", "--data", "d", "--out", "o"]


def test_every_recipe_is_settings_of_sft_and_says_what_it_is_for() -> None:
    found = recipes()
    assert len(found) >= 4
    for recipe in found:
        check(recipe)
        assert len(recipe.about) > 20
        config = parse(SFTConfig, "sft", with_toml(SFTConfig, [recipe.name, *NEEDED]))
        assert {name: getattr(config, name) for name in recipe.settings} == recipe.settings


def test_flags_win_over_a_recipe() -> None:
    name = recipes()[0].name
    assert parse(SFTConfig, "sft", with_toml(SFTConfig, [name, *NEEDED, "--lr", "0.5"])).lr == 0.5


def test_an_unknown_recipe_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"nor a recipe; did you mean 'stories260k-lora'\?; see minitune recipes"):
        recipe_path("stories260k-lore")


def test_a_recipe_runs_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sft", "tinystories-656k-full", "--model", "tiny", "--data", str(TINY / "rows.jsonl"), "--rows", "20"]
    words += ["--max-steps", "1", "--out", str(tmp_path / "run"), "--device", "cpu", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 1


def test_what_is_shown_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """``measured.json`` is what the committed results say of the recipes as they are now."""
    assert json.loads(MEASURED.read_text(encoding="utf-8")) == measured()
    assert set(measured()) == {recipe.name for recipe in recipes()}
    newest = {line["name"]: line for line in map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())}
    for line in newest.values():
        assert line["result"]["val_loss_after"] < line["result"]["val_loss_before"]
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    for recipe in recipes():
        assert recipe.name in printed
        assert f"{recipe.measured['seconds']:.0f} s" in printed
