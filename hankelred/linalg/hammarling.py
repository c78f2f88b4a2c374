"""Factors of Gramians on a Schur form: ``P = U U^H`` with U upper triangular, without forming P.

T is upper (quasi-)triangular and stable, and P solves ``T P + P T^H + B B^H = 0`` or ``T P T^H - P + B B^H = 0``.
Beside U two companions are carried, ``M = U^-1 T U`` and ``Y = U^-1 B``, which never come from such a product but
from their own equation, so that a singular U does no harm:

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

import numpy as np
import scipy.linalg as sla

from ..checks import Array, check_result
from .compiled import Kernels
from .hankel_svd import graded
from .triangular import contiguous, flipped, halve, solve_stein, solve_sylvester

kernels = Kernels("hankelred.linalg._schur_kernels")

# Below this size a numba loop beats products (measured for 16, 24, 32, 48 and 64).
LEAF = 48

OVERFLOW = "A pole lies so close to the stability boundary that its energy overflows: raise offset, or scale inputs."


def gramian_factor(T: Array, B: Array, discrete: bool) -> Array:
    """Return the upper triangular U with ``P = U U^H``; T is a stable Schur form of B's dtype."""
    n, m = B.shape
    if m == 0:
        return np.zeros((n, n), dtype=T.dtype)
    if m > n:
        B = sla.qr(B.conj().T, mode="r", check_finite=False)[0][:n].conj().T  # the L of B = L Q: L L^H = B B^H
    return (_discrete if discrete else _continuous)(T, B)[0]


def schur_factors(T: Array, B: Array, C: Array, discrete: bool) -> tuple[Array, Array]:
    """Return graded factors S and R of both Gramians on a stable Schur form T, in its coordinates."""
    S = gramian_factor(T, B, discrete)
    J = slice(None, None, -1)  # the dual system A^H, C^H has the Schur form J T^H J
    R = gramian_factor(flipped(T), np.ascontiguousarray(C.conj().T[J]), discrete)[J]
    check_result("The Gramian", S, R, hint=OVERFLOW)
    return graded(S), graded(R).conj().T


def _continuous(T: Array, B: Array) -> tuple[Array, Array, Array]:
    """Return U, M and Y."""
    if len(T) <= LEAF:
        return kernels.continuous_leaf(contiguous(T), B.copy(), None if T.dtype.kind == "c" else True)
    h = halve(T)
    U22, M22, Y2 = _continuous(T[h:, h:], B[h:])
    U12 = -(T[:h, h:] @ U22 + B[:h] @ Y2.conj().T)
    solve_sylvester(T[:h, :h], M22, U12)
    U11, M11, Y1 = _continuous(T[:h, :h], B[:h] - U12 @ Y2)
    return _upper(U11, U12, U22), _upper(M11, -Y1 @ Y2.conj().T, M22), np.vstack([Y1, Y2])


def _discrete(T: Array, B: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Return U, M, Y, Za and Zb."""
    n, m = B.shape
    if m > n:  # only the row space of B matters: work on its n coordinates, or Zb (m, m) would rule the cost
        Q, R = sla.qr(B.conj().T, mode="economic", check_finite=False)
        Qh = Q.conj().T
        U, M, Y, Za, Zb = _discrete(T, R.conj().T)
        return U, M, Y @ Qh, Za @ Qh, np.eye(m) + Q @ (Zb - np.eye(n)) @ Qh
    if n <= LEAF:
        return kernels.discrete_leaf(contiguous(T), B.copy(), None if T.dtype.kind == "c" else True)
    h = halve(T)
    U22, M22, Y2, Za2, Zb = _discrete(T[h:, h:], B[h:])
    U12, W = B[:h] @ Y2.conj().T, T[:h, h:] @ U22
    solve_stein(T[:h, :h], M22, U12, W)
    U11, M11, Y1, Za1, upper = _discrete(T[:h, :h], W @ Za2 + B[:h] @ Zb)
    U, M = _upper(U11, U12, U22), _upper(M11, Y1 @ Za2.conj().T, M22)
    return U, M, np.vstack([Y1 @ Zb.conj().T, Y2]), np.vstack([Za1, Za2 @ upper]), Zb @ upper


def _upper(X11: Array, X12: Array, X22: Array) -> Array:
    """Return ``[[X11, X12], [0, X22]]``."""
    h, n = len(X11), len(X11) + len(X22)
    X = np.zeros((n, n), X11.dtype)
    X[:h, :h], X[:h, h:], X[h:, h:] = X11, X12, X22
    return X
