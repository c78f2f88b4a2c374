"""Sylvester, Stein and Lyapunov equations whose coefficients are Schur forms, by recursive halving.

Every coefficient is upper triangular, or quasi-triangular (2 x 2 blocks on the diagonal) if real. Halving turns
nearly all work into matrix products; the blocks that are left go to numba loops, because LAPACK's own solvers are
unblocked in SciPy and LAPACK has none at all for the Stein equation. Solutions overwrite right sides.
"""

from __future__ import annotations

import numpy as np

from ..checks import Array
from .compiled import Kernels

kernels = Kernels("hankelred.linalg._schur_kernels")

# Below this size loops beat the fixed cost of a product and a Python call (measured for 16, 24, 32, 48 and 64).
LEAF = 48


contiguous = np.ascontiguousarray  # kernels are compiled for this layout only


def schur_eigenvalues(T: Array) -> Array:
    """Return the eigenvalues of a Schur form in the order of its diagonal."""
    lam = T.diagonal().astype(np.complex128)
    if T.dtype.kind == "f" and len(i := np.flatnonzero(T.diagonal(-1))):  # blocks [[a, b], [c, a]] with b c < 0
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
        F[...] = kernels.sylvester_leaf(contiguous(T), contiguous(M.conj().T), contiguous(F), k, l)
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
        F[...], G[...] = kernels.stein_leaf(contiguous(T), contiguous(M.conj().T), contiguous(F), contiguous(G), k, l)
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
