"""Dense Lyapunov, Sylvester and Stein equations, solved in balanced units and judged by their solution.

All are ``A X + X M^H + F = 0`` or ``A X M^H - X + F = 0`` on the Schur forms of A and M, each in units of its states
chosen by LAPACK's gebal (powers of two, so that scaling is exact) and with its large states first, which is where the
QR iteration keeps small eigenvalues of stiff matrices. The solution is then refined against the given coefficients,
entry by entry, and refused if rounding the coefficients in their last digit could change all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array, check_result, double
from ..errors import NumericalError
from .descriptor import equilibrated, regular_factors
from .triangular import (
    is_schur_form,
    schur_eigenvalues,
    solve_hermitian_stein,
    solve_hermitian_sylvester,
    solve_stein,
    solve_sylvester,
)

# An equation is singular to working precision if rounding its coefficients, by one digit or in a Schur form, changes
# the solution by this share. Singular ones in disguise (2 to 60 states, rotated, in units, with any right side) come
# out at 0.03 to infinity, a single pole at 1 - 1e-13 at 0.002.
SINGULAR = 0.01
# Corrections at most; each gains the digits that the Schur form has kept of the worst entry.
MOST_CORRECTIONS = 8
# Entrywise residuals above this say that no correction helped.
UNSOLVED = 1e-10


class BalancedSchur(NamedTuple):
    """A in balanced units, ``A = W a W^-1`` with ``W = diag(w)``, and the Schur form ``a = Z T Z^H``.

    Z is None, the identity, and all w are 1 where A is a Schur form already.
    """

    a: Array
    w: Array
    T: Array
    Z: Array | None


def balanced_schur(A: Array) -> BalancedSchur:
    """Return the Schur form of A, real if A is, in units in which its rows and columns are of one size."""
    n = len(A)
    if is_schur_form(A):  # substitution is as accurate in any units
        return BalancedSchur(A, np.ones(n), A.copy(), None)
    gebal: Any = sla.get_lapack_funcs("gebal", (A,))
    a, _, _, w, _ = gebal(A, scale=1, permute=0)
    order = np.argsort(-np.maximum(abs(a).max(axis=0), abs(a).max(axis=1)), kind="stable")
    T, Z = sla.schur(a[np.ix_(order, order)], output="complex" if A.dtype.kind == "c" else "real", check_finite=False)
    rows = np.empty_like(Z)
    rows[order] = Z
    return BalancedSchur(a, w, T, rows)


def lyapunov_solution(A: Array, Q: Array, discrete: bool) -> Array:
    """Solve ``A X + X A^H + Q = 0`` or ``A X A^H - X + Q = 0``; X is exactly Hermitian if Q is."""
    return _on_schur_forms(A, A, Q, discrete)


def sylvester(A: Array, Q: Array, C: Array) -> Array:
    """Solve ``A X + X Q + C = 0``."""
    return _on_schur_forms(A, Q.conj().T, C, False)


def stein(A: Array, Q: Array, C: Array) -> Array:
    """Solve ``A X Q^H - X + C = 0``."""
    return _on_schur_forms(A, Q, C, True)


def generalised(A: Array, Q: Array, E: Array, discrete: bool) -> Array:
    """Solve ``A X E^H + E X A^H + Q = 0`` or ``A X A^H - E X E^H + Q = 0``; E in units must not be singular."""
    A, Q, E = of_one_kind(A, Q, E)
    hermitian = np.array_equal(Q, Q.conj().T)
    rows, columns = equilibrated(E)
    with np.errstate(over="ignore", invalid="ignore"):
        E, A, Q = E * rows[:, None] * columns, A * rows[:, None] * columns, Q * rows[:, None] * rows
    check_result("A and Q in the units of E", A, Q, hint="Scale E.")
    factors = regular_factors(E)
    quotient = sla.lu_solve(factors, A, check_finite=False)
    check_result("E^-1 A", quotient, hint="Scale E.")
    form = balanced_schur(quotient)
    E, A = E * form.w, A * form.w
    inner = _EquationSolver(form, form, discrete, hermitian)

    def solve(F: Array) -> Array:
        half = sla.lu_solve(factors, F, check_finite=False) / form.w[:, None]
        X = inner(sla.lu_solve(factors, half.conj().T, check_finite=False).conj().T / form.w)
        return (X + X.conj().T) / 2 if hermitian else X

    def left(A: Array, E: Array, X: Array, sign: float) -> Array:
        if discrete:
            return A @ X @ A.conj().T + sign * (E @ X @ E.conj().T)
        return A @ X @ E.conj().T + E @ X @ A.conj().T

    sizes = abs(A), abs(E)
    X = _judged(Q, solve, lambda X: left(A, E, X, -1.0), lambda X: left(*sizes, X, 1.0), inner)
    return _in_units(X, columns * form.w, columns * form.w)


def _on_schur_forms(A: Array, M: Array, F: Array, discrete: bool) -> Array:
    """Solve ``A X + X M^H + F = 0`` or ``A X M^H - X + F = 0``; M is A itself in a Lyapunov equation."""
    same = M is A
    A, M, F = of_one_kind(A, M, F)
    hermitian = same and np.array_equal(F, F.conj().T)
    left = balanced_schur(A)
    right = left if same else balanced_schur(M)
    a, m, sizes = left.a, right.a.conj().T, (abs(left.a), abs(right.a).T)
    solve = _EquationSolver(left, right, discrete, hermitian)

    def apply(X: Array) -> Array:
        if discrete:
            return a @ X @ m - X
        half = a @ X
        return half + (half.conj().T if hermitian else X @ m)

    def bound(X: Array) -> Array:
        return sizes[0] @ X @ sizes[1] + X if discrete else sizes[0] @ X + X @ sizes[1]

    X = _judged(F / left.w[:, None] / right.w, solve, apply, bound, solve)
    return _in_units(X, left.w, right.w)


class _EquationSolver:
    """Map of F to the X of ``a X + X m^H + F = 0`` or ``a X m^H - X + F = 0``, both in balanced units."""

    def __init__(self, left: BalancedSchur, right: BalancedSchur, discrete: bool, hermitian: bool) -> None:
        self.left, self.right, self.discrete, self.hermitian = left, right, discrete, hermitian
        exact = left.Z is None and right.Z is None
        self.rounding = EPS * (1.0 if exact else np.sqrt(max(len(left.T), len(right.T))))  # of what is substituted

    def __call__(self, F: Array) -> Array:
        T, U, M, V = self.left.T, self.left.Z, self.right.T, self.right.Z
        X = F.astype(T.dtype) if U is None else U.conj().T @ F  # a copy
        X = X if V is None else X @ V
        if self.hermitian:
            X = (X + X.conj().T) / 2
        if not self.discrete:
            X = -X
        with np.errstate(all="ignore"):  # of singular equations
            if self.discrete and self.hermitian:
                solve_hermitian_stein(T, X)
            elif self.discrete:
                solve_stein(T, M, X, np.zeros_like(X))
            elif self.hermitian:
                solve_hermitian_sylvester(T, X)
            else:
                solve_sylvester(T, M, X)
            X = X if U is None else U @ X
            X = X if V is None else X @ V.conj().T
        return (X + X.conj().T) / 2 if self.hermitian else X

    def error(self, found: str) -> NumericalError:
        """Return the error that names the two eigenvalues that come closest to making the equation singular."""
        lam, mu = schur_eigenvalues(self.left.T), schur_eigenvalues(self.right.T)
        same = self.left is self.right
        if self.discrete:
            gap, law = abs(1 - lam[:, None] * mu.conj()), f"lam_i conj({'lam' if same else 'mu'}_j) = 1"
        else:
            gap, law = abs(lam[:, None] + mu.conj()), "lam_i + conj(lam_j) = 0" if same else "lam_i + mu_j = 0"
        i, j = np.unravel_index(np.argmin(gap), gap.shape)
        second = mu[j] if same or self.discrete else mu[j].conj()
        return NumericalError(
            f"The equation must not be singular to working precision ({law} for no eigenvalues); got {lam[i]:.6g} "
            f"and {second:.6g}{found}. Remove that part of the coefficients, or move it off the boundary."
        )


def _judged(
    F: Array,
    solve: Callable[[Array], Array],
    apply: Callable[[Array], Array],
    bound: Callable[[Array], Array],
    solver: _EquationSolver,
) -> Array:
    """Return X with ``apply(X) + F = 0``, refined entry by entry, or raise `NumericalError`."""
    if F.size == 0:
        return F.copy()
    X = solve(F)
    if not np.isfinite(X).all():
        raise solver.error(", and no finite solution")
    change = solver.rounding * _sensitivity(X, solve, bound, solver.hermitian)
    if not change < SINGULAR:
        raise solver.error(f", and a solution that rounding the coefficients changes by {change:.1g} of its size")
    n, best, error = max(F.shape), X, np.inf
    for _ in range(MOST_CORRECTIONS + 1):
        R, scale = apply(X) + F, bound(abs(X)) + abs(F)
        # Entries whose terms all vanish next to the others, as where X is 0, have no digits of their own.
        last, now = error, float(np.max(abs(R) / (scale + n * EPS * scale.max()), initial=0.0)) if scale.any() else 0.0
        if now < error:
            best, error = X, now
        if not EPS * n < now < last / 2:
            break
        X = X + solve(R)
    if not error <= UNSOLVED:
        raise solver.error(f", and a residual of {error:.1g} in the worst entry, relative to its terms")
    return best


def _sensitivity(X: Array, solve: Callable[[Array], Array], bound: Callable[[Array], Array], hermitian: bool) -> float:
    """Estimate the relative change of X per relative change of each coefficient: ``|L^-1| |L| |X|`` over X.

    L is the operator of the equation, and random signs estimate ``|L^-1|``. A second application looks for what a
    special right side does not excite.
    """
    rng, share, size = np.random.default_rng(0), 0.0, abs(X)
    for _ in range(2):
        length = sla.norm(size, check_finite=False)
        if length == 0:
            break
        signs = rng.choice([-1.0, 1.0], X.shape)
        if hermitian:
            signs = np.triu(signs) + np.triu(signs, 1).T
        size = abs(solve(signs * bound(size / length)))
        share = max(share, float(np.linalg.norm(size)))
        if not np.isfinite(share):
            return np.inf
    return share


def of_one_kind(*arrays: Array) -> list[Array]:
    """Return all arrays in double precision, complex if one is."""
    kind = np.complex128 if any(x.dtype.kind == "c" for x in arrays) else np.float64
    return [double(x).astype(kind, copy=False) for x in arrays]


def _in_units(X: Array, rows: Array, columns: Array) -> Array:
    """Return X in the units of the caller, or raise `NumericalError` where it overflows there."""
    with np.errstate(over="ignore"):
        X = X * rows[:, None] * columns
    check_result("The solution", X, hint="Scale the states or the right side.")
    return X
