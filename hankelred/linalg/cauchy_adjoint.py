"""Derivatives of factors of diagonal systems: numba loops over plain arrays, no checks.

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
from .cauchy import FactorSteps, PoleData
from .cauchy_factor import _differences
from .compiled import kernel


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
def isometric_pair(p: PoleData, pivots: Array, w: Array, beta: Array, M: Array, Y: Array) -> int:
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
        root, phase, mirror = np.sqrt(p.gap[i]), np.conj(p.turn[i]), p.mirror[i]
        M[k, k] = p.lam[i]
        Y[k, q] = root
        for j in range(k + 1, steps):
            M[j, k] = root * phase * Y[j, q]
            Y[j, q] *= -mirror * phase
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
def adjoint_bank(poles: PoleData, s: FactorSteps, F: Array, discrete: bool, gradient: Array, B_gradient: Array) -> None:
    """Write the gradients with respect to poles (batch, n) and inputs (batch, n, m), given those of the columns, F.

    With pairs, the arrays of the poles hold their conjugates after them, and the columns are those of `unmix`.
    """
    batch, most, n = F.shape
    m = s.w.shape[2]
    M, Y, H = np.empty((most, most), F.dtype), np.empty((most, m), F.dtype), np.empty((most, n), F.dtype)
    past, difference, transposed = np.empty(n, F.dtype), np.empty(n, F.dtype), np.empty((m, n), F.dtype)
    for b in range(batch):
        p = PoleData(poles.lam[b], poles.z[b], poles.gap[b], poles.mirror[b], poles.turn[b])
        columns, pivots, mirror, gradient_b = s.columns[b], s.pivots[b], p.mirror, gradient[b]
        steps = isometric_pair(p, pivots, s.w[b], s.beta[b], M, Y)
        gradient_b[:], transposed[:] = 0.0, 0.0
        for j in range(steps - 1, -1, -1):
            k = pivots[j]
            past[:] = 0.0
            for q in range(j + 1, steps):
                factor = M[q, j]
                for i in range(n):
                    past[i] += H[q, i] * factor
            _differences(p.lam, p.z, p.lam[k], p.z, k, 0, n, difference)
            lam_k, gap_k, mirror_k = p.lam[k], p.gap[k], mirror[k]
            for i in range(n):
                H[j, i] = (F[b, j, i] + mirror[i] * past[i]) / np.conj(gap_k - difference[i] * mirror_k)
            if discrete:
                for i in range(n):
                    gradient_b[i] += (past[i] + H[j, i] * lam_k) * np.conj(columns[j, i])
            else:
                for i in range(n):
                    gradient_b[i] += H[j, i] * np.conj(columns[j, i])
            for l in range(m):
                for i in range(n):
                    transposed[l, i] += H[j, i] * Y[j, l]
        B_gradient[b] = transposed.T
