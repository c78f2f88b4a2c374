"""The selective scan and its adjoint: numba loops over plain arrays, all arguments trusted.

``h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t``, ``y_t = C_t . h_t + D u_t`` for every channel.

=====================  ==================================  =====================================================
``u``, ``delta``       (batch, length, channels)           inputs and steps
``A``                  (channels, n)                       rates
``B``, ``C``           (batch, length, n)                  into and out of the states, shared by the channels
``D``                  (channels,)                         feedthrough
``reset``              (batch, length) bool                steps that know nothing of the state before them
``y``, ``gy``          (batch, length, channels)           outputs, written; their gradients
``starts``             (batch, pieces + 1, n, channels)    states before each piece of SEGMENT steps, and after the
                                                           last; the first is given, the others are written
``carry``              (batch, n, channels)                gradient of the last state; on return of the initial one
``gu``, ``g_delta``    as ``u``                            gradients, written
``gB``, ``gC``         as ``B``                            gradients, added to
``gA``, ``gD``         as ``A`` and ``D``, float64         gradients, added to
=====================  ==================================  =====================================================

What makes it fast:

- Channels are innermost, where the compiler makes vectors of them; states come next, so that the time is proportional
  to their number, whatever it is.
- Nothing of shape (batch, length, channels, n) exists. The backward pass computes the states again, from those that the
  forward pass kept before each piece.
- The exponential is a polynomial: a call of the C library would stop the compiler from making vectors.
- Arrays of a block are local, and an inner loop touches few of them: only then does the compiler find out that they do
  not overlap.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

# reassoc makes vectors of the sums over channels. Unlike the rest of fastmath, these let NaN and infinity through.
OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc"}}

# Channels in a block, and steps between kept states: as measured with AVX-512 (length 128, 128 channels, 12 and 128
# states). 64 channels are 10 % slower, 32 are 40 % slower; 8 to 16 steps differ little.
BLOCK = 128
SEGMENT = 16

LOG2_E = 1 / math.log(2)
LOG_2 = math.log(2)

# 2^r for |r| <= 1/2: interpolation at Chebyshev points, 2e-9 relative error, a thirtieth of a float32 rounding.
_POWER_SERIES = np.polynomial.Chebyshev.interpolate(np.exp2, 6, [-0.5, 0.5]).convert(kind=np.polynomial.Polynomial).coef
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = (np.float32(c) for c in _POWER_SERIES)

# Added to a float32, this leaves its nearest integer plus 127, the bias of exponents, in the lowest bits.
_SHIFT = np.float32(1.5 * 2**23 + 127)
_LOWEST, _HIGHEST = np.float32(-126), np.float32(128)  # 2^128 is infinite
_FRACTION_BITS = np.int32(23)


def exp2(x: Any) -> Any:
    """Return ``2^x``, within the kernels as `_exp2` says; this is what runs without a compiler."""
    return np.exp2(x)


# contract only: reassoc would cancel the shift
@overload(exp2, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _exp2(x: Any) -> Any:
    """Take the polynomial for float32, the C library for float64. Powers below 2^-126 become 2^-126."""

    def library(x: Any) -> Any:
        return np.exp2(x)

    def polynomial(x: Any) -> Any:
        x = _LOWEST if x < _LOWEST else x  # in this order NaN passes
        x = _HIGHEST if x > _HIGHEST else x
        shifted = np.float32(x + _SHIFT)
        r = x - (shifted - _SHIFT)
        power = _C0 + r * (_C1 + r * (_C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * _C6)))))
        return power * np.int32(shifted.view(np.int32) << _FRACTION_BITS).view(np.float32)

    return polynomial if x is types.float32 else library


@njit(**OPTIONS)
def scan(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, reset: Any, starts: Any, y: Any) -> None:
    """Write the outputs and the states around each piece."""
    batch, length, channels = u.shape
    n = A.shape[1]
    zero, log2_e = u.dtype.type(0), u.dtype.type(LOG2_E)
    a, h = np.empty((n, BLOCK), u.dtype), np.empty((n, BLOCK), u.dtype)
    step, v, out = np.empty(BLOCK, u.dtype), np.empty(BLOCK, u.dtype), np.empty(BLOCK, u.dtype)
    for first in range(0, channels, BLOCK):
        last = min(channels, first + BLOCK)
        width, feed = last - first, D[first:last]
        for i in range(n):
            for k in range(width):
                a[i, k] = A[first + k, i] * log2_e
        for row in range(batch):
            for i in range(n):
                for k in range(width):
                    h[i, k] = starts[row, 0, i, first + k]
            for t in range(length):
                u_t, delta_t, y_t = u[row, t, first:last], delta[row, t, first:last], y[row, t, first:last]
                for k in range(width):
                    step[k] = delta_t[k]
                for k in range(width):
                    v[k] = step[k] * u_t[k]
                for k in range(width):
                    out[k] = feed[k] * u_t[k]
                if reset[row, t]:  # a step of zero from rest, whatever the state is
                    step[:], h[:] = zero, zero
                for i in range(n):
                    b, c = B[row, t, i], C[row, t, i]
                    for k in range(width):
                        state = exp2(step[k] * a[i, k]) * h[i, k] + v[k] * b
                        h[i, k] = state
                        out[k] += c * state
                for k in range(width):
                    y_t[k] = out[k]
                if (t + 1) % SEGMENT == 0 or t + 1 == length:
                    for i in range(n):
                        kept = starts[row, t // SEGMENT + 1, i, first:last]
                        for k in range(width):
                            kept[k] = h[i, k]


@njit(**OPTIONS)
def scan_adjoint(
    gy: Any,
    carry: Any,
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    reset: Any,
    starts: Any,
    gu: Any,
    g_delta: Any,
    gA: Any,
    gB: Any,
    gC: Any,
    gD: Any,
) -> None:
    """Write the gradients, going back through the pieces."""
    batch, length, channels = u.shape
    n = A.shape[1]
    zero, log2_e, log_2 = u.dtype.type(0), u.dtype.type(LOG2_E), u.dtype.type(LOG_2)
    # states before and after each step of a piece, and its decays
    h, decay = np.empty((SEGMENT + 1, n, BLOCK), u.dtype), np.empty((SEGMENT, n, BLOCK), u.dtype)
    a, g, total = np.empty((n, BLOCK), u.dtype), np.empty((n, BLOCK), u.dtype), np.empty((n, BLOCK), u.dtype)
    step, v, out = np.empty(BLOCK, u.dtype), np.empty(BLOCK, u.dtype), np.empty(BLOCK, u.dtype)
    gv, ga, g_exponent = np.empty(BLOCK, u.dtype), np.empty(BLOCK, u.dtype), np.empty(BLOCK, u.dtype)
    g_feed = np.empty(BLOCK, u.dtype)
    for first in range(0, channels, BLOCK):
        last = min(channels, first + BLOCK)
        width, feed = last - first, D[first:last]
        for i in range(n):
            for k in range(width):
                a[i, k] = A[first + k, i] * log2_e
        for row in range(batch):
            for i in range(n):
                for k in range(width):
                    g[i, k] = carry[row, i, first + k]
                    total[i, k] = zero
            g_feed[:] = zero
            for piece in range((length - 1) // SEGMENT, -1, -1):
                begin, end = piece * SEGMENT, min(length, (piece + 1) * SEGMENT)
                for i in range(n):
                    kept = starts[row, piece, i, first:last]
                    for k in range(width):
                        h[0, i, k] = kept[k]
                for t in range(begin, end):
                    s, u_t, delta_t = t - begin, u[row, t, first:last], delta[row, t, first:last]
                    for k in range(width):
                        step[k] = delta_t[k]
                    for k in range(width):
                        v[k] = step[k] * u_t[k]
                    for i in range(n):
                        b = B[row, t, i]
                        if reset[row, t]:
                            for k in range(width):
                                h[s + 1, i, k] = v[k] * b
                        else:
                            for k in range(width):
                                e = exp2(step[k] * a[i, k])
                                decay[s, i, k] = e
                                h[s + 1, i, k] = e * h[s, i, k] + v[k] * b
                for t in range(end - 1, begin - 1, -1):
                    s, u_t, delta_t = t - begin, u[row, t, first:last], delta[row, t, first:last]
                    gy_t, gu_t, g_delta_t = gy[row, t, first:last], gu[row, t, first:last], g_delta[row, t, first:last]
                    for k in range(width):
                        step[k] = delta_t[k]
                    for k in range(width):
                        v[k] = step[k] * u_t[k]
                    for k in range(width):
                        out[k] = gy_t[k]
                    gv[:], g_exponent[:] = zero, zero
                    for i in range(n):
                        b, c = B[row, t, i], C[row, t, i]
                        sum_b, sum_c = zero, zero
                        for k in range(width):
                            g_state = g[i, k] + out[k] * c
                            g[i, k] = g_state
                            sum_c += out[k] * h[s + 1, i, k]
                            sum_b += g_state * v[k]
                        gC[row, t, i] += sum_c
                        gB[row, t, i] += sum_b
                        for k in range(width):
                            gv[k] += g[i, k] * b
                        if reset[row, t]:
                            g[i, :] = zero
                            continue
                        for k in range(width):
                            g_before = g[i, k] * decay[s, i, k]
                            g[i, k] = g_before
                            ga[k] = g_before * h[s, i, k]
                        for k in range(width):
                            g_exponent[k] += ga[k] * a[i, k]
                            total[i, k] += ga[k] * step[k]
                    for k in range(width):
                        gu_t[k] = gv[k] * step[k] + out[k] * feed[k]
                    for k in range(width):
                        g_delta_t[k] = gv[k] * u_t[k] + g_exponent[k] * log_2
                    for k in range(width):
                        g_feed[k] += out[k] * u_t[k]
            for i in range(n):
                for k in range(width):
                    carry[row, i, first + k] = g[i, k]
                    gA[first + k, i] += total[i, k]
            for k in range(width):
                gD[first + k] += g_feed[k]
