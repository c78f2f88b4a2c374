"""The recurrence ``x_t = lam x_{t-1} + v_t`` and its adjoint over planar arrays: numba loops.

A planar array holds a complex one with the real parts of all n states before their imaginary parts, ``(..., 2n)``.
All arguments are trusted.

==============  ===================  ========================================================================
``lam``         (2, n) float64       poles, real parts and imaginary parts
``carry``       (rows, 2n) float64   state (adjoint state) at the edge of the block of time steps, updated
``v``           (rows, steps, 2n)    inputs of the states; the states on return
``x``           (rows, steps, 2n)    states
``before``      (rows, 2n)           states of the step before the block
``g``           (rows, steps, 2n)    gradients of the states through the output; in total on return
``total``       (2, n) float64       gradient of lam, added to
==============  ===================  ========================================================================

The kernels carry the state in double precision whatever the arrays hold: the loop is bound by memory, so that costs
little, and a float32 layer gets the poles and the memory of its float64 self however long the sequence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

# contract: multiply-adds in one instruction. Unlike the rest of fastmath it lets NaN and infinity through.
OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


@njit(**OPTIONS)
def scan(lam: Any, carry: Any, v: Any) -> None:
    """Turn the inputs of a block of steps into its states."""
    rows, steps, width = v.shape
    n = width // 2
    # copies in local arrays: only then does the compiler know that nothing overlaps, and vectorises
    lam_re, lam_im = lam[0].copy(), lam[1].copy()
    re, im = np.empty(n), np.empty(n)
    for row in range(rows):
        for k in range(n):
            re[k], im[k] = carry[row, k], carry[row, n + k]
        for t in range(steps):
            for k in range(n):  # v indexed in full: cut into views it would look like two arrays that may overlap
                x_re = lam_re[k] * re[k] - lam_im[k] * im[k] + v[row, t, k]
                x_im = lam_re[k] * im[k] + lam_im[k] * re[k] + v[row, t, n + k]
                re[k], im[k] = x_re, x_im
                v[row, t, k], v[row, t, n + k] = x_re, x_im
        for k in range(n):
            carry[row, k], carry[row, n + k] = re[k], im[k]


@njit(**OPTIONS)
def scan_adjoint(lam: Any, carry: Any, x: Any, before: Any, g: Any, total: Any) -> None:
    """Run ``g_t <- g_t + conj(lam) g_{t+1}`` back through a block and add ``conj(x_{t-1}) g_t`` to the total."""
    rows, steps, width = g.shape
    n = width // 2
    lam_re, lam_im = lam[0].copy(), lam[1].copy()
    re, im = np.empty(n), np.empty(n)
    total_re, total_im = np.zeros(n), np.zeros(n)
    for row in range(rows):
        for k in range(n):
            re[k], im[k] = carry[row, k], carry[row, n + k]
        for t in range(steps - 1, -1, -1):
            for k in range(n):
                a_re = lam_re[k] * re[k] + lam_im[k] * im[k] + g[row, t, k]
                a_im = lam_re[k] * im[k] - lam_im[k] * re[k] + g[row, t, n + k]
                re[k], im[k] = a_re, a_im
                g[row, t, k], g[row, t, n + k] = a_re, a_im
            past = x[row, t - 1] if t > 0 else before[row]
            # a loop of its own: with more arrays in the one above the compiler gives up on telling them apart
            for k in range(n):
                past_re, past_im = np.float64(past[k]), np.float64(past[n + k])
                total_re[k] += past_re * re[k] + past_im * im[k]
                total_im[k] += past_re * im[k] - past_im * re[k]
        for k in range(n):
            carry[row, k], carry[row, n + k] = re[k], im[k]
    for k in range(n):
        total[0, k] += total_re[k]
        total[1, k] += total_im[k]
