"""From Hankel singular values to an order: tolerances, energy, error bound. Knows no system.

`hsv` is decreasing. Poles that are kept whatever their energy (unstable ones) stand in front as infinite values:
they count in `order`, and no tolerance can drop them.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np

from .checks import EPS, Array, check_integer, check_number
from .errors import InputError, OrderError, RepeatedHsvWarning

# Values closer than this, relative to the larger one, count as one repeated value: a few rounding errors of a
# stable algorithm. Wider clusters are summed one by one, which keeps the bound valid, only less tight.
REPEATED = 100 * EPS


def rounding_floor(hsv: Array) -> float:
    """Return what rounding can do to a Hankel singular value, ``n eps hsv[0]``.

    That is for states of one scale; `balance` knows the factors and may find a higher floor.
    """
    finite = hsv[np.isfinite(hsv)]
    return len(hsv) * EPS * float(finite[0]) if len(finite) else 0.0


def tail_sum(hsv: Array, order: int) -> float:
    """Return the sum of the distinct Hankel singular values after the first `order`; infinite where it overflows."""
    tail = hsv[order:]
    values = tail[: np.count_nonzero(tail)].tolist()  # a model of many states has few others
    distinct = values[:1]
    for value in values[1:]:
        if distinct[-1] - value > REPEATED * distinct[-1]:
            distinct.append(value)
    try:
        return math.fsum(distinct)
    except OverflowError:
        return math.inf


def error_bound(hsv: Array, order: int, floor: float | None = None) -> float:
    """Return the H-infinity bound of balanced truncation to `order` states.

    Twice the sum of the distinct dropped values [1]_ [2]_ and of the rounding floor, under which no computed model
    can be trusted.

    Parameters
    ----------
    hsv : (n,) ndarray
        Hankel singular values, decreasing.
    order : int
        States kept.
    floor : float, optional
        Rounding error of a Hankel singular value; ``n eps hsv[0]`` by default.

    Returns
    -------
    float
        In units of y per unit of u; infinite if an unstable pole would be dropped.

    References
    ----------
    .. [1] D. Enns, "Model reduction with balanced realizations: an error bound and a frequency weighted
       generalization", Proc. 23rd IEEE CDC, 1984.
    .. [2] K. Glover, "All optimal Hankel-norm approximations of linear multivariable systems and their
       L-infinity error bounds", Int. J. Control 39, 1984.
    """
    return 2 * (tail_sum(hsv, order) + (rounding_floor(hsv) if floor is None else floor))


def least_order(
    hsv: Array,
    rank: int,
    *,
    rtol: float | None = None,
    energy: float | None = None,
    max_error: float | None = None,
    floor: float | None = None,
) -> int:
    """Return the least order that meets one tolerance.

    Parameters
    ----------
    hsv : (n,) ndarray
        Hankel singular values, decreasing.
    rank : int
        Largest order a reduced model can have; the full order is allowed besides.
    rtol : float, optional
        Drop values up to ``rtol`` times the largest finite one; from 0 to below 1.
    energy : float, optional
        Keep at least this share of the sum of the finite values; above 0, at most 1.
    max_error : float, optional
        Largest H-infinity error bound, in units of y per unit of u.
    floor : float, optional
        Rounding error of a Hankel singular value; ``n eps hsv[0]`` by default.

    Returns
    -------
    int
        The order, counting every infinite value.

    Raises
    ------
    OrderError
        If the tolerance is out of its range or cannot be met; the message names the best that can.
    """
    kept = int(np.isinf(hsv).sum())
    finite = hsv[kept:]
    largest = float(finite[0]) if len(finite) else 0.0
    if rtol is not None:
        rtol = _share(rtol, "rtol", below=1.0, hint="It is relative to the largest hsv.")
        return min(kept + int(np.sum(finite > rtol * largest)), rank)
    if energy is not None:
        energy = _share(energy, "energy", least=5e-324, most=1.0, hint="Write 0.95 for 95 %.")
        tails = np.append(np.cumsum(finite[::-1])[::-1], 0.0)  # tails[k]: what is lost by keeping k
        rounding = 4 * EPS * tails[0] if energy < 1 else 0.0  # of 1 - energy: 12 of 15 is a share of 0.8
        return min(kept + int(np.argmax(tails <= (1 - energy) * tails[0] + rounding)), rank)
    max_error = _share(max_error, "max_error", hint="It is in units of y per unit of u.")
    found = first_within(hsv, [*range(kept, rank + 1), len(hsv)], max_error, floor)
    if found is not None:
        return found
    best = error_bound(hsv, len(hsv), floor)
    raise OrderError(
        f"max_error={max_error:.3g} cannot be met: even the full order {len(hsv)} has the rounding floor "
        f"{best:.3g} in its bound, and order {rank} has the bound {error_bound(hsv, rank, floor):.3g}. "
        f"Ask for more than that."
    )


def first_within(hsv: Array, orders: Sequence[int], max_error: float, floor: float | None = None) -> int | None:
    """Return the first of increasing orders whose error bound, which falls with the order, is no larger, or None."""
    place = bisect_left(orders, True, key=lambda order: error_bound(hsv, order, floor) <= max_error)
    return orders[place] if place < len(orders) else None


def _share(value: Any, name: str, least: float = 0.0, **limits: Any) -> float:
    """Return a checked tolerance; a wrong one is an error of orders."""
    try:
        return check_number(value, name, least=least, **limits)
    except InputError as error:
        raise OrderError(str(error)) from None


def check_count(count: Any, most: int, name: str = "order") -> int:
    """Return a number of states from 0 to `most`."""
    return check_integer(count, name, 0, most, f"The system has {most}.", OrderError)


def check_above_floor(order: Any, rank: int, floor: float) -> None:
    """Refuse orders past the values that a large system is known to have."""
    if check_integer(order, "order", 0, error=OrderError) > rank:
        raise OrderError(
            f"order must be at most {rank}, how many Hankel singular values are above their rounding error of "
            f"{floor:.3g}; got {order}. Ask for order={rank}."
        )


def check_order(
    order: Any, hsv: Array, rank: int, uncertain: float = 0.0, weighted: bool = False, stacklevel: int = 4
) -> int:
    """Return `order` as an int if a model of that order exists, and warn if the cut splits a repeated value.

    Values that differ by no more than twice `uncertain` are one value to rounding.
    """
    kept, full = np.count_nonzero(np.isinf(hsv)), len(hsv)
    order = check_count(order, full)
    if order < kept:
        raise OrderError(
            f"order must be at least {kept}, the number of unstable or marginal poles, which are always kept; "
            f"got {order}. Raise order, or lower offset if those poles count as stable for you."
        )
    if rank < order < full:
        of, why = ("pair", "are what rounding made of it") if weighted else ("system", "link no input to any output")
        raise OrderError(
            f"order must be at most {rank}, the numerical rank of the {of}, or {full}, all of it; got {order}. "
            f"States past the rank {why}: ask for order={rank}."
        )
    if kept < order < rank and hsv[order - 1] - hsv[order] <= max(REPEATED * hsv[order - 1], 2 * uncertain):
        warnings.warn(
            f"The cut at order {order} splits a repeated Hankel singular value, {hsv[order]:.6g}: the reduced model "
            f"depends on the basis and may be marginally stable. Choose a neighbouring order.",
            RepeatedHsvWarning,
            stacklevel=stacklevel,
        )
    return order
