"""Stability of sparse pencils: by definite matrices for certain, by the poles that an Arnoldi process finds else."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla

from ..checks import EPS, Array
from .engines import SYMMETRIC, FactoredBySuperLU, is_hermitian
from .pencils import Solver
from .rows import current
from .sparse import SparsePencil

# What rounding adds to the pivots of a Cholesky factor, in eps times the sum of the entries of a row.
ROUNDINGS = 4

# Poles that Arnoldi's process is asked for.
POLES = 8


def is_definite(M: Any) -> bool:
    """Tell whether a Hermitian matrix is positive definite by more than the rounding errors of its Cholesky factor."""
    diagonal = M.diagonal().real
    if not np.all(diagonal > 0):
        return False
    M = M - sp.diags_array(ROUNDINGS * EPS * np.asarray(abs(M).sum(axis=1)).ravel(), format="csc")
    if (split := current().engine) is not None and (found := split.is_definite(M)) is not None:
        return found
    try:
        lu = FactoredBySuperLU(M, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=SYMMETRIC).factors
    except np.linalg.LinAlgError:
        return False
    return bool(np.array_equal(lu.perm_r, lu.perm_c) and np.all(lu.U.diagonal().real > 0))


def all_definite(*matrices: Any) -> bool:
    """Tell whether all of these are Hermitian and positive definite, as `is_definite` does."""
    return all(is_hermitian(M) for M in matrices) and all(map(is_definite, matrices))


def certainly_stable(pencil: SparsePencil, discrete: bool, offset: float) -> bool:
    """Tell whether Cholesky factors alone show that every pole keeps more than `offset` from the stability boundary.

    In continuous time of ``-(A + A^H) - 2 offset E`` and of E; in discrete time of ``(1 - offset) E - A`` and
    ``(1 - offset) E + A``, for Hermitian matrices only.
    """
    A, E = pencil.matrix, pencil.identity_or_mass
    if not is_hermitian(E):
        return False
    if discrete:
        return pencil.hermitian and is_definite((1 - offset) * E - A) and is_definite((1 - offset) * E + A)
    return is_definite(-(A + A.conj().T) - 2 * offset * E) and (pencil.mass is None or is_definite(E))


def some_poles(pencil: Any, mass: Solver | None, discrete: bool) -> Array:
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
    values = values[np.argsort(-np.abs(values), kind="stable")][: pencil.order]  # others belong to constraints
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1 / values[values != 0])
