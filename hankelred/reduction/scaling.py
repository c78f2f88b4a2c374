"""Scaling the states of a badly scaled model, so that rounding errors are small next to every entry."""

from __future__ import annotations

import numpy as np

from .._checks import Array
from ..systems import StateSpace

# A sweep that changes no state by more than this factor ends the iteration: as in LAPACK's balancing routine.
SETTLED = 2.0
SWEEPS = 50


def state_scaling(system: StateSpace) -> Array:
    """Return powers of two w for new states ``x_i / w_i`` that even out the rows and columns of ``[[A, B], [C, 0]]``.

    The same idea as balancing a matrix before its eigenvalues are computed, with the inputs and outputs left as
    they are. Powers of two make the scaling itself exact.
    """
    magnitude_A, magnitude_B, magnitude_C = np.abs(system.A), np.abs(system.B), np.abs(system.C)
    np.fill_diagonal(magnitude_A, 0.0)
    w = np.ones(system.n)
    for _ in range(SWEEPS):
        settled = True
        for i in range(system.n):
            row = (magnitude_A[i] @ w + magnitude_B[i].sum()) / w[i]
            column = ((1 / w) @ magnitude_A[:, i] + magnitude_C[:, i].sum()) * w[i]
            if row == 0 or column == 0:
                continue
            factor = 2.0 ** np.round(np.log2(row / column) / 2)
            if factor != 1.0:
                w[i] *= factor
                settled = settled and max(factor, 1 / factor) <= SETTLED
        if settled:
            break
    return w


def scaled(system: StateSpace, w: Array) -> StateSpace:
    """Return the system in the states ``x_i / w_i``."""
    A, B, C = system.A * w / w[:, None], system.B / w[:, None], system.C * w
    return StateSpace(A, B, C, system.D, system.dt, labels=system.labels)
