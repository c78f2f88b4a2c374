"""What rounding adds to the error of a reduced model: where poles are weakly damped, and in single precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import norms
from ..checks import single
from ..hankel import Factored
from ..order import error_bound
from ..parts import Matrices
from ..rounding import largest_gain, sample_frequencies
from ..systems import DiagonalSystem, StateSpace

# Damping of which rounding can change this share is looked at, by a norm up to this order and by samples beyond; what
# was seen counts as this much higher.
WEAKLY_DAMPED, MEASURED_UP_TO, SAMPLED = 0.1, 150, 0.01

# Values closer than this, relative to themselves, may belong to one pair of poles.
NEARLY_EQUAL = 1e-3


def of_weak_damping(found: Factored, small: Matrices, reduced: StateSpace, order: int) -> float:
    """What rounding of weakly damped poles can add to the error, on top of the bound of the truncation.

    A balanced state i has a gain of about ``2 hsv_i`` and decays at a rate of ``|b_i|^2 / (2 hsv_i)``. Its basis is
    certain to ``floor / hsv_i``, and so is A, relative to its norm; the gain changes by the same share as the rate.
    Where that is not small, or a small system's nearly equal values are cut, the error is measured, for large systems
    at the frequencies of the poles.
    """
    system, parts, hsv = found.system, found.parts, found.hsv
    if parts.kept or found.floor == 0.0 or order == 0:
        return 0.0
    values = hsv[:order]
    moved = 4 * np.abs(small.A).max() * found.floor * values / (np.abs(small.B) ** 2).sum(axis=1)
    few = system.order <= MEASURED_UP_TO
    splits_a_pair = few and order < len(hsv) and hsv[order - 1] - hsv[order] < NEARLY_EQUAL * hsv[order - 1]
    if not (splits_a_pair or (moved > 2 * WEAKLY_DAMPED * values).any()):
        return float(moved.max())
    if not reduced.is_stable():
        return np.inf
    if few:
        error = float(norms.hinf_norm(system - reduced))
    else:
        poles = np.concatenate([parts.poles, reduced.poles()])
        omega = sample_frequencies(poles, parts.discrete, system.dtype.kind == "c")
        error = largest_gain(system._response(omega) - reduced._response(omega))
    return max(0.0, (1 + SAMPLED) * error - error_bound(hsv, order, found.floor))


def rounded(system: Any) -> Any:
    """Return a system rounded to single precision."""
    names = system.outer_names
    B, C, D = single(system.B), single(system.C), single(system.D)
    if system.is_diagonal:
        return DiagonalSystem.trusted(system.spectrum.map(single), B, C, D, system.dt, system.output, names)
    return StateSpace.trusted(single(system.A), B, C, D, system.dt, names)


def tail(system: Any, first: int) -> Any:
    """Return the states of a system from `first` on, which the others before them do not touch."""
    if system.is_diagonal:
        return system.take(np.arange(first, system.n))
    A, B, C = system.A[first:, first:], system.B[first:], system.C[:, first:]
    return StateSpace.trusted(A.copy(), B.copy(), C.copy(), system.D.copy(), system.dt)
