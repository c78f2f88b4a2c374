"""Adapters of layers that are linear systems: one system for the whole layer, or a bank of one system per channel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

import hankelred as hr
from hankelred import DiagonalSystem, Reduction
from hankelred.checks import Array
from hankelred.errors import InputError, NumericalError, StabilityError
from hankelred.systems import real_output

from .analysis import Analysis, SystemAnalysis
from .base import Adapter

# Averaged gradients were collected while the parameters moved; they do not tell poles apart that are closer than
# this. Measured with Adam (16 states, 150 steps, 3 seeds, lr 3e-3 and 1e-2) against the averages of a dense twin:
# relative error of the off-diagonal moments .16 to .83 at .1, .18 to .63 at .2, .19 to 1.0 when trusted to rounding.
STALENESS = 0.1


# A pole at 0 has no rate. exp(-80) = 2e-35 is 0 beside any other pole and normal in float32.
LARGEST_RATE = 80.0


class SystemAdapter(Adapter):
    """The diagonal linear system that one layer is; subclass it for a family of your own.

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
    >>> issubclass(ht.adapters.LRUAdapter, ht.adapters.SystemAdapter)
    True
    """

    @abstractmethod
    def read(self, values: Mapping[str, Array]) -> DiagonalSystem:
        """Return the linear system that tensors of these values make, as in `Adapter.read`."""

    @abstractmethod
    def write(self, system: DiagonalSystem) -> dict[str, Array]:
        """Return the values of the tensors that make a system, as in `Adapter.write`."""

    @abstractmethod
    def align(self, system: DiagonalSystem, reduction: Reduction) -> Reduction:
        """Return the reduction in the state coordinates that suit the layer, as `align_states` does.

        Parameters
        ----------
        system : DiagonalSystem
            The system before the reduction.
        reduction : Reduction
            Its reduction.

        Returns
        -------
        Reduction
            With the same input-output behaviour.
        """

    def rewrite(self, values: Mapping[str, Array], reduction: Reduction) -> dict[str, Array]:
        """Return the values of the tensors after a reduction; like `write`, with what else they held before."""
        written = self.write(reduction.system)
        return {name: written[name] for name in self.state_axes}

    def hankel_singular_values(self, values: Mapping[str, Array]) -> Array:
        """Return those of the system."""
        return hr.hankel_singular_values(self.read(values))

    def analyse(self, values: Mapping[str, Array], statistics: Any = None) -> Analysis:
        """Return the analysis of the system by balanced truncation; it needs no statistics."""
        system = self.read(values)
        return SystemAnalysis(system, lambda reduction: self.align(system, reduction))

    def check(self, values: Mapping[str, Array], name: str) -> None:
        """Raise unless the system is stable."""
        system = self.read(values)
        if not system.is_stable():
            raise NumericalError(
                f"The reduced layer {name!r} must stay stable in {self.tensor(next(iter(self.state_axes))).dtype}; "
                f"got a pole {system.spectrum.excess(system.is_discrete).max():.2e} beyond the boundary. Choose "
                f"another order."
            )


def participation(system: DiagonalSystem, reduction: Reduction) -> Array:
    """Return how much of every new state (rows) stems from every old one (columns); rows sum to 1."""
    return signed_participation(system, reduction).sum(axis=0)


def signed_participation(system: DiagonalSystem, reduction: Reduction) -> Array:
    """Return `participation` in two parts, (2, new, old): from old states, and from their conjugates."""
    n, new = system.n, reduction.system.n
    weight = np.abs(reduction.Ti * reduction.T.T)
    if not system.has_real_output:
        parts = np.stack([weight, np.zeros_like(weight)])
    else:
        pairs = reduction.order - new
        stored = real_output.stored_states(new, pairs)
        parts = np.stack([weight[stored, :n], weight[stored, n:]])
    return parts / parts.sum(axis=(0, 2))[:, None]


def rates_of(system: DiagonalSystem) -> Array:
    """Return the logarithms of the poles, with a limit for poles at 0."""
    if system.rates is None:
        with np.errstate(divide="ignore"):
            rates = np.log(system.lam.astype(complex))
    else:
        rates = system.rates.astype(complex)
    return np.maximum(rates.real, -LARGEST_RATE) + 1j * rates.imag


def check_writable(system: DiagonalSystem, holder: str, channels: int) -> None:
    """Raise unless a layer with real output, as many inputs as outputs and diagonal feedthrough can hold a system."""
    if not system.is_discrete or not system.has_real_output:
        raise InputError(
            f'{holder} holds a discrete system with output="real"; got dt={system.dt!r}, output={system.output!r}.'
        )
    if (system.p, system.m) != (channels, channels):
        raise InputError(
            f"The system must have the {channels} inputs and outputs of the layer; got {system.m} and {system.p}."
        )
    if not system.is_stable():
        raise StabilityError(
            f"{holder} holds poles inside the unit circle; got one {system.spectrum.excess(True).max():.3g} beyond it."
        )
    if np.any(np.diag(np.diag(system.D)) != system.D):
        raise InputError("D must be diagonal, one factor per channel; got entries off the diagonal.")


def refuse_unstable(poles: Array, holder: str, names: str) -> None:
    """Raise if a pole in continuous time is not in the left half plane."""
    bad = int(np.sum(poles.real >= 0))
    if bad:
        raise StabilityError(
            f"The poles of {holder} must have negative real parts to be reduced; got {bad} of {poles.size} without, "
            f"the largest {poles.real.max():.3g}. Nothing in this layer keeps them stable: lower the learning rate of "
            f"{names}, or clamp its real part after each step."
        )
