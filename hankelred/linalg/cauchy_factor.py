"""Structured pivoted Cholesky of Gramians of diagonal systems: numba loops over plain arrays, no checks.

The Gramian of poles lam and input matrix B is Cauchy-like, ``P_ij = b_i b_j^H / (1 - lam_i conj(lam_j))`` or
``-b_i b_j^H / (lam_i + conj(lam_j))``, and so is every Schur complement of it: only the generator, B at the start,
changes. One step of Cholesky therefore costs O(n m) and never sees P.

All kernels share these arrays over the n rows, which lie in the order of elimination:

==========  ======  =======================================================================================
``lam``     (n,)    poles
``z``       (n,)    their logarithms where these are the data; else empty, (0,)
``gap``     (n,)    ``1 - |lam|^2``, or ``-2 Re lam``
``mirror``  (n,)    ``conj(lam)``, or 1: the denominator of rows i and k is ``gap_k - (lam_i - lam_k) mirror_k``
``turn``    (n,)    unit factors; the Blaschke factor ``turn_k (lam_i - lam_k) / denominator`` is 1 at ``lam_i = 1``,
                    in continuous time at infinity
``G``       (m, n)  generator of the remaining Schur complement, a column for each row of it
``size``    (n,)    diagonal of the remaining Schur complement, ``|G_i|^2 / gap_i``
``rows``    (n,)    the state that each row belongs to
==========  ======  =======================================================================================

Written so, the denominator keeps its digits next to the stability boundary: gap_k and the difference are known to
full relative accuracy, and neither term exceeds twice the modulus of their sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from ..checks import Array
from .compiled import OPTIONS, kernel

# A reflection of m columns leaves a few m eps of the row's length; a row with the pole of the pivot that shrinks to
# this has lost its last independent direction, and what is left of it is rounding.
REFLECTION_NOISE = 8 * np.finfo(np.float64).eps


def eliminated(g: Any, difference: Any, gap: Any, mirror: Any, turn: Any) -> tuple[Any, Any]:
    """Return a row's entry in the new column, over the root of the pivot's gap, and its new generator."""
    quotient = g / (gap - difference * mirror)
    return quotient, turn * difference * quotient


@overload(eliminated, jit_options=OPTIONS)  # type: ignore[arg-type]
def _eliminated(g: Any, difference: Any, gap: Any, mirror: Any, turn: Any) -> Any:
    def real(g: Any, difference: Any, gap: Any, mirror: Any, turn: Any) -> Any:
        quotient = g / (gap - difference * mirror)
        return quotient, turn * difference * quotient

    def compiled(g: Any, difference: Any, gap: Any, mirror: Any, turn: Any) -> Any:
        # numba divides complex numbers by a branching algorithm against overflow, five times slower
        denominator = gap - difference * mirror
        x, y = denominator.real, denominator.imag
        scale = 1.0 / (x * x + y * y)
        x, y = x * scale, y * scale
        quotient = complex(g.real * x + g.imag * y, g.imag * x - g.real * y)
        return quotient, turn * (difference * quotient)

    return compiled if isinstance(g, types.Complex) else real


def difference_of_exponentials(lam: Any, z: Any, lam_k: Any, z_k: Any) -> Any:
    """Return ``exp(z) - exp(z_k)`` to full relative accuracy; lam and lam_k are the two exponentials."""
    if z.real > z_k.real:  # keep the larger pole outside of expm1, which then cannot overflow
        return -lam * np.expm1(z_k - z)
    return lam_k * np.expm1(z - z_k)


@overload(difference_of_exponentials, jit_options=OPTIONS)  # type: ignore[arg-type]
def _difference_of_exponentials(lam: Any, z: Any, lam_k: Any, z_k: Any) -> Any:
    def real(lam: Any, z: Any, lam_k: Any, z_k: Any) -> Any:
        return -lam * np.expm1(z_k - z) if z > z_k else lam_k * np.expm1(z - z_k)

    def compiled(lam: Any, z: Any, lam_k: Any, z_k: Any) -> Any:
        y = z.imag - z_k.imag
        part = y - z.imag
        lost = (z.imag - (y - part)) - (z_k.imag + part)  # rounding of y, which matters where y is near 2 pi
        sine, cosine = np.sin(0.5 * y), np.cos(0.5 * y)
        sine, cosine = sine + 0.5 * lost * cosine, cosine - 0.5 * lost * sine
        decay = np.expm1(-abs(z.real - z_k.real))
        real = decay - 2.0 * (decay + 1.0) * sine * sine
        imag = 2.0 * (decay + 1.0) * sine * cosine
        return -lam * complex(real, -imag) if z.real > z_k.real else lam_k * complex(real, imag)

    return compiled if isinstance(z, types.Complex) else real


@kernel
def one_minus_square(lam: Array, gap: Array) -> None:
    """Write ``1 - |lam|^2`` of stored poles, squares and sum carried in twice the precision."""
    for i in range(lam.size):
        total, rest = 1.0, 0.0
        for part in (lam[i].real, lam[i].imag):
            split = part * 134217729.0  # 2^27 + 1: two halves with exact products (Dekker)
            high = split - (split - part)
            low = part - high
            square = part * part
            rest -= ((high * high - square) + 2.0 * high * low) + low * low
            new = total - square
            rest += ((total - new) - square) if total >= square else (total - (new + square))
            total = new
        gap[i] = total + rest


@kernel
def row_sizes(G: Array, gap: Array, size: Array) -> None:
    """Write the diagonal of the Gramian that G stands for."""
    for i in range(gap.size):
        square = 0.0
        for j in range(G.shape[0]):
            square += G[j, i].real * G[j, i].real + G[j, i].imag * G[j, i].imag
        size[i] = square / gap[i]


@kernel
def _exchange(x: Array, i: int, k: int) -> None:
    x[i], x[k] = x[k], x[i]


@kernel
def _largest(size: Array, first: int, last: int) -> tuple[int, float]:
    """Return the largest of some rows and the trace over them."""
    best, total = first, 0.0
    for i in range(first, last):
        total += size[i]
        if size[i] > size[best]:
            best = i
    return best, total


@kernel
def _bring_forward(
    p: int, k: int, lam: Array, z: Array, gap: Array, mirror: Array, turn: Array, G: Array, size: Array, rows: Array
) -> None:
    """Exchange rows p and k."""
    _exchange(lam, p, k)
    if z.size > 0:
        _exchange(z, p, k)
    _exchange(gap, p, k)
    _exchange(mirror, p, k)
    _exchange(turn, p, k)
    for j in range(G.shape[0]):
        _exchange(G[j], p, k)
    _exchange(size, p, k)
    _exchange(rows, p, k)


@kernel
def _reflector(x: Array, w: Array) -> tuple[int, float]:
    """Write w and return q, beta such that ``x (I - beta w w^H)`` is zero but for entry q; x becomes that.

    q is the largest entry: inputs that are decoupled stay so, where a fixed q would mix rounding between them.
    """
    length, q = 0.0, 0
    for j in range(x.size):
        length += x[j].real * x[j].real + x[j].imag * x[j].imag
        if np.abs(x[j]) > np.abs(x[q]):
            q = j
    length = np.sqrt(length)
    for j in range(x.size):
        w[j] = np.conj(x[j]) / length
    modulus = np.abs(w[q])
    phase = w[q] / modulus
    w[q] += phase
    x[:] = 0.0
    x[q] = -length * np.conj(phase)
    return q, 1.0 / (1.0 + modulus)


@kernel
def _reflect(G: Array, first: int, last: int, w: Array, beta: float, product: Array) -> None:
    """Apply the reflection to rows of the Schur complement, columns of G."""
    product[first:last] = 0.0
    for j in range(w.size):
        for i in range(first, last):
            product[i] += G[j, i] * w[j]
    for j in range(w.size):
        factor = beta * np.conj(w[j])
        for i in range(first, last):
            G[j, i] -= product[i] * factor


@kernel
def _differences(lam: Array, z: Array, k: int, first: int, last: int, difference: Array) -> None:
    """Write ``lam_i - lam_k``."""
    if z.size == 0:
        for i in range(first, last):
            difference[i] = lam[i] - lam[k]
    else:
        for i in range(first, last):
            difference[i] = difference_of_exponentials(lam[i], z[i], lam[k], z[k])


@kernel
def _step(
    k: int,
    first: int,
    last: int,
    lam: Array,
    z: Array,
    gap: Array,
    mirror: Array,
    turn: Array,
    G: Array,
    size: Array,
    w: Array,
    work: Array,
    column: Array,
) -> float:
    """Eliminate row k from some rows: write its column, update generator and sizes; return the reflection's beta."""
    m = G.shape[0]
    q, beta = 0, 0.0
    if m > 1:
        q, beta = _reflector(G[:, k], w)
        _reflect(G, first, last, w, beta, work)
    root, g = np.sqrt(gap[k]), G[q]
    column[k] = g[k] / root
    _differences(lam, z, k, first, last, work)
    for i in range(first, last):
        quotient, g[i] = eliminated(g[i], work[i], gap[k], mirror[k], turn[k])
        column[i] = root * quotient
    noise = (m * REFLECTION_NOISE) ** 2
    for i in range(first, last):
        square = 0.0
        for j in range(m):
            square += G[j, i].real * G[j, i].real + G[j, i].imag * G[j, i].imag
        square /= gap[i]
        if work[i] == 0.0 and square <= noise * size[i]:
            square = 0.0
            for j in range(m):
                G[j, i] = 0.0
        size[i] = square
    return beta


@kernel
def _store(column: Array, rows: Array, first: int, n: int, out: Array) -> None:
    """Write a column, given in the order of elimination, in the order of the states; rows already eliminated get 0."""
    for i in range(first):
        out[rows[i]] = 0.0
    for i in range(first, n):
        out[rows[i]] = column[i]


@kernel
def factor(
    lam: Array,
    z: Array,
    gap: Array,
    mirror: Array,
    turn: Array,
    G: Array,
    size: Array,
    rows: Array,
    eligible: int,
    floor: float,
    done: int,
    out: Array,
) -> int:
    """Write columns of the factor into ``out[done:]``, pivoting among the first rows; return how many are done.

    Stops where the trace over the eligible rows has fallen to the floor, or where `out`, (k, n), is full.
    """
    n = lam.size
    w, work, column = np.empty(G.shape[0], G.dtype), np.empty(n, G.dtype), np.empty(n, G.dtype)
    for k in range(done, min(eligible, out.shape[0])):
        p, total = _largest(size, k, eligible)
        if not total > floor:
            return k
        _bring_forward(p, k, lam, z, gap, mirror, turn, G, size, rows)
        _step(k, k + 1, n, lam, z, gap, mirror, turn, G, size, w, work, column)
        _store(column, rows, k, n, out[k])
    return min(eligible, out.shape[0])


@kernel
def factor_pairs(
    lam: Array,
    z: Array,
    gap: Array,
    mirror: Array,
    turn: Array,
    G: Array,
    size: Array,
    rows: Array,
    eligible: int,
    floor: float,
    pivots: int,
    done: int,
    twist: Array,
    out: Array,
) -> tuple[int, int, float]:
    """Do the same for all poles and their conjugates; return the numbers of pivots and columns done, and the distance.

    Row i stands for two: its own and that of ``conj(lam_i)``, with generator ``conj(G_i) twist`` and the conjugate
    columns. A pivot and its conjugate, which borrows the spare last entry of every array, are eliminated one after
    the other; then a unitary 2 x 2 matrix makes the two columns conjugates on each other's rows again. The second
    column is absent where it is zero: at a real pole whose row of G is real up to one factor.

    The distance is the least ratio of the second to the first diagonal entry of a pair, at most 1.
    """
    n, m = lam.size - 1, G.shape[0]
    w, work = np.empty(m, G.dtype), np.empty(n + 1, G.dtype)
    first, second = np.empty(n + 1, G.dtype), np.empty(n + 1, G.dtype)
    distance = 1.0
    while pivots < eligible and done + 2 <= out.shape[0]:
        k = pivots
        p, total = _largest(size, k, eligible)
        if not total > floor:
            break
        _bring_forward(p, k, lam, z, gap, mirror, turn, G, size, rows)
        lam[n], gap[n], mirror[n], turn[n] = np.conj(lam[k]), gap[k], np.conj(mirror[k]), np.conj(turn[k])
        if z.size > 0:
            z[n] = np.conj(z[k])
        size[n] = size[k]
        for j in range(m):
            G[j, n] = 0.0
            for l in range(m):
                G[j, n] += np.conj(G[l, k]) * twist[l, j]

        beta = _step(k, k + 1, n + 1, lam, z, gap, mirror, turn, G, size, w, work, first)
        _reflect_twist(twist, w, beta)
        diagonal, overlap = np.abs(first[k]), np.conj(first[k]) * first[n]
        phase = np.sqrt(np.conj(overlap) / np.abs(overlap)) if np.abs(overlap) > 0.0 else overlap + 1.0
        alpha = phase * np.conj(first[k]) / diagonal
        if size[n] > 0.0:
            second[k] = 0.0
            beta = _step(n, k + 1, n, lam, z, gap, mirror, turn, G, size, w, work, second)
            _reflect_twist(twist, w, beta)
            ratio = np.abs(second[n]) / diagonal
            distance = min(distance, ratio)
            cosine = np.sqrt(0.5 + 0.5 * np.abs(overlap) / diagonal**2)
            sine = 0.5 * ratio / cosine
            delta = np.conj(phase * second[n]) / np.abs(second[n])
            for i in range(k, n):
                u, v = alpha * first[i], delta * second[i]
                first[i] = cosine * u + sine * v
                second[i] = 1j * (sine * u - cosine * v)
            _store(first, rows, k, n, out[done])
            _store(second, rows, k, n, out[done + 1])
            done += 2
        else:
            for i in range(k, n):
                first[i] = alpha * first[i]
            _store(first, rows, k, n, out[done])
            done += 1
        pivots += 1
    return pivots, done, distance


@kernel
def _reflect_twist(twist: Array, w: Array, beta: float) -> None:
    """Apply ``H^T twist H`` for the reflection H."""
    if beta == 0.0:
        return
    m = w.size
    product = np.empty(m, w.dtype)
    for i in range(m):
        product[i] = 0.0
        for j in range(m):
            product[i] += twist[i, j] * w[j]
    for i in range(m):
        for j in range(m):
            twist[i, j] -= beta * product[i] * np.conj(w[j])
    for j in range(m):
        product[j] = 0.0
        for i in range(m):
            product[j] += w[i] * twist[i, j]
    for i in range(m):
        for j in range(m):
            twist[i, j] -= beta * np.conj(w[i]) * product[j]


@kernel
def divide_by_denominators(
    P: Array, lam: Array, z: Array, lam_k: Array, z_k: Any, gap_k: Array, mirror_k: Array
) -> None:
    """Turn ``B_i B_k^H`` into the Cauchy-like ``P_ik``, where rows and columns may have different poles."""
    difference = np.empty(lam.size, lam.dtype)
    for k in range(lam_k.size):
        for i in range(lam.size):
            if z.size == 0:
                difference[i] = lam[i] - lam_k[k]
            else:
                difference[i] = difference_of_exponentials(lam[i], z[i], lam_k[k], z_k[k])
        for i in range(lam.size):
            P[k, i], _ = eliminated(P[k, i], difference[i], gap_k[k], mirror_k[k], mirror_k[k])


@kernel
def factor_bank(
    lam: Array, z: Array, gap: Array, mirror: Array, turn: Array, G: Array, share: float, out: Array
) -> None:
    """Factor many systems, first axis of every array, into `out`, (batch, n, n); what is not needed becomes 0."""
    batch, n = lam.shape
    size, start = np.empty(n), np.int64(0)  # a plain 0 would be a type of its own and compile everything again
    for b in range(batch):
        row_sizes(G[b], gap[b], size)
        floor = share * size.sum()
        done = factor(lam[b], z[b], gap[b], mirror[b], turn[b], G[b], size, np.arange(n), n, floor, start, out[b])
        out[b, done:] = 0.0


@kernel
def factor_pairs_bank(
    lam: Array, z: Array, gap: Array, mirror: Array, turn: Array, G: Array, share: float, out: Array, distance: Array
) -> None:
    """Do the same with pairs into `out`, (batch, 2n, n); the arrays have their spare entries, n + 1 in all."""
    batch, n, m = lam.shape[0], lam.shape[1] - 1, G.shape[1]
    size, twist, start = np.empty(n + 1), np.empty((m, m), G.dtype), np.int64(0)
    for b in range(batch):
        row_sizes(G[b], gap[b], size)
        floor = share * size[:n].sum()
        twist[:] = 0.0
        for j in range(m):
            twist[j, j] = 1.0
        _, done, distance[b] = factor_pairs(
            lam[b],
            z[b],
            gap[b],
            mirror[b],
            turn[b],
            G[b],
            size,
            np.arange(n + 1),
            n,
            floor,
            start,
            start,
            twist,
            out[b],
        )
        out[b, done:] = 0.0
