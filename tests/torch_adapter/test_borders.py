"""Claims about what the adapter takes from the core."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hankelred_torch

MODULES = sorted(Path(hankelred_torch.__file__).parent.rglob("*.py"))


def imported(module: Path) -> set[str]:
    """Return the absolute names that a module imports, those from a module with its name in front."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", MODULES, ids=lambda x: x.stem)
def test_adapter_imports_public_modules_of_the_core_only(module):
    core = [name.split(".") for name in imported(module) if name.split(".")[0] == "hankelred"]
    assert [name for name in core if any(part.startswith("_") for part in name)] == []


def test_threads_of_blas_are_set_by_the_core_alone():
    assert [module.name for module in MODULES if any("threadpoolctl" in name for name in imported(module))] == []
