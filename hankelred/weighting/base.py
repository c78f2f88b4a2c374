"""What a weighting is: it makes a pair of factors, and nothing after that knows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..checks import EPS, Array, check_flag, check_result, double
from ..linalg.cauchy import row_norms
from ..linalg.hankel_svd import HankelSVD, norm_estimate, padded
from ..linalg.riccati import RiccatiFactor, check_squares
from ..linalg.semidefinite import covariance_factors, equal_sizes
from ..parts import DenseParts, DiagonalParts
from .coordinates import HINT, Coordinates, Triangular, coordinates_of

# One sample of rounding may fall short of the next by this much.
ROUNDINGS = 10.0

W = TypeVar("W", bound="Weighting")


# What a bound is on, unless a weighting says otherwise.
HINF = "H-infinity error"

# From the values of a pair, an order and the rounding error of a value to a bound on an error.
Bound = Callable[[Array, int, float], float]

# From the H-infinity norm of a change of a model, the model and the changed one to what that adds to the error bounded.
Change = Callable[[float, Any, Any], float]

# From responses of a system and a model at some frequencies, and values ``hsv=``, to the error bounded as seen there.
Seen = Callable[..., float]


class Pair(NamedTuple):
    """Factors ``P = S S^H`` and ``Q = R^H R`` in the coordinates of a part, and the rounding error of an hsv.

    Attributes
    ----------
    gain : float
        The error bound of small values, in what it is for the Gramians; infinite where none holds.
    bound : callable or None
        What makes the bound from the values, if it is no multiple of that for the Gramians.
    change, seen : callable or None
        If the H-infinity error is not the one bounded: what a change of a model adds, and what responses show of it.
    poles : ndarray or None
        At whose frequencies an error shows, if not at those of the system.
    """

    S: Array
    R: Array
    floor: float
    gain: float = np.inf
    bound: Bound | None = None
    change: Change | None = None
    seen: Seen | None = None
    poles: Array | None = None


class Weighting:
    """Which pair of matrices takes the place of the two Gramians.

    Parameters
    ----------
    guaranteed : bool, optional
        True balances a pair near by that keeps every reduced model stable and has an error bound, False never does,
        and None does where the model would be unstable otherwise.

    Examples
    --------
    >>> from hankelred.weighting import TimeLimited, Weighting
    >>> weighting = TimeLimited(2.0, guaranteed=True)
    >>> isinstance(weighting, Weighting), weighting.guaranteed
    (True, True)
    """

    guaranteed: bool | None = None
    name = "weighted"
    quantity = "Hankel singular values of the weighted pair"  # what hsv are
    bounded = HINF  # what a bound is on
    splits = True  # whether unstable and marginal poles are put aside
    at_nyquist = False  # whether the bound of discrete time is one on models that match the system at z = -1

    def pair(self, parts: DenseParts | DiagonalParts) -> Pair:
        """Return the factors for the stable part of a system.

        Parameters
        ----------
        parts : DenseParts or DiagonalParts
            A system and its stable part of n states.

        Returns
        -------
        Pair
            Factors S and R of n rows and n columns; values are those of ``R S``.
        """
        raise NotImplementedError

    def of(self: W, i: int, count: int) -> W:
        """Return the weighting of one system of a bank.

        Parameters
        ----------
        i : int
            Which, from 0.
        count : int
            How many the bank has.

        Returns
        -------
        Weighting
            This one, unless it was given data for each system.
        """
        return self

    def with_guarantee(self: W) -> W:
        """Return the same weighting, always in its guaranteed form."""
        copy = object.__new__(type(self))
        vars(copy).update(vars(self), guaranteed=True)
        return copy

    def _set(self, guaranteed: Any, **values: Any) -> None:
        """Set checked values."""
        guaranteed = None if guaranteed is None else check_flag(guaranteed, "guaranteed")
        vars(self).update(values, guaranteed=guaranteed)

    def __repr__(self) -> str:
        """Return the name; what it was made of may be long."""
        return f"{type(self).__name__}({self.name}, guaranteed={self.guaranteed})"


def pair_of_factors(S: Array, R: Array) -> Pair:
    """Return factors that were never squared: an hsv is right to the rounding of their product."""
    return Pair(S, R, len(S) * EPS * _product_size(S, R))


def pair_of_matrices(coordinates: Coordinates, P: Array, Q: Array | None = None, R: Array | None = None) -> Pair:
    """Return factors of two matrices, or of one beside a factor R: an hsv is right to the root of their rounding."""
    known = R
    if Q is None:
        assert R is not None
        Q = R.conj().T @ R
    check_result("Weighted Gramians", P, Q, hint=HINT)
    S, R = covariance_factors(P, Q)
    R = R if known is None else known
    return Pair(*coordinates.whole(S, R), float(np.sqrt(len(S) * EPS)) * _product_size(S, R))


def riccati_part(parts: DenseParts | DiagonalParts, *levels: float) -> tuple[Coordinates, Triangular, Array]:
    """Return the coordinates of a part, its triangular system there and D, if their squares can be computed with."""
    coordinates, D = coordinates_of(parts), double(parts.system.D)
    inner = coordinates.inner.triangular()
    check_squares(inner.T, inner.B, inner.C, D, np.array(levels))
    return coordinates, inner, D


def both_sides(left: RiccatiFactor, right: RiccatiFactor, dual: Triangular) -> Iterator[tuple[Array, Array]]:
    """Yield the factors of both sides, that of the outputs from the dual system, and those of data near by."""
    for S, R in ((left.S, right.S), (left.nearby, right.nearby)):
        yield S, dual.native(R).conj().T


def riccati_pair(
    coordinates: Coordinates, factors: tuple[Array, Array], nearby: tuple[Array, Array], **of: Any
) -> Pair:
    """Return factors of solutions of Riccati equations; those of data near by tell how far an hsv is certain."""
    S, R = coordinates.factors(*factors)
    values, other = (padded(HankelSVD(*pair).values, len(S)) for pair in ((S, R), coordinates.factors(*nearby)))
    floor = len(S) * EPS * _product_size(S, R) + ROUNDINGS * float(np.abs(values - other).max(initial=0.0))
    return Pair(S, R, floor, **of)


def _product_size(S: Array, R: Array) -> float:
    """Return ``|S| |R|`` in units in which inputs drive every state as much as outputs see it."""
    d = equal_sizes(row_norms(S), row_norms(R.T))
    size = norm_estimate(S / d[:, None]) * norm_estimate(R * d)
    check_result("Weighted Gramians", size, hint=HINT)
    return size
