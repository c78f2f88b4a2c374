"""Loops of `schur` and `hankel_svd` over dense matrices: numba, plain arrays, no checks.

Of a few states, a loop takes less time than one call of NumPy.
"""

from __future__ import annotations

import numpy as np

from ..checks import Array
from .compiled import kernel

# Power steps end when one of them gains less than this share, after so many at the least: of few states more are cheap.
GAIN, LEAST_STEPS, MORE_STEPS = 1e-4, 6, 400
# What rows in phase add to the first step, and entries whose inverse is a number.
PHASES, SMALLEST = 0.3, 1e-300


@kernel
def unit_sizes(A: Array, w: Array, B: Array, C: Array) -> tuple[Array, float, bool, float, float]:
    """Return the sums of ``|A|`` over row and column of each state, their spread, and whether all w are 1.

    Then the largest entries of ``W^-1 B`` and ``C W``.
    """
    n, size_B, size_C = len(A), 0.0, 0.0
    size, same = np.zeros(n), True
    for j in range(n):
        same = same and w[j] == 1.0
        for i in range(n):
            entry = abs(A[i, j])
            size[i] += entry
            size[j] += entry
        for q in range(B.shape[1]):
            size_B = max(size_B, abs(B[j, q] / w[j]))
        for i in range(len(C)):
            size_C = max(size_C, abs(C[i, j] * w[j]))
    return size, size.max() / size.min(), same, size_B, size_C


@kernel
def graded_factor(triangle: Array, pivots: Array, noise: float) -> Array:
    """Return ``P R^H`` for the upper triangle R of a QR with these pivots, without the rows of R that are noise."""
    n, rank = triangle.shape[1], min(triangle.shape)
    while rank > 0 and abs(triangle[rank - 1, rank - 1]) <= noise * abs(triangle[0, 0]):
        rank -= 1
    factor = np.zeros((n, rank), triangle.dtype)
    for j in range(n):
        for i in range(min(j + 1, rank)):
            factor[pivots[j] - 1, i] = np.conj(triangle[i, j])
    return factor


@kernel
def phases(U: Array, hsv: Array) -> Array:
    """Return the factors of modulus ``hsv^-1/2`` that make the largest entry of each column positive."""
    turn = np.ones(U.shape[1], U.dtype)
    for j in range(U.shape[1]):
        size = 0.0
        for i in range(len(U)):
            if abs(U[i, j]) > size:
                size = abs(U[i, j])
                turn[j] = np.conj(U[i, j]) / size
        turn[j] /= np.sqrt(hsv[j])
    return turn


@kernel
def power_norm(S: Array) -> float:
    """Estimate the spectral norm of S from below; infinite where an entry is not finite.

    Power steps from the longest row. To the first, all rows in phase with it are added: no direction is orthogonal to
    their sum by accident.
    """
    rows, columns = S.shape
    scale = 0.0
    for i in range(rows):
        for j in range(columns):
            entry = max(abs(S[i, j].real), abs(S[i, j].imag))
            if not entry < np.inf:
                return np.inf
            scale = max(scale, entry)
    if scale == 0.0:
        return 0.0
    inverse = 1.0 / max(scale, SMALLEST)
    longest, start, best = -1.0, 0, 0.0
    for i in range(rows):
        length = _length(S[i], inverse)
        if length > longest:
            longest, start = length, i
    v, x, St = np.conj(S[start]) * inverse, np.empty(rows, S.dtype), S.T.copy()
    for step in range(LEAST_STEPS + MORE_STEPS // rows):
        shrink = 1.0 / _length(v, 1.0)
        x[:] = 0
        for j in range(columns):
            t = v[j] * shrink * inverse
            for i in range(rows):
                x[i] += t * St[j, i]
        size = _length(x, 1.0)
        if step >= LEAST_STEPS and size <= best * (1.0 + GAIN):
            break
        best = max(size, best)
        if step == 0:
            for i in range(rows):
                x[i] += PHASES * size / np.sqrt(rows) * (x[i] / abs(x[i]) if x[i] != 0 else 1.0)
        v[:] = 0
        for i in range(rows):
            t = np.conj(x[i]) * inverse
            for j in range(columns):
                v[j] += t * S[i, j]
        for j in range(columns):
            v[j] = np.conj(v[j])
    return max(size, best) / inverse


@kernel
def _length(x: Array, unit: float) -> float:
    """Return the length of ``unit x``."""
    square = 0.0
    for entry in x:
        square += (entry.real * unit) ** 2 + (entry.imag * unit) ** 2
    return np.sqrt(square)
