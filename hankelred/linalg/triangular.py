"""Sylvester, Stein and Lyapunov equations whose coefficients are Schur forms, and factors of their solutions.

Every coefficient is upper triangular, or quasi-triangular (2 x 2 blocks on the diagonal) if real. Recursive halving
turns nearly all work into matrix products; the blocks that are left go to numba loops, because LAPACK's own solvers are
unblocked in SciPy and LAPACK has none at all for the Stein equation. Solutions overwrite right sides.

Gramians are found as factors, ``P = U U^H`` with U upper triangular, without forming P, which solves
``T P + P T^H + B B^H = 0`` or ``T P T^H - P + B B^H = 0`` with a stable T. Beside U two companions are carried,
``M = U^-1 T U`` and ``Y = U^-1 B``, which never come from such a product but from their own equation, so that a
singular U does no harm:

- continuous: ``M + M^H + Y Y^H = 0``;
- discrete: ``M M^H + Y Y^H = I``, the rows of ``[M Y]`` are orthonormal, and their orthonormal complement, the last
  m columns ``Z = [Za; Zb]`` of a unitary matrix with the first rows ``[M Y]^H``, is carried too.

Cut T in the middle into parts 1 (upper) and 2 (lower) and let the lower part be done. Then

- continuous: ``T11 U12 + U12 M22^H = -(T12 U22 + B1 Y2^H)``; the upper part has the input ``B1 - U12 Y2``, and
  ``M12 = -Y1 Y2^H``;
- discrete: ``U12 = W M22^H + B1 Y2^H`` with ``W = T11 U12 + T12 U22``; the upper part has the input
  ``W Za + B1 Zb``, again m columns, which stands for ``W W^H + B1 B1^H - U12 U12^H`` without a subtraction. With
  Y^ and Z^ of the upper part, ``M12 = Y^ Za^H``, ``Y1 = Y^ Zb^H``, and ``[Z^a; Za Z^b; Zb Z^b]`` is the new Z.

The same step with parts of one row, or two for a 2 x 2 block of T, is the loop of the leaves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg as sla

from ..checks import Array, check_result
from .compiled import Kernels
from .hankel_svd import graded

kernels, leaves = (Kernels(f"hankelred.linalg.{name}") for name in ("_schur_kernels", "_leaf_kernels"))

# Up to this size loops beat the fixed cost of a product and a Python call (measured from 32 to 112).
LEAF = 64

OVERFLOW = "A pole lies so close to the stability boundary that its energy overflows: raise offset, or scale inputs."

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


def schur_form(T: Array, kind: type | np.dtype[Any]) -> tuple[Array, Array]:
    """Return a Schur form of this kind, complex ones without blocks, and the unitary matrix that leads to it.

    Parameters
    ----------
    T : (n, n) ndarray
        Upper (quasi-)triangular.
    kind : dtype
        float64 or complex128; real for a real T only.

    Returns
    -------
    T, Z : (n, n) ndarray
        The form asked for and ``Z``, with ``given = Z T Z^H``.

    Examples
    --------
    >>> import numpy as np
    >>> T, Z = schur_form(np.array([[0.0, 1.0], [-1.0, 0.0]]), complex)
    >>> [f"{abs(pole.imag):.1f}" for pole in np.diagonal(T)]
    ['1.0', '1.0']
    """
    if T.dtype == kind:
        return T, np.eye(len(T))
    T, Z = sla.rsf2csf(T, np.eye(len(T)), check_finite=False)
    return T, Z


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


def gramian_factor(T: Array, B: Array, discrete: bool) -> Array:
    """Return the upper triangular U with ``P = U U^H``; T is a stable Schur form of B's dtype."""
    n, m = B.shape
    U, M = np.zeros((2, n, n), dtype=T.dtype)
    if m > n:
        B = sla.qr(B.conj().T, mode="r", check_finite=False)[0][:n].conj().T  # the L of B = L Q: L L^H = B B^H
    if m > 0:
        (_discrete if discrete else _continuous)(T, B, U, M, np.zeros(B.shape, T.dtype))
    return U


def schur_factors(T: Array, B: Array, C: Array, discrete: bool) -> tuple[Array, Array]:
    """Return graded factors S and R of both Gramians on a stable Schur form T, in its coordinates."""
    n, finite = len(T), False
    if n <= LEAF and 0 < B.shape[1] <= n and 0 < len(C) <= n:
        pairs = None if T.dtype.kind == "c" else True
        S, R, finite = leaves.factor_leaves(contiguous(T), contiguous(B), contiguous(C.conj().T), pairs, discrete)
    else:
        S = gramian_factor(T, B, discrete)
        J = slice(None, None, -1)  # the dual system A^H, C^H has the Schur form J T^H J
        R = gramian_factor(flipped(T), np.ascontiguousarray(C.conj().T[J]), discrete)[J]
    if not finite:
        check_result("The Gramian", S, R, hint=OVERFLOW)
    return graded(S), graded(R).conj().T


def _continuous(T: Array, B: Array, U: Array, M: Array, Y: Array) -> None:
    """Fill U, M and Y, zero below their blocks."""
    if len(T) <= LEAF:
        U[...], M[...], Y[...] = kernels.continuous_leaf(contiguous(T), B.copy(), None if T.dtype.kind == "c" else True)
        return
    h = halve(T)
    U12 = U[:h, h:]
    _continuous(T[h:, h:], B[h:], U[h:, h:], M[h:, h:], Y[h:])
    U12[...] = -(T[:h, h:] @ U[h:, h:] + B[:h] @ Y[h:].conj().T)
    solve_sylvester(T[:h, :h], M[h:, h:], U12)
    _continuous(T[:h, :h], B[:h] - U12 @ Y[h:], U[:h, :h], M[:h, :h], Y[:h])
    M[:h, h:] = -Y[:h] @ Y[h:].conj().T


def _discrete(T: Array, B: Array, U: Array, M: Array, Y: Array) -> tuple[Array, Array]:
    """Fill U, M and Y, zero below their blocks, and return Za and Zb."""
    n, m = B.shape
    if m > n:  # only the row space of B matters: work on its n coordinates, or Zb (m, m) would rule the cost
        Q, R = sla.qr(B.conj().T, mode="economic", check_finite=False)
        Qh, inner = Q.conj().T, np.zeros((n, n), T.dtype)
        Za, Zb = _discrete(T, R.conj().T, U, M, inner)
        Y[...] = inner @ Qh
        return Za @ Qh, np.eye(m) + Q @ (Zb - np.eye(n)) @ Qh
    if n <= LEAF:
        U[...], M[...], Y[...], Za, Zb = kernels.discrete_leaf(
            contiguous(T), B.copy(), None if T.dtype.kind == "c" else True
        )
        return Za, Zb
    h = halve(T)
    U12 = U[:h, h:]
    Za2, Zb = _discrete(T[h:, h:], B[h:], U[h:, h:], M[h:, h:], Y[h:])
    U12[...], W = B[:h] @ Y[h:].conj().T, T[:h, h:] @ U[h:, h:]
    solve_stein(T[:h, :h], M[h:, h:], U12, W)
    Za1, upper = _discrete(T[:h, :h], W @ Za2 + B[:h] @ Zb, U[:h, :h], M[:h, :h], Y[:h])
    M[:h, h:] = Y[:h] @ Za2.conj().T
    Y[:h] = Y[:h] @ Zb.conj().T
    return np.vstack([Za1, Za2 @ upper]), Zb @ upper
