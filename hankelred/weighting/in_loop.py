"""Balancing of the plant in a loop, no pole split off: LQG values, and Gramians of normalised coprime factors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.linalg as sla

from .. import order as orders
from ..checks import Array
from ..errors import NumericalError, StabilityError
from ..linalg.gain import largest_gain, peak_gain
from ..linalg.hankel_svd import HankelSVD
from ..linalg.riccati import RiccatiFactor, coprime_factors, covariance_factor, filter_factor, in_last_digits
from ..parts import DenseParts, DiagonalParts
from .base import Pair, Weighting, both_sides, riccati_pair, riccati_part
from .coordinates import Triangular

# Poles this near to the stability boundary, in discrete time or relative to the largest, need a loop.
SLOW = 1e-6
# Factors with a value this near to 1 have a zero in common: mu is beyond 1e6, and no model has digits.
COMMON = 1e-12
# Of responses beyond this gain the small entries are not known.
HIGH = 1e6


class _InLoop(Weighting):
    """What closed loops weigh by: no pole is put aside, and there is no guaranteed form."""

    bounded = "gap metric"
    splits = False

    def __init__(self) -> None:
        self._set(False)


class LQG(_InLoop):
    """Balance the two Riccati equations of LQG control, for stable and unstable systems alike [1]_.

    P is the error covariance of the Kalman filter, Q the cost matrix of the regulator, with unit noise in inputs and
    outputs and unit weights on both. Their values ``mu`` say how hard a state is to observe and to control in the
    loop. Models are those of `Coprime`, with the same bound on the gap, ``2 sum mu / sqrt(1 + mu^2)``: a small gap
    means that a controller of the model serves the system too. Units of inputs and outputs matter.

    References
    ----------
    .. [1] E. A. Jonckheere, L. M. Silverman, "A new set of invariants for linear systems - application to reduced
       order compensator design", IEEE Trans. Automatic Control 28, 1983, pp. 953-964.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.weighting import LQG
    >>> unstable = hr.StateSpace([[1.0]], [[1.0]], [[1.0]])
    >>> print(f"{hr.hankel_singular_values(unstable, LQG())[0]:.6f}")  # 1 + sqrt(2)
    2.414214
    """

    name = "LQG"
    quantity = "LQG characteristic values"

    def pair(self, parts: DenseParts | DiagonalParts) -> Pair:
        """Return factors of the solutions of both Riccati equations."""
        coordinates, inner, D = riccati_part(parts)
        dual = inner.dual()
        left, right = _filter(inner, D), _filter(dual, D.conj().T)

        def seen(given: Array, model: Array, hsv: Array) -> float:
            return _chordal(given, model) * float(np.hypot(1.0, hsv.max(initial=0.0)))

        of: dict[str, Any] = {"change": _gap, "seen": seen, "poles": np.linalg.eigvals(inner.T + left.K @ inner.C)}
        return riccati_pair(coordinates, *both_sides(left, right, dual), gain=1.0, bound=_of_values, **of)


class Coprime(_InLoop):
    """Balance the normalised coprime factors of a system, stable or not: the error counts in the gap metric [1]_.

    ``G = M^-1 N`` with ``N N^~ + M M^~ = I``, both stable. The hsv are those of ``[N, M]``, below 1, and the model is
    made of its truncation. The gap between the system and its model is at most twice their tail, and 1 in any case. A
    controller that tolerates a gap of so much stabilises both. Units of inputs and outputs matter.

    References
    ----------
    .. [1] D. G. Meyer, "Fractional balanced reduction: model reduction via fractional representation", IEEE Trans.
       Automatic Control 35, 1990, pp. 1341-1345.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.weighting import Coprime
    >>> unstable = hr.StateSpace([[1.0]], [[1.0]], [[1.0]])
    >>> print(f"{hr.hankel_singular_values(unstable, Coprime())[0]:.6f}")  # mu / sqrt(1 + mu^2), mu = 1 + sqrt(2)
    0.923880
    """

    name = "coprime factor"
    quantity = "Hankel singular values of the normalised coprime factors"

    def pair(self, parts: DenseParts | DiagonalParts) -> Pair:
        """Return factors of the Gramians of the factors of the system."""
        coordinates, inner, D = riccati_part(parts)
        left = _filter(inner, D)
        A, _, C, _ = coprime_factors(inner.T, inner.B, inner.C, D, left.K, left.middle)
        A, C = A.conj().T, C.conj().T
        R = covariance_factor(A, C, inner.discrete).conj().T
        if HankelSVD(left.S, R).values.max(initial=0.0) > 1 - COMMON:  # both factors have the zero of a hidden mode
            raise _hidden(inner)
        A, C = in_last_digits(A, C)
        found, nearby = (left.S, R), (left.nearby, covariance_factor(A, C, inner.discrete).conj().T)

        def seen(given: Array, model: Array, hsv: Array) -> float:
            largest = float(hsv.max(initial=0.0))
            return _chordal(given, model) / math.sqrt((1 - largest) * (1 + largest))

        of: dict[str, Any] = {"change": _gap, "seen": seen, "poles": np.linalg.eigvals(A).conj()}
        return riccati_pair(coordinates, found, nearby, gain=1.0, bound=_of_factors, **of)


def _filter(part: Triangular, D: Array) -> RiccatiFactor:
    """Solve the Riccati equation of the filter, or say which pole has no loop that stabilises it."""
    try:
        return filter_factor(part.T, part.B, part.C, D, part.discrete)
    except NumericalError as error:
        raise _hidden(part) from error


def _hidden(part: Triangular) -> StabilityError | NumericalError:
    """Return the error that names the pole nearest to being lost to inputs or outputs, of those that need a loop."""
    poles = np.linalg.eigvals(part.T)
    poles = poles[np.abs(poles) >= 1 - SLOW] if part.discrete else poles[poles.real >= -SLOW * np.abs(poles).max()]
    if len(poles) == 0:
        return NumericalError(
            "The Riccati equation must be solvable in double precision; got none. Scale inputs or outputs."
        )
    n, worst = len(part.T), (np.inf, 0.0 + 0.0j)
    for pole in poles:
        shifted = part.T - pole * np.eye(n)
        reached = np.linalg.svd(np.hstack([shifted, part.B]), compute_uv=False)[-1]
        seen = np.linalg.svd(np.vstack([shifted, part.C]), compute_uv=False)[-1]
        worst = min(worst, (float(min(reached, seen)), complex(pole)), key=lambda found: found[0])
    return StabilityError(
        f"Unstable and marginal poles must be controllable and observable; got a pole at {worst[1]:.6g} that is "
        f"{worst[0]:.2g} away from losing one or the other. Take it out of the system first."
    )


def _of_values(hsv: Array, order: int, floor: float) -> float:
    """Return the bound on the gap for LQG values mu: those of the coprime factors are mu / sqrt(1 + mu^2)."""
    return _of_factors(hsv / np.hypot(1.0, hsv), order, floor)


def _of_factors(hsv: Array, order: int, floor: float) -> float:
    """Return twice the tail, or 1, above which no gap is."""
    return min(1.0, orders.error_bound(hsv, order, floor))


def _chordal(given: Array, model: Array) -> float:
    """Return the largest chordal distance of responses, ``|(1 + H H^H)^-1/2 (G - H) (1 + G^H G)^-1/2|``.

    Where the gain is beyond `HIGH` responses are the rounding of their largest entries, and say nothing.
    """
    largest = np.linalg.norm(given, axis=(1, 2))
    clear = largest <= max(HIGH, largest.min(initial=np.inf))
    G, H = given[clear & np.isfinite(largest)], model[clear & np.isfinite(largest)]
    U, seen, _ = np.linalg.svd(H)
    _, reached, Vh = np.linalg.svd(G)
    distance, k = U.conj().swapaxes(1, 2) @ (G - H) @ Vh.conj().swapaxes(1, 2), seen.shape[1]
    distance[:, :k] /= np.hypot(1.0, seen)[:, :, None]
    distance[:, :, :k] /= np.hypot(1.0, reached)[:, None]
    return largest_gain(distance)


def _gap(norm: float, model: Any, changed: Any) -> float:
    """Return a bound on the gap between a model and a changed one: that of unstable ones by their coprime factors.

    With one K for both, the change of the normalised factors ``[N, M]`` of the model.
    """
    if np.isfinite(norm):
        return norm
    G, H = model.dense(), changed.dense()
    try:
        found = filter_factor(G.A, G.B, G.C, G.D, G.is_discrete)
    except NumericalError:
        return 1.0
    (A, B, C, D), (a, b, c, d) = (coprime_factors(x.A, x.B, x.C, x.D, found.K, found.middle) for x in (G, H))
    gap = peak_gain(sla.block_diag(A, a), np.vstack([B, b]), np.hstack([C, -c]), D - d, G.is_discrete)[0]
    return min(1.0, gap)
