"""Structured pivoted Cholesky of Gramians of diagonal systems: numba loops over plain arrays, no checks.

The Gramian of poles lam and input matrix B is Cauchy-like, ``P_ij = b_i b_j^H / (1 - lam_i conj(lam_j))`` or
``-b_i b_j^H / (lam_i + conj(lam_j))``, and so is every Schur complement of it: only the generator, B at the start,
changes. One step of Cholesky therefore costs O(n m) and never sees P. `Rows`, `FactorSteps` and `Pairs` in `cauchy`
say which arrays the kernels share.

With pairs, row i stands for two: its own and that of ``conj(lam_i)``, with generator ``conj(G_i) twist`` and the
conjugate columns. A pivot and its conjugate, which borrows the spare last row, are eliminated one after the other;
then a unitary 2 x 2 matrix makes the two columns conjugates on each other's rows again.

What is done for every pivot takes each array out of its tuple once: numba counts references every time, which for few
states took a third of all time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from ..checks import Array
from .cauchy import FactorSteps, Pairs, PoleData, Rows
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
    def compiled(g: Any, difference: Any, gap: Any, mirror: Any, turn: Any) -> Any:
        # numba divides complex numbers by a branching algorithm against overflow, five times slower
        denominator = gap - difference * mirror
        x, y = denominator.real, denominator.imag
        scale = 1.0 / (x * x + y * y)
        x, y = x * scale, y * scale
        quotient = complex(g.real * x + g.imag * y, g.imag * x - g.real * y)
        return quotient, turn * (difference * quotient)

    return compiled if isinstance(g, types.Complex) else eliminated


def difference_of_exponentials(lam: Any, z: Any, lam_k: Any, z_k: Any) -> Any:
    """Return ``exp(z) - exp(z_k)`` to full relative accuracy; lam and lam_k are the two exponentials."""
    if z.real > z_k.real:  # keep the larger pole outside of expm1, which then cannot overflow
        return -lam * np.expm1(z_k - z)
    return lam_k * np.expm1(z - z_k)


@overload(difference_of_exponentials, jit_options=OPTIONS)  # type: ignore[arg-type]
def _difference_of_exponentials(lam: Any, z: Any, lam_k: Any, z_k: Any) -> Any:
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

    return compiled if isinstance(z, types.Complex) else difference_of_exponentials


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
def divide_by_denominators(P: Array, p: PoleData, q: PoleData) -> None:
    """Turn ``B_i B_k^H`` in ``P[k, i]`` into the Cauchy-like ``P_ik``, with poles p of rows and q of columns."""
    difference = np.empty(p.lam.size, p.lam.dtype)
    for k in range(q.lam.size):
        _differences(p.lam, p.z, q.lam[k], q.z, k, 0, p.lam.size, difference)
        for i in range(p.lam.size):
            P[k, i], _ = eliminated(P[k, i], difference[i], q.gap[k], q.mirror[k], q.mirror[k])


@kernel
def _differences(
    lam: Array, z: Array, lam_k: Any, other: Array, k: int, first: int, last: int, difference: Array
) -> None:
    """Write ``lam_i - lam_k``, where ``other[k]`` is the logarithm of lam_k if there is one."""
    if z.size == 0:
        for i in range(first, last):
            difference[i] = lam[i] - lam_k
    else:
        z_k = other[k]
        for i in range(first, last):
            difference[i] = difference_of_exponentials(lam[i], z[i], lam_k, z_k)


@kernel
def row_sizes(G: Array, gap: Array, size: Array) -> None:
    """Write the diagonal of the Gramian that G stands for."""
    for i in range(gap.size):
        size[i] = _square(G, i) / gap[i]


@kernel
def _square(G: Array, i: int) -> float:
    """Return the squared length of column i."""
    square = 0.0
    for j in range(G.shape[0]):
        square += G[j, i].real * G[j, i].real + G[j, i].imag * G[j, i].imag
    return square


@kernel
def eliminate_bank(
    poles: PoleData, B: Array, order: Array, first: Array, share: float, steps: FactorSteps, pairs: Pairs | None
) -> None:
    """Factor many systems, first axis of every array; those of the last two are written, what is not needed with 0.

    ``order`` (batch, n) lists the states; the ``first`` (batch,) of them are eliminated before all others, each part
    until less than a share of its trace is left.
    """
    batch, n, m = B.shape
    last = n if pairs is None else n + 1
    real, data = np.empty((2, last)), np.empty((3, last), poles.lam.dtype)
    z, G = np.empty(last if poles.z.size > 0 else 0, poles.z.dtype), np.empty((m, last), B.dtype)
    states = np.empty(last, np.int64)
    p = PoleData(data[0], z, real[0], data[1], data[2])
    rows = Rows(p, G, real[1], states)
    for b in range(batch):
        for i in range(n):
            state = order[b, i]
            states[i], p.lam[i], p.gap[i] = state, poles.lam[b, state], poles.gap[b, state]
            p.mirror[i], p.turn[i] = poles.mirror[b, state], poles.turn[b, state]
            if z.size > 0:
                z[i] = poles.z[b, state]
            for j in range(m):
                G[j, i] = B[b, state, j]
        row_sizes(G[:, :n], p.gap[:n], rows.size)
        system = FactorSteps(steps.columns[b], steps.pivots[b], steps.w[b], steps.beta[b])
        pairs_b = None if pairs is None else Pairs(pairs.twist[b], pairs.mix[b], pairs.distance[b : b + 1])
        k = done = 0
        for part in range(2 if first[b] < n else 1):
            eligible = first[b] if part == 0 else n
            floor = share * rows.size[k:eligible].sum()
            k, done = eliminate(rows, system, pairs_b, eligible, floor, k, done)
        system.columns[done:] = 0.0
        system.pivots[done:] = -1
        system.w[done:] = 0.0
        system.beta[done:] = 0.0
        if pairs is not None:
            pairs.mix[b, done:] = 0.0


@kernel
def eliminate(
    rows: Rows, steps: FactorSteps, pairs: Pairs | None, eligible: int, floor: float, k: int, done: int
) -> tuple[int, int]:
    """Go on after k pivots and as many columns as are done, pivoting among the eligible first rows; return both.

    Stops where the trace over the eligible rows has fallen to the floor, or where the columns, (limit, n), are full.
    """
    limit, n = steps.columns.shape
    width = 1 if pairs is None else 2
    work = np.empty((1 + width, rows.size.size), rows.G.dtype)
    size, states = rows.size, rows.states
    while k < eligible and done + width <= limit:
        pivot, total = _largest_row(size, k, eligible)
        if not total > floor:
            break
        if pivot != k:
            _bring_forward(rows, pivot, k)
        if pairs is None:
            w, column = steps.w[done], work[1]
            steps.beta[done] = _step(rows, k, k + 1, n, w, work[0], column)
            steps.pivots[done] = states[k]
            _store(column, states, k, steps.columns[done])
            done += 1
        else:
            done += _pair_of_steps(rows, k, n, steps, done, pairs, work)
        k += 1
    return k, done


@kernel
def _largest_row(size: Array, first: int, last: int) -> tuple[int, float]:
    """Return the largest of some rows and the trace over them."""
    best, total = first, 0.0
    for i in range(first, last):
        total += size[i]
        if size[i] > size[best]:
            best = i
    return best, total


@kernel
def _exchange(x: Array, i: int, k: int) -> None:
    x[i], x[k] = x[k], x[i]


@kernel
def _bring_forward(rows: Rows, i: int, k: int) -> None:
    """Exchange rows i and k."""
    p = rows.poles
    _exchange(p.lam, i, k)
    if p.z.size > 0:
        _exchange(p.z, i, k)
    _exchange(p.gap, i, k)
    _exchange(p.mirror, i, k)
    _exchange(p.turn, i, k)
    for j in range(rows.G.shape[0]):
        _exchange(rows.G[j], i, k)
    _exchange(rows.size, i, k)
    _exchange(rows.states, i, k)


@kernel
def _step(rows: Rows, k: int, first: int, last: int, w: Array, difference: Array, column: Array) -> float:
    """Eliminate row k from some rows: write its column, update generator and sizes; return the reflection's beta."""
    (lam, z, gap, mirror, turn), G, size, _ = rows
    m = G.shape[0]
    q, beta = 0, 0.0
    w[0] = 0.0
    if m > 1:
        q, beta = _reflector(G[:, k], w)
        _reflect(G, first, last, w, beta, difference)
    g, gap_k, mirror_k, turn_k, root = G[q], gap[k], mirror[k], turn[k], np.sqrt(gap[k])
    column[k] = g[k] / root
    _differences(lam, z, lam[k], z, k, first, last, difference)
    for i in range(first, last):
        quotient, g[i] = eliminated(g[i], difference[i], gap_k, mirror_k, turn_k)
        column[i] = root * quotient
    noise = (m * REFLECTION_NOISE) ** 2
    for i in range(first, last):
        square = _square(G, i) / gap[i]
        if difference[i] == 0.0 and square <= noise * size[i]:
            square = 0.0
            for j in range(m):
                G[j, i] = 0.0
        size[i] = square
    return beta


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
def _store(column: Array, states: Array, first: int, out: Array) -> None:
    """Write a column, given in the order of elimination, in the order of the states; rows already eliminated get 0."""
    for i in range(first):
        out[states[i]] = 0.0
    for i in range(first, out.size):
        out[states[i]] = column[i]


@kernel
def _pair_of_steps(rows: Rows, k: int, n: int, steps: FactorSteps, done: int, pairs: Pairs, work: Array) -> int:
    """Eliminate row k and its conjugate, row n; return how many columns that gave, 2 or 1.

    The second is absent where it is zero: at a real pole whose row of G is real up to one factor.
    """
    ((lam, z, gap, mirror, turn), G, size, states), (columns, pivots, W, betas) = rows, steps
    difference, one, two, found = work[0], work[1], work[2], 1
    twist, mix, distance = pairs.twist, pairs.mix[done : done + 2], pairs.distance
    lam[n], gap[n], size[n] = np.conj(lam[k]), gap[k], size[k]
    mirror[n], turn[n], states[n] = np.conj(mirror[k]), np.conj(turn[k]), n + states[k]
    if z.size > 0:
        z[n] = np.conj(z[k])
    for j in range(twist.shape[0]):
        G[j, n] = 0.0
        for l in range(twist.shape[0]):
            G[j, n] += np.conj(G[l, k]) * twist[l, j]
    betas[done] = _step(rows, k, k + 1, n + 1, W[done], difference, one)
    pivots[done] = states[k]
    _reflect_twist(twist, W[done], betas[done])
    diagonal, overlap = np.abs(one[k]), np.conj(one[k]) * one[n]
    phase = np.sqrt(np.conj(overlap) / np.abs(overlap)) if np.abs(overlap) > 0.0 else overlap + 1.0
    alpha = phase * np.conj(one[k]) / diagonal
    mix[0, 0], mix[0, 1] = alpha, 0.0
    if size[n] > 0.0:
        found, two[k] = 2, 0.0
        betas[done + 1] = _step(rows, n, k + 1, n, W[done + 1], difference, two)
        pivots[done + 1] = states[n]
        _reflect_twist(twist, W[done + 1], betas[done + 1])
        ratio = np.abs(two[n]) / diagonal
        distance[0] = min(distance[0], ratio)
        cosine = np.sqrt(0.5 + 0.5 * np.abs(overlap) / diagonal**2)
        sine = 0.5 * ratio / cosine
        delta = np.conj(phase * two[n]) / np.abs(two[n])
        mix[0, 0], mix[0, 1] = cosine * alpha, sine * delta
        mix[1, 0], mix[1, 1] = 1j * sine * alpha, -1j * cosine * delta
        a, b, c, d = mix[0, 0], mix[0, 1], mix[1, 0], mix[1, 1]
        for i in range(k, n):
            u, v = one[i], two[i]
            one[i], two[i] = a * u + b * v, c * u + d * v
        _store(two, states, k, columns[done + 1])
    else:
        for i in range(k, n):
            one[i] *= alpha
    _store(one, states, k, columns[done])
    return found


@kernel
def _reflect_twist(twist: Array, w: Array, beta: float) -> None:
    """Apply ``H^T twist H`` for the reflection H."""
    if beta == 0.0:
        return
    m = w.size
    for i in range(m):
        product = twist[i, 0] * w[0]
        for j in range(1, m):
            product += twist[i, j] * w[j]
        for j in range(m):
            twist[i, j] -= beta * product * np.conj(w[j])
    for j in range(m):
        product = w[0] * twist[0, j]
        for i in range(1, m):
            product += w[i] * twist[i, j]
        for i in range(m):
            twist[i, j] -= beta * np.conj(w[i]) * product
