"""What rounding can do to models with weakly damped poles.

A balanced state i has a gain of about ``2 hsv_i`` and decays at a rate of ``|b_i|^2 / (2 hsv_i)``. Its basis is certain
to ``floor / hsv_i``, and so is A, relative to its norm; the gain changes by the same share as the rate. Where that is
not small, or a small system's nearly equal values are cut, the error is measured, for large systems at the frequencies
of the poles.
"""

from __future__ import annotations

import numpy as np

from .. import norms
from ..hankel import Factored
from ..linalg.gain import largest_gain
from ..rounding import Matrices, sample_frequencies
from ..systems import StateSpace
from ..weighting.base import HINF

# Damping of which rounding can change this share is looked at, by a norm up to this order and by samples beyond; what
# was seen counts as this much higher.
WEAKLY_DAMPED, MEASURED_UP_TO, SAMPLED = 0.1, 150, 0.01

# Values closer than this, relative to themselves, may belong to one pair of poles.
NEARLY_EQUAL = 1e-3


def excess_of_rounding(found: Factored, small: Matrices, reduced: StateSpace, order: int) -> float:
    """Return what rounding of weakly damped poles can add to the error, on top of the bound."""
    if np.isinf(found.gain) or found.floor == 0.0:
        return 0.0
    if found.pair is not None and (found.parts.is_split or found.bounded != HINF):
        return _seen_excess(found, small, order)
    if found.parts.is_split or order == 0:
        return 0.0
    few, hsv = found.system.order <= MEASURED_UP_TO and not found.system.is_sparse, found.hsv
    if found.weighting is None:
        values, inflow = hsv[:order], (np.abs(small.B) ** 2).sum(axis=1)
        moved = 4 * float(np.abs(small.A).max()) * found.floor  # see above
        splits_a_pair = few and order < len(hsv) and hsv[order - 1] - hsv[order] < NEARLY_EQUAL * hsv[order - 1]
        if not (splits_a_pair or moved > 2 * WEAKLY_DAMPED * inflow.min()):
            return float(moved * (values / inflow).max())
    return _measured_excess(found, reduced, order, few)


def _seen_excess(found: Factored, small: Matrices, order: int) -> float:
    """Return by how much the error that a pair bounds is above the bound, as responses of the stable part show it.

    It is more where D makes up at one frequency for states that were not told from rounding.
    """
    pair, discrete = found.pair, found.parts.system.is_discrete
    assert pair is not None
    poles = np.concatenate([found.parts.poles if pair.poles is None else pair.poles, np.linalg.eigvals(small.A)])
    omega = sample_frequencies(poles, discrete, found.system.dtype.kind == "c")
    given, model = found.parts.stable_response(omega), small.response(omega, discrete)
    finite = np.isfinite(given).all(axis=(1, 2)) & np.isfinite(model).all(axis=(1, 2))
    given, model = given[finite], model[finite]
    error = largest_gain(given - model) if pair.seen is None else pair.seen(given, model, hsv=np.zeros(0))
    return max(0.0, error - found.error_bound(order))


def _measured_excess(found: Factored, reduced: StateSpace, order: int, few: bool) -> float:
    """Return by how much the error seen is above the bound."""
    system = found.system
    if not reduced.is_stable():
        return np.inf
    if few:
        error = float(norms.hinf_norm(system - reduced))
    else:
        poles = np.concatenate([found.parts.poles, reduced.poles()])
        omega = sample_frequencies(poles, found.parts.discrete, system.dtype.kind == "c")
        error = largest_gain(system._response(omega) - reduced._response(omega))
    return max(0.0, (1 + SAMPLED) * error - found.error_bound(order))
