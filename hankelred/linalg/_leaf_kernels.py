"""Whole steps on Schur forms of few states, where a call from Python costs as much as the work: numba, no checks."""

from __future__ import annotations

import numpy as np

from ..checks import Array
from ._dense_kernels import power_norm
from ._schur_kernels import continuous_leaf, discrete_leaf, stein_leaf, sylvester_leaf
from .compiled import kernel


@kernel
def factor_leaves(T: Array, B: Array, CH: Array, pairs: bool | None, discrete: bool) -> tuple[Array, Array, bool]:
    """Return factors of the Gramians of ``T, B`` and of the dual ``T^H, C^H``, and whether both are finite."""
    n = len(T)
    dual, F = np.empty((n, n), T.dtype), np.empty(CH.shape, T.dtype)
    for i in range(n):
        for j in range(n):
            dual[i, j] = np.conj(T[n - 1 - j, n - 1 - i])
        F[i] = CH[n - 1 - i]
    if discrete:
        U, V = discrete_leaf(T, B.copy(), pairs)[0], discrete_leaf(dual, F, pairs)[0]
    else:
        U, V = continuous_leaf(T, B.copy(), pairs)[0], continuous_leaf(dual, F, pairs)[0]
    finite = True
    for i in range(n):
        for j in range(i, n):
            finite = finite and abs(U[i, j]) < np.inf and abs(V[i, j]) < np.inf
    return U, V[::-1].copy(), finite


@kernel
def inverse_norm_leaf(T: Array, discrete: bool, exact: bool) -> float:
    """Return ``|X|_2`` where ``T X + X T^H = -I`` or ``X - T X T^H = I``, from below unless `exact`."""
    n, finite = len(T), True
    X, MH = np.zeros((n, n), T.dtype), np.empty((n, n), T.dtype)
    for i in range(n):
        X[i, i] = 1.0 if discrete else -1.0
        for j in range(n):
            MH[i, j] = np.conj(T[j, i])
    if discrete:
        stein_leaf(T, MH, X, np.zeros((n, n), T.dtype), n, n)
    else:
        sylvester_leaf(T, MH, X, n, n)
    if not exact:
        return power_norm(X)
    for i in range(n):
        for j in range(n):
            finite = finite and abs(X[i, j]) < np.inf
    return np.linalg.eigvalsh(X)[-1] if finite else np.inf


@kernel
def norms_leaf(whole: Array, T: Array, S: Array, RH: Array, discrete: bool, exact: bool) -> tuple[float, float, float]:
    """Return ``|S| |R|``, that of the whole Schur form and that of the inverse operator of its stable part."""
    return power_norm(S) * power_norm(RH), power_norm(whole), inverse_norm_leaf(T, discrete, exact)
