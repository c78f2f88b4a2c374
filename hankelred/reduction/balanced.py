"""Balanced truncation: factor once, ask for any order.

The data flow of the whole library: system, factors, hsv, order, bases, reduced system. `balance` does the first
three steps, which cost almost all of the time; `Balancing.reduce` the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg as sla

from .. import order as orders
from .._checks import Array
from .._threads import one_blas_thread
from ..errors import DiagonalisationError, OrderError
from ..gramians import CrossProduct, accuracy, padded, stable_factors, system_order
from ..interop import as_container, as_system
from ..projection import (
    Small,
    balancing_free_bases,
    model_of,
    project,
    residualise,
    square_root_bases,
)
from ..systems import DiagonalSystem, StateSpace
from .assemble import append, augmented, insert_states, single, single_array, surviving_labels
from .rediagonalise import Diagonalised, rediagonalise, working_orders
from .result import Reduction
from .scaling import scaled, state_scaling
from .split import Split, check_offset, split_dense, split_diagonal


def balance(sys: Any, offset: float = 1e-8, *, scale: bool = False) -> Balancing:
    """Factor both Gramians of a system once, for reductions to any order.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Continuous or discrete, real or complex.
    offset : float, default 1e-8
        Poles closer than this to the stability boundary, or beyond it, are split off and kept: a distance to the
        imaginary axis in continuous time, to the unit circle in discrete time.
    scale : bool, default False
        Scale the states first, by powers of two: for models whose entries differ by many orders of magnitude.
        Diagonal systems need no scaling, their factors bring their own.

    Returns
    -------
    Balancing
        Holds `hsv` and answers `order`, `error_bound` and `reduce`.

    Raises
    ------
    InputError
        If `sys` is not a system or `offset` is out of range.
    NumericalError
        If the states are scaled so badly that rounding makes stable poles unstable, or the unstable poles cannot be
        separated from the others.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
    >>> bal = hr.balance(plant)
    >>> [bal.order(rtol=rtol) for rtol in (0.1, 0.02, 1e-3)]
    [1, 2, 3]
    """
    system = as_system(sys)
    offset, w = check_offset(offset), None
    with one_blas_thread(system_order(system)):
        if isinstance(system, DiagonalSystem):
            split = split_diagonal(system, offset)
        else:
            standard = system.standard()
            if scale:
                w = state_scaling(standard)
                standard = scaled(standard, w)
            split = split_dense(standard, offset)
        S, R = stable_factors(split.stable)
        cross = CrossProduct(S, R)
    found = padded(cross.values, system_order(split.stable))
    kept = system_order(split.fixed)
    hsv = np.concatenate([np.full(kept, np.inf), found])
    floor, rank = accuracy(found, S, R, split.stable)
    return Balancing(system, sys, split, hsv, kept, kept + rank, floor, w, S, R, cross)


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
    rank : int
        Largest order of a reduced model besides the full one: the rest links no input to any output.
    unstable : int
        Poles split off as unstable or marginal, and kept.
    floor : float
        Rounding error of a Hankel singular value, in units of y per unit of u; every bound contains twice of it.
    scaling : (n,) ndarray or None
        The powers of two that the states were divided by, where scaling was asked for.
    """

    system: StateSpace | DiagonalSystem
    _container: Any = field(repr=False)
    _split: Split = field(repr=False)
    hsv: Array
    unstable: int
    rank: int
    floor: float
    scaling: Array | None
    _S: Array = field(repr=False)
    _R: Array = field(repr=False)
    _cross: CrossProduct = field(repr=False)

    def error_bound(self, order: int) -> float:
        """Return the H-infinity error bound at an order, its rounding floor included.

        Parameters
        ----------
        order : int
            Hankel singular values kept.

        Returns
        -------
        float
            In units of y per unit of u.

        Raises
        ------
        OrderError
            If `order` is outside 0 to the order of the system.
        """
        if not 0 <= order <= len(self.hsv):
            raise OrderError(f"order must be from 0 to {len(self.hsv)}, the order of the system; got {order}.")
        return orders.error_bound(self.hsv, order, self.floor)

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
        rtol : float, optional
            Drop Hankel singular values up to ``rtol * hsv[0]``.
        energy : float, optional
            Keep the least order whose values carry this share of their sum.
        max_error : float, optional
            Keep the least order whose error bound is no larger, in units of y per unit of u.
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
        given = _exactly_one(rtol=rtol, energy=energy, max_error=max_error, states=states)
        if given == "states":
            return self._order_of_states(states)
        return orders.least_order(self.hsv, self.rank, rtol=rtol, energy=energy, max_error=max_error, floor=self.floor)

    def reduce(
        self,
        order: int | None = None,
        *,
        states: int | None = None,
        rtol: float | None = None,
        energy: float | None = None,
        max_error: float | None = None,
        match_dc: bool = False,
        balancing_free: bool = False,
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
        balancing_free : bool, default False
            Use orthonormal bases T of the same subspaces: the same model in coordinates that are not balanced,
            with no division by small Hankel singular values.

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
        _exactly_one(order=order, states=states, rtol=rtol, energy=energy, max_error=max_error)
        if order is None:
            order = self.order(rtol=rtol, energy=energy, max_error=max_error, states=states)
        order = orders.check_order(order, self.hsv, self.rank)
        if order == len(self.hsv) and (order > self.rank or isinstance(self.system, DiagonalSystem)):
            return self._unchanged()
        with one_blas_thread(len(self.hsv)):
            T, Ti, small = self._reduce_stable(order - self.unstable, match_dc, balancing_free)
        if isinstance(self.system, DiagonalSystem):
            return self._diagonal_result(order, T, Ti, self._diagonalise(small, order, match_dc), match_dc)
        return self._dense_result(order, T, Ti, small, match_dc)

    def _reduce_stable(self, order: int, match_dc: bool, balancing_free: bool = False) -> tuple[Array, Array, Small]:
        """Return bases and matrices of the reduced stable part."""
        stable = self._split.stable
        model = model_of(stable)
        bases = balancing_free_bases if balancing_free else square_root_bases
        rank = self.rank - self.unstable
        triples = self._cross.triples(rank if match_dc else order)
        T, Ti = bases(self._S, self._R, triples, slice(0, order))
        if not match_dc:
            return T, Ti, project(model, T, Ti)
        rest_T, rest_Ti = bases(self._S, self._R, triples, slice(order, rank))
        minimal = project(model, np.hstack([T, rest_T]), np.vstack([Ti, rest_Ti]))
        return T, Ti, residualise(minimal, order, stable.dt)

    def _diagonalise(self, small: Small, order: int, match_dc: bool) -> Diagonalised:
        assert isinstance(self._split.stable, DiagonalSystem)
        try:
            return rediagonalise(small, self._split.stable)
        except DiagonalisationError as error:
            error.orders = working_orders(lambda k: self._works(k, match_dc), order, self.unstable, self.rank)  # type: ignore[attr-defined]
            names = " and ".join(map(str, error.orders)) or "none"  # type: ignore[attr-defined]
            error.args = (f"{error} Nearest orders that work: {names}.",)
            raise

    def _works(self, order: int, match_dc: bool) -> bool:
        """Tell whether a diagonal model of this order exists."""
        assert isinstance(self._split.stable, DiagonalSystem)
        try:
            rediagonalise(self._reduce_stable(order - self.unstable, match_dc)[2], self._split.stable)
        except DiagonalisationError:
            return False
        return True

    def _order_of_states(self, states: Any) -> int:
        """Return the largest order that fits `states` stored states."""
        full = self.system.n
        if isinstance(states, bool) or not isinstance(states, (int, np.integer)) or not 0 <= states <= full:
            raise OrderError(f"states must be an integer from 0 to {full}, the stored states; got {states!r}.")
        if states == full:
            return len(self.hsv)
        if not isinstance(self.system, DiagonalSystem) or self.system.output == "complex":
            return min(int(states), self.rank)
        fixed = self._split.fixed.n
        if states < fixed:
            raise OrderError(f"states must be at least {fixed}, the unstable or marginal states; got {states}.")
        for order in range(min(2 * int(states), self.rank), self.unstable - 1, -1):
            poles: Array = sla.eigvals(self._reduce_stable(order - self.unstable, False)[2].A)
            if fixed + int(np.sum(np.imag(poles) >= 0)) <= states:
                return order
        raise OrderError(f"No reduced model fits states={states}; got none down to order {self.unstable}.")

    def _unchanged(self) -> Reduction:
        """Return the system itself, which is the only model of full order if the system is not minimal."""
        full = len(self.hsv)
        identity = np.eye(full)
        bound = orders.error_bound(self.hsv, full, self.floor)
        system = as_container(self.system, self._container)
        return Reduction(system, full, self.hsv, bound, identity, identity, self.unstable)

    def _dense_result(self, order: int, T: Array, Ti: Array, small: Small, match_dc: bool) -> Reduction:
        fixed, stable = self._split.fixed, self._split.stable
        assert isinstance(fixed, StateSpace)
        assert isinstance(self.system, StateSpace)
        A = sla.block_diag(fixed.A, small.A).reshape(order, order)
        B, C = np.vstack([fixed.B, small.B]), np.hstack([fixed.C, small.C])
        if self._split.bases is not None:
            full_T, full_Ti = self._split.bases
            k = self.unstable
            T = np.hstack([full_T[:, :k], full_T[:, k:] @ T])
            Ti = np.vstack([full_Ti[:k], Ti @ full_Ti[k:]])
        if self.scaling is not None:
            T, Ti = self.scaling[:, None] * T, Ti / self.scaling
        reduced = StateSpace(A, B, C, small.D, self.system.dt, labels=surviving_labels(self.system.labels))
        pair = (stable, StateSpace(small.A, small.B, small.C, small.D, stable.dt))
        return self._result(reduced, order, T, Ti, match_dc, pair)

    def _diagonal_result(self, order: int, T: Array, Ti: Array, found: Diagonalised, match_dc: bool) -> Reduction:
        fixed, stable, full = self._split.fixed, self._split.stable, self.system
        assert isinstance(full, DiagonalSystem)
        assert isinstance(fixed, DiagonalSystem)
        T, Ti = T @ found.X, found.Xi @ Ti
        if full.output == "real":
            T, Ti = augmented(T, Ti)
        T, Ti = insert_states(T, Ti, self._split, full, found.system)
        reduced = append(fixed, found.system, full)
        return self._result(reduced, order, T, Ti, match_dc, (stable, found.system))

    def _result(
        self, reduced: Any, order: int, T: Array, Ti: Array, match_dc: bool, pair: tuple[Any, Any]
    ) -> Reduction:
        """Wrap a reduced system in the class and precision of the original."""
        if self.system.dtype in (np.float32, np.complex64):
            reduced, T, Ti = single(reduced), single_array(T), single_array(Ti)
        bound = orders.error_bound(self.hsv, order, self.floor)
        system = as_container(reduced, self._container)
        return Reduction(system, order, self.hsv, bound, T, Ti, self.unstable, match_dc, pair)


def balanced_truncation(
    sys: Any,
    order: int | None = None,
    *,
    states: int | None = None,
    rtol: float | None = None,
    energy: float | None = None,
    max_error: float | None = None,
    match_dc: bool = False,
    offset: float = 1e-8,
    balancing_free: bool = False,
    scale: bool = False,
) -> Reduction:
    """Reduce a system by balanced truncation; for several orders of one system use `balance`.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Continuous or discrete, real or complex.
    order : int, optional
        Hankel singular values to keep, unstable poles included.
    states : int, optional
        Largest number of stored states of the result; differs from `order` for real output only.
    rtol : float, optional
        Drop Hankel singular values up to ``rtol * hsv[0]``.
    energy : float, optional
        Keep the least order whose values carry this share of their sum.
    max_error : float, optional
        Keep the least order whose H-infinity error bound is no larger, in units of y per unit of u.
    match_dc : bool, default False
        Match the system exactly at s = 0 or z = 1.
    offset : float, default 1e-8
        Distance from the stability boundary within which poles are split off and kept.
    balancing_free : bool, default False
        Use orthonormal bases T of the same subspaces.
    scale : bool, default False
        Scale the states first, by powers of two.

    Returns
    -------
    Reduction
        The reduced system in the class of `sys`, with Hankel singular values, error bound and bases.

    Raises
    ------
    InputError
        If `sys` is not a system.
    OrderError
        If not exactly one of `order`, `states`, `rtol`, `energy`, `max_error` is given, or it cannot be met.
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
    return balance(sys, offset, scale=scale).reduce(
        order,
        states=states,
        rtol=rtol,
        energy=energy,
        max_error=max_error,
        match_dc=match_dc,
        balancing_free=balancing_free,
    )


def _exactly_one(**criteria: Any) -> str:
    """Return the name of the one criterion given."""
    given = [name for name, value in criteria.items() if value is not None]
    if len(given) != 1:
        raise OrderError(
            f"Exactly one of {', '.join(criteria)} must be given; got {', '.join(given) or 'none'}. "
            f"For example rtol=1e-3 keeps every Hankel singular value above a thousandth of the largest."
        )
    return given[0]
