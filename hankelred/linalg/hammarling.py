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
    if not B.any():
        return np.zeros((n, n), dtype=T.dtype)
    if m > n:
        B = sla.qr(B.conj().T, mode="r", check_finite=False)[0][:n].conj().T  # the L of B = L Q: L L^H = B B^H
        m = n
    B = B.copy()  # overwritten below
    if n <= LEAF:
        leaf = kernels.discrete_leaf if discrete else kernels.continuous_leaf
        factor: Array = leaf(contiguous(T), contiguous(B), None if T.dtype.kind == "c" else True)[0]
        return factor
    U = np.zeros((n, n), dtype=T.dtype)
    Y = np.zeros((n, m), dtype=T.dtype)
    M = np.zeros((n, n), dtype=T.dtype)
    if discrete:
        _discrete(T, B, U, M, Y, np.zeros((n, m), dtype=T.dtype))
    else:
        _continuous(T, B, U, M, Y)
    return U


def schur_factors(T: Array, B: Array, C: Array, discrete: bool) -> tuple[Array, Array]:
    """Return graded factors S and R of both Gramians on a stable Schur form T, in its coordinates."""
    with np.errstate(over="ignore", invalid="ignore"):
        S = gramian_factor(T, B, discrete)
        J = slice(None, None, -1)  # the dual system A^H, C^H has the Schur form J T^H J
        R = gramian_factor(flipped(T), np.ascontiguousarray(C.conj().T[J]), discrete)[J]
        check_result("The Gramian", S, R, hint=OVERFLOW)
        return graded(S), graded(R).conj().T


def _continuous(T: Array, B: Array, U: Array, M: Array, Y: Array) -> None:
    """Fill U, M and Y; B is overwritten."""
    if len(T) <= LEAF:
        pairs = None if T.dtype.kind == "c" else True
        U[...], M[...], Y[...] = kernels.continuous_leaf(contiguous(T), contiguous(B), pairs)
        return
    h = halve(T)
    _continuous(T[h:, h:], B[h:], U[h:, h:], M[h:, h:], Y[h:])
    U12 = -(T[:h, h:] @ U[h:, h:] + B[:h] @ Y[h:].conj().T)
    solve_sylvester(T[:h, :h], M[h:, h:], U12)
    U[:h, h:] = U12
    B[:h] -= U12 @ Y[h:]
    _continuous(T[:h, :h], B[:h], U[:h, :h], M[:h, :h], Y[:h])
    M[:h, h:] = -Y[:h] @ Y[h:].conj().T


def _discrete(T: Array, B: Array, U: Array, M: Array, Y: Array, Za: Array) -> Array:
    """Fill U, M, Y and Za and return Zb; B is overwritten."""
    n, m = B.shape
    if m > n:  # only the row space of B matters: work on its n coordinates, or Zb (m, m) would rule the cost
        Q, R = sla.qr(B.conj().T, mode="economic", check_finite=False)
        inner_Y, inner_Za = np.zeros((2, n, n), dtype=T.dtype)
        inner_Zb = _discrete(T, R.conj().T, U, M, inner_Y, inner_Za)
        Y[...], Za[...] = inner_Y @ Q.conj().T, inner_Za @ Q.conj().T
        return np.eye(m) + Q @ (inner_Zb - np.eye(n)) @ Q.conj().T
    if n <= LEAF:
        pairs = None if T.dtype.kind == "c" else True
        U[...], M[...], Y[...], Za[...], Zb = kernels.discrete_leaf(contiguous(T), contiguous(B), pairs)
        return Zb
    h = halve(T)
    Zb = _discrete(T[h:, h:], B[h:], U[h:, h:], M[h:, h:], Y[h:], Za[h:])
    U12, W = B[:h] @ Y[h:].conj().T, T[:h, h:] @ U[h:, h:]
    solve_stein(T[:h, :h], M[h:, h:], U12, W)
    U[:h, h:] = U12
    B[:h] = W @ Za[h:] + B[:h] @ Zb
    upper = _discrete(T[:h, :h], B[:h], U[:h, :h], M[:h, :h], Y[:h], Za[:h])
    M[:h, h:] = Y[:h] @ Za[h:].conj().T
    Y[:h] = Y[:h] @ Zb.conj().T
    Za[h:] = Za[h:] @ upper
    return Zb @ upper
