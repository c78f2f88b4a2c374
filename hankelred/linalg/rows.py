"""Where the rows of tall arrays lie: all of them here, or split over processes. What the low-rank recursion asks of it.

Sizes, products and triangles are small. They are exchanged whole and put together in the order of the processes, so
that every process has the same bits and takes the same decisions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np

from ..checks import Array
from .pencils import Pencil, Solver

# Columns that are brought together at a time where a product needs all rows.
AT_A_TIME = 2


class SplitEngine(Protocol):
    """What factors sparse matrices over all processes."""

    def factor(self, shifted: Any, coefficients: tuple[complex, ...]) -> Solver:
        """Factor a `SparseSum`."""

    def is_definite(self, M: Any) -> bool | None:
        """Tell whether a Hermitian matrix is positive definite; None where each process is to find out for itself."""


class RowSplit(Protocol):
    """How the rows of tall arrays are split; of n of them each process has those of `own`, in order."""

    share: float  # of all rows that lie on this machine

    @property
    def engine(self) -> SplitEngine | None:
        """What factors sparse matrices over all processes; each does it for itself where there is none."""

    def every(self, x: Any) -> list[Any]:
        """Return what every process has here, in their order."""

    def total(self, x: Array) -> Array:
        """Return the sum of what every process has here."""

    def own(self, X: Array) -> Array:
        """Return the rows of this process."""

    def whole(self, X: Array) -> Array:
        """Return all rows, of which each process has its own."""

    def pencil(self, pencil: Pencil) -> Pencil:
        """Return a pencil of whole columns as one of own rows."""

    def check_same(self, name: str, *arrays: Array) -> None:
        """Refuse arrays that are not the same in every process."""


class _Here:
    """All rows in this process."""

    share, engine = 1.0, None

    def every(self, x: Any) -> list[Any]:
        return [x]

    def total(self, x: Array) -> Array:
        return x

    def own(self, X: Array) -> Array:
        return X

    def whole(self, X: Array) -> Array:
        return X

    def pencil(self, pencil: Pencil) -> Pencil:
        return pencil

    def check_same(self, name: str, *arrays: Array) -> None:
        pass


HERE: RowSplit = _Here()

_current: ContextVar[RowSplit] = ContextVar("rows", default=HERE)


def current() -> RowSplit:
    """Return how rows are split in the code that runs now."""
    return _current.get()


@contextmanager
def with_rows(rows: RowSplit) -> Iterator[None]:
    """Split rows in this way inside of the block, in this thread."""
    before = _current.set(rows)
    try:
        yield
    finally:
        _current.reset(before)


class SplitPencil:
    """A pencil that takes and gives own rows, by one of whole columns in every process.

    A few columns at a time are brought together; each process multiplies them and keeps its rows.
    """

    def __init__(self, pencil: Pencil, rows: RowSplit) -> None:
        self.n, self.real, self._pencil, self._rows = pencil.n, pencil.real, pencil, rows
        self._has_mass = getattr(pencil, "mass", pencil) is not None

    def A(self, X: Array, adjoint: bool = False) -> Array:
        """Return own rows of ``A X``, or of ``A^H X``."""
        return self._applied(self._pencil.A, X, adjoint)

    def E(self, X: Array, adjoint: bool = False) -> Array:
        """Return own rows of ``E X``, or of ``E^H X``."""
        return self._applied(self._pencil.E, X, adjoint) if self._has_mass else X

    def factor(self, p: complex) -> Solver:
        """Factor ``A + p E``."""
        return _SplitSolver(self._pencil.factor(p), self._rows)

    def _applied(self, multiply: Any, X: Array, adjoint: bool) -> Array:
        parts = [X[:, k : k + AT_A_TIME] for k in range(0, X.shape[1], AT_A_TIME)] or [X]
        return np.hstack([self._rows.own(multiply(self._rows.whole(part), adjoint)) for part in parts])


class _SplitSolver:
    def __init__(self, solver: Solver, rows: RowSplit) -> None:
        self._solver, self._rows = solver, rows

    def solve(self, X: Array) -> Array:
        return self._rows.own(self._solver.solve(self._rows.whole(X)))

    def solve_adjoint(self, X: Array) -> Array:
        return self._rows.own(self._solver.solve_adjoint(self._rows.whole(X)))
