"""Gramian factors of diagonal systems, which never form a Gramian and keep the digits of every singular value.

A Gramian of diagonal A is Cauchy-like. Cholesky with diagonal pivoting can be carried out on the generator of such a
matrix, by products only; each entry of the factor then has a small relative error, however small the factor's later
columns are, and so has every Hankel singular value [1]_. The columns are the Malmquist-Takenaka functions of the
poles, or low-rank ADI iterates whose shifts are the system's own poles.

References
----------
.. [1] J. Demmel, Accurate singular value decompositions of structured matrices, SIAM J. Matrix Anal. Appl. 21, 1999.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg as sla
from numpy.typing import ArrayLike

from ._checks import Array, check_array, check_dt, double, is_discrete
from ._diagonal_factors import FULL_STATES, Factor, Poles, default_rtol, factor, pole_data, row_norms
from .errors import InputError
from .systems import DiagonalSystem

# Pairs of a pole and its conjugate lose about eps over the square of this distance (measured: 8e-13 at 0.03).
NEARLY_REAL = 0.1


def diagonal_factor(
    lam: ArrayLike, B: ArrayLike, *, dt: Any, rtol: float | None = None, rates: ArrayLike | None = None
) -> Array:
    """Compute S with ``P = S S^H`` for diagonal A, in O(n k m) time and O(n k) memory.

    P solves ``A P + P A^H + B B^H = 0``, or ``A P A^H - P + B B^H = 0`` in discrete time, with ``A = diag(lam)``.
    It is not formed: each entry of S is right to a few units in the last place of the largest in its column, also in
    columns far below the rounding errors of P.

    Parameters
    ----------
    lam : (n,) array_like
        Poles, strictly stable.
    B : (n, m) array_like
        Input matrix. For the other Gramian pass ``lam.conj()`` and ``C.conj().T``: then ``R = S.conj().T``.
    dt : float or bool
        Sampling time in seconds; 0 is continuous, True is discrete without a stated time.
    rtol : float, optional
        Stop when the trace of what is left of P is at most this share of its trace; 0 asks for all columns. By
        default 0 up to 512 states and eps squared, 5e-32, beyond. Hankel singular values below about ``sqrt(rtol)``
        of the largest are then not certain.
    rates : (n,) array_like, optional
        Logarithms of discrete poles, ``lam = exp(rates)``. Where they are given they are the data, so that poles
        within 1e-13 of the unit circle keep their digits, and `lam` is not read.

    Returns
    -------
    (n, k) ndarray
        Factor with columns of falling size, real where `lam` and `B` are; k is at most n.

    Raises
    ------
    InputError
        If shapes disagree, an entry is not finite, or `rtol` is outside [0, 1).
    StabilityError
        If a pole is not strictly stable.

    See Also
    --------
    diagonal_factor_report : The same with the route taken and the trace left over.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> rates = np.arange(1.0, 5.0)
    >>> S = hr.diagonal_factor(-rates, np.ones((4, 1)), dt=0)
    >>> P = 1 / np.add.outer(rates, rates)
    >>> bool(np.linalg.norm(S @ S.T - P) < 1e-15 * np.linalg.norm(P))
    True
    """
    return diagonal_factor_report(lam, B, dt=dt, rtol=rtol, rates=rates).S


def diagonal_factor_report(
    lam: ArrayLike, B: ArrayLike, *, dt: Any, rtol: float | None = None, rates: ArrayLike | None = None
) -> Factor:
    """Compute what `diagonal_factor` does and say how.

    Parameters
    ----------
    lam, B, dt, rtol, rates
        As for `diagonal_factor`.

    Returns
    -------
    Factor
        With ``.S``, ``.route`` ("structured" or "dense") and ``.remainder``, the share of the trace left over.

    Raises
    ------
    InputError, StabilityError
        As `diagonal_factor` does.

    Notes
    -----
    Structured elimination costs O(n k m); with many inputs, forming and factoring the Gramian is faster by a measured
    cost model (`dense_is_faster`). That route is kept only where the Gramian, scaled to a unit diagonal, is so well
    conditioned that it loses no more than two digits.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.diagonal import diagonal_factor_report
    >>> report = diagonal_factor_report(np.linspace(-0.9, 0.9, 50), np.ones((50, 1)), dt=True, rtol=1e-8)
    >>> report.route, report.S.shape[1] < 20, report.remainder <= 1e-8
    ('structured', True, True)
    """
    dt, B = check_dt(dt), check_array(B, "B", 2, "Write B[:, None] for one input.")
    name, data = ("lam", lam) if rates is None else ("rates", rates)
    values = check_array(data, name, 1)
    if len(values) != len(B):
        raise InputError(f"B must have one row per pole; got {len(values)} poles and B {B.shape}. B is (n, m).")
    if rates is not None and not is_discrete(dt):
        raise InputError("rates are for discrete systems, lam = exp(rates); got dt=0. Pass the poles as lam.")
    if rtol is not None and not 0 <= rtol < 1:
        raise InputError(f"rtol must be at least 0 and below 1; got {rtol}. Pass None for the default.")
    dtype = np.result_type(values, B)
    inner = np.complex128 if dtype.kind == "c" else np.float64
    values, B = values.astype(inner), B.astype(inner)
    poles = pole_data(values, None, dt) if rates is None else pole_data(np.exp(values), values, dt)
    driven = np.flatnonzero(np.any(B != 0, axis=1))
    found = factor(poles, B, driven, driven[:0], default_rtol(len(B)) if rtol is None else rtol)
    return Factor(found.S.astype(dtype, copy=False), found.route, found.remainder)


def factor_pair(system: DiagonalSystem) -> tuple[Array, Array]:
    """Return ``S, R`` of a stable diagonal system in double precision, large columns and rows first.

    With real output the factors are real and in the coordinates of ``system.to_state_space()``.
    """
    lam, B, C = double(system.lam), double(system.B), double(system.C)
    z = None if system.rates is None else double(system.rates)
    poles = pole_data(lam if z is None else np.exp(z), z, system.dt)
    if system.output == "complex":
        S, R, _ = _factor_pair(poles, B, C)
        return S, R
    if lam.dtype.kind == "f":  # the imaginary parts of all states are zero
        S, R, _ = _factor_pair(poles, B, C)
        return np.vstack([np.sqrt(2.0) * S, 0 * S]), np.hstack([np.sqrt(0.5) * R, 0 * R])
    S, R, distance = _factor_pair(poles, B, C, pairs=True)
    if distance >= NEARLY_REAL:
        return np.sqrt(2.0) * np.vstack([S.real, S.imag]), np.sqrt(0.5) * np.hstack([R.real, -R.imag])
    S, R, _ = _factor_pair(poles.doubled(), np.vstack([B, B.conj()]), np.hstack([C, C.conj()]) / 2)
    return _real_pair(S, R)


def _factor_pair(poles: Poles, B: Array, C: Array, pairs: bool = False) -> tuple[Array, Array, float]:
    """Return ``S, R`` and the least distance of pairs; with `pairs` halves of ``[S; conj S]`` and ``[R, conj R] / 2``.

    The states are scaled so that ``P_ii = Q_ii``. That puts the pivots of both factors into one order, and lets the
    traces t_P and t_Q left at the stop bound the error: no hsv is off by more than
    ``|R| sqrt(t_P) + |S| sqrt(t_Q) + sqrt(t_P t_Q)``. States that the input does not drive or the output does not see
    have no scale of their own and come after all others, so that ``R S`` has zeros where they would disturb.
    """
    n, rtol = len(B), default_rtol(len(B))
    drive, sight = row_norms(B), row_norms(C.T)
    both = (drive > 0) & (sight > 0)
    kept = np.flatnonzero(both)
    if B.shape[1] == len(C) == 1 and len(kept) == n:
        # One factor L for b_i = sqrt|b_i c_i| serves both: S = (b / that) L, R^T = (c / that) L.
        g = np.sqrt(drive) * np.sqrt(sight)
        L = factor(poles, g[:, None].astype(B.dtype), kept, kept[:0], rtol, pairs)
        R = (C[0] / g) * L.S.T
        return np.multiply((B[:, 0] / g)[:, None], L.S, out=L.S), R, L.distance  # in place: factors may be large
    weight = np.ones(n)
    weight[kept] = np.sqrt(sight[kept]) / np.sqrt(drive[kept])
    weight = np.exp2(np.round(np.log2(weight)))[:, None]  # powers of two: scaling is exact
    driven, seen = np.flatnonzero((drive > 0) & ~both), np.flatnonzero((sight > 0) & ~both)
    S = factor(poles, weight * B, kept, driven, rtol, pairs)
    R = factor(poles.conj(), C.conj().T / weight, kept, seen, rtol, pairs)
    np.divide(S.S, weight, out=S.S)
    np.multiply(R.S, weight, out=R.S)
    return S.S, R.S.conj().T, min(S.distance, R.distance)


def _real_pair(S: Array, R: Array) -> tuple[Array, Array]:
    """Return real factors in real coordinates for complex ones of the doubled system ``[x, conj x]``.

    A pole next to its conjugate makes a pair of columns nearly dependent, while the unpaired elimination of both is as
    accurate as ever; only its factors are not real. But a singular vector of a simple hsv is real up to its phase: so
    balance first, ``R S = U hsv V^H``, and turn the phases of ``S V`` and ``U^H R``.
    """
    n = len(S) // 2
    S = np.sqrt(0.5) * np.vstack([S[:n] + S[n:], -1j * (S[:n] - S[n:])])
    R = np.sqrt(0.5) * np.hstack([R[:, :n] + R[:, n:], 1j * (R[:, :n] - R[:, n:])])
    if min(S.shape[1], len(R)) > 0:
        # Divide and conquer is faster, but keeps no digits below eps hsv[0]; past FULL_STATES there are none to keep.
        U, _, Vh = sla.svd(R @ S, lapack_driver="gesvd" if n <= FULL_STATES else "gesdd")
        S, R = S @ Vh.conj().T, U.conj().T @ R
    return _real_columns(S), _real_columns(R.T).T


def _real_columns(S: Array) -> Array:
    """Return a real factor of the real matrix ``S S^H``, column by column where each is real up to a phase.

    Neighbours that are not, which belong to equal singular values, are replaced together by as many real ones.
    """
    phase = np.sqrt((S * S).sum(axis=0))
    modulus = np.abs(phase)
    S = S * np.where(modulus > 0, modulus, 1.0) / np.where(modulus > 0, phase, 1.0)
    mixed = np.linalg.norm(S.imag, axis=0) > 1e-7 * np.linalg.norm(S, axis=0)  # its square is dropped with Im S
    out = S.real.copy()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mixed, [False]])))
    for start, stop in edges.reshape(-1, 2):
        group = np.hstack([S[:, start:stop].real, S[:, start:stop].imag])
        left, s, _ = sla.svd(group, full_matrices=False, lapack_driver="gesvd")
        out[:, start:stop] = (left * s)[:, : stop - start]
    return out
