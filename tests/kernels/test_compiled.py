"""What the compilers make of the kernels, without a GPU: tensor cores used, nothing spilled, no product serialised."""

import importlib
import importlib.util
import json

import pytest

from bench.compiled import RESULTS, SHARED_LIMIT, examine, launches, source_hash

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

# (operation, case, architecture): what is compiled in the ordinary suite.
CASES = [
    ("attention", "bfloat16 D64", 80),
    ("attention", "bfloat16 D128", 90),
    ("cross_entropy", "bfloat16 V128256", 90),
    ("decode_attention", "bfloat16 D128 T1 group 4", 90),
    ("glu", "bfloat16 silu", 80),
    ("layer_norm", "bfloat16 C768", 80),
    ("qk_norm_rope", "bfloat16 H16 K8 D128 pairs 64", 90),
    ("rms_norm", "bfloat16 C4096", 90),
    ("rope", "bfloat16 H32 K8 D128 pairs 64", 90),
]
SERIALISED = {"C7510", "C7511", "C7512", "C7513", "C7514"}
# Kernels that spill some registers and are faster than every form that does not; see docs/decisions.md.
SPILLS = {"attention_backward_keys_hopper_kernel": 600, "attention_backward_keys_kernel": 4000}


@pytest.mark.parametrize(("operation", "case", "arch"), CASES)
def test_what_ships_compiles_well(operation: str, case: str, arch: int) -> None:
    module = importlib.import_module(f"bench.ops.{operation}")
    shipped = module.shipped()
    assert case in shipped
    found = [examine(operation, name, item, arch) for name, item in launches({case: shipped[case]}, arch)]
    assert found
    for report in found:
        check(report.__dict__)


def check(row: dict) -> None:
    """The gates: 16-bit kernels whole, the figures of float32 and of wide heads only reported."""
    assert row["shared_bytes"] <= SHARED_LIMIT[row["arch"]]
    assert not SERIALISED & set(row["warnings"]), row
    if "float32" in row["case"] or any(wide in row["case"] for wide in ("D192", "D256", "C12288")):
        return
    assert row["spill_bytes"] <= SPILLS.get(row["kernel"], 0), row
    if row["operation"] == "attention" and row["kernel"] != "delta_kernel":
        assert row["tensor_cores"] == ("wgmma" if row["arch"] == 90 else "mma"), row


def test_the_table_is_of_these_sources() -> None:
    """Guards a table that no longer says what ships: ``python -m bench.compiled`` makes it anew."""
    rows = [json.loads(line) for line in (RESULTS / "compiled.jsonl").read_text("utf-8").splitlines()]
    assert {row["source"] for row in rows} == {source_hash()}
    for row in rows:
        check(row)
