"""Factors of matrices that are known only as matrices: covariances, averaged Gramians, weighted Gramians."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array, check_result
from ..errors import InputError

TINY = float(np.finfo(np.float64).tiny)  # below it there are no relative errors


def covariance_factors(P: Array, Q: Array) -> tuple[Array, Array]:
    """Return S and R with ``P = S S^H``, ``Q = R^H R``, states of any unit resolved alike."""
    d = state_scale(P, Q)
    with np.errstate(over="ignore", invalid="ignore"):
        square = np.outer(d, d)
        P, Q = P / square, Q * square
    return d[:, None] * psd_factor(P), psd_factor(Q).conj().T / d


def state_scale(P: Array, Q: Array) -> Array:
    """Return d with ``P_ii / d_i² = Q_ii d_i²``, see `equal_sizes`."""
    return equal_sizes(*(np.sqrt(np.maximum(np.diagonal(x).real, 0.0)) for x in (P, Q)))


def equal_sizes(reached: Array, seen: Array) -> Array:
    """Return d with ``reached / d = seen d``, the sizes of states as the input drives and the output sees them.

    States that the input does not reach, or the output does not see, get the size of the largest of the others in the
    matrix that is left: rounding errors that mix them in are then as small as all others.
    """
    largest = float((reached * seen).max(initial=0.0)) or 1.0
    reached = np.where(reached > 0, reached, largest / np.where(seen > 0, seen, np.sqrt(largest)))
    seen = np.where(seen > 0, seen, largest / reached)
    scale: Array = np.sqrt(reached) / np.sqrt(seen)
    return scale


def psd_factor(P: Array) -> Array:
    """Return S with ``P = S S^H``, columns by decreasing size, for a matrix that is semidefinite up to rounding."""
    check_result("Scaled covariances", P, hint="Scale the data.")
    if len(P) == 0:
        return P
    values, vectors = sla.eigh(P)
    floor = len(P) * EPS * max(float(np.abs(values).max()), 0.0)
    # a sum of products of data in single precision is semidefinite to that precision only
    if values[0] < -max(1e-5 * float(np.abs(values).max()), floor, TINY):
        raise InputError(
            f"Covariances must be positive semidefinite; got eigenvalues from {values[0]:.3g} to {values[-1]:.3g}. "
            f"Sums from different data do not fit together."
        )
    kept = values > floor
    return (vectors[:, kept] * np.sqrt(values[kept]))[:, ::-1]
