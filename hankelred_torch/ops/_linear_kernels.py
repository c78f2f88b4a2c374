"""The recurrence ``x_t = a_t x_{t-1} + b_t`` and its adjoint, real or complex: numba loops.

All arguments are trusted.

===========  ======================  ==============================================================================
``a``        (rows or 1, steps or    factors; an axis of size 1 stands for the same factors everywhere along it
             1, n)
``carry``    (rows, n) double        state (its gradient) at the edge of the sequence, updated
``b``        (rows, steps, n)        inputs
``reset``    (rows, steps) bool      where the state before is forgotten
``x``        (rows, steps, n)        states
``before``   (rows, n)               state before the first step
``gx``       (rows, steps, n)        gradients of the states through the output
``gb``       (rows, steps, n)        gradients in total, which are those of b, written
``ga``       as ``a``                gradient of a, added to
``reverse``  bool                    whether time runs from the last step to the first; "before" then means after
===========  ======================  ==============================================================================

The kernels carry the state in double precision whatever the arrays hold, as those of the planar arrays do: they are
bound by memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ._scan import OPTIONS


@njit(**OPTIONS)
def scan(a: Any, carry: Any, b: Any, reset: Any, reverse: bool, x: Any) -> None:
    """Write the states."""
    rows, steps, n = b.shape
    state = np.empty(n, carry.dtype)  # local: it overlaps with nothing, so that the compiler vectorises
    for row in range(rows):
        a_row = row if a.shape[0] > 1 else 0
        for k in range(n):
            state[k] = carry[row, k]
        for step in range(steps):
            t = steps - 1 - step if reverse else step
            a_t = t if a.shape[1] > 1 else 0
            if reset[row, t]:
                for k in range(n):
                    state[k] = b[row, t, k]
            else:
                for k in range(n):
                    state[k] = a[a_row, a_t, k] * state[k] + b[row, t, k]
            for k in range(n):
                x[row, t, k] = state[k]
        for k in range(n):
            carry[row, k] = state[k]


@njit(**OPTIONS)
def scan_adjoint(a: Any, carry: Any, x: Any, before: Any, gx: Any, reset: Any, reverse: bool, gb: Any, ga: Any) -> None:
    """Write ``g_t = gx_t + conj(a_{t+1}) g_{t+1}``, add ``conj(x_{t-1}) g_t`` to the gradient of a."""
    rows, steps, n = x.shape
    state = np.empty(n, carry.dtype)
    for row in range(rows):
        a_row = row if a.shape[0] > 1 else 0
        for k in range(n):
            state[k] = carry[row, k]
        for step in range(steps - 1, -1, -1):
            t = steps - 1 - step if reverse else step
            a_t = t if a.shape[1] > 1 else 0
            for k in range(n):
                g = state[k] + gx[row, t, k]
                state[k] = g
                gb[row, t, k] = g
            if reset[row, t]:
                state[:] = 0
                continue
            past = before[row] if step == 0 else x[row, t + 1 if reverse else t - 1]
            for k in range(n):
                ga[a_row, a_t, k] += state[k] * past[k].conjugate()
                state[k] = state[k] * a[a_row, a_t, k].conjugate()
        for k in range(n):
            carry[row, k] = state[k]
