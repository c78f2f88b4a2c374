"""Time-limited balancing: the energy that inputs bring in, and outputs give back, within a finite horizon."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..checks import Array, check_number
from ..errors import InputError
from ..linalg.hankel_svd import graded
from ..parts import DenseParts, DiagonalParts
from .base import Pair, Weighting, pair_of_factors
from .coordinates import coordinates_of

# A horizon counts as so many samples if it is that to this accuracy.
WHOLE = 1e-9


class TimeLimited(Weighting):
    """Balance what happens within a horizon, as a transient of known length [1]_.

    ``P = int_0^T e^{A t} B B^H e^{A^H t} dt`` or the sum over the first samples, Q likewise. Unstable and marginal
    poles are reduced with all others: within a horizon nothing is infinite.

    Parameters
    ----------
    horizon : float
        Positive, in the unit of time of the system: seconds, or samples for ``dt=True``. With a sampling time it is a
        whole number of samples.
    guaranteed : bool, optional
        See `Weighting`; a system with unstable poles has no guaranteed form.

    References
    ----------
    .. [1] W. Gawronski, J.-N. Juang, "Model reduction in limited time and frequency intervals", Int. J. Systems
       Science 21, 1990, pp. 349-376.

    Notes
    -----
    Factors come from a quadrature of the first short step, exact to rounding, and from doubling: those of twice the
    time are ``[S, e^{A t} S]``. Nothing is subtracted, so small Hankel singular values keep their digits.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.weighting import TimeLimited
    >>> integrator = hr.StateSpace([[0.0]], [[1.0]], [[1.0]])
    >>> print(f"{hr.hankel_singular_values(integrator, TimeLimited(3.0))[0]:.4f}")  # P = Q = 3
    3.0000
    """

    name = "time-limited"
    splits = False
    horizon: float

    def __init__(self, horizon: float, guaranteed: bool | None = None) -> None:
        horizon = check_number(horizon, "horizon", least=0.0, hint="It is a time; leave out weighting for no limit.")
        if horizon == 0:
            raise InputError("horizon must be positive; got 0. It is the time within which errors count.")
        self._set(guaranteed, horizon=horizon)

    def pair(self, parts: DenseParts | DiagonalParts) -> Pair:
        """Return the factors of both Gramians over the horizon."""
        coordinates = coordinates_of(parts)
        inner, steps = coordinates.inner, self._samples(parts.system.dt)
        S = _over_horizon(inner, self.horizon, steps)
        dual = inner.dual()
        R = dual.native(_over_horizon(dual, self.horizon, steps)).conj().T
        return pair_of_factors(*coordinates.factors(S, R))

    def _samples(self, dt: Any) -> int:
        """Return the horizon in samples of a discrete system."""
        if dt is not True and dt == 0:
            return 0
        samples = self.horizon / (1.0 if dt is True else dt)
        count = round(samples)
        if count < 1 or not math.isclose(samples, count, rel_tol=WHOLE):
            raise InputError(
                f"horizon must be a whole number of samples, at least one, for dt={dt}; got {self.horizon:g}, "
                f"{samples:g} samples."
            )
        return count


def _over_horizon(part: Any, horizon: float, steps: int) -> Array:
    """Return a factor of the sum over so many samples, or of the integral in continuous time."""
    if not part.discrete:
        doublings = max(0, math.frexp(part.size * horizon)[1])
        unit, steps = math.ldexp(horizon, -doublings), 1 << doublings
    with np.errstate(all="ignore"):  # what overflows is refused by whoever takes the factor
        start = part.B if part.discrete else part.over_step(unit)
        flow, S = part.flow(1.0 if part.discrete else unit), graded(start, 0.0)
        for bit in bin(steps)[3:]:
            S = graded(np.hstack([S, flow(S)]), 0.0)
            flow.double()
            if bit == "1":
                S = graded(np.hstack([start, flow.once(S)]), 0.0)
                flow.increment()
            if not np.isfinite(S).all():
                break
    return S
