"""What is printed: sentences and tables that fit the terminal, or the same figures as JSON."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..systems import LinearSystem


class Table(NamedTuple):
    """Rows of text under a header."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def show(as_json: bool, record: dict[str, Any], parts: Iterable[str | Table]) -> None:
    """Print a record as strict JSON, or what tells people the same: sentences and tables, a blank line between."""
    if as_json:
        print(json.dumps(_strict(record), allow_nan=False, indent=1))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None  # a file has no width
    texts = [_sentences(part, width) if isinstance(part, str) else _as_columns(part, width) for part in parts]
    print("\n\n".join(texts))


def _strict(value: Any) -> Any:
    """Return plain values, None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_strict(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def _sentences(text: str, width: int | None) -> str:
    if width is None:
        return text
    return "\n".join(textwrap.fill(line, max(width, 20), break_long_words=False) for line in text.splitlines())


def _as_columns(table: Table, width: int | None) -> str:
    """Return rows under a header, every column as wide as its widest entry and flush right.

    Where they are wider than the terminal the columns are stacked, each stack beginning with the first column.
    """
    columns = list(zip(table.header, *table.rows, strict=True))
    padded = [[entry.rjust(max(map(len, column))) for entry in column] for column in columns]
    stacks: list[list[list[str]]] = []
    for column in padded[1:]:
        taken = sum(len(x[0]) + 2 for x in stacks[-1]) if stacks else 0
        if stacks and (width is None or taken + len(column[0]) <= width):
            stacks[-1].append(column)
        else:
            stacks.append([padded[0], column])
    return "\n\n".join("\n".join("  ".join(row) for row in zip(*stack, strict=True)) for stack in stacks)


def describe(system: LinearSystem) -> str:
    """Return one line: sizes, kind, time."""
    sizes = ((system.n, "state"), (system.m, "input"), (system.p, "output"))
    parts = [f"{count} {what}{'' if count == 1 else 's'}" for count, what in sizes]
    parts += (
        ["sparse"] * system.is_sparse
        + ["diagonal"] * system.is_diagonal
        + ["real output"] * getattr(system, "has_real_output", False)
    )
    parts.append("discrete" if system.is_discrete else "continuous")
    if system.is_discrete:
        parts.append("dt unspecified" if system.dt is True else f"dt = {system.dt:g} s")
    return ", ".join(parts)


def facts(path: str, system: LinearSystem) -> dict[str, Any]:
    """Return what `describe` tells, as an entry of a record."""
    kind = {"sparse": system.is_sparse, "diagonal": system.is_diagonal}
    sizes = {"n": system.n, "m": system.m, "p": system.p, "order": system.order}
    return {"path": path, **sizes, "dt": system.dt, **kind, "name": system.name}
