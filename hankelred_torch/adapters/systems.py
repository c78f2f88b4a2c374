"""Adapters of layers that are linear systems: one system for the whole layer, or a bank of one system per channel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import hankelred as hr
from hankelred import DiagonalSystem, Reduction
from hankelred._checks import Array
from hankelred.errors import NumericalError

from .analysis import Analysis, SystemAnalysis
from .base import Adapter


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
                f"got a pole {system.instability().max():.2e} beyond the boundary. Choose another order."
            )
