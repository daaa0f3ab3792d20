"""Settings: a typo, a wrong type or a value out of range never starts a run."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from minitune.config import ModelConfig, SFTConfig, from_mapping, to_toml
from minitune.errors import ConfigError

NEEDED: dict[str, Any] = {"model": "m", "data": "d", "out": "o"}
SHAPE: dict[str, Any] = {
    "vocab_size": 8, "hidden_size": 4, "intermediate_size": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1,
    "head_dim": 2,
}  # fmt: skip


def test_toml_there_and_back() -> None:
    config = SFTConfig(**NEEDED, lr=1e-5, val='a "b"\\c\n', force=True, epochs=2.5)
    assert from_mapping(SFTConfig, tomllib.loads(to_toml(config)), "x") == config
    assert from_mapping(SFTConfig, tomllib.loads(to_toml(SFTConfig(**NEEDED))), "x").lr is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lrr": 1e-4}, "unknown key 'lrr'; did you mean 'lr'?"),
        ({"lr": "1e-5"}, "lr is '1e-5' \\(str\\); it must be float or nothing"),
        ({"rank": 8.0}, "rank is 8.0 \\(float\\); it must be int"),
        ({"rank": True}, "rank is True \\(bool\\); it must be int"),
        ({"method": "lorra"}, "must be one of: lora, full"),
        ({"rank": 0}, "--rank is 0; it must be at least 1"),
        ({"clip": float("nan")}, "--clip is nan"),
        ({"micro_batch": 9}, "--micro-batch 9 is larger than --batch-size 8"),
        ({"data": ""}, "--data is empty"),
    ],
)
def test_a_wrong_setting_is_told_by_name(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(SFTConfig, NEEDED | values, "run.toml")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"run\.toml: data, out must be given"):
        from_mapping(SFTConfig, {"model": "m"}, "run.toml")


def test_a_whole_number_is_a_float_too() -> None:
    assert from_mapping(SFTConfig, NEEDED | {"alpha": 16}, "x").alpha == 16.0


@pytest.mark.parametrize(
    "change",
    [{"num_heads": 3, "num_kv_heads": 2}, {"head_dim": 3}, {"vocab_size": 0}, {"norm_eps": -1.0}, {"num_layers": 2.0},
     {"tie_embeddings": "yes"}, {"rope_theta": float("inf")}],
    ids=str,
)  # fmt: skip
def test_a_shape_that_cannot_be_is_refused(change: dict) -> None:
    with pytest.raises(ConfigError):
        ModelConfig(**(SHAPE | change))


def test_the_page_of_settings_is_made_from_the_dataclasses() -> None:
    """Flags, TOML keys and documentation have one source: the page is what that source gives."""
    from minitune.config.page import SETTINGS_PAGE, page

    path = Path(__file__).resolve().parents[1] / SETTINGS_PAGE
    assert path.read_text(encoding="utf-8") == page(), "run: python -m minitune.config.page > docs/settings.md"
