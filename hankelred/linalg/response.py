"""Frequency responses ``C (s I - A)^-1 B + D``: every value is a solve with the matrices given, in balanced units.

A Schur or Hessenberg form of A is a copy whose rounding, ``eps |A|``, is the whole answer of a stiff system at low
frequencies. Here it only preconditions: its solutions are refined with A itself until the residual is that of a plain
solve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array
from .hessenberg import HessenbergForm

Schur = tuple[Array, Array, list[list[tuple[int, int]]]]

# From this size on, and from this many points in all, one Schur form and triangular solves beat one LU per point.
SCHUR_FROM = 40
POINTS_PER_SCHUR = 50

# From this size and this many points on, and up to so many, a Hessenberg form takes its place: solves one by one cost
# more, the form itself a quarter.
HESSENBERG_FROM, HESSENBERG_POINTS = 150, range(4, 200)

# Numbers that the stacked matrices of one piece of points may hold: they should stay in cache.
PIECE = 2**17

# Diagonal blocks of a Schur form that are eliminated together from the rows above.
PANEL = 16

# A refined solution is as good as a solve of its own where |b - M x| <= SMALL eps (|M| |x| + |b|), entry by entry.
SMALL = 8.0


def dense_response(A: Array, B: Array, C: Array, D: Array, points: Array) -> Array:
    """Compute the transfer function of dense matrices at given points of the complex plane.

    Parameters
    ----------
    A, B, C, D : (n, n), (n, m), (p, n) and (p, m) ndarray
        Real or complex double precision; any of n, m, p may be 0.
    points : (k,) array_like
        Values of s (or z), on the stability boundary or off it; infinity is allowed.

    Returns
    -------
    (k, p, m) complex ndarray
        ``C (s I - A)^-1 B + D``: D where s is infinite, infinite in every entry where s is a pole (where
        ``s I - A`` is singular in double precision). Real matrices have a real value, to the bit, at real points.

    Notes
    -----
    The unit of each state, input and output is a power of two chosen here, so that none of them costs a digit. Each
    value comes from LU factors of the balanced ``s I - A`` or, for many points of a large system, from one Schur or
    Hessenberg form, two steps of iterative refinement with the balanced A, and LU factors at the points where these do
    not bring the residual down to that of a solve.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 1))
    >>> dense_response(-one, one, one, 0 * one, [0, 1j, np.inf]).ravel()  # 1 / (s + 1)
    array([1. +0.j , 0.5-0.5j, 0. +0.j ])
    """
    return response_function(A, B, C, D)(points)


def response_function(A: Array, B: Array, C: Array, D: Array) -> Callable[[Any], Array]:
    """Return the function from points to `dense_response`; its calls share one form of A once they are many."""
    n, m, p = len(A), B.shape[1], len(C)
    t = balancing(A)
    rows, columns = exponents(C, t, axis=1), exponents(B, -t[:, None], axis=0)  # the units of outputs and inputs
    A, B, C = scaled(A, t - t[:, None]), scaled(B, -t[:, None] - columns), scaled(C, t - rows[:, None])
    real = not any(np.iscomplexobj(x) for x in (A, B, C))
    solve = _ShiftedSolver(A, B)

    def response(points: Any) -> Array:
        points = np.asarray(points, dtype=np.complex128)
        values = np.zeros((len(points), p, m), dtype=np.complex128)
        finite = np.isfinite(points.real) & np.isfinite(points.imag)
        if values.size and n:
            on_axis = finite & (points.imag == 0) & real
            for group, s in ((on_axis, points.real), (finite & ~on_axis, points)):
                where = np.flatnonzero(group)
                if len(where):
                    with np.errstate(all="ignore"):  # a pole: infinite or undefined, told below
                        values[where] = scaled(C @ solve(s[where]), rows[:, None] + columns)
        values += D
        values[finite & ~np.isfinite(values).all(axis=(1, 2))] = np.inf
        values[np.isnan(points) & ~np.isinf(points)] = np.nan
        return values

    return response


def boundary_points(omega: Array, discrete: bool) -> Array:
    """Return the points of the stability boundary at frequencies in rad per unit of time, real ones exactly so."""
    if not discrete:
        s = np.zeros(omega.shape, np.complex128)
        s.imag = omega  # 1j * inf would be NaN
        return s
    z = np.exp(1j * omega)
    z[np.abs(omega) == np.pi] = -1.0
    return z


class _ShiftedSolver:
    """Solutions X of ``(s I - A) X = B`` for many s, as a (k, n, m) array; undefined where s is a pole."""

    def __init__(self, A: Array, B: Array) -> None:
        self.A, self.B, self.points = A, B, 0
        self.schur: Schur | None = None
        self.hessenberg: HessenbergForm | None = None

    def __call__(self, s: Array) -> Array:
        self.points += len(s)
        n, m = self.B.shape
        if n < SCHUR_FROM or self.points < (POINTS_PER_SCHUR if n < HESSENBERG_FROM else HESSENBERG_POINTS.start):
            return self._lu(s)
        X = np.empty((len(s), n, m), dtype=np.result_type(s, self.A, self.B))
        for k in range(0, len(s), max(1, PIECE // (n * m))):
            piece = slice(k, k + max(1, PIECE // (n * m)))
            X[piece], good = self._refined(s[piece])
            if not good.all():
                X[piece][~good] = self._lu(s[piece][~good])
        return X

    def _lu(self, s: Array) -> Array:
        """Solve with LU factors of each matrix; rows are brought to one unit, which partial pivoting needs."""
        n, m = self.B.shape
        X = np.empty((len(s), n, m), dtype=np.result_type(s, self.A, self.B))
        for k in range(0, len(s), max(1, PIECE // n**2)):
            piece = slice(k, k + max(1, PIECE // n**2))
            M = s[piece, None, None] * np.eye(n) - self.A
            unit = np.exp2(-np.clip(np.frexp(np.abs(M).max(axis=2, keepdims=True))[1], -1000, 1000))
            M, F = M * unit, self.B * unit
            try:
                X[piece] = np.linalg.solve(M, F)
            except np.linalg.LinAlgError:
                for j in range(len(M)):
                    try:
                        X[k + j] = np.linalg.solve(M[j], F[j])
                    except np.linalg.LinAlgError:
                        X[k + j] = np.nan
        return X

    def _refined(self, s: Array) -> tuple[Array, Array]:
        """Return solutions by one form of A and two steps of refinement, and which of them are those of a solve."""
        n, m = self.B.shape
        k = len(s)
        columns = np.repeat(s, m)
        F = np.tile(self.B, (1, k)).astype(np.result_type(s, self.A, self.B))  # column j of point i: i m + j
        few = n >= HESSENBERG_FROM and self.points in HESSENBERG_POINTS
        by_form = self._by_hessenberg if few else self._by_schur
        X = by_form(columns, F)
        for _ in range(2):
            X += by_form(columns, F - (columns * X - _times(self.A, X)))
            size = np.abs(columns) * np.abs(X) + np.abs(self.A) @ np.abs(X) + np.abs(F)
            residual = np.abs(F - (columns * X - _times(self.A, X)))
            good = (residual <= SMALL * EPS * size).all(axis=0)
            if good.all():
                break
        return X.reshape(n, k, m).transpose(1, 0, 2), good.reshape(k, m).all(axis=1)

    def _by_hessenberg(self, s: Array, F: Array) -> Array:
        """Solve ``(s_j I - A) x_j = f_j`` with the Hessenberg form alone, point after point."""
        if self.hessenberg is None:
            self.hessenberg = HessenbergForm(self.A)
        form, m = self.hessenberg, self.B.shape[1]
        Y = form.rotated(F, adjoint=True)
        for j in range(0, len(s), m):
            Y[:, j : j + m] = form.solve(-s[j], -Y[:, j : j + m])
        return form.rotated(Y)

    def _by_schur(self, s: Array, F: Array) -> Array:
        """Solve ``(s_j I - A) x_j = f_j`` with the Schur form alone: a back substitution for all columns at once."""
        if self.schur is None:
            self.schur = _preconditioner(self.A)
        T, Z, panels = self.schur
        Y = _times(Z.conj().T, F)
        for blocks in panels:
            top, end = blocks[-1][0], blocks[0][1]
            Y[top:end] += _times(T[top:end, end:], Y[end:])
            for i, j in blocks:
                Y[i:j] += _times(T[i:j, j:end], Y[j:end])
                if j == i + 1:
                    Y[i] /= s - T[i, i]
                else:
                    (a, b), (c, d) = T[i:j, i:j]
                    y0, y1 = Y[i].copy(), Y[i + 1].copy()
                    determinant = (s - a) * (s - d) - b * c
                    Y[i], Y[i + 1] = ((s - d) * y0 + b * y1) / determinant, (c * y0 + (s - a) * y1) / determinant
        return _times(Z, Y)


def _preconditioner(A: Array) -> Schur:
    """Return the Schur form of A, real for real A, and panels of its diagonal blocks from the last to the first."""
    T, Z = sla.schur(A)
    blocks, j = [], len(T)
    while j > 0:
        i = j - 2 if j > 1 and T[j - 1, j - 2] != 0 else j - 1
        blocks.append((i, j))
        j = i
    return T, Z, [blocks[k : k + PANEL] for k in range(0, len(blocks), PANEL)]


def _times(M: Array, X: Array) -> Array:
    """Return M X; a real M meets the real and imaginary parts of X, at half the cost of making it complex."""
    if np.iscomplexobj(X) and not np.iscomplexobj(M):
        X = np.ascontiguousarray(X)
        return np.asarray((M @ X.view(np.float64)).view(np.complex128))
    return np.asarray(M @ X)


def balancing(A: Array) -> Array:
    """Return integers t for which the units ``2^t`` of the states balance A: ``2^-t A 2^t`` has alike rows, columns."""
    if len(A) < 2:
        return np.zeros(len(A), dtype=int)
    scale = sla.lapack.dgebal(np.abs(A), scale=1, permute=0)[3]
    return np.asarray(np.frexp(scale)[1] - 1)


def exponents(X: Array, shift: Array, axis: int | None) -> Array:
    """Return the exponents of the largest entries of ``2^shift X`` along an axis, 0 where all of them are 0."""
    least = -(2**20)
    exponents = np.where(X != 0, np.frexp(np.abs(X))[1] + shift, least)
    largest = exponents.max(axis=axis, initial=least)
    return np.where(largest == least, 0, largest)


def scaled(X: Array, exponents: Array) -> Array:
    """Return ``2^exponents X``, exact within the range of double precision."""
    if not np.iscomplexobj(X):
        return np.asarray(np.ldexp(X, exponents))
    scaled = np.empty(np.broadcast_shapes(X.shape, np.shape(exponents)), dtype=np.complex128)
    scaled.real, scaled.imag = np.ldexp(X.real, exponents), np.ldexp(X.imag, exponents)
    return scaled
