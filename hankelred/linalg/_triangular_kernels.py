"""Loops of `triangular` over small blocks: numba, plain arrays, no checks."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import Array
from .compiled import kernel


@kernel
def divide(x: Any, y: Any) -> Any:
    """Return ``x / y``, not finite where y = 0: there numba's division of complex numbers raises an error."""
    return x / y if y != 0 else x * np.inf


@kernel
def solve_small(K: Array, f: Array, d: int) -> None:
    """Overwrite ``f[:d]`` by the solution of ``K x = f``: elimination with partial pivoting, destroys K."""
    for p in range(d):
        best = p
        for q in range(p + 1, d):
            if abs(K[q, p]) > abs(K[best, p]):
                best = q
        if best != p:
            for z in range(p, d):
                K[p, z], K[best, z] = K[best, z], K[p, z]
            f[p], f[best] = f[best], f[p]
        for q in range(p + 1, d):
            ratio = divide(K[q, p], K[p, p])
            for z in range(p + 1, d):
                K[q, z] -= ratio * K[p, z]
            f[q] -= ratio * f[p]
    for p in range(d - 1, -1, -1):
        for z in range(p + 1, d):
            f[p] -= K[p, z] * f[z]
        f[p] = divide(f[p], K[p, p])


@kernel
def sylvester_leaf(T: Array, MH: Array, F: Array, k: int, l: int) -> Array:
    """Overwrite ``F[:k, :l]`` by the X of ``T X + X M^H = F``: by rows from the bottom, each from the right."""
    K = np.empty((4, 4), F.dtype)
    f = np.empty(4, F.dtype)
    i = k
    while i > 0:
        r = 2 if i > 1 and T[i - 1, i - 2] != 0 else 1
        i -= r
        j = l
        while j > 0:
            c = 2 if j > 1 and MH[j - 2, j - 1] != 0 else 1
            j -= c
            if r * c == 1:
                F[i, j] = divide(F[i, j], T[i, i] + MH[j, j])
            else:  # the r x c unknowns by rows
                for a in range(r):
                    for b in range(c):
                        f[a * c + b] = F[i + a, j + b]
                        for q in range(r * c):
                            K[a * c + b, q] = 0
                        for q in range(r):
                            K[a * c + b, q * c + b] += T[i + a, i + q]
                        for q in range(c):
                            K[a * c + b, a * c + q] += MH[j + q, j + b]
                solve_small(K, f, r * c)
                for a in range(r):
                    for b in range(c):
                        F[i + a, j + b] = f[a * c + b]
            for a in range(r):
                for b in range(c):
                    x = F[i + a, j + b]
                    for q in range(j):
                        F[i + a, q] -= x * MH[j + b, q]
        for a in range(i):
            for e in range(r):
                t = T[a, i + e]
                for q in range(l):
                    F[a, q] -= t * F[i + e, q]
    return F


@kernel
def stein_leaf(T: Array, MH: Array, F: Array, G: Array, k: int, l: int) -> tuple[Array, Array]:
    """Overwrite ``F[:k, :l]`` and G by the X and H of ``X - H M^H = F``, ``H = T X + G``, in the same order."""
    K = np.empty((4, 4), F.dtype)
    f = np.empty(4, F.dtype)
    i = k
    while i > 0:
        r = 2 if i > 1 and T[i - 1, i - 2] != 0 else 1
        i -= r
        j = l
        while j > 0:
            c = 2 if j > 1 and MH[j - 2, j - 1] != 0 else 1
            j -= c
            for a in range(r):  # x - T_ii x M_jj^H = f + g M_jj^H, the r x c unknowns by rows
                for b in range(c):
                    f[a * c + b] = F[i + a, j + b]
                    for q in range(c):
                        f[a * c + b] += G[i + a, j + q] * MH[j + q, j + b]
                    for e in range(r):
                        for q in range(c):
                            K[a * c + b, e * c + q] = -T[i + a, i + e] * MH[j + q, j + b]
                    K[a * c + b, a * c + b] += 1
            solve_small(K, f, r * c)
            for a in range(r):
                for b in range(c):
                    F[i + a, j + b] = f[a * c + b]
                    for e in range(r):
                        G[i + a, j + b] += T[i + a, i + e] * f[e * c + b]
            for a in range(r):
                for b in range(c):
                    h = G[i + a, j + b]
                    for q in range(j):
                        F[i + a, q] += h * MH[j + b, q]
        for a in range(i):
            for e in range(r):
                t = T[a, i + e]
                for q in range(l):
                    G[a, q] += t * F[i + e, q]
    return F, G
