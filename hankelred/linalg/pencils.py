"""Pencils (A, E): what the low-rank recursion of `adi` knows of them, those of arrays, and that of discrete time."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import scipy.linalg as sla
from scipy.linalg import lapack

from ..checks import Array

# What stands for p + 1 = 0 in Cayley's pencil: A is then a rounding error beside E.
SMITH = 1e-30


class Solver(Protocol):
    """A factorisation of ``A + p E``."""

    def solve(self, X: Array) -> Array:
        """Return ``(A + p E)^-1 X`` for an (n, k) array."""

    def solve_adjoint(self, X: Array) -> Array:
        """Return ``(A + p E)^-H X`` for an (n, k) array."""


class Pencil(Protocol):
    """Matrices A and E of order n, known by what they do to columns; real p and real X give real arrays if `real`.

    `factor` raises ``numpy.linalg.LinAlgError`` where ``A + p E`` is singular.
    """

    n: int
    real: bool

    def A(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``A X``, or ``A^H X``."""

    def E(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``E X``, or ``E^H X``."""

    def factor(self, p: complex) -> Solver:
        """Factor ``A + p E``."""


class Dense:
    """A pencil of arrays: LU factors for every shift. What faster pencils are compared with."""

    def __init__(self, A: Array, E: Array | None = None) -> None:
        self.n, self._A, self._E = len(A), A, np.eye(len(A)) if E is None else E
        self.real = not (np.iscomplexobj(A) or np.iscomplexobj(self._E))

    def A(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``A X``, or ``A^H X``."""
        return np.asarray((self._A.conj().T if adjoint else self._A) @ X)

    def E(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``E X``, or ``E^H X``."""
        return np.asarray((self._E.conj().T if adjoint else self._E) @ X)

    def factor(self, p: complex) -> Solver:
        """Factor ``A + p E``."""
        return _LU(self._A + p * self._E)


class _LU:
    def __init__(self, M: Array) -> None:
        lu, pivots, singular = (lapack.zgetrf if M.dtype.kind == "c" else lapack.dgetrf)(M)
        self._factors = lu, pivots
        if singular:
            raise np.linalg.LinAlgError("A + p E must be regular; got a pivot of zero.")

    def solve(self, X: Array) -> Array:
        return np.asarray(sla.lu_solve(self._factors, X, check_finite=False))

    def solve_adjoint(self, X: Array) -> Array:
        return np.asarray(sla.lu_solve(self._factors, X, trans=2, check_finite=False))


class Cayley:
    """The pencil ``(A - E, A + E)``, whose Gramians are those of ``A P A^H - E P E^H + B B^H = 0``.

    ``(A - E) P (A + E)^H + (A + E) P (A - E)^H`` is twice ``A P A^H - E P E^H``, so B and C come in times `GAIN`.
    """

    GAIN = np.sqrt(2.0)

    def __init__(self, pencil: Pencil) -> None:
        self.n, self.real, self._pencil = pencil.n, pencil.real, pencil

    def A(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``(A - E) X``, or that of the adjoint."""
        return self._pencil.A(X, adjoint) - self._pencil.E(X, adjoint)

    def E(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``(A + E) X``, or that of the adjoint."""
        return self._pencil.A(X, adjoint) + self._pencil.E(X, adjoint)

    def factor(self, p: complex) -> Solver:
        """Factor ``A - E + p (A + E) = (p + 1) (A + (p - 1) / (p + 1) E)``; p = -1 is a step of Smith's iteration."""
        scale = p + 1 or SMITH
        return _Scaled(self._pencil.factor((p - 1) / scale), scale)


class _Scaled:
    def __init__(self, solver: Solver, scale: complex) -> None:
        self._solver, self._scale = solver, scale

    def solve(self, X: Array) -> Array:
        return self._solver.solve(X) / self._scale

    def solve_adjoint(self, X: Array) -> Array:
        return self._solver.solve_adjoint(X) / np.conj(self._scale)
