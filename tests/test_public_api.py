"""What every public name promises: documented arguments are the signature's, the sections are there, examples run."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from numpydoc.docscrape import ClassDoc
from numpydoc.validate import validate

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)]
API_PAGE = ROOT / "docs" / "api" / "index.md"
NAMESPACES = re.findall(r"^ {3}(hankelred\S*)$", API_PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def listed(namespace: str) -> list[str]:
    """Return the names a public module lists in ``__all__``, or without it, those it defines."""
    module = importlib.import_module(namespace)
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == namespace]
    return getattr(module, "__all__", [name for name in defined if not name.startswith("_")])


def public_names() -> Iterator[str]:
    """Yield the dotted name of everything public that is called or raised."""
    for namespace in NAMESPACES:
        yield from (f"{namespace}.{name}" for name in listed(namespace) if callable(resolve(f"{namespace}.{name}")))


def resolve(name: str) -> Any:
    """Return the object behind a dotted public name."""
    namespace, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(namespace), attribute)


def described_methods(name: str) -> Iterator[str]:
    """Yield the methods of a public class that describe their arguments one by one."""
    for method, function in inspect.getmembers(resolve(name), inspect.isroutine):
        documented_here = (getattr(function, "__module__", None) or "").startswith("hankelred")
        if documented_here and not method.startswith("_") and "Parameters\n" in (inspect.getdoc(function) or ""):
            yield f"{name}.{method}"


def undescribed_methods(name: str) -> Iterator[str]:
    """Yield the methods of a public class whose arguments neither it nor a class it comes from describes.

    Hooks of the integrations are called by frameworks, which describe them.
    """
    kinds = [k for k in inspect.getmro(resolve(name)) if k.__module__.startswith("hankelred")]
    for method in sorted({x for kind in kinds for x in vars(kind) if not x.startswith("_")}):
        found = [inspect.unwrap(getattr(kind, method)) for kind in kinds if method in vars(kind)]
        if not callable(found[0]) or ".integrations." in found[0].__module__:
            continue
        takes = set(inspect.signature(found[0]).parameters) - {"self"}
        if takes and not any("Parameters\n" in (inspect.getdoc(x) or "") for x in found):
            yield f"{name}.{method}"


def is_made_by_the_library(name: str) -> bool:
    """Tell whether a class is a result: it describes its attributes, and users never call it with arguments."""
    text = inspect.getdoc(resolve(name)) or ""
    return "Attributes\n---" in text and "Parameters\n---" not in text


def inherits_its_arguments(name: str) -> bool:
    """Tell whether a class is called as its base class is, which describes the arguments."""
    return "__init__" not in vars(resolve(name))


def violations(name: str, checks: set[str]) -> str:
    """Return what numpydoc finds against some of its checks in the docstring of a public name, a line each."""
    return "\n".join(f"{code} {text}" for code, text in validate(name)["errors"] if code in checks)


def failures(examples: list[doctest.DocTest]) -> str:
    """Run examples and return the reports of those that print something else than they show."""
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS, verbose=False)
    for example in examples:
        runner.run(example, out=report.append)
    return "".join(report)


NAMES = list(public_names())
CLASSES = [name for name in NAMES if inspect.isclass(resolve(name))]
METHODS = [method for name in CLASSES for method in described_methods(name)]
ERRORS = [name for name in CLASSES if issubclass(resolve(name), Exception)]
RESULTS = [name for name in CLASSES if is_made_by_the_library(name)]
DERIVED = [name for name in CLASSES if inherits_its_arguments(name)]
CALLED = [name for name in NAMES if name not in ERRORS + RESULTS + DERIVED]
# Adapters of layers of other libraries, which `find_ssm_layers` finds by the names of their classes; their examples
# are the tests of those layers.
FOREIGN = {
    f"hankelred_torch.adapters.{name}Adapter"
    for name in "GatedDelta GatedLinearAttention KimiDelta Mamba2 S4DKernel S5Pytorch SSMKernelDiag TiedDelta".split()
}
ARGUMENT_CHECKS = {"PR01", "PR02", "PR03"}  # undocumented, unknown, in another order


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_public_modules_have_an_api_page(namespace: str):
    names = [f"{namespace}.{name}" for name in listed(namespace)]
    modules = {name for name in names if inspect.ismodule(resolve(name))}
    assert modules <= set(NAMESPACES)


@pytest.mark.parametrize("name", CALLED + METHODS)
def test_documented_arguments_are_those_of_the_signature(name: str):
    assert violations(name, ARGUMENT_CHECKS) == ""


@pytest.mark.parametrize("name", CLASSES)
def test_methods_describe_their_arguments(name: str):
    assert not list(undescribed_methods(name))


@pytest.mark.parametrize("name", RESULTS)
def test_documented_attributes_are_those_of_the_result(name: str):
    ours = [kind for kind in inspect.getmro(resolve(name)) if kind.__module__.startswith("hankelred")]
    entries = [entry for kind in ours for entry in ClassDoc(kind)["Attributes"]]  # those of a base are documented there
    documented = [part for entry in entries for part in entry.name.split(", ")]
    fields = list(getattr(resolve(name), "_fields", ()))  # of a named tuple
    fields = fields or [field.name for field in dataclasses.fields(resolve(name)) if not field.name.startswith("_")]
    assert set(fields) <= set(documented) <= set(dir(resolve(name))) | set(fields)


@pytest.mark.parametrize("name", CALLED)
def test_docstring_has_its_sections(name: str, pyproject):
    assert violations(name, set(pyproject["tool"]["numpydoc_validation"]["checks"]) - ARGUMENT_CHECKS) == ""


@pytest.mark.parametrize("name", sorted({*ERRORS, *RESULTS, *DERIVED}))
def test_every_class_has_a_summary_and_an_example(name: str):
    example = set() if name in FOREIGN else {"EX01"}
    assert violations(name, {"GL08", "SS01", "SS03", "SS04", "SS05"} | example) == ""


@pytest.mark.parametrize("name", NAMES)
def test_docstring_example_runs(name: str):
    assert failures(doctest.DocTestFinder().find(resolve(name), name, globs={})) == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_of_the_documentation_run(page: Path):
    text = re.sub(r"^```.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)  # fences are no output
    assert failures([doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)]) == ""
