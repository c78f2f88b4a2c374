"""The borders inside the project: what may import what, and the places that must agree on a version."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import hankelred

ROOT = Path(__file__).parents[1]

# Imports go leftward only: a module or subpackage may import those before it. `__init__` is the package itself; what
# stands to its right is imported by users and the command line, never by the library.
CORE = """
    errors _checks _threads _averaged_kernels _diagonal_kernels _diagonal_pair _system_base systems order
    _realisation interop _triangular _hammarling _smith lyapunov _diagonal_factors diagonal diagonal_banks
    _bidiagonal gramians projection averaged _selective_states _selective_sums selective norms reduction _rounding
    _drift stability moments following control_names __init__ testing plotting cli
"""
ADAPTER = """
    errors convert config ops layers adapters distributed penalty allocation plan report optimizer_state ema surgery
    history tracking policy snapshot guard rewarm checkpoint pretrained compressor integrations __init__ experiment
"""
ORDER = {"hankelred": CORE.split(), "hankelred_torch": ADAPTER.split()}
OPTIONAL = ["control", "hankelred_torch", "hypothesis", "jinja2", "matplotlib", "sklearn", "slycot", "torch", "tqdm"]
FILES = [path.relative_to(ROOT) for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))]
CORE_FILES = [path for path in FILES if path.parts[0] == "hankelred"]


def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def place(path: Path) -> str:
    """Return the entry of ORDER a file belongs to: its module, or the subpackage it lies in."""
    return Path(path.parts[1]).stem


def imported_modules(path: Path, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield the absolute dotted name behind every import among `nodes`, ``from x import y`` as ``x.y``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(path.parts[: -node.level]) if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def run_on_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes executed when a module is imported: not function bodies, not ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from run_on_import(node)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_module_has_a_place_in_the_import_order(path: Path):
    assert place(path) in ORDER[path.parts[0]]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_leftward_only(path: Path):
    order = ORDER[path.parts[0]]
    rightward = []
    for name in imported_modules(path, ast.walk(tree_of(path))):
        package, _, rest = name.partition(".")
        if package != path.parts[0]:
            continue
        part = rest.split(".")[0]
        part = part if part in order else "__init__"  # a name of the package itself
        inside_one_subpackage = part == place(path) and len(path.parts) > 2
        if order.index(part) >= order.index(place(path)) and not inside_one_subpackage:
            rightward.append(name)
    assert rightward == []


@pytest.mark.parametrize("path", CORE_FILES, ids=str)
def test_core_imports_nothing_but_its_dependencies_at_module_level(path: Path, pyproject):
    dependencies = {Requirement(line).name for line in pyproject["project"]["dependencies"]}
    allowed = dependencies | set(sys.stdlib_module_names) | {"hankelred"}
    packages = {name.partition(".")[0] for name in imported_modules(path, run_on_import(tree_of(path)))}
    assert packages <= allowed


@pytest.mark.parametrize("path", CORE_FILES, ids=str)
def test_core_imports_neither_torch_nor_the_adapter_anywhere(path: Path):
    names = imported_modules(path, ast.walk(tree_of(path)))
    assert {"torch", "hankelred_torch"}.isdisjoint(name.partition(".")[0] for name in names)


def test_importing_the_core_loads_no_optional_package():
    code = f"import sys, hankelred; print([name for name in {OPTIONAL} if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_installed_version_is_the_version_of_the_source():
    try:
        installed = importlib.metadata.version("hankelred")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("hankelred runs from its source folder and is not installed")
    assert installed == hankelred.__version__


def test_changelog_opens_with_the_version_of_the_source():
    heading = next(line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if "## [" in line)
    expected = "## [Unreleased]" if ".dev" in hankelred.__version__ else f"## [{hankelred.__version__}]"
    assert heading.startswith(expected)


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_direct_requirement_has_a_tested_version(pyproject, python: str):
    extras = pyproject["project"]["optional-dependencies"].values()
    lines = [*pyproject["project"]["dependencies"], *(line for extra in extras for line in extra)]
    required = {r.name: r for r in map(Requirement, lines) if r.name != "hankelred"}
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    versions = {
        pin.name: str(pin.specifier).removeprefix("==")
        for pin in pins
        if pin.marker is None or pin.marker.evaluate({"python_version": python})
    }
    untested = {name for name, r in required.items() if not r.specifier.contains(versions.get(name, "0"), True)}
    assert untested == set()
