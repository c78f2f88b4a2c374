"""What a layer can lose: its Hankel singular values, the sizes that meet a criterion, and the reduction to a size.

Planning asks these questions of every layer alike; how a layer answers is the business of its family. Here are the
answers of layers that are one linear system, and of those that are a bank of systems, one per channel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import hankelred as hr
from hankelred.checks import Array
from hankelred.errors import DiagonalisationError


@dataclass(frozen=True, eq=False)
class LayerReduction:
    """One layer reduced: the sizes, what is lost, and the reduction that adapters write and carry moments by.

    Attributes
    ----------
    states : int
        Stored states of the layer afterwards.
    order : int
        Hankel singular values kept; of a bank, the most that one of its systems keeps.
    hsv : (k,) ndarray
        All of them, as in `Analysis`.
    kept_energy : float
        Share of their sum that is kept; of a bank, of the sum over all of its systems.
    error_bound : float
        Bound on the H-infinity norm of the difference, in units of output per unit of input.
    reduction : Reduction or tuple of them, or what else the adapter's `rewrite` takes
        Aligned with the layer's states; a tuple has one reduction per system of a bank.
    reason : str
        Why the order is not the one asked for; empty otherwise.
    """

    states: int
    order: int
    hsv: Array = field(repr=False)
    kept_energy: float
    error_bound: float
    reduction: Any = field(repr=False)
    reason: str = ""


class Analysis(ABC):
    """What is known of one layer before a cut.

    Attributes
    ----------
    n : int
        States the layer stores.
    hsv : (k,) ndarray
        Hankel singular values, decreasing; of a bank, at every place the largest of its systems.
    """

    n: int
    hsv: Array

    @abstractmethod
    def tail(self, states: int) -> float:
        """Return the share of the sum of Hankel singular values that a cut to so many states is expected to lose.

        Exact up to real poles among the reduced ones, of which a stored state holds one instead of a pair.
        """

    @abstractmethod
    def bound(self, states: int) -> float:
        """Return the error bound that a cut to so many states is expected to have."""

    @abstractmethod
    def least_states(self, *, energy: float | None = None, max_error: float | None = None) -> tuple[int, str]:
        """Return the fewest stored states that meet one criterion, and the detour on the way if there was one.

        Raises
        ------
        DiagonalisationError
            If no order in reach can be diagonalised.
        OrderError
            If the criterion cannot be met.
        """

    @abstractmethod
    def reduce(self, states: int, *, prefer_larger: bool = False) -> LayerReduction:
        """Reduce to at most so many states; where that order does not exist, to the nearest above or below.

        Raises
        ------
        DiagonalisationError
            If no order in reach can be diagonalised.
        """


class SystemAnalysis(Analysis):
    """The answers of one linear system, by balanced truncation."""

    def __init__(self, system: hr.DiagonalSystem, align: Callable[[hr.Reduction], hr.Reduction]) -> None:
        self._balancing, self._align = hr.balance(system), align
        self.n, self.hsv = system.n, self._balancing.hsv
        self._values_per_state = 2 if system.has_real_output else 1

    def tail(self, states: int) -> float:
        """Return the share of the values behind the first two per state, or one where the output is complex."""
        finite = np.where(np.isfinite(self.hsv), self.hsv, 0.0)
        total = float(finite.sum())
        return float(finite[self._values_per_state * states :].sum()) / total if total > 0 else 0.0

    def bound(self, states: int) -> float:
        """Return the bound of that order; 0 where all states are kept."""
        order = min(self._values_per_state * states, len(self.hsv))
        return self._balancing.error_bound(order) if states < self.n else 0.0

    def least_states(self, *, energy: float | None = None, max_error: float | None = None) -> tuple[int, str]:
        """Return the states of the least order that meets the criterion, or of the next that can be diagonalised."""
        order = self._balancing.order(energy=energy, max_error=max_error)
        least, detour = reduce_to(self._balancing, prefer_larger=True, order=order)
        return least.system.n, detour

    def reduce(self, states: int, *, prefer_larger: bool = False) -> LayerReduction:
        """Reduce to the largest order that fits so many states."""
        found, detour = reduce_to(self._balancing, prefer_larger=prefer_larger, states=states)
        return LayerReduction(
            states=found.system.n,
            order=found.order,
            hsv=self.hsv,
            kept_energy=kept_energy(self.hsv, found.order),
            error_bound=found.error_bound,
            reduction=self._align(found),
            reason=detour,
        )


def kept_energy(hsv: Array, order: int) -> float:
    """Return the share of the sum of finite values that the first `order` carry."""
    finite = np.where(np.isfinite(hsv), hsv, 0.0)
    total = float(finite.sum())
    return float(finite[:order].sum()) / total if total > 0 else 1.0


def reduce_to(balancing: hr.Balancing, *, prefer_larger: bool, **criterion: Any) -> tuple[hr.Reduction, str]:
    """Reduce by one criterion, or to the nearest order that can be diagonalised, and say so then."""
    try:
        return balancing.reduce(**criterion), ""
    except DiagonalisationError as error:
        orders = sorted(error.orders, reverse=prefer_larger)
        if not orders:
            raise
        wanted = criterion["order"] if "order" in criterion else balancing.order(**criterion)
        return balancing.reduce(order=orders[0]), f"order {wanted} cannot be diagonalised, {orders[0]} can"
