"""Shifts of the low-rank recursion of `adi`, chosen among Ritz values."""

from __future__ import annotations

import math

import numpy as np

from ..checks import Array

# Shifts of a cycle.
CYCLE = 4

# A shift with an imaginary part below this share of its size is real: a pair of them would be one shift twice.
NEARLY_REAL = 1e-8

# Bits of a shift. Few of them add to the entries of A without a rounding error: where all diagonal entries are alike,
# as of a rod, all would round alike, which moved the Hankel singular values of one with 1e5 states by 3e-8.
BITS = 12


def spread(values: Array, real: bool) -> list[complex]:
    """Choose the shifts of a cycle among Ritz values, so that their rational function is small at all of them.

    The first is the one best on its own, every further one the value at which those before do worst [1]_.

    References
    ----------
    .. [1] T. Penzl, "A cyclic low-rank Smith method for large sparse Lyapunov equations", SIAM J. Sci. Comput. 21,
       2000, pp. 1401-1418.
    """
    if real:
        values = np.where(np.abs(values.imag) < NEARLY_REAL * np.abs(values), values.real, values)
        values = values[values.imag >= 0]
    with np.errstate(divide="ignore"):
        decay = _decay(values, values)
        if real:
            decay = np.where(values.imag == 0, decay, decay + _decay(values, values.conj()))
    chosen = [int(np.argmin(decay.max(axis=0)))]
    total = decay[:, chosen[0]]
    while len(chosen) < min(CYCLE, len(values)) and np.isfinite(total.max()):
        chosen.append(int(np.argmax(total)))
        total = total + decay[:, chosen[-1]]
    return [
        complex(*_short(value.real, value.imag)) if value.imag else _short(value.real)[0] for value in values[chosen]
    ]


def _short(*numbers: float) -> list[float]:
    """Return numbers rounded to `BITS` bits."""
    return [
        math.ldexp(round(math.ldexp(mantissa, BITS)), exponent - BITS)
        for mantissa, exponent in map(math.frexp, numbers)
    ]


def _decay(at: Array, shifts: Array) -> Array:
    """Return ``log |(t - q) / (t + conj(q))|`` for all t, in rows, and q."""
    return np.asarray(np.log(np.abs(at[:, None] - shifts) / np.abs(at[:, None] + shifts.conj())))
