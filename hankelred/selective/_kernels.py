"""Recurrences of selective models and sums over them: numba loops over plain arrays, no checks.

A piece is some consecutive steps of one sequence. For Mamba and its relatives it holds many channels, innermost, where
the compiler makes vectors of them.

=============  ==============================  ==================================================================
``data``       `Steps` of (steps, n)           decays a, increments b and output rows c of one channel
``c``          (steps, n)                      output rows
``sums``       `GramianSums` of (n, n)         X, W, P, Q
``X``, ``W``   (n, n)                          lower triangles carried from piece to piece
``P``, ``Q``   (n, n)                          lower triangles of sums, added to
``decay``      (steps, n or 1, width or 1)     decays of many channels; an axis of 1 is shared
``v``          (steps, width)                  inputs, times the step of the model
``h``          (steps + 1, n, width)           states; ``h[0]`` is given, the others are written
``G``          (steps, n, n)                   one matrix per step
=============  ==============================  ==================================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..linalg.compiled import kernel


@kernel
def add_gramians(data: Any, sums: Any) -> None:
    """Add the controllability and observability Gramians of all steps of a piece.

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
def states_of_channel(a: Any, b: Any, h: Any) -> None:
    """Write the states of one channel; ``h``, (steps + 1, n), holds the state before the piece in ``h[0]``."""
    steps, n = a.shape
    for t in range(steps):
        for i in range(n):
            h[t + 1, i] = a[t, i] * h[t, i] + b[t, i]


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
    """Add ``sum_t G_t`` and ``sum_t (c_t c_t^T) ∘ G_t``."""
    steps, n = c.shape
    for t in range(steps):
        for i in range(n):
            for j in range(n):
                plain[i, j] += G[t, i, j]
            for j in range(n):
                weighted[i, j] += c[t, i] * c[t, j] * G[t, i, j]


@kernel
def drop_states(M: Any, dropped: Any, first: int, count: int) -> None:
    """Mark `count` states to drop, `first` and then one by one the state that adds least to ``1_D^T M 1_D``."""
    n = len(M)
    toward = np.zeros(n)  # M 1_D
    for step in range(count):
        best, least = first, np.inf
        for i in range(n if step > 0 else 0):
            cost = M[i, i] + 2.0 * toward[i]
            if not dropped[i] and cost < least:
                best, least = i, cost
        dropped[best] = True
        for i in range(n):
            toward[i] += M[i, best]


@kernel
def swap_states(M: Any, dropped: Any, tolerance: float) -> None:
    """Exchange a kept for a dropped state, the best pair each time, until none helps by more than the tolerance."""
    n = len(M)
    toward = np.zeros(n)
    while True:
        toward[:] = 0.0  # formed anew, so that rounding does not pile up
        for j in range(n):
            if dropped[j]:
                for i in range(n):
                    toward[i] += M[i, j]
        best, back, away = -tolerance, -1, -1
        for d in range(n):
            if not dropped[d]:
                continue
            gain = M[d, d] - 2.0 * toward[d]
            for k in range(n):
                if dropped[k]:
                    continue
                change = gain + M[k, k] + 2.0 * (toward[k] - M[k, d])
                if change < best:
                    best, back, away = change, d, k
        if back < 0:
            return
        dropped[back], dropped[away] = False, True


@kernel
def best_set(M: Any, count: int) -> tuple[int, float]:
    """Return the set of `count` states with the least ``1_D^T M 1_D``, as the bits of a number, by trying all."""
    n = len(M)
    best, least = 0, np.inf
    members = np.empty(count, np.int64)
    for bits in range(1 << n):
        size = 0
        for i in range(n):
            if (bits >> i) & 1:
                if size < count:
                    members[size] = i
                size += 1
        if size != count:
            continue
        value = 0.0
        for p in range(count):
            for q in range(count):
                value += M[members[p], members[q]]
        if value < least:
            best, least = bits, value
    return best, least
