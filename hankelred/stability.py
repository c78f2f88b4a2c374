"""How far Hankel singular values can move from one system to another: Weyl bounds and certificates for an order.

The values are singular values of the Hankel operators of the two systems, whose difference is the Hankel operator of
the error system ``G - H``. Whatever perturbation theory says about singular values of two matrices therefore holds
here, for any two stable systems of any two orders, in no particular coordinates. Statements and proofs are in
``docs/theory/stability.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.linalg as sla
import scipy.optimize

from ._checks import Array
from ._drift import FULL_MATRICES_UP_TO, AccumulatedDrift, DriftBound, OrderCertificate
from ._rounding import Factored, well_scaled
from ._threads import one_blas_thread
from .errors import InputError
from .gramians import padded, system_order
from .systems import DiagonalSystem, StateSpace

__all__ = [
    "AccumulatedDrift",
    "DriftBound",
    "OrderCertificate",
    "accumulated_drift",
    "certify_order",
    "hsv_drift_bound",
    "match_hsv",
]


def hsv_drift_bound(G: Any, H: Any) -> DriftBound:
    """Bound how far the Hankel singular values of two stable systems can lie apart.

    By Weyl's inequality ``|hsv_i(G) - hsv_i(H)| <= ||G - H||_H`` for every i, where missing values count as 0 [1]_.
    For equal orders the same inequality holds with the difference of ``(P^1/2 Q P^1/2)^1/2`` in the coordinates
    given [2]_. The smaller of the two bounds is used, and both are reported.

    Parameters
    ----------
    G, H : StateSpace, DiagonalSystem or anything `as_system` accepts
        Stable systems with the same inputs, outputs and dt; their orders may differ.

    Returns
    -------
    DriftBound
        The bound, also as ``float(...)``, with an interval for each value and bounds of sums of values.

    Raises
    ------
    StabilityError
        If a pole lies on or beyond the stability boundary.
    InputError
        If inputs, outputs or dt of the two differ.

    References
    ----------
    .. [1] K. Glover, "All optimal Hankel-norm approximations of linear multivariable systems and their
       L-infinity error bounds", Int. J. Control 39, 1984, section 2: Hankel operators of systems.
    .. [2] M. Chahine, P. Nazari, D. Rus, T. K. Rusch, "The curious case of in-training compression of state space
       models", arXiv:2510.02823, Lemma 3.1.

    Examples
    --------
    >>> import hankelred as hr
    >>> before = hr.DiagonalSystem([0.9, 0.5], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)
    >>> after = hr.DiagonalSystem([0.9, 0.4], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)
    >>> print(hr.hsv_drift_bound(before, after))
    Hankel singular values move by at most 0.2444; they moved by at most 0.1818 (ratio 0.744)
      Hankel norm of the difference  0.2444
      bound in fixed coordinates     0.3369
      rounding                       4.4e-14
    """
    (first, first_units), (second, second_units) = well_scaled(G), well_scaled(H)
    error = first - second
    orders = system_order(first), system_order(second)
    with one_blas_thread(sum(orders)):
        parts = [Factored(system) for system in (first, second, error)]
        fixed = None
        if orders[0] == orders[1] <= FULL_MATRICES_UP_TO:
            before, after = (
                _hankel_root(w[:, None] * part.S, part.R / w)
                for part, w in zip(parts, (first_units, second_units), strict=False)
            )
            fixed = float(np.abs(sla.eigvalsh(after - before)).max(initial=0.0))
    hsv, hsv_after = (padded(part.hsv, max(orders)) for part in parts[:2])
    return DriftBound(hsv, hsv_after, parts[2].hsv, fixed, sum(part.floor for part in parts))


def certify_order(G: Any, H: Any, order: int) -> OrderCertificate:
    """Tell whether the leading Hankel singular values provably stay in the lead from one system to another.

    If the gap ``hsv_r - hsv_{r+1}`` of G exceeds twice the Hankel norm of ``G - H``, then no value crosses the cut on
    the straight path between the two Hankel operators, and the subspaces that an order r keeps turn by an angle
    whose sine is at most the drift divided by what is left of the gap (Wedin's theorem [1]_).

    Parameters
    ----------
    G, H : StateSpace, DiagonalSystem or anything `as_system` accepts
        Stable systems with the same inputs, outputs and dt, such as a layer before and after training steps.
    order : int
        Hankel singular values kept, from 1 to the larger order of the two systems.

    Returns
    -------
    OrderCertificate
        True where a truth value is asked for if the order is certified; printed, it explains itself.

    Raises
    ------
    OrderError
        If `order` is out of its range.
    StabilityError
        If a pole lies on or beyond the stability boundary.
    InputError
        If inputs, outputs or dt of the two differ.

    References
    ----------
    .. [1] P.-A. Wedin, "Perturbation bounds in connection with singular value decomposition", BIT 12, 1972.

    Examples
    --------
    >>> import hankelred as hr
    >>> before = hr.DiagonalSystem([0.9, 0.5], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)
    >>> after = hr.DiagonalSystem([0.9, 0.4], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)
    >>> print(hr.certify_order(before, after, order=1))
    Order 1 is certified: the gap 5.354 after hsv 1 exceeds twice the drift 0.2444.
    No value crosses the cut; the kept subspaces turn by at most 2.6 degrees (sine 0.046).
    """
    return hsv_drift_bound(G, H).certify(order)


def accumulated_drift(systems: Iterable[Any]) -> AccumulatedDrift:
    """Bound the drift of Hankel singular values along a sequence of systems.

    Drifts of successive steps add up. A step may be a training step, or a cut: the systems before and after it are
    two systems of different order, and their distance in the Hankel norm is the drift it causes.

    Parameters
    ----------
    systems : iterable of StateSpace, DiagonalSystem or anything `as_system` accepts
        Two or more stable systems with the same inputs, outputs and dt, in order of time.

    Returns
    -------
    AccumulatedDrift
        One `DriftBound` a step, and their sums.

    Raises
    ------
    InputError
        If there are fewer than two systems, or their inputs, outputs or dt differ.
    StabilityError
        If a pole lies on or beyond the stability boundary.

    Examples
    --------
    >>> import hankelred as hr
    >>> path = [hr.StateSpace([[-1.0]], [[1.0]], [[1.0 + 0.1 * k]]) for k in range(4)]
    >>> print(f"{hr.accumulated_drift(path).bound:.4f}")  # three steps of 0.05
    0.1500
    """
    found = list(systems)
    if len(found) < 2:
        raise InputError(f"A drift needs two systems or more; got {len(found)}. Pass them in order of time.")
    return AccumulatedDrift(tuple(hsv_drift_bound(*pair) for pair in pairwise(found)))


def match_hsv(G: Any, H: Any) -> tuple[Array, Array]:
    """Find which Hankel singular value of one system continues which of another, through crossings.

    Sorted by size, two values that cross exchange their places. Their singular vectors do not: those of both Hankel
    operators live in the same spaces, of past inputs and of future outputs, and can be compared.

    Parameters
    ----------
    G, H : StateSpace, DiagonalSystem or anything `as_system` accepts
        Stable systems with the same inputs, outputs and dt; their orders may differ.

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
    StabilityError
        If a pole lies on or beyond the stability boundary.
    InputError
        If inputs, outputs or dt of the two differ.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> rising = [hr.StateSpace(-np.eye(2), np.diag([1.0, b]), np.diag([1.0, b])) for b in (0.9, 1.1)]
    >>> match, overlap = hr.match_hsv(*rising)
    >>> match  # the second channel has become the stronger one
    array([1, 0])
    """
    (first, _), (second, _) = well_scaled(G), well_scaled(H)
    error = first - second
    with one_blas_thread(system_order(first) + system_order(second)):
        joint = Factored(error)
        triples = []
        for rows in _parts(first, second, error):
            # ``[S1; S2]`` and ``[R1, -R2]`` map both operators to common orthonormal coordinates, as ``R_i S_i``.
            U, hsv, Vh = sla.svd(joint.R[:, rows] @ joint.S[rows], full_matrices=False)
            kept = int(np.sum(hsv > joint.floor))
            triples.append((U[:, :kept], Vh[:kept]))
    (U1, V1h), (U2, V2h) = triples
    overlaps = np.abs(U1.conj().T @ U2) * np.abs(V1h @ V2h.conj().T)
    rows, columns = scipy.optimize.linear_sum_assignment(overlaps, maximize=True)
    match, overlap = np.full(len(overlaps), -1), np.zeros(len(overlaps))
    match[rows], overlap[rows] = columns, overlaps[rows, columns]
    return match, overlap


def _hankel_root(S: Array, R: Array) -> Array:
    """Return ``(P^1/2 Q P^1/2)^1/2``, the polar factor of ``R P^1/2``: no square root of a small number is taken."""
    U, s, _ = sla.svd(S, full_matrices=False)
    _, hsv, Vh = sla.svd((R @ (U * s)) @ U.conj().T, full_matrices=False)
    return (Vh.conj().T * hsv) @ Vh


def _parts(
    G: StateSpace | DiagonalSystem, H: StateSpace | DiagonalSystem, error: StateSpace | DiagonalSystem
) -> tuple[Array, Array]:
    """Return which coordinates of the factors of ``G - H`` belong to G and which to H."""
    if isinstance(error, DiagonalSystem) and error.output == "real":  # all real parts, then all imaginary parts
        first = np.arange(error.n) < G.n
        return np.flatnonzero(np.tile(first, 2)), np.flatnonzero(np.tile(~first, 2))
    order = system_order(G)
    return np.arange(order), np.arange(order, order + system_order(H))
