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
from ..rounding import sample_frequencies
from ..systems import StateSpace

# Damping of which rounding can change this share is looked at, by a norm up to this order and by samples beyond; what
# was seen counts as this much higher.
WEAKLY_DAMPED, MEASURED_UP_TO, SAMPLED = 0.1, 150, 0.01

# Values closer than this, relative to themselves, may belong to one pair of poles.
NEARLY_EQUAL = 1e-3


def measured_excess(found: Factored, reduced: StateSpace, order: int, few: bool) -> float:
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
