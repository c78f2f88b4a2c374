"""Slow twins of the diagonal layer: Hankel singular values to many digits, and the approach published before."""

from __future__ import annotations

import mpmath
import numpy as np

_number = np.vectorize(lambda x: mpmath.mpc(complex(x)), otypes=[object])
_conj = np.vectorize(mpmath.conj, otypes=[object])
_exp = np.vectorize(mpmath.exp, otypes=[object])


def exact_hsv(system, digits=120):
    """Return the Hankel singular values of a `DiagonalSystem` with its stored numbers taken as exact.

    Gramians entry by entry, then the eigenvalues of ``S^H Q S``, all with the given number of digits; what lies
    below half of them is returned as 0.
    """
    with mpmath.workdps(digits):
        lam, B, C = (_number(x) for x in (system.lam, system.B, system.C))
        if system.rates is not None:
            lam = _exp(_number(system.rates))
        if system.output == "real":
            lam, B, C = np.append(lam, _conj(lam)), np.vstack([B, _conj(B)]), np.hstack([C, _conj(C)]) / 2
        gap = 1 - np.multiply.outer(lam, _conj(lam)) if system.is_discrete else -np.add.outer(lam, _conj(lam))
        S = _pivoted_cholesky(B @ _conj(B.T) / gap, mpmath.mpf(10) ** (10 - digits))
        M = _conj(S.T) @ ((_conj(C.T) @ C) / _conj(gap)) @ S
        solver = mpmath.eighe if any(x.imag for x in M.flat) else mpmath.eigsy  # the real one is four times faster
        squares = sorted(solver(mpmath.matrix(M.tolist()).apply(_simplest), eigvals_only=True), reverse=True)
        floor = squares[0] * mpmath.mpf(10) ** (40 - digits)
        hsv = [float(mpmath.sqrt(x)) if x > floor else 0.0 for x in squares]
    return np.array(hsv + [0.0] * (len(lam) - len(hsv)))


def _simplest(x):
    return x if x.imag else x.real


def _pivoted_cholesky(P, rtol):
    """Return (n, k) S with ``P = S S^H`` until the trace of the rest falls to rtol of the whole."""
    P, columns = P.copy(), []
    trace = sum(P.diagonal()).real
    while len(columns) < len(P) and sum(P.diagonal()).real > rtol * trace:
        k = max(range(len(P)), key=lambda i: P[i, i].real)
        columns.append(P[:, k] / mpmath.sqrt(P[k, k].real))
        P = P - np.multiply.outer(columns[-1], _conj(columns[-1]))
    return np.array(columns, dtype=object).T


def cauchy_gramians(lam, B, C, discrete):
    """Return P and Q of a complex diagonal system, entry by entry in working precision."""
    gap = 1 - np.multiply.outer(lam, lam.conj()) if discrete else -np.add.outer(lam, lam.conj())
    return (B @ B.conj().T) / gap, (C.conj().T @ C) / gap.conj()


def published_hsv(lam, B, C, discrete):
    """Return the hsv as published for in-training compression: square roots of the eigenvalues of P Q.

    Half of the digits of P Q are lost before the eigenvalues begin; negative and complex ones are read by modulus.
    """
    P, Q = cauchy_gramians(lam, B, C, discrete)
    return np.sort(np.sqrt(np.abs(np.linalg.eigvals(P @ Q))))[::-1]
