"""How far Hankel singular values can move from one system to another: Weyl bounds and certificates for an order.

The values are singular values of the Hankel operators of the two systems, whose difference is the Hankel operator of
the error system ``G - H``: perturbation theory of singular values holds for any two stable systems of any two orders.
Statements and proofs are in ``docs/theory/stability.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.linalg as sla

from .checks import Array, check_integer, check_items
from .errors import InputError, OrderError
from .following import SAFETY, match_hsv
from .hankel import Factored, stable
from .linalg.hankel_svd import padded
from .linalg.threads import one_blas_thread
from .systems import LinearSystem, one_system

__all__ = ["AccumulatedDrift", "DriftBound", "OrderCertificate", "drift_along", "drift_bound", "match_hsv"]

# The bound in fixed coordinates takes full n x n matrices; beyond this order it is left out.
FULL_MATRICES_UP_TO = 512


@dataclass(frozen=True, eq=False, repr=False)
class DriftBound:
    """Bounds on the distance between the Hankel singular values of two systems; made by `drift_bound`.

    Attributes
    ----------
    hsv, hsv_after : (N,) ndarray
        Values of the first and of the second system, decreasing, the shorter list filled up with zeros.
    error_hsv : (k,) ndarray
        Hankel singular values of the difference of the two systems, decreasing.
    fixed_coordinates : float or None
        The bound in the coordinates given; None for different orders, and beyond order 512, where it is not formed.
    floor : float
        What rounding can add to a difference of values, in both systems and in their difference: some
        ``n eps (hsv[0] + hsv_after[0])``, and more where the Lyapunov equations of dense systems are ill-conditioned.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.drift import drift_bound
    >>> found = drift_bound(*(hr.StateSpace([[-rate]], [[1.0]], [[1.0]]) for rate in (1.0, 1.1)))
    >>> bool(found.drift[0] <= found.bound), found.hsv.shape
    (True, (1,))
    """

    hsv: Array
    hsv_after: Array
    error_hsv: Array
    fixed_coordinates: float | None
    floor: float

    @property
    def hankel_norm(self) -> float:
        """Hankel norm of the difference, the bound that depends on no coordinates."""
        return float(self.error_hsv.max(initial=0.0))

    @property
    def bound(self) -> float:
        """No Hankel singular value moves by more: the smaller bound, and the rounding floor."""
        return min(self.hankel_norm, np.inf if self.fixed_coordinates is None else self.fixed_coordinates) + self.floor

    @property
    def drift(self) -> Array:
        """How far each value has moved, ``|hsv_after - hsv|``, (N,)."""
        return np.abs(self.hsv_after - self.hsv)

    @property
    def ratio(self) -> float:
        """Largest drift as a share of `bound`; at most 1."""
        return float(self.drift.max(initial=0.0) / self.bound) if self.bound else 0.0

    @property
    def upper(self) -> Array:
        """Upper ends of the second system's values, (N,): ``hsv_after[i + j] <= hsv[i] + error_hsv[j]``."""
        upper = self.hsv + (self.bound - self.floor)
        for j, error in enumerate(self.error_hsv[: len(upper)]):
            upper[j:] = np.minimum(upper[j:], self.hsv[: len(upper) - j] + error)
        return upper + self.floor

    @property
    def lower(self) -> Array:
        """Lower ends of these intervals, (N,): ``hsv_after[i] >= hsv[i + j] - error_hsv[j]``."""
        lower = self.hsv - (self.bound - self.floor)
        for j, error in enumerate(self.error_hsv[: len(lower)]):
            lower[: len(lower) - j] = np.maximum(lower[: len(lower) - j], self.hsv[j:] - error)
        return np.maximum(lower - self.floor, 0.0)

    @property
    def certified_orders(self) -> Array:
        """Orders whose gap exceeds twice the drift in the Hankel norm, increasing."""
        gaps = self.hsv - np.append(self.hsv[1:], 0.0)
        return np.flatnonzero(gaps > 2 * (self.hankel_norm + self.floor)) + 1

    def tail_bound(self, order: int) -> float:
        """Bound the sum of the second system's values after the first `order` of them.

        Parameters
        ----------
        order : int
            From 0 to N.

        Returns
        -------
        float
            The lesser of the sum of the upper ends and of the first system's tail plus as many values of the
            difference (Lidskii and Mirsky), in units of y per unit of u.
        """
        order = self._checked(order, 0)
        count = len(self.hsv) - order
        moved = self.hsv[order:].sum() + self.error_hsv[:count].sum() + count * self.floor
        return float(min(moved, self.upper[order:].sum()))

    def certify(self, order: int) -> OrderCertificate:
        """Whether the first `order` values provably stay the first, so that no value can have crossed the cut.

        Parameters
        ----------
        order : int
            Values kept, from 1 to N; an `OrderError` otherwise.

        Returns
        -------
        OrderCertificate
            With the margin, and a bound on how far the kept subspaces turn.
        """
        order = self._checked(order, 1)
        drift = self.hankel_norm + self.floor
        kept, kept_after = self.hsv[order - 1], self.hsv_after[order - 1]
        dropped, dropped_after = (np.append(x, 0.0)[order] for x in (self.hsv, self.hsv_after))
        separation = max(kept_after - dropped, kept - dropped_after) - self.floor  # at least gap - drift
        sine = float(min(1.0, drift / separation)) if separation > 0 else 1.0
        return OrderCertificate(order, float(kept - dropped), drift, sine, self.certified_orders)

    def __float__(self) -> float:
        """Return `bound`."""
        return float(self.bound)

    def __repr__(self) -> str:
        """Return the two figures that matter."""
        return f"DriftBound(bound={self.bound:.4g}, ratio={self.ratio:.3g})"

    def __str__(self) -> str:
        """Return bound, drift and where the bound comes from, for people."""
        fixed = f"not formed, the orders differ or exceed {FULL_MATRICES_UP_TO}"
        if self.fixed_coordinates is not None:
            fixed = f"{self.fixed_coordinates:.4g}"
        return (
            f"Hankel singular values move by at most {self.bound:.4g}; they moved by at most "
            f"{self.drift.max(initial=0.0):.4g} (ratio {self.ratio:.3f})\n"
            f"  Hankel norm of the difference  {self.hankel_norm:.4g}\n"
            f"  bound in fixed coordinates     {fixed}\n"
            f"  rounding                       {self.floor:.2g}"
        )

    def _checked(self, order: int, least: int) -> int:
        hint = "That is the larger order of the two systems."
        return check_integer(order, "order", least, len(self.hsv), hint, OrderError)


@dataclass(frozen=True, eq=False, repr=False)
class OrderCertificate:
    """Whether an order keeps the same part of two systems, and by what margin; made by `DriftBound.certify`.

    Attributes
    ----------
    order : int
        Values kept.
    gap : float
        ``hsv[order - 1] - hsv[order]`` of the first system, in units of y per unit of u.
    drift : float
        Hankel norm of the difference of the systems, and the rounding floor.
    sine : float
        Bound on the sine of the largest angle between the kept subspaces of past inputs, and of future outputs;
        1 says nothing.
    certified_orders : (k,) ndarray of int
        All orders that are certified for these two systems.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.drift import drift_bound
    >>> plant = hr.StateSpace(np.diag([-1.0, -40.0]), np.ones((2, 1)), np.ones((1, 2)))
    >>> certificate = drift_bound(plant, plant.with_(A=1.001 * plant.A)).certify(1)
    >>> bool(certificate), certificate.order
    (True, 1)
    """

    order: int
    gap: float
    drift: float
    sine: float
    certified_orders: Array

    @property
    def margin(self) -> float:
        """What is left of the gap after twice the drift; positive if certified."""
        return self.gap - 2 * self.drift

    @property
    def certified(self) -> bool:
        """Whether no value can have crossed the cut."""
        return self.margin > 0

    def __bool__(self) -> bool:
        """Return `certified`."""
        return self.certified

    def __repr__(self) -> str:
        """Return verdict and margin."""
        return f"OrderCertificate(order={self.order}, certified={self.certified}, margin={self.margin:.4g})"

    def __str__(self) -> str:
        """Return the verdict and its reason, for people."""
        numbers = f"the gap {self.gap:.4g} after hsv {self.order}"
        if self.certified:
            return (
                f"Order {self.order} is certified: {numbers} exceeds twice the drift {self.drift:.4g}.\n"
                f"No value crosses the cut; the kept subspaces turn by at most "
                f"{np.degrees(np.arcsin(self.sine)):.1f} degrees (sine {self.sine:.3g})."
            )
        others = ", ".join(map(str, self.certified_orders[:10])) or "none"
        return (
            f"Order {self.order} is not certified: {numbers} does not exceed twice the drift {self.drift:.4g}.\n"
            f"Values may have crossed the cut. Certified orders: {others}."
        )


@dataclass(frozen=True, eq=False, repr=False)
class AccumulatedDrift:
    """Drift of Hankel singular values along a sequence of systems; made by `drift_along`.

    Attributes
    ----------
    steps : tuple of DriftBound
        One for each pair of successive systems.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.drift import drift_along
    >>> found = drift_along([hr.StateSpace([[-rate]], [[1.0]], [[1.0]]) for rate in (1.0, 1.1, 1.2)])
    >>> len(found.steps), bool(found.drift[0] <= found.bound)
    (2, True)
    """

    steps: tuple[DriftBound, ...]

    @property
    def bounds(self) -> Array:
        """Bounds on the drift from the first system to each later one, increasing."""
        return np.cumsum([step.bound for step in self.steps])

    @property
    def bound(self) -> float:
        """Bound on the drift from the first system to the last."""
        return float(self.bounds[-1])

    @property
    def drift(self) -> Array:
        """How far each value has moved from the first system to the last."""
        first, last = self.steps[0].hsv, self.steps[-1].hsv_after
        size = max(len(first), len(last))
        return np.abs(padded(last, size) - padded(first, size))

    def settled(self, order: int) -> int | None:
        """Find the first system from which on every step is certified for an order.

        Parameters
        ----------
        order : int
            How many values are kept, from 0 to N.

        Returns
        -------
        int or None
            Its place, counted from 0; None if the last step is not certified.

        Raises
        ------
        OrderError
            If `order` is larger than the order of some system.
        """
        uncertain = [k for k, step in enumerate(self.steps) if not step.certify(order)]
        start = uncertain[-1] + 1 if uncertain else 0
        return start if start < len(self.steps) else None

    def __repr__(self) -> str:
        """Return the number of steps and the total."""
        return f"AccumulatedDrift({len(self.steps)} steps, bound={self.bound:.4g})"


def drift_bound(G: Any, H: Any) -> DriftBound:
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
    StabilityError, NumericalError
        If a pole lies on or beyond the stability boundary; if a Gramian overflows.
    InputError
        If inputs, outputs or dt of the two differ, or one of them is a bank.

    References
    ----------
    .. [1] K. Glover, "All optimal Hankel-norm approximations of linear multivariable systems and their
       L-infinity error bounds", Int. J. Control 39, 1984, section 2: Hankel operators of systems.
    .. [2] M. Chahine, P. Nazari, D. Rus, T. K. Rusch, "The curious case of in-training compression of state space
       models", arXiv:2510.02823, Lemma 3.1.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.drift import drift_bound
    >>> before = hr.DiagonalSystem([0.9, 0.5], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)
    >>> after = hr.DiagonalSystem([0.9, 0.4], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)
    >>> drift = drift_bound(before, after)
    >>> print(f"by at most {drift.bound:.4f}, in fact by {drift.drift.max():.4f}")
    by at most 0.2444, in fact by 0.1818
    """
    first, second = one_system(G, "G"), one_system(H, "H")
    error = first - second
    fixed = None
    with one_blas_thread(error.order):
        before, after, difference = stable(first), stable(second), stable(error)
        if first.order == second.order <= FULL_MATRICES_UP_TO:
            fixed = float(np.abs(sla.eigvalsh(_hankel_root(after) - _hankel_root(before))).max(initial=0.0))
    hsv, hsv_after = (padded(part.hsv, max(first.order, second.order)) for part in (before, after))
    floor = SAFETY * (before.floor + after.floor + difference.floor)
    return DriftBound(hsv, hsv_after, difference.hsv, fixed, floor)


def drift_along(systems: Iterable[Any]) -> AccumulatedDrift:
    """Bound the drift of Hankel singular values along a sequence of systems.

    Drifts of successive steps add up. A step may be a training step, or a cut between systems of different order.

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
        If there are fewer than two systems; further errors as for `drift_bound`.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.drift import drift_along
    >>> path = [hr.StateSpace([[-1.0]], [[1.0]], [[1.0 + 0.1 * k]]) for k in range(4)]
    >>> print(f"{drift_along(path).bound:.4f}")  # three steps of 0.05
    0.1500
    """
    if isinstance(systems, LinearSystem):
        raise InputError(f"systems must be a sequence of systems; got {systems!r}. Write [before, after].")
    found = check_items(systems, "systems", "Write [before, after].")
    if len(found) < 2:
        raise InputError(f"A drift needs two systems or more; got {len(found)}. Pass them in order of time.")
    return AccumulatedDrift(tuple(drift_bound(*pair) for pair in pairwise(found)))


def _hankel_root(found: Factored) -> Array:
    """Return ``(P^1/2 Q P^1/2)^1/2``, the polar factor of ``R P^1/2``: no square root of a small number is taken."""
    S, R = found.gramian_factors()
    if S.size == 0 or R.size == 0:
        return np.zeros((len(S), len(S)))
    U, s, _ = sla.svd(S, full_matrices=False)
    _, hsv, Vh = sla.svd((R @ (U * s)) @ U.conj().T, full_matrices=False)
    return (Vh.conj().T * hsv) @ Vh
