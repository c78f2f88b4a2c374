"""Gramian factors and Hankel singular values of one fixed system.

Chooses the solver, structured for diagonal systems and a Schur form for all others, and solves nothing itself.
The singular values of ``R S`` are the Hankel singular values; how that product is formed and decomposed decides
how many digits the small ones keep, so both happen here and nowhere else.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg as sla

from . import diagonal, lyapunov
from ._bidiagonal import Triples, bidiagonalised
from ._checks import EPS, Array
from .interop import as_system
from .order import rounding_floor
from .systems import DiagonalSystem, StateSpace

# Columns of a dense factor below this share of the largest are noise: an entry's own rounding error is half of eps.
# With both factors cut here, Hankel singular values down to 1e-34 of the largest are still resolved.
NOISE = EPS / 16

# Singular vectors of values above this share of the largest lose at most four of their sixteen digits to the faster
# algorithms; below it they are computed by the one that keeps the digits of every value.
GRADED_BELOW = 1e-4


def gramian_factors(sys: Any) -> tuple[Array, Array]:
    """Compute factors of both Gramians.

    In continuous time ``A P + P A^H + B B^H = 0`` and ``A^H Q + Q A + C^H C = 0``; in discrete time
    ``A P A^H - P + B B^H = 0`` and ``A^H Q A - Q + C^H C = 0``.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Stable system.

    Returns
    -------
    S : (n, k) ndarray
        ``P = S S^H``. For a `DiagonalSystem` with real output the coordinates are the 2n real ones of
        ``sys.to_state_space()``.
    R : (l, n) ndarray
        ``Q = R^H R``.

    Raises
    ------
    StabilityError
        If a pole lies on or beyond the stability boundary.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> plant = hr.StateSpace([[-1.0, 0.5], [0.0, -3.0]], [[1.0], [1.0]], [[1.0, 0.0]])
    >>> S, R = hr.gramian_factors(plant)
    >>> residual = plant.A @ S @ S.T + S @ S.T @ plant.A.T + plant.B @ plant.B.T
    >>> bool(np.linalg.norm(residual) < 1e-14)
    True
    """
    system = as_system(sys)
    S, R = stable_factors(system)
    return _as_family(S, system), _as_family(R, system)


def gramians(sys: Any) -> tuple[Array, Array]:
    """Compute the controllability and the observability Gramian.

    Prefer `gramian_factors`, or `hankel_singular_values`, where they do: a product of factors has lost half of the
    digits of everything small.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Stable system.

    Returns
    -------
    P, Q : (n, n) ndarray
        Hermitian and positive semidefinite, in the coordinates of `gramian_factors`.

    Raises
    ------
    StabilityError
        If a pole lies on or beyond the stability boundary.

    Examples
    --------
    >>> import hankelred as hr
    >>> P, Q = hr.gramians(hr.StateSpace([[-2.0]], [[1.0]], [[3.0]]))
    >>> print(f"{P[0, 0]:.4f} {Q[0, 0]:.4f}")  # b^2 / (2 a) and c^2 / (2 a)
    0.2500 2.2500
    """
    system = as_system(sys)
    S, R = stable_factors(system)
    return _as_family(S @ S.conj().T, system), _as_family(R.conj().T @ R, system)


def hankel_singular_values(sys: Any) -> Array:
    """Compute all Hankel singular values of a stable system.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Stable system, continuous or discrete, real or complex.

    Returns
    -------
    (n,) ndarray
        Decreasing, in units of y per unit of u; 2n values for a `DiagonalSystem` with real output.

    Raises
    ------
    StabilityError
        If a pole lies on or beyond the stability boundary; `balance` splits such poles off instead.

    Notes
    -----
    Values of dense systems are right to about ``n eps`` of the largest, and far below that where the factors are
    graded; those of a `DiagonalSystem` are right to full
    relative accuracy, unless they repeat or span more than some 19 decades, where LAPACK's singular values leave 1e-10.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> hilbert = hr.DiagonalSystem(-(np.arange(6) + 0.5), np.ones((6, 1)), np.ones((1, 6)), dt=0)
    >>> print(f"{hr.hankel_singular_values(hilbert)[-1]:.13e}")  # least eigenvalue of the 6 x 6 Hilbert matrix
    1.0827994845655e-07
    """
    system = as_system(sys)
    return _as_family(padded(CrossProduct(*stable_factors(system)).values, system_order(system)), system)


def system_order(system: StateSpace | DiagonalSystem) -> int:
    """Return how many Hankel singular values a system has."""
    return system.order if isinstance(system, DiagonalSystem) else system.n


def stable_factors(system: StateSpace | DiagonalSystem) -> tuple[Array, Array]:
    """Return ``S, R`` in double precision, columns of S and rows of R graded for `singular_values`."""
    if isinstance(system, DiagonalSystem):
        return diagonal.factor_pair(system)
    G = system.standard()
    S, R = lyapunov.factor_pair(G.A, G.B, G.C, G.dt)
    return _graded(S), _graded(R.conj().T).conj().T


def padded(values: Array, order: int) -> Array:
    """Return `order` Hankel singular values: zeros appended where the factors are thin."""
    hsv = np.zeros(order)
    found = values[:order]
    hsv[: len(found)] = found
    return hsv


class CrossProduct:
    """``R S = U diag(hsv) V^H``: the values at once, vectors when they are asked for.

    Attributes
    ----------
    values : (k,) ndarray
        Singular values, decreasing; small ones of graded factors keep their digits.
    """

    def __init__(self, S: Array, R: Array) -> None:
        self._S, self._R = S, R
        product = R @ S
        self._wide = product.shape[0] < product.shape[1]
        self._form = bidiagonalised(product.conj().T if self._wide else product) if product.size else None
        self.values = self._form.values() if self._form else np.zeros(0)

    def triples(self, count: int) -> Triples:
        """Return ``U, hsv, V^H`` for the first `count` singular values, or for more.

        Vectors of values above `GRADED_BELOW` are right to rounding relative to the largest value; where smaller
        ones are asked for, all are right relative to their own.
        """
        hsv = self.values
        if self._form is None or count == 0:
            return np.zeros((len(self._R), 0)), np.zeros(0), np.zeros((0, self._S.shape[1]))
        if hsv[count - 1] < GRADED_BELOW * hsv[0] or "_graded" in self.__dict__:
            return self._graded
        found = None if "_fast" in self.__dict__ else self._form.leading(count)
        if found is None:
            return self._fast
        U, hsv, Vh = found
        return (Vh.conj().T, hsv, U.conj().T) if self._wide else found

    @cached_property
    def _graded(self) -> Triples:
        return sla.svd(self._R @ self._S, full_matrices=False, lapack_driver="gesvd")  # implicit QR

    @cached_property
    def _fast(self) -> Triples:
        return sla.svd(self._R @ self._S, full_matrices=False, lapack_driver="gesdd")  # divide and conquer


def accuracy(hsv: Array, S: Array, R: Array, stable: StateSpace | DiagonalSystem) -> tuple[float, int]:
    """Return the rounding floor of the Hankel singular values and how many of them link inputs to outputs.

    The product of dense factors has rounding errors of about ``n eps |R| |S|``, which is more than ``n eps hsv[0]``
    in coordinates that are far from balanced; values below are noise. A diagonal system's factors stop where their
    own rounding begins, so every nonzero value counts, and only the reduced matrices are rounded.
    """
    if isinstance(stable, DiagonalSystem):
        return rounding_floor(hsv), int(np.sum(hsv > 0))
    floor = stable.n * EPS * _norm_estimate(S) * _norm_estimate(R.conj().T)
    return floor, int(np.sum(hsv > floor))


def _norm_estimate(S: Array) -> float:
    """Estimate the spectral norm of a factor, from below, by a few power steps from its largest column."""
    if S.size == 0:
        return 0.0
    x, norm = S[:, np.argmax(np.linalg.norm(S, axis=0))], 0.0
    for _ in range(6):
        length = np.linalg.norm(x)
        if length == 0:
            return 0.0
        y = S.conj().T @ (x / length)
        x, norm = S @ y, float(np.linalg.norm(y))
    return norm


def _graded(S: Array) -> Array:
    """Return a factor of the same Gramian with columns of falling size, those that are rounding noise left out.

    A pivoted QR of ``S^H``: without it the product ``R S`` buries the small Hankel singular values under the
    rounding errors of the large ones.
    """
    if S.size == 0:
        return S
    triangle, pivots = sla.qr(S.conj().T, mode="r", pivoting=True, check_finite=False)
    sizes = np.abs(np.diag(triangle))
    triangle = triangle[: int(np.sum(sizes > NOISE * sizes[0]))]
    graded = np.empty((len(S), len(triangle)), dtype=S.dtype)
    graded[pivots] = triangle.conj().T  # S^H P = Q triangle, hence S S^H = P triangle^H triangle P^H
    return graded


def _as_family(x: Array, system: StateSpace | DiagonalSystem) -> Array:
    """Return x in single precision where the system is."""
    if system.dtype in (np.float32, np.complex64):
        return x.astype(np.complex64 if x.dtype.kind == "c" else np.float32)
    return x
