"""Which Hankel singular value of one system continues which of another; public in `hankelred.drift`."""

from __future__ import annotations

from typing import Any

import numpy as np

from .checks import Array
from .hankel import stable
from .linalg.hankel_svd import HankelSVD
from .linalg.threads import one_blas_thread
from .systems import LinearSystem, one_system

# The rounding floor of a system times this: it was exceeded 2.7 times at most by 3,000 random dense systems in which
# the same values were computed twice, in two ways.
SAFETY = 8


def match_hsv(G: Any, H: Any) -> tuple[Array, Array]:
    """Find which Hankel singular value of one system continues which of another, through crossings.

    Sorted by size, two values that cross exchange their places. Their singular vectors do not: those of both Hankel
    operators live in the same spaces, of past inputs and of future outputs, and can be compared.

    Parameters
    ----------
    G, H
        As for `drift_bound`.

    Returns
    -------
    match : (k,) ndarray of int
        Value i of G continues as value ``match[i]`` of H, or as none where it is -1; k is the number of values of G
        above rounding.
    overlap : (k,) ndarray
        From 0 to 1: the product of the cosines between the right and between the left singular vectors of a match.
        The assignment has the largest sum of them. Values that repeat share their vectors, and their matches mean
        little one by one.

    Raises
    ------
    StabilityError, InputError, NumericalError
        As for `drift_bound`.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.drift import match_hsv
    >>> rising = [hr.StateSpace(-np.eye(2), np.diag([1.0, b]), np.diag([1.0, b])) for b in (0.9, 1.1)]
    >>> match, overlap = match_hsv(*rising)
    >>> match  # the second channel has become the stronger one
    array([1, 0])
    """
    import scipy.optimize  # takes long to import, and is needed here only

    first, second = one_system(G, "G"), one_system(H, "H")
    error = first - second
    with one_blas_thread(error.order):
        joint = stable(error)
        S, R = joint.gramian_factors()
        left, right = [], []
        for rows in _parts(first, second, error):
            # ``[S1; S2]`` and ``[R1, -R2]`` map both operators to common orthonormal coordinates, as ``R_i S_i``.
            svd = HankelSVD(S[rows], R[:, rows])
            U, hsv, Vh = svd.triples(len(svd.values))
            kept = int(np.sum(hsv > SAFETY * joint.floor))
            left.append(U[:, :kept])
            right.append(Vh[:kept])
    overlaps = np.abs(left[0].conj().T @ left[1]) * np.abs(right[0] @ right[1].conj().T)
    rows, columns = scipy.optimize.linear_sum_assignment(overlaps, maximize=True)
    match, overlap = np.full(len(overlaps), -1), np.zeros(len(overlaps))
    match[rows], overlap[rows] = columns, overlaps[rows, columns]
    return match, overlap


def _parts(G: LinearSystem, H: LinearSystem, error: LinearSystem) -> tuple[Array, Array]:
    """Which coordinates of the factors of ``G - H`` belong to G and which to H."""
    if error.order == 2 * error.n:  # real output: all real parts, then all imaginary parts
        first = np.arange(error.n) < G.n
        return np.flatnonzero(np.tile(first, 2)), np.flatnonzero(np.tile(~first, 2))
    return np.arange(G.order), np.arange(G.order, G.order + H.order)
