"""The tables of operations: complete, alike, and honest about what is missing."""

import importlib.util
import inspect
import sys
from dataclasses import fields
from types import ModuleType

import pytest
import torch

from minitune.ops import BUILTIN, REFERENCE, Ops, triton_ops

NAMES = [field.name for field in fields(Ops) if field.name != "name"]


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_has_the_same_arguments_in_every_table(name: str) -> None:
    """Guards that one implementation can take another's place."""
    assert inspect.signature(getattr(REFERENCE, name)) == inspect.signature(getattr(BUILTIN, name))


def ready(monkeypatch: pytest.MonkeyPatch, *names: str) -> ModuleType:
    """A machine with triton, a GPU, and kernels of these names."""
    module = ModuleType("minitune_kernels")
    for name in names:
        setattr(module, name, lambda *_: None)
    monkeypatch.setitem(sys.modules, "minitune_kernels", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return module


def test_the_kernels_fill_the_table_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ready(monkeypatch, *NAMES, "something_else")
    table = triton_ops()
    assert table.name == "triton"
    for name in NAMES:
        assert getattr(table, name) is getattr(module, name)


def test_an_operation_without_a_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is filled in from another table in silence."""
    ready(monkeypatch, *(name for name in NAMES if name not in ("rope", "layer_norm")))
    with pytest.raises(RuntimeError, match=r"no kernel yet for: layer_norm, rope$"):
        triton_ops()


def test_what_the_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    ready(monkeypatch, *NAMES)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="CUDA device"):
        triton_ops()
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # Triton runs the kernels on the CPU, slowly, for tests
    assert triton_ops().name == "triton"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="triton, which is not installed"):
        triton_ops()


def test_kernels_that_cannot_be_imported_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    ready(monkeypatch)
    monkeypatch.setitem(sys.modules, "minitune_kernels", None)
    with pytest.raises(RuntimeError, match="cannot be imported"):
        triton_ops()
