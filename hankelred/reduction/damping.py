"""What rounding can do to models with weakly damped poles."""

from __future__ import annotations

import numpy as np

from .. import norms
from ..hankel import Factored
from ..linalg.gain import largest_gain
from ..rounding import Matrices, sample_frequencies
from ..systems import StateSpace

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
    if parts.is_split or found.floor == 0.0 or order == 0 or np.isinf(found.gain):
        return 0.0
    few = system.order <= MEASURED_UP_TO and not system.is_sparse
    if found.weighting is None:
        values, inflow = hsv[:order], (np.abs(small.B) ** 2).sum(axis=1)
        moved = 4 * float(np.abs(small.A).max()) * found.floor
        splits_a_pair = few and order < len(hsv) and hsv[order - 1] - hsv[order] < NEARLY_EQUAL * hsv[order - 1]
        if not (splits_a_pair or moved > 2 * WEAKLY_DAMPED * inflow.min()):
            return float(moved * (values / inflow).max())
    if not reduced.is_stable():
        return np.inf
    if few:
        error = float(norms.hinf_norm(system - reduced))
    else:
        poles = np.concatenate([parts.poles, reduced.poles()])
        omega = sample_frequencies(poles, parts.discrete, system.dtype.kind == "c")
        error = largest_gain(system._response(omega) - reduced._response(omega))
    return max(0.0, (1 + SAMPLED) * error - found.error_bound(order))
