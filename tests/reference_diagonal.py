"""Slow twins of the diagonal layer: Hankel singular values to many digits, and the approach published before."""

from __future__ import annotations

import mpmath
import numpy as np

_number = np.vectorize(lambda x: mpmath.mpc(complex(x)), otypes=[object])
_conj = np.vectorize(mpmath.conj, otypes=[object])
_exp = np.vectorize(mpmath.exp, otypes=[object])


def exact_hsv(system, digits=120):
    """Return the Hankel singular values of a `DiagonalSystem` with its stored numbers taken as exact.

    Gramians entry by entry, then the eigenvalues of ``S^H Q S``, all with the given number of digits; what lies below
    half of them is returned as 0.
    """
    with mpmath.workdps(digits):
        lam, B, C = (_number(x) for x in (system.lam, system.B, system.C))
        if system.rates is not None:
            lam = _exp(_number(system.rates))
        if system.output == "real":
            lam, B, C = np.append(lam, _conj(lam)), np.vstack([B, _conj(B)]), np.hstack([C, _conj(C)]) / 2
        gap = _gaps(lam, system.is_discrete)
        S = _pivoted_cholesky(B @ _conj(B.T) / gap, mpmath.mpf(10) ** (10 - digits))
        M = _conj(S.T) @ ((_conj(C.T) @ C) / _conj(gap)) @ S
        squares = sorted(mpmath.eighe(mpmath.matrix(M.tolist()), eigvals_only=True), reverse=True)
        floor = squares[0] * mpmath.mpf(10) ** (40 - digits)
        hsv = [float(mpmath.sqrt(x)) if x > floor else 0.0 for x in squares]
    return np.array(hsv + [0.0] * (len(lam) - len(hsv)))


def _gaps(lam, discrete):
    return 1 - np.multiply.outer(lam, _conj(lam)) if discrete else -np.add.outer(lam, _conj(lam))


def _pivoted_cholesky(P, rtol):
    """Return (n, k) S with ``P = S S^H`` until the trace of the rest falls to rtol of the whole."""
    P, columns = P.copy(), []
    trace = sum(P.diagonal()).real
    while len(columns) < len(P) and sum(P.diagonal()).real > rtol * trace:
        k = max(range(len(P)), key=lambda i: P[i, i].real)
        columns.append(P[:, k] / mpmath.sqrt(P[k, k].real))
        P = P - np.multiply.outer(columns[-1], _conj(columns[-1]))
    return np.array(columns, dtype=object).T
