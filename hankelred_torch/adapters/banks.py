"""Layers that are banks: one linear system per channel, all of one size, because their tensors are rectangular.

Every channel is reduced by itself. The layer keeps as many states as the channel that needs most; where a channel has
fewer to give, because the rest links no input to any output, it is filled up with states that have no output.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import hankelred as hr
from hankelred import DiagonalBank, DiagonalSystem, Reduction
from hankelred.checks import Array
from hankelred.errors import DiagonalisationError, InputError, NumericalError
from hankelred.order import error_bound, least_order
from hankelred.training import align_states

from .analysis import Analysis, LayerReduction, reduce_to
from .base import Adapter
from .systems import signed_participation


class BankAnalysis(Analysis):
    """The answers of a bank: of the most demanding channel, except the energy, which is that of all together."""

    def __init__(self, bank: DiagonalBank, align: Callable[[DiagonalSystem, Reduction], Reduction]) -> None:
        self._bank, self._systems, self._align = bank, tuple(bank), align
        self._spectra = hr.hankel_singular_values(bank)
        self._balancings: dict[int, hr.Balancing] = {}
        self.n, self.hsv = bank.n, self._spectra.max(axis=0)

    def tail(self, states: int) -> float:
        """Return the share of the values of all channels behind the first two per state."""
        total = float(self._spectra.sum())
        return float(self._spectra[:, 2 * states :].sum()) / total if total > 0 else 0.0

    def bound(self, states: int) -> float:
        """Return the largest bound of a channel; 0 where all states are kept."""
        if states >= self.n:
            return 0.0
        return max(error_bound(hsv, 2 * states) for hsv in self._spectra)

    def least_states(self, *, energy: float | None = None, max_error: float | None = None) -> tuple[int, str]:
        """Return the states of the channel that needs most to meet the criterion by itself."""
        if energy is not None:
            try:
                return int(hr.balanced_truncation(self._bank, energy=energy).states.max()), ""
            except DiagonalisationError:
                pass  # one by one, to get around the orders of those channels that cannot be diagonalised
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
        """Reduce every channel to the largest order that fits so many states."""
        reductions, detours = self._reductions(states, prefer_larger)
        most = max(reduction.system.n for reduction in reductions)
        if most > states:  # the detour of one channel led to more: the others may keep as many
            return self.reduce(most)
        kept = sum(float(hsv[: x.order].sum()) for hsv, x in zip(self._spectra, reductions, strict=True))
        total = float(self._spectra.sum())
        return LayerReduction(
            states=most,
            order=max(reduction.order for reduction in reductions),
            hsv=self.hsv,
            kept_energy=kept / total if total > 0 else 1.0,
            error_bound=max(reduction.error_bound for reduction in reductions),
            reduction=tuple(self._align(x, y) for x, y in zip(self._systems, reductions, strict=True)),
            reason=_joined(detours),
        )

    def _reductions(self, states: int, prefer_larger: bool) -> tuple[list[Reduction], list[str]]:
        """Return the reductions of all channels, at once where all can be diagonalised, and the detours else."""
        try:
            found = hr.balanced_truncation(self._bank, states=states)
            return [found[k] for k in range(len(found))], []
        except DiagonalisationError:
            each = [self._reduce(k, prefer_larger=prefer_larger, states=states) for k in range(len(self._systems))]
            return [reduction for reduction, _ in each], [detour for _, detour in each if detour]

    def _balancing(self, channel: int) -> hr.Balancing:
        """Return the factors of a channel, computed when first asked for."""
        if channel not in self._balancings:
            self._balancings[channel] = hr.balance(self._systems[channel])
        return self._balancings[channel]

    def _reduce(self, channel: int, *, prefer_larger: bool, **criterion: Any) -> tuple[Reduction, str]:
        """Reduce one channel, with its number in what goes wrong."""
        try:
            found, detour = reduce_to(self._balancing(channel), prefer_larger=prefer_larger, **criterion)
        except DiagonalisationError as error:
            raise DiagonalisationError(f"channel {channel}: {error}") from error
        return found, f"channel {channel}: {detour}" if detour else ""


def _joined(detours: Sequence[str]) -> str:
    """Return the first detour with the number of others."""
    if len(detours) < 2:
        return "".join(detours)
    return f"{detours[0]}, and {len(detours) - 1} more channels alike"


class BankAdapter(Adapter):
    """The diagonal systems, one per channel, that one layer is; subclass it for a family of your own.

    Parameters
    ----------
    layer : torch.nn.Module
        The layer to adapt.

    Raises
    ------
    InputError
        As for `Adapter`.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> adapter = ht.adapters.adapter_of(ht.layers.S4D(channels=3, states=8))
    >>> isinstance(adapter, ht.adapters.BankAdapter), len(adapter.read(adapter.values()))
    (True, 3)
    """

    @abstractmethod
    def bank(self, values: Mapping[str, Array]) -> DiagonalBank:
        """Return the matrices of all channels.

        Parameters
        ----------
        values : mapping of str to ndarray
            As from `values`; possibly of another number of states than the layer has.

        Returns
        -------
        DiagonalBank
            In double precision, with real output; by rates where it is discrete.
        """

    def read(self, values: Mapping[str, Array]) -> tuple[DiagonalSystem, ...]:
        """Return the systems of the channels."""
        return tuple(self.bank(values))

    def hankel_singular_values(self, values: Mapping[str, Array]) -> Array:
        """Return those of every channel, (channels, k)."""
        return hr.hankel_singular_values(self.bank(values))

    def analyse(self, values: Mapping[str, Array], statistics: Any = None) -> Analysis:
        """Return the analysis of all channels by balanced truncation; it needs no statistics."""
        return BankAnalysis(self.bank(values), self.align)

    def align(self, system: DiagonalSystem, reduction: Reduction) -> Reduction:
        """Return the reduction of one channel with states that resemble those they came from.

        Parameters
        ----------
        system : DiagonalSystem
            The channel before the reduction.
        reduction : Reduction
            Its reduction.

        Returns
        -------
        Reduction
            With the same input-output behaviour.
        """
        return align_states(system, reduction)

    def check(self, values: Mapping[str, Array], name: str) -> None:
        """Raise unless every channel is stable."""
        bank = self.bank(values)
        excess = bank.spectrum.excess(bank.is_discrete).max(axis=1)
        if not np.all(excess < 0):
            channel = int(np.argmax(excess))
            raise NumericalError(
                f"The reduced layer {name!r} must stay stable in {self.tensor(next(iter(self.state_axes))).dtype}; got "
                f"a pole {excess[channel]:.2e} beyond the boundary in channel {channel}. Choose another order."
            )


class FilledUp:
    """The reduced channels of a bank side by side, those with too few states filled up.

    A state that fills up has a pole that the channel had and lost most of, and no output: it changes nothing, and
    training can bring it back.
    """

    def __init__(self, systems: Sequence[DiagonalSystem], reductions: Sequence[Reduction]) -> None:
        self.states = max(reduction.system.n for reduction in reductions)
        self._reductions = reductions
        self._sources: list[Array] = []  # (states, old) weights of old states in every channel's states
        self._mirrored: list[Array] = []
        for system, reduction in zip(systems, reductions, strict=True):
            direct, mirrored = signed_participation(system, reduction)
            lost = np.argsort((direct + mirrored).sum(axis=0), kind="stable")[: self.states - len(direct)]
            filled = np.eye(system.n)[lost]
            self._sources.append(np.vstack([direct, filled]))
            self._mirrored.append(np.vstack([mirrored, np.zeros_like(filled)]))

    def average(self, old: Array, *, odd: bool = False) -> Array:
        """Return a weighted mean over the old states for every new one, (h, states) from (h, n).

        What is `odd` changes its sign in a state that stands for the conjugate of an old one, as phases do.
        """
        sign = -1.0 if odd else 1.0
        rows = zip(self._sources, self._mirrored, old, strict=True)
        return np.stack([(direct + sign * mirrored) @ row for direct, mirrored, row in rows])

    def stack(self, part: Callable[[DiagonalSystem], Array], filler: Array | float = 0.0) -> Array:
        """Return (h, states, ...) from what `part` takes out of every channel, its states first."""
        return self.stack_arrays([part(reduction.system) for reduction in self._reductions], filler)

    def stack_arrays(self, parts: Sequence[Array], filler: Array | float = 0.0) -> Array:
        """Return arrays with their states first, one per channel, stacked and filled up."""
        shape = (len(parts), self.states, *parts[0].shape[1:])
        out = np.array(np.broadcast_to(filler, shape), dtype=complex)
        for row, part in zip(out, parts, strict=True):
            row[: len(part)] = part
        return out


def check_bank(systems: Any, channels: int, outputs: int, holder: str) -> tuple[DiagonalSystem, ...]:
    """Return the systems of a bank as a tuple, or raise if a layer of so many channels cannot hold them."""
    found = tuple(systems) if isinstance(systems, (tuple, list)) else (systems,)
    sizes = [(getattr(x, "m", None), getattr(x, "p", None)) for x in found]
    if len(found) != channels or any(size != (1, outputs) for size in sizes):
        raise InputError(
            f"{holder} holds {channels} systems, one per channel, with 1 input and {outputs} output(s) each; got "
            f"{len(found)} with {sorted(set(sizes), key=str)} inputs and outputs."
        )
    for channel, system in enumerate(found):
        if not system.is_discrete or not system.has_real_output or not system.is_stable():
            excess = system.spectrum.excess(system.is_discrete).max()
            raise InputError(
                f'{holder} holds stable discrete systems with output="real"; got dt={system.dt!r}, '
                f"output={system.output!r} and a pole {excess:.3g} from the boundary in channel {channel}."
            )
    return found
