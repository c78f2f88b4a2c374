"""Factors of diagonal systems together with what their derivative needs: numba loops over plain arrays, no checks.

One step of the elimination in `_diagonal_kernels` writes a column s of the factor and a new generator column g' from
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
from numba import njit

from ._checks import Array
from ._diagonal_kernels import OPTIONS, _bring_forward, _differences, _largest, _step, _store, row_sizes


@njit(**OPTIONS)
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


@njit(**OPTIONS)
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


@njit(**OPTIONS)
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
    """Write the gradients with respect to poles (batch, n) and inputs (batch, n, m), given those of the columns."""
    batch, n = lam.shape
    m = w.shape[2]
    M, Y, H = np.empty((n, n), F.dtype), np.empty((n, m), F.dtype), np.empty((n, n), F.dtype)
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
