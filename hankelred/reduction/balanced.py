"""Balanced truncation: factor once, ask for any order.

The data flow of the whole library: system, factors, hsv, order, bases, reduced system. `balance` does the first
three steps, which cost almost all of the time; `Balancing.reduce` the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import order as orders
from ..checks import SINGLE as SINGLE_PRECISION
from ..checks import Array, check_flag, check_number, check_result, exactly_one, in_family, single
from ..errors import InputError, OrderError
from ..hankel import Factored, check_weighting, factored, warn_if_inaccurate
from ..linalg.threads import one_blas_thread
from ..markup import html_table
from ..rounding import Matrices
from ..systems import Poles, StateSpace, as_container, as_system, one_system, real_output
from ..weighting import Weighting
from .bank import reduce_bank
from .bases import residualised
from .damping import excess_of_rounding
from .rediagonalise import Diagonalised, diagonalised_at, largest_order
from .result import Reduction
from .single_precision import in_single_precision
from .split import joined, with_fixed_states

OFFSET = 1e-8


def balance(sys: Any, offset: float = OFFSET, weighting: Weighting | None = None) -> Balancing:
    """Factor both Gramians of a system once, for reductions to any order.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Continuous or discrete, real or complex.
    offset : float, default 1e-8
        Poles closer than this to the stability boundary, or beyond it, are split off and kept: a distance to the
        imaginary axis in continuous time, to the unit circle in discrete time. So are, whatever the offset, poles
        that lie within their own rounding error of it, as the rigid-body modes of a structure do.
    weighting : Weighting, optional
        What takes the place of the Gramians, see `hankelred.weighting`; by default white noise reaches the inputs.

    Returns
    -------
    Balancing
        Holds `hsv` and answers `order`, `error_bound` and `reduce`.

    Raises
    ------
    InputError
        If `sys` is not a system, or a bank, or `offset` is out of range.
    NumericalError
        If a Gramian overflows, or the unstable poles cannot be separated from the others.

    Warns
    -----
    AccuracyWarning
        If rounding can have changed the Hankel singular values by more than 1e-6 of the largest.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
    >>> bal = hr.balance(plant)
    >>> [bal.order(rtol=rtol) for rtol in (0.1, 0.02, 1e-3)]
    [1, 2, 3]
    """
    return _balance(one_system(sys), sys, offset, check_weighting(weighting))


def _balance(system: Any, container: Any, offset: float, weighting: Weighting | None = None) -> Balancing:
    offset = check_number(offset, "offset", least=0.0, hint="It is a distance from the stability boundary.")
    found = factored(system, offset, weighting, hsv_only=True)
    warn_if_inaccurate(found, stacklevel=4)
    return Balancing(system, found.hsv, found.kept, found.rank, found.floor, container, found, offset)


@dataclass(frozen=True, eq=False)
class Balancing:
    """A system factored for reduction; made by `balance`.

    Attributes
    ----------
    system : StateSpace or DiagonalSystem
        The system that was balanced.
    hsv : (n,) ndarray
        Hankel singular values, decreasing, infinite in front for unstable and marginal poles; 2n values for a
        `DiagonalSystem` with real output.
    unstable : int
        Poles split off as unstable or marginal, and kept.
    rank : int
        Largest order of a reduced model besides the full one: the numerical rank, beyond which states are
        uncontrollable or unobservable to rounding.
    floor : float
        Rounding error of a Hankel singular value, in units of y per unit of u; every bound contains twice of it.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> bal = hr.balance(hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3))))
    >>> bal.rank, bal.unstable, bool(bal.error_bound(2) < 0.1 * bal.hsv[0])
    (3, 0, True)
    """

    system: Any
    hsv: Array
    unstable: int
    rank: int
    floor: float
    _container: Any = field(repr=False)
    _found: Factored = field(repr=False)
    _offset: float = field(repr=False)

    def __repr__(self) -> str:
        """Return system, rank and floor, not the values."""
        return f"Balancing({self.system!r}, unstable={self.unstable}, rank={self.rank}, floor={self.floor:.3g})"

    def _repr_html_(self) -> str:  # the first twenty orders
        rows = [(k, f"{self.hsv[k - 1]:.4g}", f"{self.error_bound(k):.4g}") for k in range(1, min(self.rank, 20) + 1)]
        return html_table(rows, ("order", "hsv", "error bound"), repr(self))

    def error_bound(self, order: int) -> float:
        """Return the error bound at an order, its rounding floor included, on the error that a weighting names.

        Parameters
        ----------
        order : int
            Hankel singular values kept.

        Returns
        -------
        float
            In units of y per unit of u, or a share; infinite where no bound holds, as for a plain weighted pair.

        Raises
        ------
        OrderError
            If `order` is outside 0 to the order of the system.
        """
        return self._found.error_bound(orders.check_count(order, len(self.hsv)))

    def order(
        self,
        *,
        rtol: float | None = None,
        energy: float | None = None,
        max_error: float | None = None,
        states: int | None = None,
    ) -> int:
        """Return the order that one criterion asks for.

        Parameters
        ----------
        rtol, energy, max_error : float, optional
            As for `balanced_truncation`.
        states : int, optional
            Keep the largest order that fits this many stored states. With real output a complex pole is stored
            once for itself and its conjugate, which are never separated; otherwise the same as the order.

        Returns
        -------
        int
            The order, counting kept unstable poles.

        Raises
        ------
        OrderError
            If not exactly one criterion is given, or it cannot be met.
        """
        name, value = exactly_one(rtol=rtol, energy=energy, max_error=max_error, states=states)
        if name == "states":
            return self._order_of_states(value)
        gain, bound = self._found.gain, None if self._found.bound is None else self._found.error_bound
        if name == "max_error" and bound is None and gain != 1.0:
            if np.isinf(gain):
                raise OrderError(
                    f"max_error must be a bound that holds; got {value!r}, and none holds for {self._found.weighting}. "
                    f"Pass order, rtol or energy, or guaranteed=True to the weighting."
                )
            value = check_number(value, "max_error", least=0.0) / gain if gain else np.finfo(float).max
        return orders.least_order(self.hsv, self.rank, **{name: value}, floor=self.floor, bound=bound)

    def reduce(
        self,
        order: int | None = None,
        *,
        states: int | None = None,
        rtol: float | None = None,
        energy: float | None = None,
        max_error: float | None = None,
        match_dc: bool = False,
    ) -> Reduction:
        """Reduce to an order, or to the order a criterion asks for; exactly one must be given.

        Parameters
        ----------
        order : int, optional
            Hankel singular values to keep, unstable poles included; at most `rank`, or the full order.
        states, rtol, energy, max_error : optional
            As in `order`.
        match_dc : bool, default False
            Match the system exactly at s = 0 or z = 1, by singular perturbation instead of truncation. The bound
            is the same; the feedthrough D changes.

        Returns
        -------
        Reduction
            The reduced system with its bound and bases.

        Raises
        ------
        OrderError
            If the order or criterion cannot be met.
        DiagonalisationError
            If a diagonal system of that order cannot be made; its attribute `orders` lists the nearest that can.

        Warns
        -----
        RepeatedHsvWarning
            If the cut separates equal Hankel singular values.
        """
        name, value = exactly_one(order=order, states=states, rtol=rtol, energy=energy, max_error=max_error)
        if check_flag(match_dc, "match_dc") and self._found.bound is None and not self._found.keeps_poles:
            raise InputError(
                "match_dc needs a stable system where unstable poles are not split off; got one with some."
            )
        if order is None:
            order = self.order(**{name: value})
        if self._found.parts.is_low_rank:
            orders.check_above_floor(order, self.rank, self.floor)
        order = orders.check_order(order, self.hsv, self.rank, self._found.uncertain, self._found.weighting is not None)
        reduction = self._reduce(order, match_dc)
        while max_error is not None and reduction.error_bound > max_error:  # what rounding to the result adds
            if order == len(self.hsv):
                raise OrderError(
                    f"max_error={max_error:.3g} cannot be met by the model as it is stored; got a bound of "
                    f"{reduction.error_bound:.3g} at the full order. Ask for more than that."
                )
            order = order + 1 if order < self.rank else len(self.hsv)
            reduction = self._reduce(order, match_dc)
        return reduction

    def _reduce(self, order: int, match_dc: bool) -> Reduction:
        if order == len(self.hsv) and (order > self.rank or self.system.is_diagonal):
            return self._unchanged()
        with one_blas_thread(len(self.hsv)):
            T, Ti, small = self._reduce_stable(order, match_dc)
            weighting, projects = self._found.weighting, self._point(match_dc) is None
            method = "balanced truncation" if projects else "singular perturbation"
            if self._found.parts.is_low_rank:
                method += f" by factors of low rank ({self._found.parts.engine})"
            if weighting is not None:
                if weighting.guaranteed is None and self._found.keeps_poles and not self._is_stable(small):
                    return self._guaranteed(order, weighting)._reduce(order, match_dc)
                method = f"{weighting.name} {method}{', guaranteed form' if weighting.guaranteed else ''}"
            if self.system.is_diagonal:
                return self._diagonal_result(order, T, Ti, self._diagonalised(order, small, match_dc), method)
            return self._dense_result(order, T, Ti, small, method)

    def _is_stable(self, small: Matrices) -> bool:
        poles = Poles(np.linalg.eigvals(small.A) + small.shift)
        return bool(np.all(poles.excess(self.system.is_discrete) < 0))

    def _guaranteed(self, order: int, weighting: Weighting) -> Balancing:
        """Balance the guaranteed form for an order at which the plain one is unstable."""
        found = _balance(self.system, self._container, self._offset, weighting.with_guarantee())
        if order > found.rank:
            raise OrderError(
                f"order must be at most {found.rank} where the plain model is unstable, the rank of the guaranteed "
                f"form; got {order}. Pass guaranteed=False to the weighting for the unstable model."
            )
        return found

    def _reduce_stable(self, order: int, match_dc: bool) -> tuple[Array, Array, Matrices]:
        """Return bases and matrices of the reduced stable part."""
        found, kept, point = self._found, order - self.unstable, self._point(match_dc)
        T, Ti, small = found.reduced(kept) if point is None else residualised(found, kept, point)
        check_result("The reduced model", *small[: 3 if point is None else 4])
        return T, Ti, small

    def _point(self, match_dc: bool) -> float | None:
        """Return the s or z at which models match the system; truncated ones do so at infinity."""
        if self.system.is_discrete:
            at_nyquist = self._found.weighting is not None and self._found.weighting.at_nyquist
            return 1.0 if match_dc else -1.0 if at_nyquist else None
        return 0.0 if match_dc else None

    def _diagonalised(self, order: int, small: Matrices, match_dc: bool) -> Diagonalised:
        allowed, like = range(self.unstable, self.rank + 1), self._found.parts.stable
        return diagonalised_at(order, small, lambda k: self._reduce_stable(k, match_dc)[2], allowed, like)

    def _order_of_states(self, states: Any) -> int:
        """Return the largest order whose model stores at most so many states."""
        states = orders.check_count(states, self.system.n, "states")
        if states == self.system.n:
            return len(self.hsv)
        if len(self.hsv) == self.system.n or not self.system.is_diagonal:
            return min(states, self.rank)
        candidates = range(min(2 * states, self.rank), self.unstable - 1, -1)
        fixed = self._found.parts.fixed_system.n
        return largest_order(lambda k: self._reduce_stable(k, False)[2], candidates, states, fixed)

    def _unchanged(self) -> Reduction:
        """Return the system itself as its only model of full order."""
        identity, found = in_family(np.eye(len(self.hsv)), self.system.dtype), self._found
        order, method = len(self.hsv), "none (full order keeps the system as it is)"
        system, bound = as_container(self.system, self._container), 0.0 if found.weighting else self.error_bound(order)
        kind = identity, identity, self.unstable, method, found.bounded, self.system
        return Reduction(system, self.system, order, self.hsv, bound, *kind)

    def _dense_result(
        self, order: int, T: Array, Ti: Array, small: Matrices, method: str, bound: float | None = None
    ) -> Reduction:
        G, parts = self.system, self._found.parts
        reduced, pair = self._whole(small), None
        if parts.is_split:
            fixed_T, fixed_Ti = parts.fixed_bases()
            T, Ti = np.hstack([fixed_T, T]), np.vstack([fixed_Ti, Ti])
            full = StateSpace.trusted(parts.T, parts.B, parts.C, G.D, G.dt)
            pair = full, StateSpace.trusted(small.A, small.B, small.C, small.D, G.dt)
        if bound is None:
            bound = self.error_bound(order) + excess_of_rounding(self._found, small, reduced, order)
        return self._result(reduced, order, T, Ti, method, pair, bound)

    def _whole(self, small: Matrices) -> Any:
        """Return a dense model of the stable part with the unstable and marginal poles beside it."""
        A, B, C, D, *_ = self._found.parts.whole(small)
        return StateSpace.trusted(A, B, C, D, self.system.dt, self.system.outer_names)

    def _diagonal_result(self, order: int, T: Array, Ti: Array, found: Diagonalised, method: str) -> Reduction:
        parts = self._found.parts
        T, Ti = T @ found.X, found.Xi @ Ti
        if self.system.has_real_output:
            T, Ti = real_output.to_conjugates(T, Ti)
        T, Ti = with_fixed_states(T, Ti, parts, found.system)
        pair = (parts.stable, found.system) if len(parts.fixed) else None
        model = joined(parts.fixed_system, found.system)
        bound = self.error_bound(order) + self._found.added(2 * found.change, model, model)
        return self._result(model, order, T, Ti, method, pair, bound)

    def _result(self, reduced: Any, order: int, T: Array, Ti: Array, method: str, pair: Any, bound: float) -> Reduction:
        """Wrap a reduced system in the class and precision of the original."""
        if self.system.dtype in SINGLE_PRECISION:
            exact = reduced
            reduced, pair, changed = in_single_precision(reduced, pair)
            bound, T, Ti = bound + self._found.added(changed, exact, reduced), single(T), single(Ti)
        system = as_container(reduced, self._container)
        kind = T, Ti, self.unstable, method, self._found.bounded, reduced, pair
        return Reduction(system, self.system, order, self.hsv, bound, *kind)


def reduced_model(bal: Balancing, order: int, match_dc: bool) -> Any:
    """Return the model that `Balancing.reduce` makes, without the work for its bound where that is apart."""
    system = bal.system
    if system.is_diagonal or system.dtype in SINGLE_PRECISION or bal._found.weighting or order == len(bal.hsv):
        return bal.reduce(order, match_dc=match_dc).system
    order = orders.check_order(order, bal.hsv, bal.rank, bal._found.uncertain)
    with one_blas_thread(len(bal.hsv)):
        return as_container(bal._whole(bal._reduce_stable(order, match_dc)[2]), bal._container)


def balanced_truncation(
    sys: Any,
    order: int | None = None,
    *,
    states: int | None = None,
    rtol: float | None = None,
    energy: float | None = None,
    max_error: float | None = None,
    match_dc: bool = False,
    offset: float = OFFSET,
    weighting: Weighting | None = None,
) -> Any:
    """Reduce a system, or a bank of them, by balanced truncation; for several orders of one system use `balance`.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem, DiagonalBank or anything `as_system` accepts
        Continuous or discrete, real or complex. The systems of a bank must be stable.
    order : int, optional
        Hankel singular values to keep, unstable poles included. Of a system of a bank that has a smaller numerical
        rank, that many are kept.
    states : int, optional
        Largest number of stored states of the result; differs from `order` for real output only.
    rtol : float, optional
        Drop Hankel singular values up to ``rtol * hsv[0]``.
    energy : float, optional
        Keep the least order whose values carry this share of their sum.
    max_error : float, optional
        Keep the least order whose H-infinity error bound is no larger, in units of y per unit of u.
    match_dc : bool, default False
        Match the system exactly at s = 0 or z = 1; not for banks.
    offset : float, default 1e-8
        Distance from the stability boundary within which poles are split off and kept; not for banks.
    weighting : Weighting, optional
        What takes the place of the Gramians, see `hankelred.weighting`; by default white noise reaches the inputs.

    Returns
    -------
    Reduction or BankReduction
        The reduced system in the class of `sys`, with Hankel singular values, error bound and bases.

    Raises
    ------
    InputError
        If `sys` is not a system.
    OrderError
        If not exactly one of `order`, `states`, `rtol`, `energy`, `max_error` is given, or it cannot be met.
    StabilityError
        If a system of a bank is not stable.
    DiagonalisationError
        If a diagonal system cannot be kept diagonal at that order.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
    >>> reduction = hr.balanced_truncation(plant, order=2)
    >>> reduction.system.n, reduction.hinf_error() <= reduction.error_bound
    (2, True)
    """
    criteria: dict[str, Any] = dict(order=order, states=states, rtol=rtol, energy=energy, max_error=max_error)
    system, weighting = as_system(sys), check_weighting(weighting)
    if system.is_bank:
        if match_dc or offset != OFFSET:
            raise InputError("match_dc and offset are for one system; got a bank. Reduce bank[i] with them.")
        return reduce_bank(system, lambda one, own: _balance(one, one, 0.0, own), weighting, **criteria)
    return _balance(system, sys, offset, weighting).reduce(**criteria, match_dc=match_dc)
