"""Engines that factor sparse matrices of one pattern, behind one protocol.

SuperLU comes with SciPy and takes every matrix. Factors with few entries in a row, of rods and chains, come from loops
of this library. Three packages are used where they are installed, in this order: CHOLMOD (scikit-sparse) for definite
matrices, MKL's PARDISO (pypardiso) for real ones, UMFPACK (scikit-umfpack) for the rest. None of them is imported
before it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla

from ..checks import Array
from .compiled import Kernels
from .pencils import Solver
from .rows import current

kernels = Kernels("hankelred.linalg._sparse_kernels")

# Entries of both factors in a row, up to which they are thin: where there are more, SuperLU's blocks are faster.
THIN = 24

# Pivots of a matrix whose pattern is symmetric stay on the diagonal where they have this share of the largest entry.
NEAR_DIAGONAL = 0.1

SYMMETRIC = {"SymmetricMode": True}

# Entries of factors with free pivots, in those with pivots on the diagonal: 2.6 and 2.8 of flows of Stokes.
FREE_PIVOTS = 3

# Columns that SuperLU takes together: faster than its default on a thread of its own, for rods and plates.
PANEL = 10


class Engine(Protocol):
    """What factors matrices of a pattern that was analysed once."""

    name: str

    def factored(self, M: Any) -> Solver | None:
        """Factor a matrix of this pattern; None where it is not of a kind for this engine.

        Raises ``numpy.linalg.LinAlgError`` where it is singular.
        """


class SparseSum:
    """Sums ``c1 M1 + c2 M2 + ...`` of sparse matrices, analysed once and factored for any coefficients.

    Parameters
    ----------
    *matrices : (n, n) csc_array
        In double precision.

    Attributes
    ----------
    engines : dict of str to int
        How many factorisations each engine has done.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp
    >>> from hankelred.linalg.engines import SparseSum
    >>> A, E = sp.csc_array([[-2.0, 1.0], [1.0, -2.0]]), sp.csc_array(np.eye(2))
    >>> shifted = SparseSum(A, E)
    >>> print(shifted.factor(1.0, -2.0).solve(np.array([[3.0], [0.0]])).ravel())
    [-0.8 -0.2]
    >>> shifted.engines
    {'thin LU': 1}
    """

    def __init__(self, *matrices: Any) -> None:
        self.matrices, self.engines = matrices, dict[str, int]()

    @cached_property
    def hermitian(self) -> bool:
        """Whether all matrices are Hermitian."""
        return all(is_hermitian(M) for M in self.matrices)

    @cached_property
    def _aligned(self) -> tuple[Any, list[Array]]:
        """Their common pattern, and their entries in it."""
        return aligned(self.matrices)

    @property
    def pattern(self) -> Any:
        """Ones where any of the matrices has an entry."""
        return self._aligned[0]

    @cached_property
    def _engines(self) -> list[Engine]:
        return engines_for(self.pattern, self.hermitian)

    def factor(self, *coefficients: complex) -> Solver:
        """Factor the sum with these coefficients."""
        if (split := current().engine) is not None:
            return split.factor(self, coefficients)
        pattern, entries = self._aligned
        data: Any = sum(c * x for c, x in zip(coefficients, entries, strict=True) if c)
        M = sp.csc_array((data, pattern.indices, pattern.indptr), shape=pattern.shape)
        for engine in self._engines:
            solver = engine.factored(M)
            if solver is not None:
                self.engines[engine.name] = self.engines.get(engine.name, 0) + 1
                return solver
        raise np.linalg.LinAlgError("no engine has taken the matrix")  # the last takes all

    @property
    def is_thin(self) -> bool:
        """Whether the factors are thin, so that a factorisation costs as little as some solves."""
        return isinstance(self._engines[0], Thin)

    @property
    def fill(self) -> int:
        """Entries of both factors, as far as the order of elimination tells."""
        last: Any = self._engines[-1]
        return int(last.fill)


def engines_for(pattern: Any, hermitian: bool) -> list[Engine]:
    """Return the engines for a pattern, in the order in which they are asked; the last takes every matrix."""
    last = SuperLU(pattern, hermitian)
    if last.fill <= THIN * pattern.shape[0] and last.elimination is not None:
        return [Thin(last.elimination, hermitian), last]
    others: list[Any] = [Cholmod] * hermitian + [Pardiso] * bool(pattern.diagonal().all()) + [Umfpack]
    return [*(engine(pattern) for engine in others if engine.is_there()), last]


def is_hermitian(M: Any) -> bool:
    """Tell whether a matrix is Hermitian, to the bit."""
    return bool((M != M.conj().T).nnz == 0)


def aligned(matrices: Sequence[Any]) -> tuple[Any, list[Array]]:
    """Return the pattern that holds all matrices, and their entries in it: sums need no more look at places."""
    pattern: Any = sp.csc_array(functools.reduce(operator.add, (abs(M) for M in matrices)))
    pattern.sort_indices()
    all_places, entries = _positions(pattern), []
    for M in matrices:
        entries.append(np.zeros(pattern.nnz, M.dtype))
        entries[-1][np.searchsorted(all_places, _positions(M))] = M.data
    return sp.csc_array((np.ones(pattern.nnz), pattern.indices, pattern.indptr), shape=pattern.shape), entries


def _positions(M: Any) -> Array:
    """Return one number for the place of each entry, increasing where indices are sorted."""
    rows, columns = M.shape
    return np.asarray(np.repeat(np.arange(columns, dtype=np.int64), np.diff(M.indptr)) * rows + M.indices)


class _Solver:
    """Solves by columns in Fortran's order, of the dtype of the factors, in the order of the unknowns given."""

    def __init__(self, dtype: Any, order: Array | None = None) -> None:
        self._dtype, self._order = np.dtype(dtype), order

    def solve(self, X: Array) -> Array:
        """Return ``M^-1 X``."""
        return self._solved(X, False)

    def solve_adjoint(self, X: Array) -> Array:
        """Return ``M^-H X``."""
        return self._solved(X, True)

    def _solved(self, X: Array, adjoint: bool) -> Array:
        if np.iscomplexobj(X) and self._dtype.kind != "c":
            return self._solved(X.real, adjoint) + 1j * self._solved(X.imag, adjoint)
        out = np.empty(X.shape, self._dtype, order="F")
        if self._order is None:
            out[:] = X
            return self._columns(out, adjoint)
        out[:] = X[self._order]
        Y = np.empty_like(out)
        Y[self._order] = self._columns(out, adjoint)
        return Y

    def _columns(self, X: Array, adjoint: bool) -> Array:
        """Return the solutions for an array that may be overwritten."""
        raise NotImplementedError


class Elimination:
    """An order of elimination with little fill, for matrices with a symmetric pattern."""

    def __init__(self, pattern: Any) -> None:
        dominant = pattern + sp.diags_array(np.asarray(pattern.sum(axis=1)).ravel(), format="csc")
        rough: dict[str, Any] = {"drop_tol": 1.0, "fill_factor": 1.0, "diag_pivot_thresh": 0.0, "options": SYMMETRIC}
        found = spla.spilu(dominant, permc_spec="MMD_AT_PLUS_A", **rough)  # for its order alone
        self.order = np.argsort(found.perm_c)
        numbered = sp.csc_array((np.arange(1, pattern.nnz + 1), pattern.indices, pattern.indptr), shape=pattern.shape)
        self.pattern = numbered[self.order][:, self.order].tocsc()
        self.pattern.sort_indices()
        self._source = self.pattern.data - 1

    @cached_property
    def counts(self) -> tuple[Array, Array]:
        """Entries of the rows and of the columns of a triangle, without the diagonal."""
        counts = np.zeros((2, self.pattern.shape[0]), np.int64)
        kernels.count_entries(self.pattern.indptr, self.pattern.indices, *counts)
        return counts[0], counts[1]

    def taken(self, M: Any) -> Any:
        """Return a matrix of the pattern in this order."""
        return sp.csc_array((M.data[self._source], self.pattern.indices, self.pattern.indptr), shape=M.shape)


class SuperLU:
    """SuperLU, by SciPy; of symmetric patterns with the order of elimination found once, for all to come."""

    name = "SuperLU"

    def __init__(self, pattern: Any, hermitian: bool) -> None:
        self._pattern, self._threshold = pattern, 0.0 if hermitian else NEAR_DIAGONAL
        self._symmetric = bool(pattern.diagonal().all()) and (hermitian or is_hermitian(pattern))

    @cached_property
    def elimination(self) -> Elimination | None:
        """The order of elimination of a symmetric pattern with a full diagonal, where pivots may stay on it."""
        return Elimination(self._pattern) if self._symmetric else None

    @cached_property
    def fill(self) -> int:
        """Entries of both factors; about so many where pivots leave the diagonal."""
        found = self.elimination or Elimination(self._pattern + self._pattern.T)
        entries = 2 * (int(found.counts[0].sum()) + self._pattern.shape[0])
        return entries if self.elimination else FREE_PIVOTS * entries

    def factored(self, M: Any) -> Solver:
        """Factor any matrix."""
        if self.elimination is None:
            return FactoredBySuperLU(M)
        wide = {"relax": PANEL, "panel_size": PANEL, "options": SYMMETRIC}
        options = {"permc_spec": "NATURAL", "diag_pivot_thresh": self._threshold, **wide}
        return FactoredBySuperLU(self.elimination.taken(M), self.elimination.order, **options)


class FactoredBySuperLU(_Solver):
    """LU factors of a sparse matrix, its rows and columns permuted alike if an order is given."""

    def __init__(self, M: Any, order: Array | None = None, **options: Any) -> None:
        super().__init__(M.dtype, order)
        try:
            self.factors: Any = spla.splu(M.tocsc(), **options)
        except RuntimeError as error:
            raise np.linalg.LinAlgError(f"A + p E must be regular; got: {error}") from error

    def _columns(self, X: Array, adjoint: bool) -> Array:
        return np.asarray(self.factors.solve(X, "H" if adjoint else "N"))


class Thin:
    """LU factors with few entries in a row, as of rods and chains, by loops of this library; pivots stay in place."""

    name = "thin LU"

    def __init__(self, elimination: Elimination, hermitian: bool) -> None:
        self._elimination, self._most = elimination, np.inf if hermitian else 1 / NEAR_DIAGONAL
        inner, counts = elimination.pattern, elimination.counts
        self._row_starts, self._starts = (np.concatenate([[0], np.cumsum(x)]) for x in counts)
        self._rows, self._places = (np.empty(counts[0].sum(), np.int64) for _ in range(2))
        kernels.find_places(inner.indptr, inner.indices, self._starts, self._places, self._row_starts, self._rows)
        numbered = sp.csc_array((np.arange(1, inner.nnz + 1), inner.indices, inner.indptr), shape=inner.shape)
        self._mirror = numbered.T.tocsc().data - 1

    def factored(self, M: Any) -> Solver | None:
        """Factor a matrix whose pivots may stay on the diagonal."""
        M = self._elimination.taken(M)
        entries = tuple(np.empty(len(self._places), M.dtype) for _ in range(2))
        pivots = np.empty(M.shape[0], M.dtype)
        indices = self._starts, self._places
        done = kernels.factor_thin(
            M.indptr, M.indices, M.data, M.data[self._mirror], *indices, self._row_starts, self._rows,
            *entries, pivots, self._most,
        )  # fmt: skip
        return _FactoredThin(self._elimination.order, *indices, *entries, pivots) if done else None


class _FactoredThin(_Solver):
    def __init__(self, order: Array, *factors: Array) -> None:
        super().__init__(factors[-1].dtype, order)
        self._factors = factors

    def _columns(self, X: Array, adjoint: bool) -> Array:
        (kernels.solve_thin_adjoint if adjoint else kernels.solve_thin)(*self._factors, X.T)
        return X


class _Optional:
    """An engine of another package, which may be missing."""

    module = ""

    def __init__(self, pattern: Any) -> None:
        self._pattern = pattern

    @classmethod
    def is_there(cls) -> bool:
        """Tell whether the package can be imported."""
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module(cls.module)
            return True
        return False

    @cached_property
    def _package(self) -> Any:
        return importlib.import_module(self.module)


class Cholmod(_Optional):
    """Cholesky factors by CHOLMOD, of definite matrices of either sign."""

    name, module = "CHOLMOD", "sksparse.cholmod"

    @classmethod
    def is_there(cls) -> bool:
        """Tell whether the package can be imported and has the functions of its versions 0.4."""
        return super().is_there() and hasattr(importlib.import_module(cls.module), "analyze")

    @cached_property
    def _analysed(self) -> Any:
        return self._package.analyze(_as_matrix(self._pattern))

    def factored(self, M: Any) -> Solver | None:
        """Factor a Hermitian matrix if it is definite."""
        diagonal = M.diagonal()
        sign = np.sign(diagonal.real[:1].sum())
        if diagonal.imag.any() or not (sign * diagonal.real > 0).all():
            return None
        with contextlib.suppress(self._package.CholmodNotPositiveDefiniteError):
            return _FactoredByCholmod(self._analysed.cholesky(_as_matrix(sign * M)), sign, M.dtype)
        return None


class _FactoredByCholmod(_Solver):
    def __init__(self, factor: Any, sign: float, dtype: Any) -> None:
        super().__init__(dtype)
        self._factor, self._sign = factor, sign

    def _columns(self, X: Array, adjoint: bool) -> Array:
        return np.asarray(self._sign * self._factor(X))


class Pardiso(_Optional):
    """LU factors by MKL's PARDISO, of real matrices; analyses that are free again serve further factorisations."""

    name, module = "PARDISO", "pypardiso"

    # 1: own settings; 2: minimum degree; 10: pivots below 1e-13 are moved; 11, 13: scaled, large entries on diagonals
    SETTINGS = ((1, 1), (2, 0), (10, 13), (11, 1), (13, 1))

    def __init__(self, pattern: Any) -> None:
        super().__init__(pattern)
        self._free: list[Any] = []

    def factored(self, M: Any) -> Solver | None:
        """Factor a real matrix whose pivots are large enough."""
        if M.dtype.kind == "c":
            return None
        solver = _FactoredByPardiso(self, _as_matrix(M).T)  # the same arrays, of the transpose by rows
        return None if solver.pivots_moved else solver

    def taken(self, M: Any) -> Any:
        """Return a solver of the package with the factors of a matrix."""
        error = self._package.pardiso_wrapper.PyPardisoError
        try:
            if self._free:
                solver = self._free.pop()
                solver.set_iparm(12, 0)
                solver.set_phase(22)
                solver._call_pardiso(M, np.zeros((M.shape[0], 1)))
                solver.factorized_A = M
                return solver
            solver = self._package.PyPardisoSolver()
            for key, value in self.SETTINGS:
                solver.set_iparm(key, value)
            solver.factorize(M)
        except error as failure:
            raise np.linalg.LinAlgError(f"A + p E must be regular; got: {failure}") from failure
        return solver

    def given_back(self, solver: Any) -> None:
        """Take a solver back."""
        self._free.append(solver)


class _FactoredByPardiso(_Solver):
    def __init__(self, engine: Pardiso, transpose: Any) -> None:
        super().__init__(np.float64)
        self._engine, self._M = engine, transpose
        self._taken = engine.taken(transpose)
        self.pivots_moved = bool(self._taken.get_iparm(14))

    def _columns(self, X: Array, adjoint: bool) -> Array:
        return np.asarray(self._taken.solve(self._M if adjoint else self._M.T, X))

    def __del__(self) -> None:
        if hasattr(self, "_taken"):
            self._engine.given_back(self._taken)


class Umfpack(_Optional):
    """LU factors by UMFPACK."""

    name, module = "UMFPACK", "scikits.umfpack"

    def factored(self, M: Any) -> Solver:
        """Factor any matrix."""
        M, umfpack = _as_matrix(M.copy()), self._package  # it refuses arrays that are read-only
        context = umfpack.UmfpackContext("zi" if M.dtype.kind == "c" else "di")
        context.control[umfpack.UMFPACK_IRSTEP] = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", umfpack.UmfpackWarning)  # what it warns of is raised below
            context.numeric(M)
        if context.info[umfpack.UMFPACK_STATUS] == umfpack.UMFPACK_WARNING_singular_matrix:
            raise np.linalg.LinAlgError("A + p E must be regular; got a pivot of zero.")
        return _FactoredByUmfpack(umfpack, context, M)


class _FactoredByUmfpack(_Solver):
    def __init__(self, package: Any, context: Any, M: Any) -> None:
        super().__init__(M.dtype)
        self._context, self._M = context, M
        self._systems = package.UMFPACK_A, package.UMFPACK_At

    def _columns(self, X: Array, adjoint: bool) -> Array:
        system = self._systems[adjoint]
        return np.column_stack([self._context.solve(system, self._M, x) for x in X.T]).reshape(X.shape)


def _as_matrix(M: Any) -> Any:
    """Return the csc_matrix, with 32 bit indices, that other packages know."""
    indices, indptr = (x.astype(np.int32, copy=False) for x in (M.indices, M.indptr))
    return sp.csc_matrix((M.data, indices, indptr), shape=M.shape)
