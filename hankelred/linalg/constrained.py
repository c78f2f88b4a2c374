"""Pencils of descriptor systems, their algebraic variables eliminated by solves."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array
from ..errors import InputError
from .engines import SparseSum
from .pencils import Solver

# A solve whose step of refinement changes it by more than this share is one with a singular matrix.
SINGULAR = 1e-3


class Constrained(NamedTuple):
    """``A = [[A11, A12], [A21, A22]]`` and ``E = diag(E11, 0)``, by the rows and columns of zeros in E.

    `rows` and `columns` say in which order those of the system were taken; `order` is that of E11.
    """

    A: Any
    E11: Any
    rows: Array
    columns: Array
    order: int

    def block(self, i: int, j: int) -> Any:
        """Return Aij, i and j from 1 to 2."""
        parts = slice(None, self.order), slice(self.order, None)
        return self.A[parts[i - 1]][:, parts[j - 1]]

    def ports(self, B: Array, C: Array) -> tuple[Array, Array, Array, Array]:
        """Return B1, B2, C1 and C2."""
        B, C, n = B[self.rows], C[:, self.columns], self.order
        return B[:n], B[n:], C[:, :n], C[:, n:]


def constrained_pencil(A: Any, E: Any) -> IndexOnePencil | IndexTwoPencil:
    """Return the differential equation inside a pencil with rows and columns of zeros in E.

    Parameters
    ----------
    A, E : (n, n) csc_array
        In double precision.

    Raises
    ------
    InputError
        If the index is above 1, or above 2 where the algebraic variables do not enter their own equations.
    """
    full_rows, full_columns = np.diff(E.tocsr().indptr) > 0, np.diff(E.indptr) > 0
    order = int(np.count_nonzero(full_columns))
    if order != np.count_nonzero(full_rows):
        raise _not_index_one(f"{len(full_rows) - order} columns of zeros in E and another number of such rows")
    rows, columns = (np.argsort(~full, kind="stable") for full in (full_rows, full_columns))
    parts = Constrained(A[rows][:, columns], E[rows][:, columns][:order][:, :order], rows, columns, order)
    return IndexOnePencil(parts) if parts.block(2, 2).count_nonzero() else IndexTwoPencil(parts)


class IndexOnePencil:
    """The differential equation inside ``E = diag(E11, 0)``, its algebraic variables eliminated by solves.

    ``E11 x1' = (A11 - A12 A22^-1 A21) x1 + (B1 - A12 A22^-1 B2) u``: no complement is formed. A shifted solve is one
    with the whole of ``A + p E``, of which the first part is the answer.
    """

    def __init__(self, parts: Constrained) -> None:
        self.n = self.order = parts.order
        A, self._parts, self._E = parts.A, parts, parts.E11
        self.real = A.dtype.kind != "c" and self._E.dtype.kind != "c"
        self.whole = SparseSum(A, _padded(self._E, A.shape[0]))
        self._A11, self._A12, self._A21 = parts.block(1, 1), parts.block(1, 2), parts.block(2, 1)
        try:
            self._algebraic = SparseSum(parts.block(2, 2)).factor(1.0)
        except np.linalg.LinAlgError as error:
            raise _not_index_one("algebraic equations that are singular") from error

    def reduced_ports(self, B: Array, C: Array, D: Array) -> tuple[Array, Array, Array]:
        """Return B, C and D of the differential equation."""
        B1, B2, C1, C2 = self._parts.ports(B, C)
        inputs = self._algebraic.solve(B2)
        outputs = self._algebraic.solve_adjoint(C2.conj().T).conj().T
        return B1 - self._A12 @ inputs, C1 - outputs @ self._A21, D - C2 @ inputs

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
        return _FirstPart(self.whole.factor(1.0, p), self.n, self._parts.A.shape[0])

    def mass_solver(self) -> Solver:
        """Factor E11."""
        try:
            return SparseSum(self._E).factor(1.0)
        except np.linalg.LinAlgError as error:
            raise _not_index_one("an E that is singular beyond its rows and columns of zeros") from error


class IndexTwoPencil:
    """The differential equation inside ``E11 x1' = A11 x1 + A12 x2 + B1 u, 0 = A21 x1 + B2 u``, of index 2 [1]_.

    As of Stokes: the pressures x2 hold the velocities x1 on the constraint. With ``F = A21 E11^-1 A12`` and the
    projections ``L = I - A12 F^-1 A21 E11^-1`` and ``R = I - E11^-1 A12 F^-1 A21`` it is ``L E11 R x1' = L A11 R x1``
    on the kernel of A21; none of them is formed, for a solve with ``[[E11, A12], [A21, 0]]`` projects, and one with
    ``[[A11 + p E11, A12], [A21, 0]]`` is a shifted solve. Columns have the length of x1, and the order is less by the
    number of constraints.

    References
    ----------
    .. [1] M. Heinkenschloss, D. C. Sorensen, K. Sun, "Balanced truncation model reduction for a class of descriptor
       systems with application to the Oseen equations", SIAM J. Sci. Comput. 30, 2008, pp. 1038-1063.
    """

    def __init__(self, parts: Constrained) -> None:
        self.n, size = parts.order, parts.A.shape[0]
        self.order = 2 * self.n - size
        self.real = parts.A.dtype.kind != "c" and parts.E11.dtype.kind != "c"
        self._parts, self._E, self._A11 = parts, parts.E11, parts.block(1, 1)
        self._A12, self._A21 = parts.block(1, 2), parts.block(2, 1)
        self.whole = SparseSum(parts.A, _padded(self._E, size))
        constraint = SparseSum(parts.A - _padded(self._A11, size), _padded(self._E, size))
        if self.order < 0:
            raise _not_index_two(f"{size - self.n} constraints on {self.n} variables")
        try:
            self._constraint = constraint.factor(1.0, 1.0)
        except np.linalg.LinAlgError as error:
            raise _not_index_two("constraints that depend on each other") from error
        self._check_constraint(sum(constraint.matrices))

    def _check_constraint(self, M: Any) -> None:
        """Refuse a matrix that is singular but for rounding, which an LU factor does not show."""
        right = np.random.default_rng(0).standard_normal((M.shape[0], 1))
        once = self._constraint.solve(right)
        again = self._constraint.solve(right - M @ once)
        if not np.linalg.norm(again) <= SINGULAR * np.linalg.norm(once):
            raise _not_index_two("constraints that depend on each other, or on E11")

    def _on_constraint(self, first: Array, second: Array | None = None, adjoint: bool = False) -> tuple[Array, Array]:
        """Solve ``E11 x + A12 z = first, A21 x = second``, or what the adjoint is."""
        whole = np.zeros((self._parts.A.shape[0], first.shape[1]), first.dtype)
        whole[: self.n], whole[self.n :] = first, 0 if second is None else second
        solution = (self._constraint.solve_adjoint if adjoint else self._constraint.solve)(whole)
        return solution[: self.n], solution[self.n :]

    def _left(self, X: Array, adjoint: bool) -> Array:
        """Return ``L X``; of the adjoint pencil the projection in its place is ``R^H``."""
        pressures = self._on_constraint(X, None, adjoint)[1]
        return np.asarray(X - (self._A21.conj().T if adjoint else self._A12) @ pressures)

    def reduced_ports(self, B: Array, C: Array, D: Array) -> tuple[Array, Array, Array]:
        """Return B, C and D of the differential equation.

        Raises
        ------
        InputError
            If outputs contain derivatives of inputs.
        """
        B1, B2, C1, C2 = self._parts.ports(B, C)
        held, impulse = self._on_constraint(np.zeros_like(B1), -B2)  # x1 = held u + ..., x2 = -impulse u' + ...
        if (abs(C2 @ impulse) > len(B) * EPS * (abs(C2) @ abs(impulse))).any():
            raise InputError(
                "A system of index 2 must have outputs without derivatives of inputs; got an input in the constraints "
                "that an output of the algebraic variables sees differentiated. Take one of the two out, or "
                "differentiate the input."
            )
        B = B1 + self._A11 @ held
        seen = self._on_constraint(np.zeros_like(C1.conj().T), C2.conj().T, adjoint=True)[0]
        D = D + C1 @ held - C2 @ self._on_constraint(B)[1]
        C = C1 - (self._A11.conj().T @ seen).conj().T
        return self._left(B, False), self._left(C.conj().T, True).conj().T, D

    def A(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``L A11 R X``, or that of the adjoint."""
        A, E = (x.conj().T if adjoint else x for x in (self._A11, self._E))
        return self._left(A @ self._on_constraint(E @ X, None, adjoint)[0], adjoint)

    def E(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``L E11 X``, or that of the adjoint."""
        return self._left((self._E.conj().T if adjoint else self._E) @ X, adjoint)

    def factor(self, p: complex) -> Solver:
        """Factor ``A + p E``, as a whole."""
        return _FirstPart(self.whole.factor(1.0, p), self.n, self._parts.A.shape[0])

    def mass_solver(self) -> Solver:
        """Return what solves with ``L E11 R`` on the constraint."""
        return _FirstPart(self._constraint, self.n, self._parts.A.shape[0])

    def standard_form(self, B: Array, C: Array) -> tuple[Array, Array, Array]:
        """Return A, B and C without E, in bases of both kernels, from the ports of the differential equation."""
        right, left = (sla.null_space(x.toarray()) for x in (self._A21, self._A12.conj().T))
        left = left.conj().T
        small = np.linalg.solve(left @ (self._E @ right), np.hstack([left @ (self._A11 @ right), left @ B]))
        return small[:, : self.order], small[:, self.order :], C @ right


class _FirstPart:
    """Solves with zeros below the right side, of which the rows above are wanted."""

    def __init__(self, solver: Solver, first: int, size: int) -> None:
        self._solver, self._first, self._size = solver, first, size

    def solve(self, X: Array) -> Array:
        return self._solver.solve(self._below(X))[: self._first]

    def solve_adjoint(self, X: Array) -> Array:
        return self._solver.solve_adjoint(self._below(X))[: self._first]

    def _below(self, X: Array) -> Array:
        whole = np.zeros((self._size, X.shape[1]), X.dtype, order="F")
        whole[: self._first] = X
        return whole


def _padded(M: Any, size: int) -> Any:
    """Return a matrix with zeros on the right and below."""
    M = M.copy()
    M.resize((size, size))
    return M


def _not_index_one(got: str) -> InputError:
    return InputError(
        f"A sparse pencil (A, E) must have index 1 at most, with rows and columns of zeros in E for its algebraic "
        f"equations and variables, or index 2 with A22 = 0 for them; got {got}. Differentiate the constraints first, "
        f"or pass dense matrices, of which any singular E of index 1 is taken apart."
    )


def _not_index_two(got: str) -> InputError:
    return InputError(
        f"A sparse pencil with A22 = 0 for its algebraic equations and variables must be of index 2, with A21 E11^-1 "
        f"A12 regular; got {got}, which is a singular pencil or one of index 3 and more. Take constraints that repeat "
        f"others out (of a pressure that is known but for a constant, fix one value), or differentiate them."
    )
