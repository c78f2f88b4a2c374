"""What a layer can lose: its Hankel singular values, the sizes that meet a criterion, and the reduction to a size.

Planning asks these questions of every layer alike; how a layer answers is the business of its family. Here are the
answers of layers that are linear systems.
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
from hankelred.order import error_bound, least_order
from hankelred.weighting import Weighting


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
    method : str
        How, where it is not balanced truncation against white noise.
    """

    states: int
    order: int
    hsv: Array = field(repr=False)
    kept_energy: float
    error_bound: float
    reduction: Any = field(repr=False)
    reason: str = ""
    method: str = ""


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


class LinearAnalysis(Analysis):
    """The answers of a linear system, or of a bank of them, by balanced truncation, weighed by data if there are any.

    Those of a bank are of its most demanding system, except the energy, which is that of all together. It keeps as many
    states as the system that needs most, because tensors are rectangular.
    """

    def __init__(
        self,
        bank: hr.DiagonalBank,
        align: Callable[[tuple[hr.Reduction, ...]], Any],
        weighting: Weighting | None = None,
    ) -> None:
        self._bank, self._systems, self._align, self._weighting = bank, tuple(bank), align, weighting
        self._balancings: dict[int, hr.Balancing] = {}
        alone = len(bank) == 1 or weighting is not None
        spectra = [self._balancing(k).hsv for k in range(len(bank))] if alone else hr.hankel_singular_values(bank)
        self._spectra, self._floor = np.asarray(spectra), self._balancing(0).floor if len(bank) == 1 else None
        self.n, self.hsv = bank.n, self._spectra.max(axis=0)
        self._finite = np.where(np.isfinite(self._spectra), self._spectra, 0.0)
        self._per_state = 2 if bank.has_real_output else 1

    def tail(self, states: int) -> float:
        """Return the share of the values of all systems behind the first two per state, one where output is complex."""
        total = float(self._finite.sum())
        return float(self._finite[:, self._per_state * states :].sum()) / total if total > 0 else 0.0

    def bound(self, states: int) -> float:
        """Return the largest bound of a system; 0 where all states are kept."""
        if states >= self.n:
            return 0.0
        if self._weighting is not None:
            return np.inf
        order = min(self._per_state * states, len(self.hsv))
        return max(error_bound(hsv, order, self._floor) for hsv in self._spectra)

    def least_states(self, *, energy: float | None = None, max_error: float | None = None) -> tuple[int, str]:
        """Return the states of the system that needs most to meet the criterion by itself."""
        if len(self._systems) == 1:
            found, by_way = self._reduce(
                0, prefer_larger=True, order=self._balancing(0).order(energy=energy, max_error=max_error)
            )
            return found.system.n, by_way
        if energy is not None and self._weighting is None:
            try:
                return int(hr.balanced_truncation(self._bank, energy=energy).states.max()), ""
            except DiagonalisationError:
                pass  # one by one, to get around the orders of those systems that cannot be diagonalised
        orders = [least_order(hsv, len(hsv), energy=energy, max_error=max_error) for hsv in self._spectra]
        most, detour = 0, ""
        for channel in np.argsort(orders)[::-1]:
            order = int(orders[channel])
            if order <= most:  # a state holds at least one value
                break
            order = min(order, self._balancing(channel).rank)
            found, by_way = self._reduce(channel, prefer_larger=True, order=order)
            if found.system.n > most:
                most, detour = found.system.n, by_way
        return most, detour

    def reduce(self, states: int, *, prefer_larger: bool = False) -> LayerReduction:
        """Reduce every system to the largest order that fits so many states."""
        reductions, detours = self._reductions(states, prefer_larger)
        most = max(reduction.system.n for reduction in reductions)
        if most > states and len(reductions) > 1:  # the detour of one led to more: the others may keep as many
            return self.reduce(most)
        kept = sum(float(hsv[: x.order].sum()) for hsv, x in zip(self._finite, reductions, strict=True))
        total = float(self._finite.sum())
        others = f", and {len(detours) - 1} more channels alike" if len(detours) > 1 else ""
        return LayerReduction(
            states=most,
            order=max(reduction.order for reduction in reductions),
            hsv=self.hsv,
            kept_energy=kept / total if total > 0 else 1.0,
            error_bound=max(reduction.error_bound for reduction in reductions),
            reduction=self._align(tuple(reductions)) if most else None,
            reason="".join(detours[:1]) + others,
            method="" if self._weighting is None else reductions[0].method,
        )

    def _reductions(self, states: int, prefer_larger: bool) -> tuple[list[hr.Reduction], list[str]]:
        """Return the reductions of all systems, at once where all can be diagonalised, and the detours else."""
        if len(self._systems) > 1 and self._weighting is None:
            try:
                found = hr.balanced_truncation(self._bank, states=states)
                return [found[k] for k in range(len(found))], []
            except DiagonalisationError:
                pass
        each = [self._reduce(k, prefer_larger=prefer_larger, states=states) for k in range(len(self._systems))]
        return [reduction for reduction, _ in each], [detour for _, detour in each if detour]

    def _balancing(self, channel: int) -> hr.Balancing:
        """Return the factors of a system, computed when first asked for."""
        if channel not in self._balancings:
            own = None if self._weighting is None else self._weighting.of(channel, len(self._systems))
            self._balancings[channel] = hr.balance(self._systems[channel], weighting=own)
        return self._balancings[channel]

    def _reduce(self, channel: int, *, prefer_larger: bool, **criterion: Any) -> tuple[hr.Reduction, str]:
        """Reduce a system by one criterion, or to the nearest order that can be diagonalised, and say so then."""
        balancing, where = self._balancing(channel), f"channel {channel}: " if len(self._systems) > 1 else ""
        try:
            return balancing.reduce(**criterion), ""
        except DiagonalisationError as error:
            orders = sorted(error.orders, reverse=prefer_larger)
            if not orders:
                raise DiagonalisationError(f"{where}{error}") from error
        wanted = criterion["order"] if "order" in criterion else balancing.order(**criterion)
        return balancing.reduce(order=orders[0]), f"{where}order {wanted} cannot be diagonalised, {orders[0]} can"
