"""Loops of `hessenberg`: solves with a shifted Hessenberg matrix that read it once and store no factor.

Elimination runs through the columns from the last to the first: of two neighbours, the one with the larger entry in the
row of their subdiagonal entry is the pivot, and clears that entry from the other. What is left of the other goes on as
the working column v, while the pivot, a finished column of an upper triangle, serves the substitution at once. Columns
are contiguous, so all inner loops run over contiguous arrays; with a real matrix and a complex shift the real and
imaginary parts lie apart, because the matrix has only the one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import Array
from .compiled import kernel


@kernel
def _over(x: Any, y: Any) -> Any:
    """Return ``x / y``, not finite where y = 0."""
    return x / y if y != 0 else x * np.inf


@kernel
def solve_shifted(columns: Array, p: Any, X: Array) -> None:
    """Overwrite the rows of X, (k, n), by solutions of ``(H + p I) x = b``; ``columns[j]`` is column j of H.

    All of one type. Entries of H below the subdiagonal are not looked at. Not finite where the matrix is singular.
    """
    n = len(columns)
    v, ratio, swapped = columns[n - 1].copy(), np.zeros(n, columns.dtype), np.zeros(n, np.bool_)
    v[n - 1] += p
    for k in range(n - 1, 0, -1):
        h = columns[k - 1]
        a, b = h[k], v[k]
        swapped[k] = abs(b) < abs(a)
        if swapped[k]:
            f = b / a
            for j in range(len(X)):
                x = X[j]
                x[k] /= a
                t = x[k]
                for i in range(k):
                    x[i] -= t * h[i]
                x[k - 1] -= t * p
            for i in range(k):
                v[i] -= f * h[i]
            v[k - 1] -= f * p
        else:
            f = a / b if a != 0 else a  # b = 0 has a = 0, and an infinite x
            for j in range(len(X)):
                x = X[j]
                x[k] = _over(x[k], b)
                t = x[k]
                for i in range(k):
                    x[i] -= t * v[i]
            for i in range(k):
                v[i] = h[i] - f * v[i]
            v[k - 1] += p
        ratio[k] = f
    for j in range(len(X)):
        x = X[j]
        x[0] = _over(x[0], v[0])
        for k in range(1, n):
            left = x[k - 1]
            if swapped[k]:
                x[k - 1], x[k] = x[k] - ratio[k] * left, left
            else:
                x[k] -= ratio[k] * left


@kernel
def solve_complex_shift(columns: Array, p: complex, re: Array, im: Array) -> None:
    """Overwrite ``re + i im`` like the rows of X in `solve_shifted`, for a real H and a complex p."""
    n = len(columns)
    u, w, ratio, swapped = columns[n - 1].copy(), np.zeros(n), np.zeros(n, np.complex128), np.zeros(n, np.bool_)
    u[n - 1] += p.real
    w[n - 1] += p.imag
    for k in range(n - 1, 0, -1):
        h = columns[k - 1]
        a, b = h[k], complex(u[k], w[k])
        swapped[k] = abs(u[k]) + abs(w[k]) < abs(a)
        if swapped[k]:
            f = b / a
            for j in range(len(re)):
                x, y = re[j], im[j]
                s, t = x[k] / a, y[k] / a
                x[k], y[k] = s, t
                for i in range(k):
                    x[i] -= s * h[i]
                    y[i] -= t * h[i]
                x[k - 1] -= s * p.real - t * p.imag
                y[k - 1] -= s * p.imag + t * p.real
            s, t = f.real, f.imag
            for i in range(k):
                u[i] -= s * h[i]
                w[i] -= t * h[i]
            u[k - 1] -= s * p.real - t * p.imag
            w[k - 1] -= s * p.imag + t * p.real
        else:
            inverse = _over(1.0, b)
            f = a * inverse if a != 0 else 0j
            for j in range(len(re)):
                x, y = re[j], im[j]
                s = x[k] * inverse.real - y[k] * inverse.imag
                t = x[k] * inverse.imag + y[k] * inverse.real
                x[k], y[k] = s, t
                for i in range(k):
                    x[i] -= s * u[i] - t * w[i]
                    y[i] -= s * w[i] + t * u[i]
            s, t = f.real, f.imag
            for i in range(k):
                part = h[i] - (s * u[i] - t * w[i])
                w[i] = -(s * w[i] + t * u[i])
                u[i] = part
            u[k - 1] += p.real
            w[k - 1] += p.imag
        ratio[k] = f
    last = complex(u[0], w[0])
    for j in range(len(re)):
        x, y = re[j], im[j]
        left = _over(complex(x[0], y[0]), last)
        for k in range(1, n):
            right = complex(x[k], y[k])
            if swapped[k]:
                left, right = right - ratio[k] * left, left
            else:
                right -= ratio[k] * left
            x[k - 1], y[k - 1] = left.real, left.imag
            left = right
        x[n - 1], y[n - 1] = left.real, left.imag
