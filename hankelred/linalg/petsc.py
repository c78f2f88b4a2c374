"""Sparse factorisations by PETSc over the ranks of MPI, factors of low rank split by rows over them.

Every rank runs the same program on the same systems. Inside of `over_ranks` each holds its rows of the shifted matrix,
its part of the factorisation and its rows of the factors S and R. petsc4py and mpi4py are imported when a block begins.

A PETSc of real scalars factors a complex matrix as the real one of twice its order that has the block
``[[Re, -Im], [Im, Re]]`` for an entry, whose transpose is that of the adjoint. Of a complex symmetric matrix, as a real
symmetric pencil gives at a complex shift, the second row changes its sign, and the real matrix is symmetric too.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..checks import Array
from ..errors import InputError
from .engines import SparseSum, _Solver, aligned
from .pencils import Solver
from .ranks import RankError, Ranks
from .rows import with_rows

PREFIX = "hankelred_"

# Of any matrix, and of a symmetric one, whose L D L^T may be indefinite.
FACTORISATIONS = "lu", "cholesky"

# What MUMPS says of a matrix that is singular, by its pattern or by a pivot.
IS_SINGULAR = -6, -10

# What it says where room is too small that it had foretold, was given, or could get.
LACKS_ROOM = -8, -9, -11, -12, -13, -14, -15, -17, -18, -19, -20

# KSPConvergedReason where the preconditioner, or the factorisation, could not be made.
PC_FAILED = -11

# Where MUMPS counts the negative pivots.
NEGATIVE_PIVOTS = 12


@functools.cache
def copy_of_all(MPI: Any) -> Any:
    """Return a copy of the communicator of all ranks, one for all blocks: solvers and factors may outlive theirs."""
    return MPI.COMM_WORLD.Dup()


@contextmanager
def over_ranks(comm: Any = None, prefix: str = PREFIX) -> Iterator[Any]:
    """Spread the work on sparse systems over the ranks of MPI inside of the block.

    All ranks must enter the block and do the same there with the same systems, made inside. An error that one rank
    leaves the block with is its own there, and a `RankError` that repeats it on all others.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The ranks; by default all of them.
    prefix : str, default ``"hankelred_"``
        Of the options of PETSc for shifted matrices, as in ``-hankelred_ksp_type gmres``; MUMPS factors where they say
        nothing else. ``definite_`` follows in options of the test whether a matrix is definite.

    Yields
    ------
    mpi4py.MPI.Comm
        A copy of `comm`, whose `rank` says who prints.

    Raises
    ------
    ImportError
        If petsc4py or mpi4py is not there, or not for this NumPy.
    InputError
        If PETSc does not know an option, the options give no solver that converges, or systems differ between ranks.
    RankError
        If another rank has failed.

    Examples
    --------
    With ``mpirun -n 2 python plate.py``::

        from hankelred.linalg.petsc import over_ranks

        with over_ranks() as comm:
            reduction = hr.balanced_truncation(hr.StateSpace(A, B, C), rtol=1e-6)
    """
    engine = Petsc(comm, prefix)
    ranks = engine.ranks
    try:
        with with_rows(ranks):
            yield ranks.comm
        ranks.every(None)
        engine.release()
    except RankError:
        raise
    except BaseException as error:
        ranks.tell(error)
        raise


class Petsc:
    """What factors sums of sparse matrices over the ranks.

    A factorisation that no rank needs any more leaves its order of elimination to the next one of the same matrices.
    """

    def __init__(self, comm: Any, prefix: str) -> None:
        try:
            from mpi4py import MPI
            from petsc4py import PETSc
        except ImportError as error:
            raise ImportError(
                f"Solves over the ranks of MPI need petsc4py and mpi4py for NumPy {np.__version__}; got: {error}. Run: "
                f"pip install 'hankelred[petsc]', or see the guide for packages of Debian."
            ) from error
        comm = copy_of_all(MPI) if comm is None else comm.Dup()
        neighbours = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.PETSc, self.prefix, self.ranks = PETSc, prefix, Ranks(comm, self, neighbours.size / comm.size)
        neighbours.Free()
        self.is_complex = np.dtype(PETSc.ScalarType).kind == "c"
        if np.dtype(PETSc.RealType) != np.float64:
            raise InputError(f"PETSc must have double precision; got {np.dtype(PETSc.RealType)}. Take another build.")
        self._leases: list[_Lease] = []
        self._sums: weakref.WeakKeyDictionary[SparseSum, _OwnRows] = weakref.WeakKeyDictionary()

    def factor(self, shifted: SparseSum, coefficients: tuple[complex, ...]) -> Solver:
        """Factor a sum of sparse matrices with these coefficients."""
        rows = self._sums.get(shifted)
        if rows is None:
            rows = self._sums[shifted] = _OwnRows(self, shifted)
        data = rows.data(coefficients)
        lease = self._lease(rows, data)
        shifted.engines[lease.name] = shifted.engines.get(lease.name, 0) + 1
        solver = _FactoredByPetsc(self, lease, data.dtype)
        lease.user = weakref.ref(solver)
        return solver

    def is_definite(self, M: Any) -> bool | None:
        """Tell whether a Hermitian matrix is positive definite, by its pivots; None where this PETSc is complex."""
        if self.is_complex or M.dtype.kind == "c":
            return None
        (rows,) = self.own_rows(M)
        matrix = self.assembled((rows.indptr, rows.indices, rows.data), True)
        pc = self.PETSc.PC().create(self.ranks.comm)
        pc.setOperators(matrix)
        prefix = f"{self.prefix}definite_"
        pc.setOptionsPrefix(prefix)
        pc.setType(FACTORISATIONS[True])
        self.set_up(pc, pc, prefix)
        if not is_by_mumps(pc):
            raise InputError(f"MUMPS must test whether matrices are definite; got other options -{prefix}pc_... .")
        failed = verdict(pc, prefix) or pc.getFactorMatrix().getMumpsInfog(NEGATIVE_PIVOTS) > 0
        pc.destroy()
        matrix.destroy()
        return not failed

    def own_rows(self, *matrices: Any) -> list[Any]:
        """Return the own rows of sparse matrices, as columns of their transposes."""
        self.ranks.check_same("Sparse matrices", *(x for M in matrices for x in (M.data, M.indices, M.indptr)))
        return [sp.csc_array(M[self.ranks.places(M.shape[0])].T) for M in matrices]

    def assembled(self, csr: tuple[Array, Array, Array], symmetric: bool) -> Any:
        """Return a matrix of PETSc by its own rows."""
        own = len(csr[0]) - 1
        size = own, sum(self.ranks.every(own))
        matrix = self.PETSc.Mat().createAIJ((size, size), csr=self.indexed(csr), comm=self.ranks.comm)
        if symmetric:
            matrix.setOption(self.PETSc.Mat.Option.SYMMETRIC, True)
            matrix.setOption(self.PETSc.Mat.Option.SYMMETRY_ETERNAL, True)
        return matrix

    def indexed(self, csr: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """Return own rows with the integers of this PETSc."""
        indptr, indices = (x.astype(self.PETSc.IntType, copy=False) for x in csr[:2])
        return indptr, indices, csr[2]

    def set_up(self, solver: Any, pc: Any, prefix: str) -> None:
        """Let a KSP or PC read its options and factor, by MUMPS where they name no other package."""
        self.ranks.every(None)
        try:
            solver.setFromOptions()
            if pc.getType() in FACTORISATIONS and not self.PETSc.Options(prefix).hasName("pc_factor_mat_solver_type"):
                pc.setFactorSolverType("mumps")
            solver.setUp()
        except self.PETSc.Error as error:
            raise InputError(
                f"The options of PETSc with the prefix -{prefix} must give a solver that it knows and has; got: "
                f"{str(error).splitlines()[-1]}."
            ) from error

    def release(self) -> None:
        """Free the factorisations that nobody needs."""
        for lease in self._idle():
            self._end(lease)

    def _lease(self, rows: _OwnRows, data: Array) -> _Lease:
        """Return a factorisation of own rows; an idle one of the same matrices leaves its analysis to it."""
        embedded = data.dtype.kind == "c" and not self.is_complex
        csr = rows.embedded(data) if embedded else (rows.indptr, rows.indices, data)
        found = None
        for lease in self._idle():
            if found is None and lease.name and (lease.rows, lease.embedded) == (rows, embedded):
                found = lease
            else:
                self._end(lease)
        if found is None:
            found = _Lease(self, rows, embedded, self.assembled(csr, rows.symmetric))
            self._leases.append(found)
        else:
            found.matrix.setValuesCSR(*self.indexed(csr))
            found.matrix.assemble()
        found.factor(self)
        return found

    def _idle(self) -> list[_Lease]:
        """Return the factorisations that no rank needs."""
        answers = self.ranks.every([lease.is_idle() for lease in self._leases])
        return [lease for lease, *idle in zip(self._leases, *answers, strict=True) if all(idle)]

    def _end(self, lease: _Lease) -> None:
        self._leases.remove(lease)
        for x in (lease.ksp, lease.matrix, lease.right, lease.left):
            x.destroy()


class _OwnRows:
    """The rows of a rank of matrices that are added up, in a common pattern."""

    def __init__(self, engine: Petsc, shifted: SparseSum) -> None:
        own = engine.own_rows(*shifted.matrices)
        pattern, self._entries = aligned(own)
        self.indptr, self.indices = pattern.indptr, pattern.indices
        self._n, self.symmetric = pattern.shape[0], shifted.hermitian and all(M.dtype.kind != "c" for M in own)
        self.sign = -1 if self.symmetric else 1

    def data(self, coefficients: tuple[complex, ...]) -> Array:
        """Return the entries of the sum."""
        return np.asarray(sum(c * x for c, x in zip(coefficients, self._entries, strict=True) if c))

    def embedded(self, data: Array) -> tuple[Array, Array, Array]:
        """Return the real matrix with ``[[Re, -Im], [Im, Re]]`` for each entry, the second row times the sign."""
        blocks = np.empty((len(data), 2, 2))
        blocks[:, 0, 0], blocks[:, 0, 1] = data.real, -data.imag
        blocks[:, 1, 0], blocks[:, 1, 1] = self.sign * data.imag, self.sign * data.real
        shape = 2 * (len(self.indptr) - 1), 2 * self._n
        M = sp.bsr_array((blocks, self.indices, self.indptr), shape=shape).tocsr()
        return M.indptr, M.indices, M.data


class _Lease:
    """A solver of PETSc with its matrix, and who uses it."""

    def __init__(self, engine: Petsc, rows: _OwnRows, embedded: bool, matrix: Any) -> None:
        self.rows, self.embedded, self.matrix, self.name = rows, embedded, matrix, ""
        self.user: weakref.ref[Any] | None = None
        self.ksp = engine.PETSc.KSP().create(engine.ranks.comm)
        self.ksp.setOptionsPrefix(engine.prefix)
        self.ksp.setType("preonly")
        self.ksp.getPC().setType(FACTORISATIONS[rows.symmetric])
        self.right, self.left = matrix.createVecs()

    def is_idle(self) -> bool:
        """Whether nobody on this rank can solve with it."""
        return self.user is None or self.user() is None

    def factor(self, engine: Petsc) -> None:
        """Factor the matrix as it is now."""
        is_first, self.name = not self.name, ""
        self.ksp.setOperators(self.matrix)
        pc = self.ksp.getPC()
        engine.set_up(self.ksp, pc, engine.prefix)
        if is_first:
            check_options_used(engine.PETSc, engine.prefix)
        if is_by_mumps(pc):
            singular = verdict(pc, engine.prefix)
        else:  # what has failed is told by a solve
            self.solve(np.zeros(self.right.getLocalSize()), False)
            singular = self.ksp.getConvergedReason() == PC_FAILED
        if singular:
            raise np.linalg.LinAlgError("A + p E must be regular; got a pivot of zero.")
        kind = self.ksp.getType()
        self.name = f"PETSc's {(pc.getFactorSolverType() or pc.getType()) if kind == 'preonly' else kind}"

    def solve(self, x: Array, adjoint: bool) -> Array:
        """Solve for the own rows of one column."""
        symmetric = self.rows.symmetric
        turned = adjoint and (symmetric or not self.embedded)  # M^-H x = conj(M^-T conj(x))
        x = x.conj() if turned else x
        if self.embedded:
            x = (x.conj() if symmetric else x).view(np.float64)
        self.right.setArray(x)
        (self.ksp.solveTranspose if adjoint and not symmetric else self.ksp.solve)(self.right, self.left)
        y = self.left.getArray()
        y = y.view(np.complex128) if self.embedded else y
        return y.conj() if turned else y

    def check_converged(self) -> None:
        """Refuse a solver that has not converged."""
        reason = self.ksp.getConvergedReason()
        if reason < 0:
            raise InputError(
                f"The options of PETSc with the prefix -{self.ksp.getOptionsPrefix()} must give a solver that "
                f"converges; got KSPConvergedReason {reason} after {self.ksp.getIterationNumber()} iterations. Take a "
                f"better preconditioner, more iterations, or the default, a factorisation."
            )


class _FactoredByPetsc(_Solver):
    def __init__(self, engine: Petsc, lease: _Lease, dtype: Any) -> None:
        super().__init__(dtype)
        self._engine, self._lease = engine, lease

    def _columns(self, X: Array, adjoint: bool) -> Array:
        ranks, lease = self._engine.ranks, self._lease
        own = np.asarray(ranks.own(X), order="F")
        ranks.every(None)
        for x in own.T:
            y = lease.solve(x, adjoint)
            x[:] = y if x.dtype.kind == "c" else y.real
            lease.check_converged()
        return ranks.whole(own)


def is_by_mumps(pc: Any) -> bool:
    """Tell whether MUMPS has factored."""
    return pc.getType() in FACTORISATIONS and pc.getFactorSolverType() == "mumps"


def verdict(pc: Any, prefix: str) -> bool:
    """Tell whether a matrix was singular, by what MUMPS says; refuse other failures."""
    code, detail = (pc.getFactorMatrix().getMumpsInfog(k) for k in (1, 2))
    if code < 0 and code not in IS_SINGULAR:
        advice = f"Its manual tells what is wrong with the options -{prefix}mat_mumps_..., or take another solver."
        if code in LACKS_ROOM:
            room = f"-{prefix}mat_mumps_icntl_14 100"
            advice = f"Room is too small: pass {room}, per cent more than was foretold, or take more machines."
        raise InputError(f"MUMPS must be able to factor; got INFOG(1)={code}, INFOG(2)={detail}. {advice}")
    return code in IS_SINGULAR


def check_options_used(PETSc: Any, prefix: str) -> None:
    """Refuse options with the prefix that nothing has asked for: PETSc itself says nothing of a misspelt name."""
    used = ctypes.c_int(1)
    library = ctypes.CDLL(PETSc.__file__)
    names = [name for name in PETSc.Options().getAll() if name.startswith(prefix)]
    for name in names:
        if name.startswith(f"{prefix}definite_"):
            continue
        library.PetscOptionsUsed(None, name.encode(), ctypes.byref(used))
        if not used.value:
            raise InputError(
                f"PETSc must know the options with the prefix -{prefix}; got -{name}, which nothing reads."
            )
