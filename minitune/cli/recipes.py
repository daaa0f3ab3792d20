"""``minitune recipes``."""

from dataclasses import dataclass

from rich.console import Console

from minitune.cli.parse import parse


@dataclass(frozen=True, kw_only=True)
class RecipesConfig:
    """The recipes that ship: what each is for, and the time, memory and loss that it was measured at."""

    json: bool = False
    """Print one JSON document instead."""


def run(args: list[str]) -> int:
    """List the recipes."""
    config = parse(RecipesConfig, "recipes", args)
    import json

    from minitune.jobs.recipes import recipes

    found = recipes()
    if config.json:
        print(json.dumps([{"name": r.name, "about": r.about, "settings": r.settings, "measured": r.measured}
                          for r in found]))  # fmt: skip
        return 0
    console = Console(highlight=False, soft_wrap=True)
    for recipe in found:
        console.print(f"{recipe.name}\n  {recipe.about}", markup=False)
        settings = ", ".join(f"{name} {value}" for name, value in recipe.settings.items())
        console.print(f"  {settings}", markup=False)
        m = recipe.measured
        if m:
            console.print(
                f"  {m['rows']:,} rows: {m['steps']} steps in {m['seconds']:.0f} s, "
                f"{m['peak_memory_bytes'] / 2**20:.0f} MiB at the peak, validation loss {m['val_loss_before']:.3f} -> "
                f"{m['val_loss_after']:.3f} ({m['machine']})",
                markup=False,
            )
    console.print("\nrun one with your model and rows: minitune sft NAME --model MODEL --data ROWS --out RUN")
    return 0
