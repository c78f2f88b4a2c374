"""Pencils of sparse matrices and of second-order models, by the factorisations of `engines`."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..checks import Array
from .engines import SparseSum
from .pencils import Solver


class SparsePencil:
    """Sparse A and E; they are analysed once for all shifts.

    Parameters
    ----------
    A, E : (n, n) csc_array
        In double precision; E is None for the identity.
    """

    def __init__(self, A: Any, E: Any = None) -> None:
        self.n = self.order = A.shape[0]
        self.matrix, self.mass = A, E
        self.real = A.dtype.kind != "c" and (E is None or E.dtype.kind != "c")

    @cached_property
    def identity_or_mass(self) -> Any:
        """E as a matrix."""
        return sp.eye_array(self.n, format="csc") if self.mass is None else self.mass

    @cached_property
    def whole(self) -> SparseSum:
        """What is factored for every shift."""
        return SparseSum(self.matrix, self.identity_or_mass)

    @property
    def hermitian(self) -> bool:
        """Whether both matrices are Hermitian."""
        return self.whole.hermitian

    def A(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``A X``, or ``A^H X``."""
        return np.asarray((self.matrix.conj().T if adjoint else self.matrix) @ X)

    def E(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``E X``, or ``E^H X``."""
        return X if self.mass is None else np.asarray((self.mass.conj().T if adjoint else self.mass) @ X)

    def factor(self, p: complex) -> Solver:
        """Factor ``A + p E``."""
        return self.whole.factor(1.0, p)

    def mass_solver(self) -> Solver | None:
        """Factor E, if it is not the identity."""
        return None if self.mass is None else SparseSum(self.mass).factor(1.0)


class SecondOrderPencil:
    """``M q'' + E q' + K q`` of first order, ``diag(I, M) x' = [[0, I], [-K, -E]] x`` with ``x = [q; q']``.

    A shifted solve is one with ``p^2 M - p E + K``, of the size of q; the companion is never formed.

    Parameters
    ----------
    M, E, K : (n, n) csc_array
        Mass, damping and stiffness, in double precision.
    """

    def __init__(self, M: Any, E: Any, K: Any) -> None:
        self._M, self._damping, self._K = M, E, K
        self.n = self.order = 2 * M.shape[0]
        self.real = all(x.dtype.kind != "c" for x in (M, E, K))
        self.whole = SparseSum(K, E, M)

    def A(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``[x2; -K x1 - E x2]``, or what the adjoint gives."""
        x1, x2 = np.split(X, 2)
        if adjoint:
            return np.vstack([-(self._K.conj().T @ x2), x1 - self._damping.conj().T @ x2])
        return np.vstack([x2, -(self._K @ x1) - self._damping @ x2])

    def E(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``[x1; M x2]``, or what the adjoint gives."""
        x1, x2 = np.split(X, 2)
        return np.vstack([x1, (self._M.conj().T if adjoint else self._M) @ x2])

    def factor(self, p: complex) -> Solver:
        """Factor ``p^2 M - p E + K``."""
        return _Companion(self.whole.factor(1.0, -p, p * p), p * self._M - self._damping, p)

    def mass_solver(self) -> Solver:
        """Factor M."""
        return _Lower(SparseSum(self._M).factor(1.0))


class _Companion:
    """Solves with ``[[p I, I], [-K, p M - E]]``, ``inertia = p M - E``."""

    def __init__(self, solver: Solver, inertia: Any, p: complex) -> None:
        self._solver, self._inertia, self._p = solver, inertia, p

    def solve(self, X: Array) -> Array:
        x1, x2 = np.split(X, 2)
        q = self._solver.solve(self._inertia @ x1 - x2)
        return np.vstack([q, x1 - self._p * q])

    def solve_adjoint(self, X: Array) -> Array:
        x1, x2 = np.split(X, 2)
        y = self._solver.solve_adjoint(np.conj(self._p) * x2 - x1)
        return np.vstack([x2 - self._inertia.conj().T @ y, y])


class _Lower:
    """Solves with ``diag(I, M)``."""

    def __init__(self, solver: Solver) -> None:
        self._solver = solver

    def solve(self, X: Array) -> Array:
        x1, x2 = np.split(X, 2)
        return np.vstack([x1, self._solver.solve(x2)])

    def solve_adjoint(self, X: Array) -> Array:
        x1, x2 = np.split(X, 2)
        return np.vstack([x1, self._solver.solve_adjoint(x2)])
