"""Sylvester, Stein and Lyapunov equations whose coefficients are Schur forms, by recursive halving.

Every coefficient is upper triangular, or quasi-triangular (2 x 2 blocks on the diagonal) if real. Halving turns
nearly all work into matrix products; the blocks that are left go to numba loops, because LAPACK's own solvers are
unblocked in SciPy and LAPACK has none at all for the Stein equation. Solutions overwrite right sides.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ._checks import Array

# Below this size loops beat the fixed cost of a product and a Python call (measured for 16, 24, 32, 48 and 64).
LEAF = 48


contiguous = np.ascontiguousarray  # kernels are compiled for this layout only


def schur_eigenvalues(T: Array) -> Array:
    """Return the eigenvalues of a Schur form in the order of its diagonal."""
    lam = np.diag(T).astype(np.complex128)
    if T.dtype.kind == "f":
        i = np.flatnonzero(np.diag(T, -1))  # standardised blocks [[a, b], [c, a]] with b c < 0
        lam.imag[i] = np.sqrt(np.abs(T[i, i + 1])) * np.sqrt(np.abs(T[i + 1, i]))
        lam.imag[i + 1] = -lam.imag[i]
    return lam


def is_schur_form(A: Array) -> bool:
    """Tell whether A is upper triangular or, if real, quasi-triangular with standardised 2 x 2 blocks."""
    if np.tril(A, -1 if A.dtype.kind == "c" else -2).any():
        return False
    i = np.flatnonzero(np.diag(A, -1))
    apart = np.all(np.diff(i) > 1)
    return bool(apart and np.all(A[i, i] == A[i + 1, i + 1]) and np.all(np.sign(A[i, i + 1]) == -np.sign(A[i + 1, i])))


def halve(T: Array) -> int:
    """Return an index near the middle of T that cuts no 2 x 2 block."""
    h = len(T) // 2
    return h + 1 if T[h, h - 1] != 0 else h


def flipped(T: Array) -> Array:
    """Return ``J T^H J``, J the exchange matrix: the Schur form of the dual equation, again upper."""
    return np.ascontiguousarray(T[::-1, ::-1].conj().T)


def solve_sylvester(T: Array, M: Array, F: Array) -> None:
    """Overwrite F by the X of ``T X + X M^H = F``."""
    k, l = F.shape
    if max(k, l) <= LEAF:
        F[...] = sylvester_leaf(contiguous(T), contiguous(M.conj().T), contiguous(F), k, l)
    elif k >= l:
        h = halve(T)
        solve_sylvester(T[h:, h:], M, F[h:])
        F[:h] -= T[:h, h:] @ F[h:]
        solve_sylvester(T[:h, :h], M, F[:h])
    else:
        h = halve(M)
        solve_sylvester(T, M[h:, h:], F[:, h:])
        F[:, :h] -= F[:, h:] @ M[:h, h:].conj().T
        solve_sylvester(T, M[:h, :h], F[:, :h])


def solve_stein(T: Array, M: Array, F: Array, G: Array) -> None:
    """Overwrite F by X and G by H, where ``X - H M^H = F`` and ``H = T X + G``.

    With G = 0 this is the Stein equation ``X - T X M^H = F``. Carrying the product H = T X + G along makes a step
    cost one product, as for a Sylvester equation: a cut of T passes ``T12 X2`` on to the upper G, a cut of M
    passes ``H2 M12^H`` on to the left F.
    """
    k, l = F.shape
    if max(k, l) <= LEAF:
        F[...], G[...] = stein_leaf(contiguous(T), contiguous(M.conj().T), contiguous(F), contiguous(G), k, l)
    elif k >= l:
        h = halve(T)
        solve_stein(T[h:, h:], M, F[h:], G[h:])
        G[:h] += T[:h, h:] @ F[h:]
        solve_stein(T[:h, :h], M, F[:h], G[:h])
    else:
        h = halve(M)
        solve_stein(T, M[h:, h:], F[:, h:], G[:, h:])
        F[:, :h] += G[:, h:] @ M[:h, h:].conj().T
        solve_stein(T, M[:h, :h], F[:, :h], G[:, :h])


def solve_hermitian_sylvester(T: Array, F: Array) -> None:
    """Overwrite the Hermitian F by the X of ``T X + X T^H = F``, Hermitian to rounding."""
    if len(T) <= LEAF:
        solve_sylvester(T, T, F)
        return
    h = halve(T)
    T12, F11, F12, F22 = T[:h, h:], F[:h, :h], F[:h, h:], F[h:, h:]
    solve_hermitian_sylvester(T[h:, h:], F22)
    F12 -= T12 @ F22
    solve_sylvester(T[:h, :h], T[h:, h:], F12)
    W = F12 @ T12.conj().T
    F11 -= W
    F11 -= W.conj().T
    solve_hermitian_sylvester(T[:h, :h], F11)
    F[h:, :h] = F12.conj().T


def solve_hermitian_stein(T: Array, F: Array) -> None:
    """Overwrite the Hermitian F by the X of ``X - T X T^H = F``, Hermitian to rounding."""
    if len(T) <= LEAF:
        solve_stein(T, T, F, np.zeros_like(F))
        return
    h = halve(T)
    T12, F11, F12, F22 = T[:h, h:], F[:h, :h], F[:h, h:], F[h:, h:]
    solve_hermitian_stein(T[h:, h:], F22)
    G = T12 @ F22
    H = G.copy()
    solve_stein(T[:h, :h], T[h:, h:], F12, H)  # H = T11 X12 + T12 X22
    W = (H - G / 2) @ T12.conj().T  # W + W^H: all terms of T X T^H above the corner T11 X11 T11^H
    F11 += W
    F11 += W.conj().T
    solve_hermitian_stein(T[:h, :h], F11)
    F[h:, :h] = F12.conj().T


@njit(cache=True, error_model="numpy")
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
            ratio = K[q, p] / K[p, p]
            for z in range(p + 1, d):
                K[q, z] -= ratio * K[p, z]
            f[q] -= ratio * f[p]
    for p in range(d - 1, -1, -1):
        for z in range(p + 1, d):
            f[p] -= K[p, z] * f[z]
        f[p] /= K[p, p]


@njit(cache=True, error_model="numpy")
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
                F[i, j] /= T[i, i] + MH[j, j]
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


@njit(cache=True, error_model="numpy")
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
