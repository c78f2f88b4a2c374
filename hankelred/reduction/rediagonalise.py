"""Bringing the reduced model of a diagonal system back to diagonal form, with guards.

A reduced A is a full matrix. Its eigenvectors X make it diagonal again; they can be ill conditioned, and then no
diagonal system of that order is a faithful copy. That is an error here, never a silently different model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array, check_result
from ..errors import DiagonalisationError, OrderError
from ..linalg.gain import largest_gain
from ..linalg.response import boundary_points
from ..rounding import Matrices, sample_frequencies
from ..systems import DiagonalSystem, real_output

# Transforming with X costs a relative error of about cond(X) eps: 1e-8 at this limit, far below the truncation
# error of any useful cut and below single precision.
CONDITION_LIMIT = 1e8

# Diagonal entries of a reduced matrix that spread by more than this make eigenpairs of small poles lose digits.
GRADED_FROM = 1e3

# Share of its terms that a sum loses: some roundings, since errors of many terms do not all point one way.
ROUNDING = 4 * EPS

# Newton steps that correct them; each squares the error.
CORRECTIONS = 3


@dataclass(frozen=True)
class Diagonalised:
    """A reduced diagonal system and the eigenvector basis that led to it.

    `X` and `Xi` have one column and row per reduced state, ordered pairs, their conjugates, real poles where the
    output is real; ``Xi X = I``. `change` is the largest difference in gain seen between the model before and after.
    """

    system: DiagonalSystem
    X: Array
    Xi: Array
    change: float


def diagonalised(small: Matrices, like: DiagonalSystem) -> Diagonalised:
    """Diagonalise reduced matrices into a system with the time, output and representation of `like`.

    Eigenvectors are scaled so that every state has input and output rows of one norm.

    Raises
    ------
    DiagonalisationError
        If the eigenvectors are too ill conditioned, or a pole is not inside the stability region.
    """
    poles, X = eigenpairs(small.A)
    if like.has_real_output:
        pairs, reals = np.flatnonzero(poles.imag > 0), np.flatnonzero(poles.imag == 0)
        X = np.hstack([X[:, pairs], X[:, pairs].conj(), X[:, reals]])
        poles = np.concatenate([poles[pairs], poles[pairs].conj(), poles[reals]])
        stored = real_output.stored_states(len(pairs) + len(reals), len(pairs))
        doubled = np.where(np.arange(len(stored)) < len(pairs), 2.0, 1.0)
    else:
        stored, doubled = np.arange(len(poles)), np.ones(len(poles))
        is_real = np.result_type(small.A, small.B, small.C, like.dtype).kind != "c"  # a complex weighting leaves none
        if is_real and np.all(poles.imag == 0):
            poles, X = poles.real, X.real  # real in, real out where the reduced poles allow it
    _check_condition(X)
    B, C = sla.solve(X, small.B.astype(X.dtype)) if len(X) else X @ small.B, small.C @ X
    scale = balancing_scale(B, C)
    X, B, C = X * scale, B / scale[:, None], C * scale
    check_result("Eigenvectors of the reduced model", X, hint="Scale inputs and outputs.")
    Xi = sla.inv(X) if len(X) else X
    system = _diagonal_system(poles[stored], B[stored], C[:, stored] * doubled, small, like)
    if not system.is_stable():
        raise DiagonalisationError(
            f"The reduced poles must be stable; got one {np.max(system.spectrum.excess(system.is_discrete)):.2e} "
            f"beyond the boundary. Choose a neighbouring order: a cut through nearly equal hsv can do this."
        )
    return Diagonalised(system, X, Xi, _change(small, poles, X, Xi, B, C, like.is_discrete))


def _change(small: Matrices, poles: Array, X: Array, Xi: Array, B: Array, C: Array, discrete: bool) -> float:
    """Bound what the projection and the change to eigenvectors add to the error, to first order.

    With ``E = Xi (A X - X Lam)`` the response changes by ``C (s - Lam)^-1 E (s - Lam)^-1 B``; the rounding of the
    sums that make A and E counts as a part of E.
    """
    if len(poles) == 0:
        return 0.0
    E = np.abs(Xi @ (small.A @ X - X * poles))
    if small.terms is not None:
        E += ROUNDING * (np.abs(Xi) @ small.terms @ np.abs(X))
    omega = sample_frequencies(poles + small.shift, discrete, both_signs=True)
    inverse = 1.0 / np.abs(boundary_points(omega, discrete)[:, None] - small.shift - poles)
    return largest_gain((np.abs(C) * inverse[:, None, :]) @ E @ (inverse[:, :, None] * np.abs(B)))


def eigenpairs(A: Array) -> tuple[Array, Array]:
    """Return eigenvalues and eigenvectors, those of small eigenvalues of a graded matrix to their own accuracy.

    The QR algorithm keeps the digits of small eigenvalues of a matrix whose large entries stand first. What it leaves
    is corrected: with ``Xi (A X - X Lam) = R``, first-order perturbation theory moves the eigenvalues by the diagonal
    of R and mixes the vectors by ``R_ij / (lam_j - lam_i)``.
    """
    if len(A) == 0:
        return np.zeros(0, dtype=complex), np.zeros((0, 0))
    sizes = np.abs(np.diagonal(A))
    order = np.argsort(-sizes, kind="stable")
    graded = A[np.ix_(order, order)]
    poles, X = sla.eig(graded, check_finite=False)
    if sizes.max() > GRADED_FROM * sizes.min():
        poles, X = _corrected(graded, poles, X)
    out = np.empty_like(X)
    out[order] = X
    return poles, out


def _corrected(A: Array, poles: Array, X: Array) -> tuple[Array, Array]:
    """Return the eigenpairs after Newton steps, as long as these shrink; conjugate pairs stay conjugate."""
    last = np.inf
    for _ in range(CORRECTIONS):
        try:
            R = np.linalg.solve(X, A @ X - X * poles)
        except np.linalg.LinAlgError:
            break
        gap = poles - poles[:, None]
        np.fill_diagonal(gap, 1.0)
        size = float(np.max(np.abs(np.diagonal(R)) / np.maximum(np.abs(poles), EPS * np.abs(poles).max())))
        if not size < last or not np.all(gap):
            break
        last = size
        mix = R / gap
        np.fill_diagonal(mix, 0.0)
        if np.abs(mix).max() > 0.1:  # nearly repeated poles: their vectors are not determined one by one
            break
        poles, X = poles + np.diagonal(R), X + X @ mix
        X = X / np.linalg.norm(X, axis=0)
        if A.dtype.kind != "c":
            real = np.abs(poles.imag) <= EPS * np.abs(poles)
            poles = np.where(real, poles.real, poles)
            upper = np.flatnonzero(poles.imag > 0)
            poles[upper + 1], X[:, upper + 1] = poles[upper].conj(), X[:, upper].conj()  # as LAPACK orders them
            X[:, real] = X[:, real].real
    return poles, X


def _check_condition(X: Array) -> None:
    condition = float(np.linalg.cond(X)) if len(X) else 1.0
    if not condition <= CONDITION_LIMIT:
        raise DiagonalisationError(
            f"The reduced state matrix of order {len(X)} is too close to a defective one to be diagonalised; got "
            f"eigenvectors of condition {condition:.1e} (limit {CONDITION_LIMIT:.0e}). Choose another order, or "
            f"reduce sys.dense(), which need not stay diagonal."
        )


def balancing_scale(B: Array, C: Array) -> Array:
    """Return the factors on the states, (..., n), that give each row of B the norm of its column of C."""
    rows, columns = np.linalg.norm(B, axis=-1), np.linalg.norm(C, axis=-2)
    return np.sqrt(np.divide(rows, columns, out=np.ones_like(rows), where=(rows > 0) & (columns > 0)))


def _diagonal_system(poles: Array, B: Array, C: Array, small: Matrices, like: DiagonalSystem) -> DiagonalSystem:
    """Build the reduced system, by rates where `like` has them and no pole is 0."""
    D = small.D
    if like.has_real_output:
        real_poles = poles.imag == 0
        B, C = np.where(real_poles[:, None], B.real, B), np.where(real_poles, C.real, C)
        D = D.real
    spectrum = like.spectrum.like(poles, small.shift)
    return DiagonalSystem.trusted(spectrum, B, C, D, like.dt, like.output, like.outer_names)


def diagonalised_at(
    order: int, small: Matrices, model: Callable[[int], Matrices], allowed: range, like: DiagonalSystem
) -> Diagonalised:
    """Diagonalise the matrices of an order; where that fails, the error lists the nearest allowed orders that work."""

    def works(k: int) -> bool:
        try:
            diagonalised(model(k), like)
        except DiagonalisationError:
            return False
        return True

    try:
        return diagonalised(small, like)
    except DiagonalisationError as error:
        below, above = range(order - 1, allowed.start - 1, -1), range(order + 1, allowed.stop)
        nearest = [k for k in (next(filter(works, below), None), next(filter(works, above), None)) if k is not None]
        names = " and ".join(map(str, nearest)) or "none"
        raise DiagonalisationError(f"{error} Nearest orders that work: {names}.", nearest) from error


def largest_order(model: Callable[[int], Matrices], candidates: range, states: int, fixed: int) -> int:
    """Return the first of falling orders whose model stores at most so many states, one of each pair of poles."""
    for order in candidates:
        poles, _ = eigenpairs(model(order).A)
        if fixed + int(np.sum(poles.imag >= 0)) <= states:
            return order
    raise OrderError(
        f"states must be at least {fixed}, the unstable and marginal ones, which are always kept; got {states}."
    )
