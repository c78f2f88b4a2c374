"""Recurrences of selective models and sums over them: numba loops over plain arrays, no checks.

A piece is some consecutive steps of one sequence. For Mamba and its relatives it holds many channels, innermost, where
the compiler makes vectors of them: ``decay`` (steps, n or 1, width or 1), ``v`` (steps, width), ``B`` and ``c``
(steps, n), and states ``h`` (steps + 1, n, width), of which ``h[0]`` is given and the others are written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..linalg.compiled import kernel


@kernel
def add_gramians(data: Any, sums: Any) -> None:
    """Add the controllability and observability Gramians of all steps of a piece.

    `data` are `Steps` of (steps, n); `sums` are `GramianSums`, lower triangles: X and W go on from piece to piece.
    ``X_t = (a_t a_t^H) ∘ X_{t-1} + b_t b_t^H`` is the first at step t; the second need no pass from the end:
    ``W_t = 1 + (conj(a_t) a_t^T) ∘ W_{t-1}`` counts the steps that see the output of step t.
    """
    (a, b, c), (X, W, P, Q) = data, sums
    steps, n = a.shape
    for t in range(steps):
        at, bt, ct = a[t].copy(), b[t].copy(), c[t].copy()
        for i in range(n):
            ai, bi, ci = at[i], bt[i], np.conj(ct[i])
            for j in range(i + 1):
                x = ai * np.conj(at[j]) * X[i, j] + bi * np.conj(bt[j])
                X[i, j] = x
                P[i, j] += x
            for j in range(i + 1):
                w = 1.0 + np.conj(ai) * at[j] * W[i, j]
                W[i, j] = w
                Q[i, j] += ci * ct[j] * w


@kernel
def states_of_channels(decay: Any, v: Any, B: Any, h: Any) -> None:
    """Write the states of many channels, ``h_t = decay_t h_{t-1} + v_t B_t``."""
    steps, n, width = h.shape[0] - 1, h.shape[1], h.shape[2]
    each_state, each_channel = decay.shape[1] > 1, decay.shape[2] > 1
    for t in range(steps):
        for i in range(n):
            row, b = i if each_state else 0, B[t, i]
            if each_channel:
                for k in range(width):
                    h[t + 1, i, k] = decay[t, row, k] * h[t, i, k] + v[t, k] * b
            else:
                shared = decay[t, row, 0]
                for k in range(width):
                    h[t + 1, i, k] = shared * h[t, i, k] + v[t, k] * b


@kernel
def add_forms(G: Any, c: Any, plain: Any, weighted: Any) -> None:
    """Add ``sum_t G_t`` and ``sum_t (c_t c_t^T) ∘ G_t`` of matrices G, (steps, n, n)."""
    steps, n = c.shape
    for t in range(steps):
        for i in range(n):
            for j in range(n):
                plain[i, j] += G[t, i, j]
            for j in range(n):
                weighted[i, j] += c[t, i] * c[t, j] * G[t, i, j]


@kernel
def write_by_delta_rule(decay: Any, beta: Any, k: Any, x: Any, S: Any, u: Any) -> None:
    """Write ``u_t = beta_t (x_t - (a_t S_{t-1})^T k_t)`` of a piece of one head, whose state S (n, width) goes along.

    ``decay`` is (steps, n or 1), ``beta`` (steps,), ``k`` (steps, n), ``x`` and ``u`` (steps, width).
    """
    n, width = S.shape
    each_state = decay.shape[1] > 1
    for t in range(len(x)):
        for j in range(width):
            u[t, j] = x[t, j]
        for i in range(n):
            a, ki = decay[t, i if each_state else 0], k[t, i]
            for j in range(width):
                S[i, j] *= a
                u[t, j] -= ki * S[i, j]
        for j in range(width):
            u[t, j] *= beta[t]
        for i in range(n):
            ki = k[t, i]
            for j in range(width):
                S[i, j] += ki * u[t, j]


@kernel
def answers_of_delta_rule(data: Any, S: Any, D: Any, before: Any, error: Any) -> None:
    """Write what leaving out single key channels would change, to first order, for a piece of one head.

    `data` are decays (steps, n or 1), beta (steps,), keys and queries (steps, n) and what is written, u (steps, m), of
    some columns. Their states ``S`` (n, m) and the answers ``D`` (n, n m) of all states to each channel go along,
    ``D_t = (I - b k k^T) a D_{t-1} - b k (k ∘ a S_{t-1})``. Written are ``before``, the decayed states, and ``error``,
    ``q ∘ S_t + D_t^T q``, (steps, n, m) each.
    """
    decay, beta, k, q, u = data
    n, m = S.shape
    each_state = decay.shape[1] > 1
    read = np.empty(n * m, S.dtype)
    for t in range(len(u)):
        read[:] = 0
        for j in range(n):
            a, kj = decay[t, j if each_state else 0], k[t, j]
            for i in range(n * m):
                D[j, i] *= a
                read[i] += kj * D[j, i]
            for c in range(m):
                before[t, j, c] = a * S[j, c]
        for i in range(n):
            for c in range(m):
                read[i * m + c] = beta[t] * (read[i * m + c] + k[t, i] * before[t, i, c])
                S[i, c] = before[t, i, c] + k[t, i] * u[t, c]
                error[t, i, c] = q[t, i] * S[i, c]
        flat = error[t].reshape(n * m)
        for j in range(n):
            kj, qj = k[t, j], q[t, j]
            for i in range(n * m):
                D[j, i] -= kj * read[i]
                flat[i] += qj * D[j, i]


@kernel
def add_noise_of_delta_rule(decay: Any, beta: Any, k: Any, weight: Any, state: Any, total: Any) -> None:
    """Add ``weight_t N_t`` (n, n), the covariance of a state whose values are white and of unit size.

    ``N_t = (I - b k k^T) a N_{t-1} a (I - b k k^T) + b^2 k k^T`` goes along in `state`.
    """
    n = len(state)
    each_state = decay.shape[1] > 1
    z = np.empty(n)
    for t in range(len(k)):
        b, size = beta[t], 0.0
        for i in range(n):
            z[i] = 0.0
            for j in range(n):
                state[i, j] *= decay[t, i if each_state else 0] * decay[t, j if each_state else 0]
                z[i] += state[i, j] * k[t, j]
            size += z[i] * k[t, i]
        size = b * b * (size + 1.0)
        for i in range(n):
            for j in range(n):
                state[i, j] += size * k[t, i] * k[t, j] - b * (k[t, i] * z[j] + z[i] * k[t, j])
                total[i, j] += weight[t] * state[i, j]
