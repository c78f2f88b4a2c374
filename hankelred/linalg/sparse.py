"""Pencils of sparse matrices: shifted solves by SuperLU, definiteness, and the poles that an Arnoldi process finds."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla

from ..checks import EPS, Array
from ..errors import InputError
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
        self._aligned: tuple[Any, Array, Array] | None = None

    @cached_property
    def _threshold(self) -> float:
        """Share of a column's largest entry with which a pivot stays on the diagonal."""
        return 0.0 if self.hermitian else NEAR_DIAGONAL

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
        if not self._symmetric_pattern:
            return SuperLU(self.matrix + p * self.identity_or_mass if p else self.matrix)
        if self._aligned is None:
            order = self._elimination_order()
            self._aligned = _aligned(*(M[order][:, order] for M in (self.matrix, self.identity_or_mass)))
        pattern, A, E = self._aligned
        return self._in_order(sp.csc_array((A + p * E, pattern.indices, pattern.indptr), shape=(self.n, self.n)))

    def mass_solver(self) -> Solver | None:
        """Factor E, if it is not the identity."""
        return None if self.mass is None else self.factored(self.mass)

    def factored(self, M: Any) -> Solver:
        """Factor a matrix with the pattern of the pencil, rows and columns in the order that gives little fill."""
        if not self._symmetric_pattern:
            return SuperLU(M)
        order = self._elimination_order()
        return self._in_order(M[order][:, order])

    def _elimination_order(self) -> Array:
        """Return the order of elimination, found once: results must not depend on what was factored before."""
        if self._order is None:
            pattern = abs(self.matrix) + abs(self.identity_or_mass)
            dominant = pattern + sp.diags_array(np.asarray(pattern.sum(axis=1)).ravel(), format="csc")
            found = SuperLU(dominant, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=SYMMETRIC)
            self._order = np.argsort(found.factors.perm_c)
        return self._order

    def _in_order(self, M: Any) -> Solver:
        """Factor a matrix whose rows and columns are in their order already."""
        wide = {"relax": PANEL, "panel_size": PANEL, "options": SYMMETRIC}
        return SuperLU(M, self._order, permc_spec="NATURAL", diag_pivot_thresh=self._threshold, **wide)


def _aligned(A: Any, E: Any) -> tuple[Any, Array, Array]:
    """Return the pattern that holds both matrices, and their entries in it: sums need no more look at places."""
    pattern = sp.csc_array(abs(A) + abs(E))
    pattern.sort_indices()
    n = A.shape[0]

    def places(M: Any) -> Array:
        columns = np.repeat(np.arange(n, dtype=np.int64), np.diff(M.indptr))
        return np.asarray(columns * n + M.indices)

    entries = []
    for M in (A, E):
        entries.append(np.zeros(pattern.nnz, M.dtype))
        entries[-1][np.searchsorted(places(pattern), places(M))] = M.data
    return pattern, entries[0], entries[1]


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


class IndexOnePencil:
    """The differential equation inside ``E = diag(E11, 0)``, its algebraic variables eliminated by solves.

    ``E11 x1' = (A11 - A12 A22^-1 A21) x1 + (B1 - A12 A22^-1 B2) u``: no complement is formed. A shifted solve is one
    with the whole of ``A + p E``, of which the first part is the answer.

    Parameters
    ----------
    A, E : (n, n) csc_array
        In double precision; E has rows and columns of zeros.
    """

    def __init__(self, A: Any, E: Any) -> None:
        by_rows = E.tocsr()
        rows = np.argsort(np.diff(by_rows.indptr) == 0, kind="stable")
        columns = np.argsort(np.diff(E.indptr) == 0, kind="stable")
        self.n = n = int(np.count_nonzero(np.diff(E.indptr)))
        if n != np.count_nonzero(np.diff(by_rows.indptr)):
            raise _not_index_one(f"{len(rows) - n} columns of zeros in E and another number of such rows")
        self.rows, self.columns = rows, columns
        A, E = A[rows][:, columns], E[rows][:, columns]
        self.real = A.dtype.kind != "c" and E.dtype.kind != "c"
        self._whole, self._E = SparsePencil(A, E), E[:n][:, :n]
        self._A11, self._A12, self._A21 = A[:n][:, :n], A[:n][:, n:], A[n:][:, :n]
        try:
            self._algebraic = SuperLU(A[n:][:, n:])
        except np.linalg.LinAlgError as error:
            raise _not_index_one("algebraic equations that are singular") from error

    def reduced_ports(self, B: Array, C: Array, D: Array) -> tuple[Array, Array, Array]:
        """Return B, C and D of the differential equation."""
        B, C, n = B[self.rows], C[:, self.columns], self.n
        inputs = self._algebraic.solve(B[n:])
        outputs = self._algebraic.solve_adjoint(np.asfortranarray(C[:, n:].conj().T)).conj().T
        return B[:n] - self._A12 @ inputs, C[:, :n] - outputs @ self._A21, D - C[:, n:] @ inputs

    def A(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``(A11 - A12 A22^-1 A21) X``, or that of the adjoint."""
        if adjoint:
            inner = self._algebraic.solve_adjoint(self._A12.conj().T @ X)
            return np.asarray(self._A11.conj().T @ X - self._A21.conj().T @ inner)
        return np.asarray(self._A11 @ X - self._A12 @ self._algebraic.solve(self._A21 @ X))

    def E(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``E11 X``, or that of the adjoint."""
        return np.asarray((self._E.conj().T if adjoint else self._E) @ X)

    def factor(self, p: complex) -> Solver:
        """Factor ``A + p E``, as a whole."""
        return _FirstPart(self._whole.factor(p), self._whole.n)

    def mass_solver(self) -> Solver:
        """Factor E11."""
        try:
            return SuperLU(self._E)
        except np.linalg.LinAlgError as error:
            raise _not_index_one("an E that is singular beyond its rows and columns of zeros") from error


class _FirstPart:
    """Solves with zeros below the right side, of which the rows above are wanted."""

    def __init__(self, solver: Solver, whole: int) -> None:
        self._solver, self._whole = solver, whole

    def solve(self, X: Array) -> Array:
        return self._solver.solve(self._padded(X))[: len(X)]

    def solve_adjoint(self, X: Array) -> Array:
        return self._solver.solve_adjoint(self._padded(X))[: len(X)]

    def _padded(self, X: Array) -> Array:
        padded = np.zeros((self._whole, X.shape[1]), X.dtype, order="F")
        padded[: len(X)] = X
        return padded


def _not_index_one(got: str) -> InputError:
    return InputError(
        f"A sparse pencil (A, E) must have index 1 at most, with rows and columns of zeros in E for its algebraic "
        f"equations and variables; got {got}. Differentiate the constraints first, or pass dense matrices, of which "
        f"any singular E of index 1 is taken apart."
    )


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
        self.n = 2 * M.shape[0]
        self.real = all(x.dtype.kind != "c" for x in (M, E, K))
        self._stiff = SparsePencil(K, abs(M) + abs(E))  # for its pattern and its order of elimination

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
        inertia = p * self._M - self._damping
        return _Companion(self._stiff.factored(p * inertia + self._K), inertia, p)

    def mass_solver(self) -> Solver:
        """Factor M."""
        return _Lower(SuperLU(self._M))


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


def all_definite(*matrices: Any) -> bool:
    """Tell whether all of these are Hermitian and positive definite, as `is_definite` does."""
    return all(_is_hermitian(M) for M in matrices) and all(map(is_definite, matrices))


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
