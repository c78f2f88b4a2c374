"""What plan and surgery ask of a layer family; one subclass per family knows its tensors, and nothing else does.

An adapter computes with arrays: the values of the layer's tensors in double precision, keyed by tensor name. It never
touches the layer's parameters or an optimizer itself, so that a cut can be prepared in full before anything changes.

`Adapter` is the contract for layers of every kind; `hankelred_torch.adapters.systems` serves those that are linear
systems.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hankelred._checks import Array
from hankelred.errors import InputError

from ..convert import to_array
from .analysis import Analysis
from .system_tensors import Systems as Systems
from .system_tensors import SystemTensors as SystemTensors


class Adapter(ABC):
    """The states of one layer: how to find out what they carry, write fewer of them and carry moments along.

    Subclass `SystemAdapter` for a layer family that is one linear system, `BankAdapter` for one system per channel,
    and name the subclass to `register_adapter`.

    Parameters
    ----------
    layer : torch.nn.Module
        The layer to adapt.

    Attributes
    ----------
    layer : torch.nn.Module
        The layer adapted.
    kind : {"lti", "selective"}
        Whether the layer is time-invariant, which balanced truncation serves exactly.
    state_axes : mapping of str to int
        Every tensor of the layer that is replaced in a cut, and which of its axes carries the states. A tensor of a
        submodule has a name with dots.
    constants : tuple of str
        Other tensors of the layer that its system is read from; a cut leaves them as they are, but for `rescaled`.
    round_to : int
        Multiple of states that kernels of the layer ask for.

    Raises
    ------
    InputError
        If the layer lacks one of these tensors, their state axes differ in size, or it has a form that cannot be
        reduced, with the reason.

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
    round_to: ClassVar[int] = 1

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        shapes = {name: tuple(self.tensor(name).shape) for name in self.state_axes}
        sizes = {self.states_on(name, shape) for name, shape in shapes.items()}
        if len(sizes) != 1:
            raise InputError(
                f"The tensors of {type(layer).__name__} must agree on the number of states; got {shapes}. "
                f"Is the layer half resized?"
            )

    @classmethod
    def refusal(cls, layer: nn.Module) -> str:
        """Return what a layer of this family has that cannot be reduced; `find_ssm_layers` leaves such layers out.

        Parameters
        ----------
        layer : torch.nn.Module
            A layer of the class that the adapter is registered for.

        Returns
        -------
        str
            What stands in the way, for a message; empty, the default, if nothing does.
        """
        return ""

    @property
    def states(self) -> int:
        """Number of stored states, from the shape of a tensor."""
        name = next(iter(self.state_axes))
        return self.states_on(name, tuple(self.tensor(name).shape))

    def states_on(self, name: str, shape: tuple[int, ...]) -> int:
        """Return how many states a tensor of this shape carries; -1 if its axis is missing or does not fit.

        Override it where the axis holds more than the states, such as rows of several blocks.
        """
        axis = self.state_axes[name]
        return shape[axis] if axis < len(shape) else -1

    @property
    def rescaled(self) -> Mapping[str, int]:
        """Constants that a cut multiplies by a number, and to which power of it; they keep their shape."""
        return {}

    @property
    def replaced(self) -> tuple[str, ...]:
        """Names of all tensors that a cut replaces."""
        return (*self.state_axes, *self.rescaled)

    def entries(self, name: str, kept: Array) -> Array:
        """Return the places on the state axis of a tensor that stay where some states stay.

        Parameters
        ----------
        name : str
            One of `state_axes`.
        kept : (k,) int ndarray
            States that stay.

        Returns
        -------
        int ndarray
            Indices; `kept` itself, the default, where the axis holds the states and nothing else.
        """
        return kept

    def resize(self, states: int) -> dict[str, Tensor]:
        """Return tensors of the shapes of a number of states, to load others into.

        Parameters
        ----------
        states : int
            Any number from 1.

        Returns
        -------
        dict of str to Tensor
            For every name in `state_axes`, the entries of the first states, the last of them repeated if need be. What
            belongs to no state is as before.
        """
        kept = np.minimum(np.arange(states), self.states - 1)
        tensors = {name: self.tensor(name).detach() for name in self.state_axes}
        return {
            name: x.index_select(self.state_axes[name], torch.as_tensor(self.entries(name, kept), device=x.device))
            for name, x in tensors.items()
        }

    def pad(self, values: Mapping[str, Array], states: int) -> dict[str, Array]:
        """Return the values of the tensors with further states that change no output.

        Parameters
        ----------
        values : mapping of str to ndarray
            As from `values`.
        states : int
            States afterwards, at least as many as now.

        Returns
        -------
        dict of str to ndarray
            For every name in `state_axes`.

        Raises
        ------
        InputError
            If no state of such a layer leaves its output alone.
        """
        raise InputError(
            f"{type(self).__name__} must have a method pad to add states to {type(self.layer).__qualname__}; got none."
        )

    def owner(self, name: str) -> tuple[nn.Module, str]:
        """Return the module that holds a tensor or attribute, and its name there.

        Parameters
        ----------
        name : str
            Path from the layer, with dots where submodules lie between.

        Returns
        -------
        module : torch.nn.Module
            The layer or one of its submodules.
        attribute : str
            The last part of the path.
        """
        path, _, attribute = name.rpartition(".")
        return self.layer.get_submodule(path), attribute

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
        try:
            module, attribute = self.owner(name)
            tensor = getattr(module, attribute, None)
        except AttributeError:
            tensor = None
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

    def read(self, values: Mapping[str, Array]) -> Systems:
        """Return the linear system that tensors of these values make.

        Parameters
        ----------
        values : mapping of str to ndarray
            As from `values`; possibly of another number of states than the layer has.

        Returns
        -------
        DiagonalSystem or tuple of them
            In double precision; one per channel where the layer is a bank of systems.

        Raises
        ------
        InputError
            If the layer is not a fixed linear system.
        """
        raise InputError(
            f"{type(self.layer).__qualname__} must be time-invariant to be read as a linear system; got a {self.kind} "
            f"layer, whose matrices depend on its input."
        )

    def tensors_of_system(self) -> SystemTensors:
        """Return the system of the layer now, differentiable with respect to its parameters; for penalties.

        Returns
        -------
        SystemTensors
            ``(rates, B, C, dt, output)``, the same numbers as ``read(values())`` gives.

        Raises
        ------
        InputError
            If this adapter has no such way, the default.
        """
        raise InputError(
            f"{type(self).__name__} must have a method tensors_of_system for penalties; got none "
            f"for {type(self.layer).__qualname__}. Add it to the adapter, or pass a part of the model without them."
        )

    def write(self, system: Any) -> dict[str, Array]:
        """Return the values of the tensors that make a system, the inverse of `read`.

        Parameters
        ----------
        system : DiagonalSystem or tuple of them
            Discrete in time, with any number of states.

        Returns
        -------
        dict of str to ndarray
            For every name in `state_axes` and for those constants that belong to the system.

        Raises
        ------
        InputError
            If a layer of this family cannot hold the system.
        """
        raise InputError(
            f"{type(self.layer).__qualname__} must be time-invariant to hold a linear system; got a {self.kind} layer."
        )

    def hankel_singular_values(self, values: Mapping[str, Array]) -> Array:
        """Return the Hankel singular values of the system that tensors of these values make.

        Parameters
        ----------
        values : mapping of str to ndarray
            As from `values`.

        Returns
        -------
        (k,) ndarray
            Decreasing; of a bank, (channels, k).
        """
        return self.analyse(values).hsv

    @abstractmethod
    def analyse(self, values: Mapping[str, Array], statistics: Any = None) -> Analysis:
        """Return what a cut of the layer could lose, at every size.

        Parameters
        ----------
        values : mapping of str to ndarray
            As from `values`.
        statistics : object, optional
            What a selective layer collected of its matrices on sample batches; time-invariant layers need none.

        Returns
        -------
        Analysis
            Answers with a `LayerReduction`, whose `reduction` the methods below take.
        """

    @abstractmethod
    def rewrite(self, values: Mapping[str, Array], reduction: Any) -> dict[str, Array]:
        """Return the values of the tensors after a reduction.

        Parameters
        ----------
        values : mapping of str to ndarray
            The tensors before the reduction.
        reduction : Reduction or tuple of them
            As in `LayerReduction.reduction`.

        Returns
        -------
        dict of str to ndarray
            For every name in `replaced`.
        """

    @abstractmethod
    def check(self, values: Mapping[str, Array], name: str) -> None:
        """Raise unless tensors of these values make a layer that can run.

        Parameters
        ----------
        values : mapping of str to ndarray
            The tensors as they are to be stored, rounded to the dtype of the layer.
        name : str
            Module name of the layer, for the message.

        Raises
        ------
        NumericalError
            If the layer would not be stable.
        """

    @abstractmethod
    def carry_first(
        self, values: Mapping[str, Array], reduction: Any, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return first moments of the new tensors, from those of the old ones.

        Parameters
        ----------
        values : mapping of str to ndarray
            The tensors before the reduction.
        reduction : Reduction or tuple of them
            As in `LayerReduction.reduction`.
        moments : mapping of str to ndarray
            Averaged gradients, for those tensors of `state_axes` that have one.

        Returns
        -------
        dict of str to ndarray
            For every name in `state_axes`.
        """

    @abstractmethod
    def carry_second(
        self, values: Mapping[str, Array], reduction: Any, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return estimates of second moments of the new tensors, from those of the old ones.

        Parameters
        ----------
        values : mapping of str to ndarray
            The tensors before the reduction.
        reduction : Reduction or tuple of them
            As in `LayerReduction.reduction`.
        moments : mapping of str to ndarray
            Averaged squares of the gradient, for those tensors of `state_axes` that have one.

        Returns
        -------
        dict of str to ndarray
            For every name in `state_axes`, not negative.
        """

    def sizes(self, states: int) -> dict[str, Any]:
        """Return the attributes of the layer that depend on its size, as they must be for a number of states.

        Parameters
        ----------
        states : int
            Stored states of the layer after a cut.

        Returns
        -------
        dict of str to object
            By attribute name, with dots for those of submodules; empty, the default, where the layer reads its sizes
            from its tensors. Integers, and what else follows from them.
        """
        return {}
