"""Balancing that keeps a property: gain below a level, or passivity. Storage functions take the place of Gramians."""

from __future__ import annotations

import numpy as np

from .. import order as orders
from ..checks import Array, check_number
from ..errors import InputError, NumericalError, StabilityError
from ..linalg.gain import largest_singular_values, peak_gain
from ..linalg.riccati import RiccatiFactor, passive_factor
from ..parts import DenseParts, DiagonalParts
from ..rounding import sample_frequencies
from .base import Pair, Weighting, both_sides, riccati_pair, riccati_part
from .coordinates import Triangular


class BoundedReal(Weighting):
    """Balance so that every model keeps its H-infinity norm below a level, as the system does [1]_.

    P and Q are the extreme storage functions of a system with ``|G| < gamma``, in continuous time

    ``A P + P A^H + B B^H + (P C^H + B D^H) (gamma^2 - D D^H)^-1 (P C^H + B D^H)^H = 0``

    and Q of the dual. They are Gramians of the system with more inputs and outputs, so the H-infinity bound is the
    usual one, twice the tail. Far above the norm they are the Gramians of the system.

    Parameters
    ----------
    gamma : float
        Level above the H-infinity norm, in units of y per unit of u.

    References
    ----------
    .. [1] P. C. Opdenacker, E. A. Jonckheere, "A contraction mapping preserving balanced reduction scheme and its
       infinity norm error bounds", IEEE Trans. Circuits and Systems 35, 1988, pp. 184-189.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.weighting import BoundedReal
    >>> lag = hr.StateSpace([[-1.0]], [[1.0]], [[1.0]])  # norm 1; p^2 / gamma^2 - 2 p + 1 = 0
    >>> print(f"{hr.hankel_singular_values(lag, BoundedReal(2.0))[0]:.6f}")
    0.535898
    """

    name = "bounded-real"
    quantity = "bounded-real singular values, in units of y per unit of u"
    gamma: float

    def __init__(self, gamma: float) -> None:
        self._set(False, gamma=check_number(gamma, "gamma", least=5e-324))

    def pair(self, parts: DenseParts | DiagonalParts) -> Pair:
        """Return factors of both storage functions."""
        _refuse_poles(parts, "BoundedReal")
        coordinates, inner, D = riccati_part(parts, self.gamma)
        peak, omega = _peak(parts, inner, D)
        if not peak < self.gamma:
            raise InputError(
                f"gamma must be above the H-infinity norm of the system; got {self.gamma:g}, and a gain of {peak:.6g} "
                f"at {_in_time(omega, parts)}. Raise gamma."
            )
        dual = inner.dual()
        try:
            left, right = self._storage(inner, D), self._storage(dual, D.conj().T)
        except NumericalError as error:
            raise NumericalError(
                f"gamma must be above the H-infinity norm by more than rounding; got {self.gamma:.17g}, and a gain of "
                f"{peak:.17g}. Raise gamma."
            ) from error
        return riccati_pair(coordinates, *both_sides(left, right, dual), gain=1.0)

    def _storage(self, part: Triangular, D: Array) -> RiccatiFactor:
        level = self.gamma**2 * np.eye(len(D)) - D @ D.conj().T
        return passive_factor(part.T, part.B, part.C, part.B @ D.conj().T, level, part.discrete)


class PositiveReal(Weighting):
    """Balance so that every model of a passive system is passive: impedances, admittances, collocated forces [1]_.

    P and Q are the extreme storage functions: ``A P + P A^H + (B - P C^H) (D + D^H)^-1 (B - P C^H)^H = 0`` in
    continuous time, and that of the dual. Values lie below 1. The scattering matrix ``(G - r) (G + r)^-1`` changes by
    at most ``e``, twice the tail, for every reference r > 0; so the H-infinity error is at most ``2 g e / (1 - e)``, g
    the H-infinity norm of the system. Marginal poles, as of a free mass or a capacitor, are put aside and kept.

    References
    ----------
    .. [1] U. B. Desai, D. Pal, "A transformation approach to stochastic model reduction", IEEE Trans. Automatic
       Control 29, 1984, pp. 1097-1100.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.weighting import PositiveReal
    >>> cell = hr.StateSpace([[-1.0]], [[1.0]], [[1.0]], [[0.5]])  # 1/2 + 1/(s + 1); (1 - p)^2 = 2 p
    >>> print(f"{hr.hankel_singular_values(cell, PositiveReal())[0]:.6f}")
    0.267949
    """

    name = "positive-real"
    quantity = "positive-real singular values"

    def __init__(self) -> None:
        self._set(False)

    def pair(self, parts: DenseParts | DiagonalParts) -> Pair:
        """Return factors of both storage functions."""
        system = parts.system
        if system.m != system.p:
            raise InputError(
                f"A passive system must have as many outputs as inputs; got {system.p} and {system.m}. Pair each "
                f"voltage with its current, each force with its velocity."
            )
        unstable = parts.poles[: parts.kept]
        if np.any(np.abs(unstable) - 1.0 > MARGINAL if system.is_discrete else unstable.real > MARGINAL):
            raise StabilityError(f"A passive system must have no unstable pole; got {unstable[0]:.6g}.")
        coordinates, inner, D = riccati_part(parts)
        dual = inner.dual()
        try:
            left, right = _passive(inner, D), _passive(dual, D.conj().T)
        except NumericalError as error:
            least, omega = _least_resistance(parts, inner, D)
            raise InputError(
                f"G + G^H must be positive definite at all frequencies, those at the ends too; got a least eigenvalue "
                f"of {least:.3g} at {_in_time(omega, parts)}. Add a resistance, or reduce without PositiveReal."
            ) from error
        norm = _peak(parts, inner, D)[0]

        def bound(hsv: Array, order: int, floor: float) -> float:
            e = orders.error_bound(hsv, order, floor)
            return 2 * norm * e / (1 - e) if e < 1 else np.inf

        return riccati_pair(coordinates, *both_sides(left, right, dual), gain=2 * norm, bound=bound)


# Kept poles further beyond the boundary than this are unstable, not marginal.
MARGINAL = 1e-6


def _passive(part: Triangular, D: Array) -> RiccatiFactor:
    return passive_factor(part.T, np.zeros((len(part.T), 0)), part.C, -part.B, D + D.conj().T, part.discrete)


def _refuse_poles(parts: DenseParts | DiagonalParts, name: str) -> None:
    """Refuse a system that is not stable."""
    if parts.kept:
        raise StabilityError(
            f"{name} needs a stable system; got a pole at {parts.poles[0]:.6g}. Use Coprime or LQG for unstable ones."
        )


def _peak(parts: DenseParts | DiagonalParts, inner: Triangular, D: Array) -> tuple[float, float]:
    """Return the largest gain of the stable part, and where, in rad per sample in discrete time."""
    return peak_gain(
        inner.T, inner.B, inner.C, D, inner.discrete, 1e-10, lambda w: largest_singular_values(parts.stable_response(w))
    )


def _least_resistance(parts: DenseParts | DiagonalParts, inner: Triangular, D: Array) -> tuple[float, float]:
    """Return the least eigenvalue of ``G + G^H`` that was seen, and where: at the peak of the scattering matrix too."""
    r = (_peak(parts, inner, D)[0] or 1.0) * np.eye(len(D))
    B, C = inner.B, np.linalg.solve(D + r, inner.C)
    scattering = inner.T - B @ C, 2 * r @ np.linalg.solve(D + r, np.eye(len(D))), (D - r) @ np.linalg.inv(D + r)
    peak = peak_gain(scattering[0], B @ scattering[1], C, scattering[2], inner.discrete)[1]
    omega = sample_frequencies(parts.poles[parts.kept :], inner.discrete, True)
    omega = np.concatenate([omega, [0.0, np.pi if inner.discrete else np.inf, peak]])
    response = parts.stable_response(omega)
    least = np.linalg.eigvalsh(response + response.conj().swapaxes(1, 2)).min(axis=1, initial=np.inf)
    return float(least.min()), float(omega[least.argmin()])


def _in_time(omega: float, parts: DenseParts | DiagonalParts) -> str:
    dt = parts.system.dt
    return f"{omega / dt:.6g} rad per unit of time" if dt is not True and dt else f"{omega:.6g} rad per unit of time"
