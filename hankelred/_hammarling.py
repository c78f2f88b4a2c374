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
from numba import njit

from ._checks import Array
from ._triangular import contiguous, halve, solve_stein, solve_sylvester, stein_leaf, sylvester_leaf

# Below this size a numba loop beats products (measured for 16, 24, 32, 48 and 64).
LEAF = 48


def gramian_factor(T: Array, B: Array, discrete: bool) -> Array:
    """Return the upper triangular U with ``P = U U^H``; T is a stable Schur form of B's dtype."""
    n, m = B.shape
    U = np.zeros((n, n), dtype=T.dtype)
    scale = np.abs(B).max(initial=0.0)
    if scale == 0:
        return U
    if m > n:
        B = sla.qr(B.conj().T, mode="r", check_finite=False)[0][:n].conj().T  # the L of B = L Q: L L^H = B B^H
        m = n
    B = B / scale  # so that no square under- or overflows
    Y = np.zeros((n, m), dtype=T.dtype)
    M = np.zeros((n, n), dtype=T.dtype)
    if discrete:
        _discrete(T, B, U, M, Y, np.zeros((n, m), dtype=T.dtype))
    else:
        _continuous(T, B, U, M, Y)
    U *= scale
    return U


def _continuous(T: Array, B: Array, U: Array, M: Array, Y: Array) -> None:
    """Fill U, M and Y; B is overwritten."""
    if len(T) <= LEAF:
        U[...], M[...], Y[...] = continuous_leaf(contiguous(T), contiguous(B))
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
    if len(T) <= LEAF:
        U[...], M[...], Y[...], Za[...], Zb = discrete_leaf(contiguous(T), contiguous(B))
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


@njit(cache=True, error_model="numpy")
def continuous_leaf(T: Array, B: Array) -> tuple[Array, Array, Array]:
    """Return U, M and Y, by rows or pairs of rows from the bottom; B is overwritten."""
    n, m = B.shape
    U, M, Y = np.zeros((n, n), T.dtype), np.zeros((n, n), T.dtype), np.zeros((n, m), T.dtype)
    k = n
    while k > 0:
        end = k
        k -= 2 if k > 1 and T[k - 1, k - 2] != 0 else 1
        _diagonal_block(T, B, U, M, Y, k, end, False)
        for i in range(k, end):
            for j in range(end, n):
                for q in range(m):
                    M[i, j] -= Y[i, q] * np.conj(Y[j, q])
        if k == 0:
            break
        F = np.zeros((k, end - k), T.dtype)
        for i in range(k):
            for j in range(k, end):
                for q in range(k, end):
                    F[i, j - k] -= T[i, q] * U[q, j]
                for q in range(m):
                    F[i, j - k] -= B[i, q] * np.conj(Y[j, q])
        sylvester_leaf(T[:k, :k].copy(), np.conj(M[k:end, k:end].T).copy(), F)
        for i in range(k):
            for j in range(k, end):
                U[i, j] = F[i, j - k]
                for q in range(m):
                    B[i, q] -= U[i, j] * Y[j, q]
    return U, M, Y


@njit(cache=True, error_model="numpy")
def discrete_leaf(T: Array, B: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Return U, M, Y, Za and Zb, by rows or pairs of rows from the bottom; B is overwritten.

    A part of w rows has the complement Z = Q[:, w:] where Q is the product of the w reflections that make
    ``[M Y] Q`` lower triangular. Z itself is not formed: rows ``[a b]`` times Z are reflected instead.
    """
    n, m = B.shape
    U, M, Y = np.zeros((n, n), T.dtype), np.zeros((n, n), T.dtype), np.zeros((n, m), T.dtype)
    Za, Zb = np.zeros((n, m), T.dtype), np.eye(m).astype(T.dtype)
    row = np.zeros(m + 2, T.dtype)
    V = np.zeros((2, m + 2), T.dtype)
    k = n
    while k > 0:
        end = k
        k -= 2 if k > 1 and T[k - 1, k - 2] != 0 else 1
        w = end - k
        _diagonal_block(T, B, U, M, Y, k, end, True)
        for i in range(w):
            V[i, :w] = M[k + i, k:end]
            V[i, w : w + m] = Y[k + i]
        if k > 0:
            F, W = np.zeros((k, w), T.dtype), np.zeros((k, w), T.dtype)
            for i in range(k):
                for j in range(w):
                    for q in range(m):
                        F[i, j] += B[i, q] * np.conj(Y[k + j, q])
                    for q in range(w):
                        W[i, j] += T[i, k + q] * U[k + q, k + j]
            stein_leaf(T[:k, :k].copy(), np.conj(M[k:end, k:end].T).copy(), F, W)
            U[:k, k:end] = F
        _reflections(V, w, w + m)
        if k > 0:
            for i in range(k):
                row[:w] = W[i]
                row[w : w + m] = B[i]
                _reflect(V, w, w + m, row)
                B[i] = row[w : w + m]
        for i in range(k, end):  # M12 = Y^ Za^H, Y1 = Y^ Zb^H
            for j in range(end, n):
                for q in range(m):
                    M[i, j] += Y[i, q] * np.conj(Za[j, q])
            row[:m] = Y[i]
            Y[i] = 0
            for j in range(m):
                for q in range(m):
                    Y[i, j] += row[q] * np.conj(Zb[j, q])
        for i in range(k, n + m):  # [Z^a; Za Z^b; Zb Z^b]
            row[: w + m] = 0
            if i < end:
                row[i - k] = 1
            elif i < n:
                row[w : w + m] = Za[i]
            else:
                row[w : w + m] = Zb[i - n]
            _reflect(V, w, w + m, row)
            if i < n:
                Za[i] = row[w : w + m]
            else:
                Zb[i - n] = row[w : w + m]
    return U, M, Y, Za, Zb


@njit(cache=True, error_model="numpy")
def _reflections(V: Array, w: int, size: int) -> None:
    """Overwrite w orthonormal rows by the vectors of the reflections that map them to the first unit rows.

    Reflection i is ``I - x x^H`` with x = ``V[i, i:]`` on exit.
    """
    for i in range(w):
        for q in range(i, size):
            V[i, q] = np.conj(V[i, q])
        first = abs(V[i, i])
        V[i, i] += V[i, i] / first if first > 0 else 1.0
        root = np.sqrt(1.0 + first)
        for q in range(i, size):
            V[i, q] /= root
        for other in range(i + 1, w):
            _reflect(V[i : i + 1, i:], 1, size - i, V[other, i:])


@njit(cache=True, error_model="numpy")
def _reflect(V: Array, w: int, size: int, row: Array) -> None:
    """Multiply a row from the right by w reflections."""
    for i in range(w):
        s = row[i] * V[i, i]
        for q in range(i + 1, size):
            s += row[q] * V[i, q]
        for q in range(i, size):
            row[q] -= s * np.conj(V[i, q])


@njit(cache=True, error_model="numpy")
def _diagonal_block(T: Array, B: Array, U: Array, M: Array, Y: Array, k: int, end: int, discrete: bool) -> None:
    """Fill U, M and Y of the rows k to end, one or two, as if they were the whole system."""
    if end - k == 2:
        _pair(T, B, U, M, Y, k, discrete)
        return
    t = T[k, k]
    alpha = np.sqrt((1 - abs(t)) * (1 + abs(t))) if discrete else np.sqrt(-2 * t.real)
    M[k, k] = t
    U[k, k] = _direction(B[k], alpha, Y[k]) / alpha


@njit(cache=True, error_model="numpy")
def _direction(b: Array, alpha: float, y: Array) -> float:
    """Set ``y = alpha b / |b|``, or any y of that length if b = 0, and return the length of b."""
    length = 0.0
    for q in range(len(b)):
        length += abs(b[q]) ** 2
    length = np.sqrt(length)
    if length == 0:
        y[0] = alpha
        return 0.0
    for q in range(len(b)):
        y[q] = b[q] * (alpha / length)
    return length


@njit(cache=True, error_model="numpy")
def _pair(T: Array, B: Array, U: Array, M: Array, Y: Array, k: int, discrete: bool) -> None:
    """Fill real 2 x 2 blocks of U and M and rows of Y for a block ``[[a, b], [c, a]]`` with b c < 0.

    ``Q = [[cs, i sn], [i sn, cs]]`` brings the block to the triangle ``[[lam, b + c], [0, conj(lam)]]``. There two
    single steps give the complex triangle ``Uc = [[u11, u12], [0, u22]]``, with companions Mc and Yc. One
    unitary W makes ``Q Uc W`` real and upper triangular, then ``M = W^H Mc W`` and ``Y = W^H Yc`` are real too.
    """
    m = B.shape[1]
    a, b, c = T[k, k].real, T[k, k + 1].real, T[k + 1, k].real
    lam = complex(a, np.sqrt(abs(b)) * np.sqrt(abs(c)))
    cs = np.sqrt(abs(b) / (abs(b) + abs(c)))
    sn = np.sqrt(abs(c) / (abs(b) + abs(c))) * np.sign(b)
    b1, b2 = np.empty(m, np.complex128), np.empty(m, np.complex128)
    y1, y2 = np.empty(m, np.complex128), np.empty(m, np.complex128)
    size = 0.0
    for q in range(m):
        b1[q] = complex(cs * B[k, q].real, -sn * B[k + 1, q].real)
        b2[q] = complex(cs * B[k + 1, q].real, -sn * B[k, q].real)
        size = max(size, abs(b1[q]), abs(b2[q]))
    if size == 0:  # U = 0 and any input will do for M and Y: the unit row that excites the block better
        b1[0] = cs if abs(b) < abs(c) else complex(0, -sn)
        b2[0] = complex(0, -sn) if abs(b) < abs(c) else cs

    if discrete:
        alpha = np.sqrt((1 - abs(lam)) * (1 + abs(lam)))
        u22 = _direction(b2, alpha, y2) / alpha
        dot = 0j
        for q in range(m):
            dot += b1[q] * np.conj(y2[q])
        u12 = (lam * (b + c) * u22 + dot) / ((1 - lam) * (1 + lam))
        zeta, beta = -lam / abs(lam), -1 / (1 + abs(lam))
        along = zeta * (lam * u12 + (b + c) * u22) + beta * dot
    else:
        alpha = np.sqrt(-2 * a)
        u22 = _direction(b2, alpha, y2) / alpha
        dot = 0j
        for q in range(m):
            dot += b1[q] * np.conj(y2[q])
        u12 = -((b + c) * u22 + dot) / (2 * lam)
        along = -u12
    for q in range(m):
        b1[q] += along * y2[q]
    u11 = _direction(b1, alpha, y1) / alpha
    dot = 0j
    for q in range(m):
        dot += y1[q] * np.conj(y2[q])
    if discrete:
        m12 = np.conj(zeta) * dot
        for q in range(m):
            y1[q] += beta * dot * y2[q]
    else:
        m12 = -dot

    g11, g12 = complex(cs * u11, 0), cs * u12 + 1j * sn * u22
    g21, g22 = complex(0, sn * u11), 1j * sn * u12 + cs * u22
    r22 = np.sqrt(abs(g21) ** 2 + abs(g22) ** 2)
    w12 = np.conj(g21) / r22 if r22 > 0 else 0j
    w22 = np.conj(g22) / r22 if r22 > 0 else 1 + 0j
    w11, w21 = np.conj(w22), -np.conj(w12)
    if size > 0:
        U[k, k] = u11 * u22 / r22 if r22 > 0 else 0.0  # det Q = det W = 1
        U[k, k + 1] = (g11 * w12 + g12 * w22).real
        U[k + 1, k + 1] = r22
    first, second = np.empty(m + 2, np.complex128), np.empty(m + 2)  # rows of [M Y]
    first[0] = np.conj(w11) * (lam * w11 + m12 * w21) + np.conj(w21) * np.conj(lam) * w21
    first[1] = np.conj(w11) * (lam * w12 + m12 * w22) + np.conj(w21) * np.conj(lam) * w22
    second[0] = (np.conj(w12) * (lam * w11 + m12 * w21) + np.conj(w22) * np.conj(lam) * w21).real
    second[1] = (np.conj(w12) * (lam * w12 + m12 * w22) + np.conj(w22) * np.conj(lam) * w22).real
    for q in range(m):
        first[q + 2] = np.conj(w11) * y1[q] + np.conj(w21) * y2[q]
        second[q + 2] = (np.conj(w12) * y1[q] + np.conj(w22) * y2[q]).real
    _real_companions(first, second, 2 * a, M[k : k + 2, k : k + 2], Y[k : k + 2], discrete)


@njit(cache=True, error_model="numpy")
def _real_companions(first: Array, second: Array, trace: float, M: Array, Y: Array, discrete: bool) -> None:
    """Store the rows of ``[M Y]`` after restoring the equation between M and Y to working precision.

    Where U is nearly singular its first row fixes the first row of [M Y] no better than to rounding over u11, so
    that it need not be real. Either of its real and imaginary parts will do there; the larger is normalised.
    """
    real = imag = 0.0
    start = 0 if discrete else 2  # for dt = 0, M follows from Y
    for q in range(start, len(first)):
        real += first[q].real ** 2
        imag += first[q].imag ** 2
    v = first.real.copy() if real >= imag else first.imag.copy()
    if discrete:
        _direction(second, 1.0, second)
        for _ in range(2):
            dot = 0.0
            for q in range(len(v)):
                dot += v[q] * second[q]
            for q in range(len(v)):
                v[q] -= dot * second[q]
            _direction(v, 1.0, v)
        M[0], M[1] = v[:2], second[:2]
        Y[0], Y[1] = v[2:], second[2:]
        return
    Y[1] = second[2:]
    square = dot = 0.0
    for q in range(2, len(v)):
        square += second[q] ** 2
    M[1, 0] = second[0]
    M[1, 1] = -square / 2
    M[0, 0] = min(trace + square / 2, 0.0)
    _direction(v[2:], np.sqrt(-2 * M[0, 0].real), v[2:])
    Y[0] = v[2:]
    for q in range(2, len(v)):
        dot += v[q] * second[q]
    M[0, 1] = -dot - second[0]
