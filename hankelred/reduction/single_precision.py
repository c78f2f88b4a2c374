"""Reduced models stored in single precision, as the systems they come from are, and what that changes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import norms
from ..checks import single
from ..systems import DiagonalSystem, StateSpace

# The peak of a difference of 1e-7 of two gains is found to a per cent: of 200 such, one was 1.2 per cent higher.
FOUND = 1.1


def in_single_precision(reduced: Any, pair: Any) -> tuple[Any, Any, float]:
    """Round a reduced system, and its stable part in a pair of full and reduced ones; tell what changes in the norm."""
    stored = _rounded(reduced)
    if pair is None:
        return stored, None, FOUND * float(norms.hinf_norm(reduced - stored))
    full, small = pair
    first = reduced.n - small.n
    stored_tail = _tail(stored, first)
    poles = full.poles()  # at whose frequencies `Reduction.hinf_error` looks, too
    changed = FOUND * norms.stable_error(reduced, stored, _tail(reduced, first), stored_tail, poles)
    return stored, (full, stored_tail), changed


def _rounded(system: Any) -> Any:
    """Return a system rounded to single precision."""
    names = system.outer_names
    B, C, D = single(system.B), single(system.C), single(system.D)
    if system.is_diagonal:
        return DiagonalSystem.trusted(system.spectrum.map(single), B, C, D, system.dt, system.output, names)
    return StateSpace.trusted(single(system.A), B, C, D, system.dt, names)


def _tail(system: Any, first: int) -> Any:
    """Return the states of a system from `first` on, which the others before them do not touch."""
    if system.is_diagonal:
        return system.take(np.arange(first, system.n))
    A, B, C = system.A[first:, first:], system.B[first:], system.C[:, first:]
    return StateSpace.trusted(A.copy(), B.copy(), C.copy(), system.D.copy(), system.dt)
