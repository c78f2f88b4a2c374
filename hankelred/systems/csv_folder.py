"""A system as a folder of ``.csv`` files: A.csv, B.csv, C.csv and, where they are there, D, E, dt and names.

A sparse matrix has a Matrix Market file in its place, A.mtx and so on.

dt.csv is the seal: a writer removes it first and puts it back last, so that a folder between two systems has none.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..checks import Array, is_sparse
from ..errors import InputError
from .entries import IN_FILES, MATRICES, Budget
from .matrix_market import matrix_market_lines, read_matrix_market

FILES = (*MATRICES, "signal_names", "dt")


def read_folder(folder: Path) -> dict[str, Any]:
    """Return the entries of a system."""
    budget = Budget()
    seal = _identity(folder / "dt.csv")
    present = [key for key in FILES if key in "ABC" or os.path.lexists(folder / f"{key}.csv")]
    sparse = [key for key in MATRICES if os.path.lexists(folder / f"{key}.mtx")]
    twice = [key for key in sparse if os.path.lexists(folder / f"{key}.csv")]
    if twice:
        raise InputError(f"It must hold one system; got {twice[0]}.csv and {twice[0]}.mtx. Remove one of them.")
    entries = {key: _read(folder / f"{key}.csv", budget) for key in present if key not in sparse}
    entries |= {key: read_matrix_market(folder / f"{key}.mtx", budget) for key in sparse}
    if _identity(folder / "dt.csv") != seal:
        raise InputError("It was written while it was read. Load it again.")
    entries |= entries.pop("signal_names", {})
    # Lines without numbers do not say how long they are: a system without states has its sizes from D.
    A, B, C, D = (entries.get(key, np.empty((0, 0))) for key in "ABCD")
    n = A.shape[0]
    if B.size == 0:
        entries["B"] = np.empty((n, 0 if n else D.shape[1]))
    if C.size == 0:
        entries["C"] = np.empty((0 if n else D.shape[0], n))
    if D.size == 0:
        entries.pop("D", None)
    return entries


def texts(entries: dict[str, Any]) -> dict[str, Iterable[bytes]]:
    """Return the lines of the files of a system, by key; Python's numbers print all their digits."""
    lines: dict[str, Iterable[bytes]] = {}
    for key in MATRICES:
        if key in entries:
            lines[key] = (matrix_market_lines if is_sparse(entries[key]) else _rows)(entries[key])
    names = [[key, *([entries[key]] if key == "name" else entries[key])] for key in IN_FILES if key in entries]
    if names:
        table = io.StringIO(newline="")
        csv.writer(table).writerows(names)
        lines["signal_names"] = [table.getvalue().encode("utf-8")]
    return {**lines, "dt": [f"{entries['dt']}\n".encode("ascii")]}


def _rows(x: Array) -> Iterable[bytes]:
    for row in x.tolist():
        yield ",".join(map(str, row)).encode("ascii") + b"\n"


def _identity(path: Path) -> tuple[int, int] | None:
    """Inode and time of writing, which change when a file is replaced."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read(path: Path, budget: Budget) -> Any:
    if path.exists():
        if not path.is_file():
            raise InputError(f"{path.name} must be a regular file. Check the path.")
        budget.spend(path.stat().st_size)
    parse = {"signal_names": _names, "dt": _sampling_time}.get(path.stem, _matrix)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets put a mark in front
            return parse(file)
    except InputError:
        raise
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from error


def _matrix(file: TextIO) -> Array:
    """Return rows of numbers, real or complex."""
    lines = [line for line in file.read().splitlines() if line.strip()]
    if not lines:
        return np.empty((0, 0))
    dtype = np.complex128 if any("j" in line for line in lines) else np.float64
    return np.loadtxt(lines, dtype=dtype, delimiter=",", comments=None, ndmin=2)


def _sampling_time(file: TextIO) -> bool | float:
    text = file.read(1000).strip()
    if text.lower() == "true":
        return True
    return int(text) if text.isdecimal() and len(text) < 16 else float(text)


def _names(file: TextIO) -> dict[str, Any]:
    """Return names; each row says what it names."""
    names: dict[str, Any] = {}
    for row in csv.reader(file, strict=True):
        if not row or row[0] not in IN_FILES or row[0] in names:
            raise InputError(
                f"signal_names.csv must have one row for each of {', '.join(IN_FILES)}; got {row[:1]}. Correct it."
            )
        names[row[0]] = row[1:]
    return names
