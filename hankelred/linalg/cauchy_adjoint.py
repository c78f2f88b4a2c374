"""Factors of diagonal systems together with what their derivative needs: numba loops over plain arrays, no checks.

One step of the elimination in `cauchy_factor` writes a column s of the factor and a new generator column g' from
the reflected one g. Read backwards it is the unitary map

    ``lam_i s_i = lam_k s_i + sqrt(gap_k) conj(turn_k) g'_i``  and
    ``g_i = sqrt(gap_k) s_i - mirror_k conj(turn_k) g'_i``,

in both time domains. Followed from the last step to the first it gives the pair with ``Lam S = S M`` and ``B = S Y``,
M lower triangular in the order of elimination: products of known digits, where solving with S would lose them all.

If P = S S^H is a Gramian and a number depends on S through it only, so that its gradient F with respect to S is 2 G S
with a Hermitian G, then ``H = 2 X S``, X the solution of the adjoint Lyapunov equation, solves ``H = F + Lam^H H M``,
in continuous time ``Lam^H H + H M + F = 0``. Its columns follow one from another, from the last to the first, and
nothing is divided by anything but the denominators of the Gramian. The gradients are ``H Y`` with respect to B and the
row sums of ``(H M) conj(S)``, in continuous time of ``H conj(S)``, with respect to the poles.
"""

from __future__ import annotations

import numpy as np

from ..checks import Array
from .cauchy_factor import (
    _bring_forward,
    _differences,
    _largest,
    _reflect_twist,
    _step,
    _store,
    row_sizes,
)
from .compiled import kernel


@kernel
def factor_bank(
    lam: Array,
    z: Array,
    gap: Array,
    mirror: Array,
    turn: Array,
    B: Array,
    order: Array,
    first: Array,
    share: float,
    columns: Array,
    pivots: Array,
    w: Array,
    beta: Array,
) -> None:
    """Factor many systems, first axis of every array; nothing but the last four arrays is changed.

    ``order`` (batch, n) lists the states; the ``first`` (batch,) of them are eliminated before all others. Column k of
    the factor becomes ``columns[:, k]``; it came from the state ``pivots[:, k]``, -1 where nothing was left, by the
    reflection ``I - beta w w^H``.
    """
    batch, n = lam.shape
    m = B.shape[2]
    size, work, column = np.empty(n), np.empty(n, B.dtype), np.empty(n, B.dtype)
    G = np.empty((m, n), B.dtype)
    for b in range(batch):
        rows = order[b].copy()
        p_lam, p_gap, p_mirror, p_turn = lam[b][rows], gap[b][rows], mirror[b][rows], turn[b][rows]
        p_z = z[b][rows[: z.shape[1]]]
        for j in range(m):
            for i in range(n):
                G[j, i] = B[b, rows[i], j]
        row_sizes(G, p_gap, size)
        done = 0
        for part in range(2):
            last = first[b] if part == 0 else n
            if part == 1 and first[b] == n:
                break
            floor = share * size[done:last].sum()
            while done < last:
                p, total = _largest(size, done, last)
                if not total > floor:
                    break
                _bring_forward(p, done, p_lam, p_z, p_gap, p_mirror, p_turn, G, size, rows)
                pivots[b, done], w[b, done] = rows[done], 0.0
                beta[b, done] = _step(
                    done, done + 1, n, p_lam, p_z, p_gap, p_mirror, p_turn, G, size, w[b, done], work, column
                )
                _store(column, rows, done, n, columns[b, done])
                done += 1
        columns[b, done:] = 0.0
        pivots[b, done:] = -1
        w[b, done:] = 0.0
        beta[b, done:] = 0.0


@kernel
def factor_pairs_bank(
    lam: Array,
    z: Array,
    gap: Array,
    mirror: Array,
    turn: Array,
    B: Array,
    order: Array,
    first: Array,
    share: float,
    columns: Array,
    pivots: Array,
    w: Array,
    beta: Array,
    mix: Array,
    distance: Array,
) -> None:
    """Do the same for all poles and their conjugates, as `cauchy_factor.factor_pairs` does.

    ``columns`` (batch, 2n, n) become the upper halves of factors whose lower halves are conjugate. They are, in pairs,
    unitary combinations of what the elimination gives: column k of a pair is ``mix[k, 0]`` times the first and
    ``mix[k, 1]`` times the second. A pivot that is the conjugate of state i is n + i.
    """
    batch, n = lam.shape
    m = B.shape[2]
    size, work = np.empty(n + 1), np.empty(n + 1, B.dtype)
    one, two = np.empty(n + 1, B.dtype), np.empty(n + 1, B.dtype)
    G, twist = np.empty((m, n + 1), B.dtype), np.empty((m, m), B.dtype)
    for b in range(batch):
        rows = np.append(order[b], n)
        spare = np.append(order[b], 0)
        p_lam, p_gap, p_mirror, p_turn = lam[b][spare], gap[b][spare], mirror[b][spare], turn[b][spare]
        p_z = z[b][spare[: min(z.shape[1], 1) * (n + 1)]]
        for j in range(m):
            for i in range(n):
                G[j, i] = B[b, rows[i], j]
            G[j, n] = 0.0
            twist[j] = 0.0
            twist[j, j] = 1.0
        row_sizes(G, p_gap, size)
        pivots[b], w[b], beta[b], mix[b], distance[b] = -1, 0.0, 0.0, 0.0, 1.0
        k = done = 0
        for part in range(2):
            last = first[b] if part == 0 else n
            if part == 1 and first[b] == n:
                break
            floor = share * size[k:last].sum()
            while k < last:
                p, total = _largest(size, k, last)
                if not total > floor:
                    break
                _bring_forward(p, k, p_lam, p_z, p_gap, p_mirror, p_turn, G, size, rows)
                _borrow_conjugate(k, p_lam, p_z, p_gap, p_mirror, p_turn, G, size, twist)
                pivots[b, done] = rows[k]
                arrays = (p_lam, p_z, p_gap, p_mirror, p_turn, G, size)
                beta[b, done] = _step(k, k + 1, n + 1, *arrays, w[b, done], work, one)
                _reflect_twist(twist, w[b, done], beta[b, done])
                diagonal, overlap = np.abs(one[k]), np.conj(one[k]) * one[n]
                phase = np.sqrt(np.conj(overlap) / np.abs(overlap)) if np.abs(overlap) > 0.0 else overlap + 1.0
                alpha = phase * np.conj(one[k]) / diagonal
                mix[b, done, 0] = alpha
                if size[n] > 0.0:
                    two[k] = 0.0
                    pivots[b, done + 1] = n + rows[k]
                    beta[b, done + 1] = _step(n, k + 1, n, *arrays, w[b, done + 1], work, two)
                    _reflect_twist(twist, w[b, done + 1], beta[b, done + 1])
                    ratio = np.abs(two[n]) / diagonal
                    distance[b] = min(distance[b], ratio)
                    cosine = np.sqrt(0.5 + 0.5 * np.abs(overlap) / diagonal**2)
                    sine = 0.5 * ratio / cosine
                    delta = np.conj(phase * two[n]) / np.abs(two[n])
                    mix[b, done, 0], mix[b, done, 1] = cosine * alpha, sine * delta
                    mix[b, done + 1, 0], mix[b, done + 1, 1] = 1j * sine * alpha, -1j * cosine * delta
                    for i in range(k, n):
                        u, v = one[i], two[i]
                        one[i] = mix[b, done, 0] * u + mix[b, done, 1] * v
                        two[i] = mix[b, done + 1, 0] * u + mix[b, done + 1, 1] * v
                    _store(two, rows, k, n, columns[b, done + 1])
                else:
                    for i in range(k, n):
                        one[i] = alpha * one[i]
                _store(one, rows, k, n, columns[b, done])
                done += 2 if pivots[b, done + 1] >= 0 else 1
                k += 1
        columns[b, done:] = 0.0


@kernel
def _borrow_conjugate(
    k: int, lam: Array, z: Array, gap: Array, mirror: Array, turn: Array, G: Array, size: Array, twist: Array
) -> None:
    """Put the conjugate of row k into the spare last entry of every array."""
    n, m = lam.size - 1, G.shape[0]
    lam[n], gap[n], mirror[n], turn[n] = np.conj(lam[k]), gap[k], np.conj(mirror[k]), np.conj(turn[k])
    if z.size > 0:
        z[n] = np.conj(z[k])
    size[n] = size[k]
    for j in range(m):
        G[j, n] = 0.0
        for l in range(m):
            G[j, n] += np.conj(G[l, k]) * twist[l, j]


@kernel
def unmix(columns: Array, mix: Array) -> None:
    """Turn pairs of columns, (2n, n), back into what the elimination gave."""
    k, rows = 0, columns.shape[1]
    while k < columns.shape[0]:
        if mix[k, 1] == 0.0:
            for i in range(rows):
                columns[k, i] *= np.conj(mix[k, 0])
            k += 1
            continue
        for i in range(rows):
            u, v = columns[k, i], columns[k + 1, i]
            columns[k, i] = np.conj(mix[k, 0]) * u + np.conj(mix[k + 1, 0]) * v
            columns[k + 1, i] = np.conj(mix[k, 1]) * u + np.conj(mix[k + 1, 1]) * v
        k += 2


@kernel
def isometric_pair(
    lam: Array, gap: Array, mirror: Array, turn: Array, pivots: Array, w: Array, beta: Array, M: Array, Y: Array
) -> int:
    """Write M and Y of one system, with ``Lam S = S M`` and ``B = S Y``; return how many columns S has."""
    m, steps = w.shape[1], 0
    while steps < pivots.size and pivots[steps] >= 0:
        steps += 1
    M[:], Y[:] = 0.0, 0.0
    for k in range(steps - 1, -1, -1):
        i, q = pivots[k], 0
        for j in range(m):  # the reflection moved the row to the largest entry of w
            if np.abs(w[k, j]) > np.abs(w[k, q]):
                q = j
        root, phase = np.sqrt(gap[i]), np.conj(turn[i])
        M[k, k] = lam[i]
        Y[k, q] = root
        for j in range(k + 1, steps):
            M[j, k] = root * phase * Y[j, q]
            Y[j, q] *= -mirror[i] * phase
        if beta[k] > 0.0:
            for j in range(k, steps):
                product = Y[j, 0] * 0.0
                for l in range(m):
                    product += Y[j, l] * w[k, l]
                product *= beta[k]
                for l in range(m):
                    Y[j, l] -= product * np.conj(w[k, l])
    return steps


@kernel
def factor_adjoint_bank(
    lam: Array,
    z: Array,
    gap: Array,
    mirror: Array,
    turn: Array,
    columns: Array,
    pivots: Array,
    w: Array,
    beta: Array,
    F: Array,
    discrete: bool,
    gradient: Array,
    B_gradient: Array,
) -> None:
    """Write the gradients with respect to poles (batch, n) and inputs (batch, n, m), given those of the columns.

    With pairs, the arrays of the poles hold their conjugates after them, and the columns are those of `unmix`.
    """
    batch, most, n = columns.shape
    m = w.shape[2]
    M, Y, H = np.empty((most, most), F.dtype), np.empty((most, m), F.dtype), np.empty((most, n), F.dtype)
    past, difference, transposed = np.empty(n, F.dtype), np.empty(n, F.dtype), np.empty((m, n), F.dtype)
    for b in range(batch):
        steps = isometric_pair(lam[b], gap[b], mirror[b], turn[b], pivots[b], w[b], beta[b], M, Y)
        gradient[b], transposed[:] = 0.0, 0.0
        for j in range(steps - 1, -1, -1):
            k = pivots[b, j]
            past[:] = 0.0
            for q in range(j + 1, steps):
                factor = M[q, j]
                for i in range(n):
                    past[i] += H[q, i] * factor
            _differences(lam[b], z[b], k, 0, n, difference)
            for i in range(n):
                denominator = np.conj(gap[b, k] - difference[i] * mirror[b, k])
                H[j, i] = (F[b, j, i] + mirror[b, i] * past[i]) / denominator
            if discrete:
                for i in range(n):
                    gradient[b, i] += (past[i] + H[j, i] * lam[b, k]) * np.conj(columns[b, j, i])
            else:
                for i in range(n):
                    gradient[b, i] += H[j, i] * np.conj(columns[b, j, i])
            for l in range(m):
                for i in range(n):
                    transposed[l, i] += H[j, i] * Y[j, l]
        for i in range(n):
            for l in range(m):
                B_gradient[b, i, l] = transposed[l, i]
