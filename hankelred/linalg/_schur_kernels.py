"""Loops of `triangular` over small blocks of a Schur form: numba, plain arrays, no checks."""

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
    """Overwrite ``f[:d]`` by the solution of ``K x = f``, d = 1, 2 or 4; destroys K."""
    if d == 4:  # loops of known length are unrolled
        _eliminate(K, f, 4)
    elif d == 2:
        _eliminate(K, f, 2)
    else:
        f[0] = divide(f[0], K[0, 0])


@kernel
def _eliminate(K: Array, f: Array, d: int) -> None:
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
def width(T: Array, end: int) -> int:
    """Return the size of the diagonal block of a quasi-triangular matrix that ends before a row."""
    return 2 if end > 1 and T[end - 1, end - 2] != 0 else 1


@kernel
def sylvester_leaf(T: Array, MH: Array, F: Array, k: int, l: int) -> Array:
    """Overwrite ``F[:k, :l]`` by the X of ``T X + X M^H = F``: by rows from the bottom, each from the right."""
    K = np.empty((4, 4), F.dtype)
    f = np.empty(4, F.dtype)
    i = k
    while i > 0:
        r = width(T, i)
        i -= r
        j = l
        while j > 0:
            c = width(MH.T, j)
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
        r = width(T, i)
        i -= r
        j = l
        while j > 0:
            c = width(MH.T, j)
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


@kernel
def continuous_leaf(T: Array, B: Array, pairs: bool | None) -> tuple[Array, Array, Array]:
    """Return U, M and Y, by rows or pairs of rows from the bottom; B is overwritten.

    `pairs` is None for complex T: numba then leaves the code for 2 x 2 blocks away, in `_block` that is.
    """
    n, m = B.shape
    U, M, Y = np.zeros((n, n), T.dtype), np.zeros((n, n), T.dtype), np.zeros((n, m), T.dtype)
    F, MH = np.zeros((n, 2), T.dtype), np.zeros((2, 2), T.dtype)
    k = n
    while k > 0:
        end = k
        k = _block(T, B, U, M, Y, MH, end, pairs, False)
        w = end - k
        for i in range(k, end):
            for j in range(end, n):
                for q in range(m):
                    M[i, j] -= Y[i, q] * np.conj(Y[j, q])
        for i in range(k):
            for j in range(w):
                F[i, j] = 0
                for q in range(k, end):
                    F[i, j] -= T[i, q] * U[q, k + j]
                for q in range(m):
                    F[i, j] -= B[i, q] * np.conj(Y[k + j, q])
        sylvester_leaf(T, MH, F, k, w)
        for i in range(k):
            for j in range(w):
                U[i, k + j] = F[i, j]
                for q in range(m):
                    B[i, q] -= F[i, j] * Y[k + j, q]
    return U, M, Y


@kernel
def discrete_leaf(T: Array, B: Array, pairs: bool | None) -> tuple[Array, Array, Array, Array, Array]:
    """Return U, M, Y, Za and Zb, by rows or pairs of rows from the bottom; B is overwritten.

    A part of w rows has the complement Z = Q[:, w:] where Q is the product of the w reflections that make
    ``[M Y] Q`` lower triangular. Z itself is not formed: rows ``[a b]`` times Z are reflected instead.
    """
    n, m = B.shape
    U, M, Y = np.zeros((n, n), T.dtype), np.zeros((n, n), T.dtype), np.zeros((n, m), T.dtype)
    Z = np.zeros((n + m, m), T.dtype)
    for q in range(m):
        Z[n + q, q] = 1
    F, W, MH = np.zeros((n, 2), T.dtype), np.zeros((n, 2), T.dtype), np.zeros((2, 2), T.dtype)
    V, row = np.zeros((2, m + 2), T.dtype), np.zeros(m + 2, T.dtype)
    k = n
    while k > 0:
        end = k
        k = _block(T, B, U, M, Y, MH, end, pairs, True)
        w = end - k
        for i in range(w):
            for j in range(w):
                V[i, j] = M[k + i, k + j]
            for q in range(m):
                V[i, w + q] = Y[k + i, q]
        for i in range(k):
            for j in range(w):
                F[i, j] = W[i, j] = 0
                for q in range(m):
                    F[i, j] += B[i, q] * np.conj(Y[k + j, q])
                for q in range(k, end):
                    W[i, j] += T[i, q] * U[q, k + j]
        stein_leaf(T, MH, F, W, k, w)
        _reflections(V, w, w + m)
        for i in range(k):
            for j in range(w):
                U[i, k + j] = F[i, j]
                row[j] = W[i, j]
            for q in range(m):
                row[w + q] = B[i, q]
            _reflect_row(V, 0, w, w + m, row)
            for q in range(m):
                B[i, q] = row[w + q]
        for i in range(k, end):  # M12 = Y^ Za^H, Y1 = Y^ Zb^H
            for q in range(m):
                row[q] = Y[i, q]
            for j in range(end, n):
                for q in range(m):
                    M[i, j] += row[q] * np.conj(Z[j, q])
            for j in range(m):
                Y[i, j] = 0
                for q in range(m):
                    Y[i, j] += row[q] * np.conj(Z[n + j, q])
        for i in range(k, n + m):  # [Z^a; Za Z^b; Zb Z^b], the new rows Z^a from the unit rows [I 0]
            for j in range(w):
                row[j] = 1 if i == k + j else 0
            for q in range(m):
                row[w + q] = Z[i, q]
            _reflect_row(V, 0, w, w + m, row)
            for q in range(m):
                Z[i, q] = row[w + q]
    return U, M, Y, Z[:n], Z[n:]


@kernel
def _reflections(V: Array, w: int, size: int) -> None:
    """Overwrite w orthonormal rows by the vectors of the reflections that map them to unit rows.

    Reflection i is ``I - x x^H`` with the x^H that stands in ``V[i, i:]`` on exit.
    """
    for i in range(w):
        for other in range(i):
            _reflect_row(V, other, other + 1, size, V[i])
        first = abs(V[i, i])
        V[i, i] += V[i, i] / first if first > 0 else 1.0
        for q in range(i, size):
            V[i, q] /= np.sqrt(1.0 + first)


@kernel
def _reflect_row(V: Array, start: int, stop: int, size: int, row: Array) -> None:
    """Multiply a row from the right by the reflections from start to stop."""
    for i in range(start, stop):
        s = row[i] * np.conj(V[i, i])
        for q in range(i + 1, size):
            s += row[q] * np.conj(V[i, q])
        for q in range(i, size):
            row[q] -= s * V[i, q]


@kernel
def _block(
    T: Array, B: Array, U: Array, M: Array, Y: Array, MH: Array, end: int, pairs: bool | None, discrete: bool
) -> int:
    """Fill a diagonal block of U and M, rows of Y and the block's M^H; return where the block before `end` begins."""
    k = end - 1
    if pairs is not None and k > 0 and T[k, k - 1] != 0:
        k -= 1
        _pair(T, B, U, M, Y, k, discrete)
    else:
        _single(T, B, U, M, Y, k, discrete)
    for i in range(k, end):
        for j in range(k, end):
            MH[j - k, i - k] = np.conj(M[i, j])
    return k


@kernel
def _single(T: Array, B: Array, U: Array, M: Array, Y: Array, k: int, discrete: bool) -> None:
    """Fill the entry k of U and M and the row k of Y as if it were the whole system."""
    t = T[k, k]
    alpha = np.sqrt((1 - abs(t)) * (1 + abs(t))) if discrete else np.sqrt(-2 * t.real)
    M[k, k] = t
    U[k, k] = _direction(B[k], alpha, Y[k]) / alpha


@kernel
def _direction(b: Array, alpha: float, y: Array) -> float:
    """Set ``y = alpha b / |b|``, or any y of that length if b = 0, and return the length of b."""
    size = square = 0.0
    for q in range(len(b)):
        size = max(size, abs(b[q]))
    if size == 0:
        y[0] = alpha
        return 0.0
    for q in range(len(b)):  # relative to the largest: rows fall below 1e-160, and their squares below all numbers
        square += (abs(b[q]) / size) ** 2
    length = np.sqrt(square)
    for q in range(len(b)):
        y[q] = b[q] / size * (alpha / length)
    return size * length


@kernel
def _pair(T: Array, B: Array, U: Array, M: Array, Y: Array, k: int, discrete: bool) -> None:
    """Fill real 2 x 2 blocks of U and M and rows of Y for a block ``[[a, b], [c, a]]`` with b c < 0.

    ``Q = [[cs, i sn], [i sn, cs]]`` brings the block to the triangle ``[[lam, b + c], [0, conj(lam)]]``. There two
    single steps give the complex triangle ``Uc = [[u11, u12], [0, u22]]``, with companions Mc and Yc. One
    unitary W makes ``Q Uc W`` real and upper triangular, then ``M = W^H Mc W`` and ``Y = W^H Yc`` are real too.
    """
    m = B.shape[1]
    a, b, c = T[k, k], T[k, k + 1], T[k + 1, k]
    lam = complex(a, np.sqrt(abs(b)) * np.sqrt(abs(c)))
    cs = np.sqrt(abs(b) / (abs(b) + abs(c)))
    sn = np.sqrt(abs(c) / (abs(b) + abs(c))) * np.sign(b)
    b1, b2 = np.empty(m, np.complex128), np.empty(m, np.complex128)
    y1, y2 = np.zeros(m, np.complex128), np.zeros(m, np.complex128)
    size = 0.0
    for q in range(m):
        b1[q] = complex(cs * B[k, q], -sn * B[k + 1, q])
        b2[q] = complex(cs * B[k + 1, q], -sn * B[k, q])
        size = max(size, abs(B[k, q]), abs(B[k + 1, q]))
    if size == 0:  # U = 0 and any input will do for M and Y: the unit row that excites the block better
        b1[0] = complex(cs, 0) if abs(b) < abs(c) else complex(0, -sn)
        b2[0] = complex(0, -sn) if abs(b) < abs(c) else complex(cs, 0)

    alpha = np.sqrt((1 - abs(lam)) * (1 + abs(lam))) if discrete else np.sqrt(-2 * a)
    u22 = _direction(b2, alpha, y2) / alpha
    dot = 0j
    for q in range(m):
        dot += b1[q] * np.conj(y2[q])
    if discrete:
        u12 = (lam * ((b + c) * u22) + dot) / ((1 - lam) * (1 + lam))
        zeta, beta = -lam / abs(lam), -1 / (1 + abs(lam))
        along = zeta * (lam * u12 + (b + c) * u22) + beta * dot
    else:
        u12 = -((b + c) * u22 + dot) / (2 * lam)
        zeta, beta = 0j, 0.0
        along = -u12
    for q in range(m):
        b1[q] += along * y2[q]
    u11 = _direction(b1, alpha, y1) / alpha
    dot = 0j
    for q in range(m):
        dot += y1[q] * np.conj(y2[q])
    m12 = np.conj(zeta) * dot if discrete else -dot
    for q in range(m):
        y1[q] += beta * dot * y2[q]

    g11, g12 = complex(cs * u11, 0), cs * u12 + complex(0, sn * u22)
    g21, g22 = complex(0, sn * u11), complex(0, sn) * u12 + cs * u22
    r22 = np.hypot(abs(g21), abs(g22))
    w12, w22 = (np.conj(g21) / r22, np.conj(g22) / r22) if r22 > 0 else (0j, 1 + 0j)
    w11, w21 = np.conj(w22), -np.conj(w12)
    r11, r12 = g11 * w11 + g12 * w21, g11 * w12 + g12 * w22
    norm = np.hypot(abs(r11), abs(r12))
    if norm * abs(sn) > r22 * cs:
        # The lower row is the smaller one, up to the scaling of the states that makes the block normal, and may be
        # mostly rounding, so that W may be off by an angle of rounding over r22. A second factor that makes the
        # upper row real disturbs the lower one by rounding only.
        r11, r12 = r11 / norm, r12 / norm
        length = np.hypot(r11.real, r12.real)
        t1, t2 = r11.real / length, r12.real / length
        v11, v12 = np.conj(r11) * t1 + r12 * t2, np.conj(r11) * t2 - r12 * t1
        v21, v22 = np.conj(r12) * t1 - r11 * t2, np.conj(r12) * t2 + r11 * t1
        w11, w12, w21, w22 = w11 * v11 + w12 * v21, w11 * v12 + w12 * v22, w21 * v11 + w22 * v21, w21 * v12 + w22 * v22
        r11, r12, r22 = complex(norm * t1, 0), complex(norm * t2, 0), (r22 * v22).real
    sign1, sign2 = np.copysign(1.0, r11.real), np.copysign(1.0, r22)
    w11, w21, w12, w22 = w11 * sign1, w21 * sign1, w12 * sign2, w22 * sign2
    if size > 0:
        U[k, k], U[k, k + 1], U[k + 1, k + 1] = r11.real * sign1, r12.real * sign2, r22 * sign2
    rows = np.empty((2, m + 2), np.complex128)  # W^H [Mc W, Yc]
    rows[0, 0], rows[1, 0] = lam * w11 + m12 * w21, np.conj(lam) * w21
    rows[0, 1], rows[1, 1] = lam * w12 + m12 * w22, np.conj(lam) * w22
    rows[0, 2:], rows[1, 2:] = y1, y2
    for q in range(m + 2):
        top, low = rows[0, q], rows[1, q]
        rows[0, q] = np.conj(w11) * top + np.conj(w21) * low
        rows[1, q] = np.conj(w12) * top + np.conj(w22) * low
    _real_companions(rows, M, Y, k, discrete)


@kernel
def _real_companions(rows: Array, M: Array, Y: Array, k: int, discrete: bool) -> None:
    """Store the real parts of the two rows of ``[M Y]``, their own equation restored to working precision.

    Imaginary parts differ from rounding only along the v with U v = 0 nearly. The least change of the real parts
    that restores the equation lies along v too, so that ``U M = T U`` and ``U Y = B`` do not notice it: in
    continuous time a symmetric change of M, in discrete time the unitary factor of a polar decomposition.
    """
    size = rows.shape[1]
    s11 = s12 = s22 = 0.0
    for q in range(0 if discrete else 2, size):
        s11 += rows[0, q].real ** 2
        s12 += rows[0, q].real * rows[1, q].real
        s22 += rows[1, q].real ** 2
    if not discrete:
        skew = (rows[0, 1].real - rows[1, 0].real) / 2
        M[k, k], M[k, k + 1] = -s11 / 2, skew - s12 / 2
        M[k + 1, k], M[k + 1, k + 1] = -skew - s12 / 2, -s22 / 2
        for q in range(2, size):
            Y[k, q - 2], Y[k + 1, q - 2] = rows[0, q].real, rows[1, q].real
        return
    angle = np.arctan2(2 * s12, s11 - s22) / 2  # h and v: the left singular directions
    h1, h2 = np.cos(angle), np.sin(angle)
    h, v = np.empty(size), np.empty(size)
    for q in range(size):
        h[q] = h1 * rows[0, q].real + h2 * rows[1, q].real
        v[q] = h1 * rows[1, q].real - h2 * rows[0, q].real
    _direction(h, 1.0, h)
    for _ in range(2):
        dot = 0.0
        for q in range(size):
            dot += v[q] * h[q]
        for q in range(size):
            v[q] -= dot * h[q]
        _direction(v, 1.0, v)
    for q in range(2):
        M[k, k + q], M[k + 1, k + q] = h1 * h[q] - h2 * v[q], h2 * h[q] + h1 * v[q]
    for q in range(2, size):
        Y[k, q - 2], Y[k + 1, q - 2] = h1 * h[q] - h2 * v[q], h2 * h[q] + h1 * v[q]
