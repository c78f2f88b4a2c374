"""The borders inside the project: what may import what, and the places that must agree on a version."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import control
import numpy as np
import pytest
from packaging.requirements import Requirement

import hankelred
from hankelred import checks
from hankelred.systems import LinearSystem

ROOT = Path(__file__).parents[1]

# Imports go leftward only: to a room's own modules and to the layers before its own. `__init__` is the package itself;
# what stands to its right is imported by users and the command line, never by the library.
CORE = """
    errors | checks markup | linalg | systems | order | rounding | low_rank | parts | hessenberg_parts | weighting |
    hankel | lyapunov norms following | reduction drift | selective optimal feedback | training | __init__ |
    control testing plotting | cli | __main__
"""
ADAPTER = """
    errors sharding device_memory convert config randomness ops layers layer_sums exchange drawing sampling adapters
    penalty planning guard surgery saving training integrations __init__
"""
LAYERS = {
    "hankelred": [layer.split() for layer in CORE.split("|")],
    "hankelred_torch": [[module] for module in ADAPTER.split()],
}
OPTIONAL = """
    control hankelred_torch hypothesis jinja2 matplotlib mpi4py petsc4py sklearn slycot torch tqdm
""".split()
LATE = ["numba", "scipy.io", "scipy.optimize", "scipy.signal"]  # together they take longer than all the rest
FILES = [path.relative_to(ROOT) for package in LAYERS for path in sorted((ROOT / package).rglob("*.py"))]
CORE_FILES = [path for path in FILES if path.parts[0] == "hankelred"]


def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def place(path: Path) -> str:
    """Return the room a file belongs to: its module, or the subpackage it lies in."""
    return Path(path.parts[1]).stem


def layer(package: str, room: str) -> int:
    """Return the number of the layer of a room; names of the package itself count as `__init__`."""
    numbers = {name: number for number, names in enumerate(LAYERS[package]) for name in names}
    return numbers.get(room, numbers["__init__"])


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


def run_at_all(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those under ``if TYPE_CHECKING``: a name in an annotation is no import."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from run_at_all(node)


def definitions(path: Path) -> Iterator[str]:
    """Yield the functions and classes that a module defines at its top."""
    yield from (node.name for node in tree_of(path).body if isinstance(node, (ast.FunctionDef, ast.ClassDef)))


def last_name(node: ast.AST) -> str:
    """Return ``c`` for ``c``, ``a.b.c`` and ``a.b.c[...]``, and nothing for other expressions."""
    if isinstance(node, ast.Subscript):
        return last_name(node.value)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def core_nodes(kind: type[ast.AST]) -> Iterator[tuple[Path, Any]]:
    """Yield every node of one kind in the core with its file."""
    for path in CORE_FILES:
        yield from ((path, node) for node in ast.walk(tree_of(path)) if isinstance(node, kind))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_module_has_a_place_in_the_layers(path: Path):
    assert place(path) in [name for names in LAYERS[path.parts[0]] for name in names]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_leftward_only(path: Path):
    here = layer(path.parts[0], place(path))
    rightward = []
    for name in imported_modules(path, run_at_all(tree_of(path))):
        package, _, rest = name.partition(".")
        room = rest.split(".")[0]
        inside_one_room = room == place(path) and len(path.parts) > 2
        if package != path.parts[0] or inside_one_room or rest == "__version__":
            continue
        if layer(package, room) >= here:
            rightward.append(name)
    assert rightward == []


def test_no_name_is_defined_in_two_modules_of_the_core():
    modules: dict[str, list[str]] = {}
    for path in CORE_FILES:
        for name in definitions(path):
            modules.setdefault(name, []).append(str(path))
    assert {name: found for name, found in modules.items() if len(set(found)) > 1} == {}


def test_no_module_of_the_core_bears_the_name_of_a_public_function():
    functions = {name for path in CORE_FILES for name in definitions(path) if not name.startswith("_")}
    assert functions & {Path(part).stem for path in CORE_FILES for part in path.parts[1:]} == set()


@pytest.mark.parametrize("path", CORE_FILES, ids=str)
def test_private_modules_stay_inside_their_folder(path: Path):
    foreign = []
    for name in imported_modules(path, ast.walk(tree_of(path))):
        parts = name.split(".")
        for depth, part in enumerate(parts):
            is_module = (ROOT / Path(*parts[: depth + 1])).with_suffix(".py").is_file()
            if part.startswith("_") and is_module and path.parts[:depth] != tuple(parts[:depth]):
                foreign.append(name)
    assert foreign == []


def test_the_adapter_names_no_private_module_of_the_core():
    adapter = [path for path in FILES if path.parts[0] == "hankelred_torch"]
    private = re.compile(r"\bhankelred(\.\w+)*\._(?!_)")
    assert [str(path) for path in adapter if private.search((ROOT / path).read_text(encoding="utf-8"))] == []


def test_the_kind_of_a_system_is_asked_for_at_most_eight_times():
    kinds = {"StateSpace", "DiagonalSystem", "DiagonalBank", "LinearSystem"}
    asked = [
        f"{path}:{call.lineno}"
        for path, call in core_nodes(ast.Call)
        if last_name(call.func) == "isinstance" and kinds & {last_name(node) for node in ast.walk(call.args[1])}
    ]
    assert len(asked) <= 8, asked


def test_one_file_asks_whether_poles_are_given_by_rates():
    asked = {
        str(path)
        for path, node in core_nodes(ast.Compare)
        if last_name(node.left) == "rates" and isinstance(node.ops[0], (ast.Is, ast.IsNot))
    }
    assert asked == {"hankelred/systems/poles.py"}


def test_one_file_asks_whether_an_output_is_real():
    asked = {
        str(path)
        for path, node in core_nodes(ast.Compare)
        if any(isinstance(side, ast.Constant) and side.value == "real" for side in [node.left, *node.comparators])
    }
    assert asked == {"hankelred/systems/real_output.py"}


def test_one_file_forms_the_product_of_gramian_factors():
    formed = {
        str(path)
        for path, node in core_nodes(ast.BinOp)
        if isinstance(node.op, ast.MatMult) and (last_name(node.left), last_name(node.right)) == ("R", "S")
    }
    assert formed == {"hankelred/linalg/hankel_svd.py"}


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


def test_importing_the_core_loads_nothing_that_only_some_need():
    code = f"import sys, hankelred; print([name for name in {OPTIONAL + LATE} if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_the_package_has_few_names():
    assert len(hankelred.__all__) <= 33


def test_balanced_truncation_of_a_foreign_model_is_one_short_flow(monkeypatch):
    plant = control.ss(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)), 0)
    hankelred.balanced_truncation(plant, 2)  # what is imported and compiled at the first call
    made, checked, files = [], [], set()
    build, check = LinearSystem._set, checks.check_array
    monkeypatch.setattr(LinearSystem, "_set", lambda *a, **k: (made.append(a[0]), build(*a, **k))[1])

    def watch(frame, event, argument):
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(ROOT / "hankelred")):
            files.add(name)
            if frame.f_code is check.__code__:
                checked.append(frame.f_locals["name"])

    sys.setprofile(watch)
    try:
        hankelred.balanced_truncation(plant, 2)
    finally:
        sys.setprofile(None)
    assert len(made) <= 2, made
    assert len(checked) <= 4, checked
    assert len(files) <= 16, sorted(files)  # among them where rows of factors lie, here, and what rounding adds


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


def test_oldest_versions_are_those_that_the_metadata_allow(pyproject):
    extras = pyproject["project"]["optional-dependencies"]
    lines = [*pyproject["project"]["dependencies"], *extras["control"], *extras["plot"], *extras["testing"]]
    lowest = {r.name: str(r.specifier).removeprefix(">=") for r in map(Requirement, lines)}
    text = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")
    pins = dict(line.split("==") for line in text.splitlines() if line and not line.startswith("#"))
    assert pins == {name: f"{version}.0" for name, version in lowest.items()}
