"""What plan and surgery ask of a layer family; one subclass per family knows its tensors, and nothing else does.

An adapter computes with arrays: the values of the layer's tensors in double precision, keyed by tensor name. It never
touches the layer's parameters or an optimizer itself, so that a cut can be prepared in full before anything changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from hankelred import DiagonalSystem, Reduction
from hankelred._checks import Array
from hankelred.errors import InputError

from ..convert import to_array


class Adapter(ABC):
    """The state space system inside one layer: how to read it, write it and carry moments through a reduction.

    Subclass it for a layer family of your own, and name the subclass to `register_adapter`.

    Parameters
    ----------
    layer : torch.nn.Module
        The layer to adapt.

    Attributes
    ----------
    layer : torch.nn.Module
        The layer adapted.
    kind : {"lti", "selective"}
        Whether the layer is one time-invariant system, which balanced truncation serves exactly.
    state_axes : mapping of str to int
        Every tensor of the layer that carries the state axis, and which of its axes that is.
    constants : tuple of str
        Other tensors of the layer that its system is read from.

    Raises
    ------
    InputError
        If the layer lacks one of these tensors, or their state axes differ in size.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> class SizedLRU(ht.layers.LRU):
    ...     def __init__(self, channels, states):
    ...         super().__init__(channels, states)
    ...         self.d_state = states
    >>> class SizedAdapter(ht.adapters.LRUAdapter):
    ...     def sizes(self, states):
    ...         return {"d_state": states}
    >>> ht.register_adapter(SizedLRU, SizedAdapter)
    >>> layer = SizedLRU(channels=4, states=16)
    >>> report = ht.compress_(layer, ht.CompressionConfig(order=8))
    >>> layer.d_state
    8
    """

    kind: ClassVar[Literal["lti", "selective"]] = "lti"
    state_axes: ClassVar[Mapping[str, int]]
    constants: ClassVar[tuple[str, ...]] = ()

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        shapes = {name: tuple(self.tensor(name).shape) for name in self.state_axes}
        sizes = {shape[axis : axis + 1] for shape, axis in zip(shapes.values(), self.state_axes.values(), strict=True)}
        if len(sizes) != 1:
            raise InputError(
                f"The tensors of {type(layer).__name__} must agree on the number of states; got {shapes}. "
                f"Is the layer half resized?"
            )

    @property
    def states(self) -> int:
        """Number of stored states, from the shape of a tensor."""
        name, axis = next(iter(self.state_axes.items()))
        return self.tensor(name).shape[axis]

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the layer.

        Parameters
        ----------
        name : str
            One of `state_axes` or `constants`.

        Returns
        -------
        torch.Tensor
            Parameter, buffer or, where it is parametrized, computed value.

        Raises
        ------
        InputError
            If the layer has no such tensor.
        """
        tensor = getattr(self.layer, name, None)
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"{type(self.layer).__qualname__} must have a tensor {name} to be read by {type(self).__name__}; "
                f"got {type(tensor).__name__}. Register an adapter that fits this class."
            )
        return tensor

    def values(self) -> dict[str, Array]:
        """Return copies of all tensors the system is read from, in double precision.

        Returns
        -------
        dict of str to ndarray
            By tensor name.

        Raises
        ------
        InputError
            If one holds NaN or infinity.
        """
        values = {name: to_array(self.tensor(name)) for name in (*self.state_axes, *self.constants)}
        for name, value in values.items():
            if not np.isfinite(value).all():
                bad = int(value.size - np.isfinite(value).sum())
                raise InputError(
                    f"{name} must be finite; got {bad} NaN or infinite of {value.size} entries in "
                    f"{type(self.layer).__qualname__}. Look for the step at which training diverged."
                )
        return values

    @abstractmethod
    def read(self, values: Mapping[str, Array]) -> DiagonalSystem:
        """Return the system that tensors of these values make.

        Parameters
        ----------
        values : mapping of str to ndarray
            As from `values`; possibly of another number of states than the layer has.

        Returns
        -------
        DiagonalSystem
            In double precision.
        """

    @abstractmethod
    def write(self, system: DiagonalSystem) -> dict[str, Array]:
        """Return the values of the tensors that make a system, the inverse of `read`.

        Parameters
        ----------
        system : DiagonalSystem
            Discrete in time, with any number of states.

        Returns
        -------
        dict of str to ndarray
            For every name in `state_axes` and `constants`.

        Raises
        ------
        InputError
            If a layer of this family cannot hold the system.
        """

    def rewrite(self, values: Mapping[str, Array], reduction: Reduction) -> dict[str, Array]:
        """Return the values of the tensors after a reduction; like `write`, with what else they held before.

        Parameters
        ----------
        values : mapping of str to ndarray
            The tensors before the reduction.
        reduction : Reduction
            The aligned reduction.

        Returns
        -------
        dict of str to ndarray
            For every name in `state_axes`; by default those of ``write(reduction.system)``.
        """
        written = self.write(reduction.system)
        return {name: written[name] for name in self.state_axes}

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

    @abstractmethod
    def carry_first(
        self, values: Mapping[str, Array], reduction: Reduction, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return first moments of the new tensors, from those of the old ones.

        Parameters
        ----------
        values : mapping of str to ndarray
            The tensors before the reduction.
        reduction : Reduction
            The aligned reduction.
        moments : mapping of str to ndarray
            Averaged gradients, for those tensors of `state_axes` that have one.

        Returns
        -------
        dict of str to ndarray
            For every name in `state_axes`.
        """

    @abstractmethod
    def carry_second(
        self, values: Mapping[str, Array], reduction: Reduction, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return estimates of second moments of the new tensors, from those of the old ones.

        Parameters
        ----------
        values : mapping of str to ndarray
            The tensors before the reduction.
        reduction : Reduction
            The aligned reduction.
        moments : mapping of str to ndarray
            Averaged squares of the gradient, for those tensors of `state_axes` that have one.

        Returns
        -------
        dict of str to ndarray
            For every name in `state_axes`, not negative.
        """

    def sizes(self, states: int) -> dict[str, int]:
        """Return the integer attributes of the layer that hold a size, as they must be for a number of states.

        Parameters
        ----------
        states : int
            Stored states of the layer after a cut.

        Returns
        -------
        dict of str to int
            By attribute name; empty, the default, where the layer reads its sizes from its tensors.
        """
        return {}
