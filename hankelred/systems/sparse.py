"""Systems with sparse matrices, which are never made dense beyond a size: all they need are shifted solves."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from ..checks import Array, as_dense, check_array, double, is_sparse, readonly
from ..errors import InputError
from ..linalg.pencils import Pencil, Solver
from ..linalg.response import boundary_points
from .base import LinearSystem
from .state_space import StateSpace

# Up to so many states a dense matrix of a sparse system is formed where a function needs one: a Schur form takes
# minutes there.
DENSE_UP_TO = 5000

# Up to so many states it is known, and not estimated, whether poles are stable.
EXACT_UP_TO = 500

# Bytes that the dense B or C of a sparse system may have.
MOST_BYTES = 2**33


class ByShiftedSolves(LinearSystem):
    """A system known by its pencil: what large systems of every structure share."""

    is_sparse = True

    def __getstate__(self) -> dict[str, Any]:
        """Leave out factorisations, which cannot be copied, and what comes from them."""
        return {key: value for key, value in vars(self).items() if key not in ("pencil", "ports")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was copied or unpickled, its sparse matrices read-only again."""
        super().__setstate__(state)
        for x in state.values():
            if is_sparse(x):
                freeze(x)

    @property
    def pencil(self) -> Any:
        """The matrices of the differential equation, as what they do to columns: a `Pencil`."""
        raise NotImplementedError

    @property
    def ports(self) -> tuple[Array, Array, Array]:
        """B, C and D of the differential equation, in double precision."""
        raise NotImplementedError

    def mass_solver(self) -> Solver | None:
        """Factor E of the pencil; None for the identity."""
        raise NotImplementedError

    def certainly_stable(self, offset: float) -> bool:
        """Tell whether definite matrices alone show that every pole keeps more than `offset` from the boundary."""
        raise NotImplementedError

    @property
    def order(self) -> int:
        """Number of states of the differential equation."""
        return int(self.pencil.order)

    def some_poles(self) -> Array:
        """Return the poles that Arnoldi's process finds first."""
        from ..linalg.definite import some_poles

        return some_poles(self.pencil, self.mass_solver() if self.is_discrete else None, self.is_discrete)

    def outermost(self, offset: float) -> Array:
        """Return those of the poles found that are not well inside the stability region.

        Parameters
        ----------
        offset : float
            By how much they may not be inside.

        Returns
        -------
        (k,) ndarray
            None of them if the system is stable.
        """
        if self.certainly_stable(offset):
            return np.empty(0)
        if self.n <= EXACT_UP_TO and not self.dense().is_stable():
            return self.poles()
        try:
            poles = self.some_poles()
        except np.linalg.LinAlgError:  # A is singular
            return np.zeros(1)
        return poles[(np.abs(poles) - 1 if self.is_discrete else poles.real) >= -offset]

    def is_stable(self) -> bool:
        """Tell whether the system is stable: for certain where definite matrices show it, else an estimate.

        The estimate knows the poles nearest to zero (in discrete time the largest ones), which an Arnoldi process
        finds.
        """
        if self.n <= EXACT_UP_TO:
            return self.certainly_stable(0.0) or bool(self.dense().is_stable())
        return len(self.outermost(0.0)) == 0

    def poles(self) -> Array:
        """Return the poles, (n,) complex, by the dense matrices, up to their size."""
        return np.asarray(self.dense().poles())

    def _response(self, omega: Array) -> Array:
        pencil, (B, C, D) = self.pencil, self.ports
        values = np.broadcast_to(D, (len(omega), *D.shape)).astype(np.complex128)
        for k, s in enumerate(boundary_points(omega, self.is_discrete)):
            if np.isfinite(s):
                values[k] -= self._solved(pencil, s, B, C)
        return values

    def _solved(self, pencil: Pencil, s: complex, B: Array, C: Array) -> Array:
        """Return ``C (A - s E)^-1 B``, infinite at a pole."""
        real = s.imag == 0 and pencil.real
        try:
            solver = pencil.factor(-float(s.real) if real else -s)
        except np.linalg.LinAlgError:
            return np.full((len(C), B.shape[1]), -np.inf)
        B, C = (x if real else x.astype(np.complex128) for x in (B, C))
        if B.shape[1] <= len(C):
            return np.asarray(C @ solver.solve(B))
        return np.asarray(solver.solve_adjoint(C.conj().T).conj().T @ B)

    def first_order(self) -> SparseStateSpace:
        """Return the system with matrices, sparse ones."""
        raise NotImplementedError

    def check_dense_size(self) -> None:
        """Refuse what would need dense matrices of too many states."""
        if self.n > DENSE_UP_TO:
            raise InputError(
                f"This needs dense matrices, which are formed of up to {DENSE_UP_TO} states; got {self.n}. Reduce the "
                f"system first (balanced_truncation works on sparse matrices) and ask the reduced model."
            )


class SparseStateSpace(ByShiftedSolves, StateSpace):
    """A `StateSpace` with a sparse A, which ``StateSpace(A, ...)`` makes of any matrix of scipy.sparse.

    Attributes
    ----------
    A, E : csc_array
        Read-only; E is None where it is the identity.
    B, C, D : ndarray
        Read-only, whether they were sparse or not: inputs and outputs are few.
    """

    A: Any
    E: Any = None
    _parts: tuple[LinearSystem, ...] = ()

    @staticmethod
    def _square(A: Any, name: str) -> Any:
        return check_sparse(A, name)

    @staticmethod
    def _thin(x: Any, name: str, hint: str) -> Array:
        if is_sparse(x) and math.prod(x.shape) * x.dtype.itemsize > MOST_BYTES:
            raise InputError(
                f"{name} must have few {'columns' if name == 'B' else 'rows'}, for it is made dense; got shape "
                f"{x.shape}. Choose the inputs and outputs that matter."
            )
        return check_array(as_dense(x), name, 2, hint)

    def _build(self, dt: Any, names: dict[str, Any], **arrays: Any) -> None:
        dtype = np.result_type(*(x.dtype for x in arrays.values()))
        arrays = {key: x.astype(dtype, copy=False) for key, x in arrays.items()}
        sparse: dict[str, Any] = {key: arrays.pop(key) for key in ("A", "E") if key in arrays}
        for x in sparse.values():
            freeze(x)
        self._set(dt, names, **arrays)
        vars(self).update(sparse)
        if self.E is not None:
            _ = self.pencil  # what cannot be analysed is not made

    @cached_property
    def pencil(self) -> Any:
        """The matrices of the differential equation, as what they do to columns."""
        from ..linalg.constrained import constrained_pencil
        from ..linalg.sparse import SparsePencil

        A: Any = double(self.A)
        E: Any = None if self.E is None else double(self.E)
        if E is not None and np.diff(E.indptr).min(initial=1) == 0:
            return constrained_pencil(A, E)
        return SparsePencil(A, E)

    @cached_property
    def ports(self) -> tuple[Array, Array, Array]:
        """B, C and D of the differential equation, in double precision."""
        ports = double(self.B), double(self.C), double(self.D)
        return ports if self.pencil.n == self.n else self.pencil.reduced_ports(*ports)

    def mass_solver(self) -> Solver | None:
        """Factor E of the pencil; None for the identity."""
        return self.pencil.mass_solver()

    def first_order(self) -> SparseStateSpace:
        """Return the system itself."""
        return self

    def certainly_stable(self, offset: float) -> bool:
        """Tell whether definite matrices alone show that every pole keeps more than `offset` from the boundary."""
        from ..linalg.definite import certainly_stable

        if self._parts:
            return all(part.is_stable() for part in self._parts)
        if self.pencil.n < self.n:
            return False
        return certainly_stable(self.pencil, self.is_discrete, offset)

    def dense(self) -> StateSpace:
        """Return the same system as dense matrices in double precision, without E; of up to 5000 states."""
        self.check_dense_size()
        if self.pencil.order < self.pencil.n:
            inputs, outputs, D = self.ports
            A, B, C = self.pencil.standard_form(inputs, outputs)
            return StateSpace(A, B, C, D, self.dt, **self.outer_names)
        E = None if self.E is None else self.E.toarray()
        names = {**self.outer_names, "states": self.states}
        return StateSpace(self.A.toarray(), self.B, self.C, self.D, self.dt, E, **names).dense()


def check_sparse(x: Any, name: str) -> Any:
    """Return a square sparse matrix in CSC form, with finite entries of a dtype of this library."""
    import scipy.sparse as sp

    matrix = sp.csc_array(x if is_sparse(x) else check_array(x, name, 2), copy=True)
    if matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"{name} must be square; got shape {matrix.shape}.")
    matrix.sum_duplicates()
    matrix.data = check_array(matrix.data, name, 1)
    return matrix


def freeze(matrix: Any) -> None:
    """Switch writing off for the arrays of a sparse matrix."""
    for part in (matrix.data, matrix.indices, matrix.indptr):
        readonly(part)


def difference(G: Any, H: Any, dt: Any) -> SparseStateSpace:
    """Return the error system of two systems of which one is sparse, as sparse blocks."""
    import scipy.sparse as sp

    first: list[Any] = [x.first_order() if x.is_sparse else x.dense() for x in (G, H)]
    A, B, C, D = ([getattr(x, key) for x in first] for key in "ABCD")
    masses = [sp.eye_array(x.n) if x.E is None else x.E for x in first]
    E = {} if all(x.E is None for x in first) else {"E": sp.block_diag(masses, format="csc")}
    system = SparseStateSpace.trusted(
        sp.block_diag(A, format="csc"), np.vstack(B), np.hstack([C[0], -C[1]]), D[0] - D[1], dt, None, **E
    )
    B, C, _ = system.ports
    D = [x.ports[2] if x.is_sparse else x.D for x in first]
    vars(system).update(_parts=(G, H), ports=(B, C, D[0] - D[1]))  # what both have in common cancels to the bit
    return system
