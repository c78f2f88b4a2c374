"""What a comparison of two systems says: bounds on the drift of Hankel singular values, and certificates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._checks import Array
from .errors import OrderError
from .gramians import padded

# The bound in fixed coordinates takes full n x n matrices; beyond this order it is left out.
FULL_MATRICES_UP_TO = 512


@dataclass(frozen=True, eq=False, repr=False)
class DriftBound:
    """Bounds on the distance between the Hankel singular values of two systems; made by `hsv_drift_bound`.

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
        """Upper ends of the intervals in which the second system's values lie, (N,).

        ``hsv_after[i + j] <= hsv[i] + error_hsv[j]`` for all i and j, counted from 0: with j = 0 that is the bound
        by the Hankel norm, and a difference that decays makes it tighter for the later values.
        """
        upper = self.hsv + (self.bound - self.floor)
        for j, error in enumerate(self.error_hsv[: len(upper)]):
            upper[j:] = np.minimum(upper[j:], self.hsv[: len(upper) - j] + error)
            if error == 0:
                break
        return upper + self.floor

    @property
    def lower(self) -> Array:
        """Lower ends of these intervals, (N,): ``hsv_after[i] >= hsv[i + j] - error_hsv[j]``."""
        lower = self.hsv - (self.bound - self.floor)
        for j, error in enumerate(self.error_hsv[: len(lower)]):
            lower[: len(lower) - j] = np.maximum(lower[: len(lower) - j], self.hsv[j:] - error)
            if error == 0:
                break
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
            Values kept, from 0 to N.

        Returns
        -------
        float
            The least of the sum of the upper ends and of the first system's tail plus as many values of the
            difference (Lidskii and Mirsky), in units of y per unit of u.

        Raises
        ------
        OrderError
            If `order` is out of its range.
        """
        order = self._checked(order, 0)
        count = len(self.hsv) - order
        moved = self.hsv[order:].sum() + self.error_hsv[:count].sum() + count * self.floor
        return float(min(moved, self.upper[order:].sum()))

    def certify(self, order: int) -> OrderCertificate:
        """Tell whether the first `order` values provably stay the first, as `certify_order` does.

        Parameters
        ----------
        order : int
            Values kept, from 1 to N.

        Returns
        -------
        OrderCertificate
            With the margin, and a bound on how far the kept subspaces turn.

        Raises
        ------
        OrderError
            If `order` is out of its range.
        """
        order = self._checked(order, 1)
        drift = self.hankel_norm + self.floor
        kept, kept_after = self.hsv[order - 1], self.hsv_after[order - 1]
        dropped, dropped_after = (np.append(x, 0.0)[order] for x in (self.hsv, self.hsv_after))
        gap = float(kept - dropped)
        separation = max(kept_after - dropped, kept - dropped_after) - self.floor  # at least gap - drift
        sine = float(min(1.0, drift / separation)) if separation > 0 else 1.0
        return OrderCertificate(order, gap, drift, sine, self.certified_orders)

    def __float__(self) -> float:
        """Return `bound`."""
        return float(self.bound)

    def __repr__(self) -> str:
        """Return the two figures that matter."""
        return f"DriftBound(bound={self.bound:.4g}, ratio={self.ratio:.3g})"

    def __str__(self) -> str:
        """Return bound, drift and where the bound comes from, for people."""
        fixed = "not formed" if self.fixed_coordinates is None else f"{self.fixed_coordinates:.4g}"
        if len(self.hsv) and self.fixed_coordinates is None and len(self.hsv) <= FULL_MATRICES_UP_TO:
            fixed = "none, the orders differ"
        return (
            f"Hankel singular values move by at most {self.bound:.4g}; they moved by at most "
            f"{self.drift.max(initial=0.0):.4g} (ratio {self.ratio:.3f})\n"
            f"  Hankel norm of the difference  {self.hankel_norm:.4g}\n"
            f"  bound in fixed coordinates     {fixed}\n"
            f"  rounding                       {self.floor:.2g}"
        )

    def _checked(self, order: int, least: int) -> int:
        if isinstance(order, (bool, np.bool_)) or not isinstance(order, (int, np.integer)):
            raise OrderError(f"order must be an integer; got {order!r}.")
        if not least <= order <= len(self.hsv):
            raise OrderError(
                f"order must be from {least} to {len(self.hsv)}, the larger order of the two systems; got {order}."
            )
        return int(order)


@dataclass(frozen=True, eq=False, repr=False)
class OrderCertificate:
    """Whether an order keeps the same part of two systems, and by what margin; made by `certify_order`.

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
            degrees = np.degrees(np.arcsin(self.sine))
            return (
                f"Order {self.order} is certified: {numbers} exceeds twice the drift {self.drift:.4g}.\n"
                f"No value crosses the cut; the kept subspaces turn by at most {degrees:.1f} degrees "
                f"(sine {self.sine:.3g})."
            )
        others = ", ".join(map(str, self.certified_orders[:10])) or "none"
        return (
            f"Order {self.order} is not certified: {numbers} does not exceed twice the drift {self.drift:.4g}.\n"
            f"Values may have crossed the cut. Certified orders: {others}."
        )


@dataclass(frozen=True, eq=False, repr=False)
class AccumulatedDrift:
    """Drift of Hankel singular values along a sequence of systems; made by `accumulated_drift`.

    Attributes
    ----------
    steps : tuple of DriftBound
        One for each pair of successive systems.
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
        """Find the system from which on the kept set provably never changes.

        Parameters
        ----------
        order : int
            Values kept.

        Returns
        -------
        int or None
            Position in the sequence, from 0, of the first system such that every later step is certified for this
            order; None if the last step is not.

        Raises
        ------
        OrderError
            If `order` is larger than the order of some system of the sequence.
        """
        certified = [step.certify(order).certified for step in self.steps]
        uncertain = [k for k, sure in enumerate(certified) if not sure]
        start = uncertain[-1] + 1 if uncertain else 0
        return start if start < len(self.steps) else None

    def __repr__(self) -> str:
        """Return the number of steps and the total."""
        return f"AccumulatedDrift({len(self.steps)} steps, bound={self.bound:.4g})"
