"""Pencils of sparse matrices: shifted solves by SuperLU, definiteness, and the poles that an Arnoldi process finds."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla

from ..checks import EPS, Array
from .adi import Pencil, Solver

# Pivots of a matrix whose pattern is symmetric stay on the diagonal where they have this share of the largest entry.
NEAR_DIAGONAL = 0.1

SYMMETRIC = {"SymmetricMode": True}

# Columns that SuperLU takes together: faster than its default on a thread of its own, for rods and plates.
PANEL = 10

# What rounding adds to the pivots of a Cholesky factor, in eps times the sum of the entries of a row.
ROUNDINGS = 4

# Poles that Arnoldi's process is asked for.
POLES = 8


class SparsePencil:
    """Sparse A and E; the order in which they are eliminated is found once and serves all shifts.

    Parameters
    ----------
    A, E : (n, n) csc_array
        In double precision; E is None for the identity.
    """

    def __init__(self, A: Any, E: Any = None) -> None:
        self.n, self.matrix, self.mass = A.shape[0], A, E
        self.real = A.dtype.kind != "c" and (E is None or E.dtype.kind != "c")
        self._order: Array | None = None

    @cached_property
    def hermitian(self) -> bool:
        """Whether both matrices are Hermitian."""
        return all(_is_hermitian(M) for M in (self.matrix, self.mass) if M is not None)

    @cached_property
    def identity_or_mass(self) -> Any:
        """E as a matrix."""
        return sp.eye_array(self.n, format="csc") if self.mass is None else self.mass

    @cached_property
    def _symmetric_pattern(self) -> bool:
        pattern = abs(self.matrix) + abs(self.identity_or_mass)
        return bool(self.hermitian or (pattern != 0).nnz == ((pattern != 0) + (pattern.T != 0)).nnz)

    def A(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``A X``, or ``A^H X``."""
        return np.asarray((self.matrix.conj().T if adjoint else self.matrix) @ X)

    def E(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``E X``, or ``E^H X``."""
        return X if self.mass is None else np.asarray((self.mass.conj().T if adjoint else self.mass) @ X)

    def factor(self, p: complex) -> Solver:
        """Factor ``A + p E``."""
        return self._factored(self.matrix + p * self.identity_or_mass if p else self.matrix)

    def mass_solver(self) -> Solver | None:
        """Factor E, if it is not the identity."""
        return None if self.mass is None else self._factored(self.mass)

    def _factored(self, M: Any) -> Solver:
        """Factor a matrix with the pattern of the pencil, rows and columns in the order that gives little fill."""
        threshold = 0.0 if self.hermitian else NEAR_DIAGONAL
        if not self._symmetric_pattern:
            return SuperLU(M)
        if self._order is None:
            first = SuperLU(M, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=threshold, options=SYMMETRIC)
            self._order = np.argsort(first.factors.perm_c)
            return first
        M = M[self._order][:, self._order]
        wide = {"relax": PANEL, "panel_size": PANEL, "options": SYMMETRIC}
        return SuperLU(M, self._order, permc_spec="NATURAL", diag_pivot_thresh=threshold, **wide)


class SuperLU:
    """LU factors of a sparse matrix, its rows and columns permuted alike if an order is given."""

    def __init__(self, M: Any, order: Array | None = None, **options: Any) -> None:
        try:
            self.factors = spla.splu(M.tocsc(), **options)
        except RuntimeError as error:
            raise np.linalg.LinAlgError(f"A + p E must be regular; got: {error}") from error
        self._order, self._dtype = order, M.dtype

    def solve(self, X: Array) -> Array:
        """Return ``M^-1 X``."""
        return self._solve(X, "N")

    def solve_adjoint(self, X: Array) -> Array:
        """Return ``M^-H X``."""
        return self._solve(X, "H")

    def _solve(self, X: Array, mode: Any) -> Array:
        if np.iscomplexobj(X) and self._dtype.kind != "c":
            return np.asarray(self._solve(X.real, mode) + 1j * self._solve(X.imag, mode))
        factors: Any = self.factors
        if self._order is None:
            return np.asarray(factors.solve(X, mode))
        Y = np.empty(X.shape, np.result_type(X, self._dtype), order="F")
        Y[self._order] = factors.solve(X[self._order], mode)
        return Y


def _is_hermitian(M: Any) -> bool:
    """Tell whether a matrix is Hermitian, to the bit."""
    return bool((M != M.conj().T).nnz == 0)


def is_definite(M: Any) -> bool:
    """Tell whether a Hermitian matrix is positive definite by more than the rounding errors of its Cholesky factor."""
    diagonal = M.diagonal().real
    if not np.all(diagonal > 0):
        return False
    M = M - sp.diags_array(ROUNDINGS * EPS * np.asarray(abs(M).sum(axis=1)).ravel(), format="csc")
    try:
        lu = SuperLU(M, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=SYMMETRIC).factors
    except np.linalg.LinAlgError:
        return False
    return bool(np.array_equal(lu.perm_r, lu.perm_c) and np.all(lu.U.diagonal().real > 0))


def certainly_stable(pencil: SparsePencil, discrete: bool, offset: float) -> bool:
    """Tell whether Cholesky factors alone show that every pole keeps more than `offset` from the stability boundary.

    In continuous time of ``-(A + A^H) - 2 offset E`` and of E; in discrete time of ``(1 - offset) E - A`` and
    ``(1 - offset) E + A``, for Hermitian matrices only.
    """
    A, E = pencil.matrix, pencil.identity_or_mass
    if not _is_hermitian(E):
        return False
    if discrete:
        return pencil.hermitian and is_definite((1 - offset) * E - A) and is_definite((1 - offset) * E + A)
    return is_definite(-(A + A.conj().T) - 2 * offset * E) and (pencil.mass is None or is_definite(E))


def some_poles(pencil: Pencil, mass: Solver | None, discrete: bool) -> Array:
    """Return the poles that Arnoldi's process finds first: those nearest to 0, the largest ones in discrete time.

    Where others than those decide on stability, they do not show it.
    """
    solver = mass if discrete else pencil.factor(0.0)

    def step(x: Array) -> Array:
        X = x.reshape(-1, 1)
        Y = pencil.A(X) if discrete else pencil.E(X)
        return (Y if solver is None else solver.solve(Y)).ravel()

    n, dtype = pencil.n, np.float64 if pencil.real else np.complex128
    start = np.random.default_rng(0).standard_normal(n).astype(dtype)
    if n < 3 * POLES:
        values = np.linalg.eigvals(np.column_stack([step(x) for x in np.eye(n, dtype=dtype)]))
    else:
        operator = spla.LinearOperator((n, n), matvec=step, dtype=dtype)
        try:
            values = spla.eigs(operator, k=POLES, v0=start, return_eigenvectors=False)
        except spla.ArpackNoConvergence as error:
            values = error.eigenvalues
    if discrete:
        return np.asarray(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1 / values[values != 0])
