"""Every line of the migration tables runs, and does what the line it stands for does."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hankelred as hr

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guides" / "migration.md").read_text(encoding="utf-8")
RUN = {"python-control": "control", "Slycot": "slycot"}  # tools whose own column is run
OMEGA = np.array([0.0, 0.3, 2.0, 40.0])


def lines() -> Iterator[tuple[str, str, str]]:
    """Yield tool, their line and ours."""
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        tool, text = section.split("\n", 1)
        for row in re.findall(r"^\| (.*) \| (.*) \|$", text, flags=re.MULTILINE)[1:]:
            yield tool, *row


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def run(code: str, names: dict[str, Any]) -> Any:
    """Return the value of an expression, or None of statements."""
    try:
        program = compile(code, "<migration>", "eval")
    except SyntaxError:
        exec(compile(code, "<migration>", "exec"), names)
        return None
    return eval(program, names)


def figures(value: Any) -> Any:
    """Return numbers that two libraries must agree on: responses of models, arrays as they are."""
    if isinstance(value, list) and value and hasattr(value[0], "A"):
        return np.stack([figures(entry) for entry in value])
    if isinstance(value, (tuple, list)) and len(value) == 3 and all(np.ndim(x) == 2 for x in value):
        return figures(hr.StateSpace(*value))
    return hr.as_system(value).frequency_response(OMEGA) if hasattr(value, "A") else np.asarray(value)


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the page has defined before its tables."""
    pytest.importorskip("control")
    pytest.importorskip("slycot")
    found: dict[str, Any] = {}
    text = re.sub(r"^```.*$", "", PAGE, flags=re.MULTILINE)
    for example in doctest.DocTestParser().get_examples(text):
        exec(compile(example.source, "<migration>", "single"), found)
    exec("import slycot; import hankelred.control", found)
    return found


@pytest.mark.parametrize(("tool", "theirs", "ours"), list(lines()))
def test_a_line_runs_and_is_the_one_it_stands_for(tool: str, theirs: str, ours: str, names: dict[str, Any]) -> None:
    (code, *_) = codes(ours)
    found = run(code, names)
    if tool in RUN:
        (line,) = codes(theirs)
        np.testing.assert_allclose(figures(found), figures(run(line, names)), rtol=1e-6, atol=1e-9)


def test_the_tables_are_all_read() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    headers = [line for line in PAGE.splitlines() if line.startswith("|---")]
    assert len(list(lines())) == len(rows) - len(headers)
