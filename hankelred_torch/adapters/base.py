"""What plan and surgery ask of a layer family; one subclass per family knows its tensors, and nothing else does.

An adapter computes with arrays: the values of the layer's tensors in double precision, keyed by tensor name. It never
touches the layer's parameters or an optimizer itself, so that a cut can be prepared in full before anything changes.

`Adapter` is the contract for layers of every kind; `hankelred_torch.adapters.linear` serves those that are linear
systems.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from hankelred import DiagonalBank, DiagonalSystem
from hankelred.checks import Array
from hankelred.errors import InputError

from ..convert import stored_tensors, tensors_in_place_of
from .analysis import Analysis
from .layer_tensors import LayerTensors

Systems = DiagonalSystem | DiagonalBank


class SystemTensors(NamedTuple):
    """The systems of a layer as tensors that the layer's parameters get gradients through, in double precision.

    Attributes
    ----------
    rates : (batch, n) Tensor
        Logarithms of the poles; the poles themselves where `dt` is 0. A layer that is one system is a batch of one.
    B, C : (batch, n, m) and (batch, p, n) Tensor
        Input and output matrices.
    dt : float or bool
        Sampling time.
    output : {"complex", "real"}
        Whether the outputs are ``C x`` or their real parts.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> ht.adapters.LRUAdapter(ht.layers.LRU(channels=2, states=8)).tensors_of_system().rates.shape
    torch.Size([1, 8])
    """

    rates: Tensor
    B: Tensor
    C: Tensor
    dt: float | bool
    output: Literal["complex", "real"]


class Adapter(LayerTensors, ABC):
    """The states of one layer: how to find out what they carry, write fewer of them and carry moments along.

    Subclass `LinearAdapter` for a layer family that is a linear system, or one per channel, and name the subclass to
    `register_adapter`.

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
    others : tuple of str
        Tensors and submodules of the layer that have nothing to do with its states. What is named nowhere here and has
        an axis of the size of the states is a reason to refuse the layer.
    counts : mapping of str to (int, int)
        How many entries on the state axis of a tensor belong to no state, and how many to each, where these are not 0
        and 1, as in rows of several blocks.
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
    round_to: ClassVar[int] = 1

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

    def read(self, values: Mapping[str, Array]) -> Systems:
        """Return the linear system that tensors of these values make.

        Parameters
        ----------
        values : mapping of str to ndarray
            As from `values`; possibly of another number of states than the layer has.

        Returns
        -------
        DiagonalSystem or DiagonalBank
            In double precision; a bank where the layer is one system per channel.

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
            ``(rates, B, C, dt, output)``, the same numbers as ``read(values())`` gives, with the axis of a bank.

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

    def statistics(self) -> Any:
        """Return empty sums over what the layer does with data; None, the default, where it cannot be seen at work."""
        return None

    def observe(self, statistics: Any, u: Tensor, mask: Tensor | None, normed: Tensor | None) -> None:
        """Add a call of the layer to its sums.

        Parameters
        ----------
        statistics : LayerStatistics or selective sums
            Of this layer; added to.
        u : (batch, length, ...) torch.Tensor
            Inputs of the layer.
        mask : (batch, length) torch.Tensor, optional
            0 at padding.
        normed : torch.Tensor, optional
            What the output norm of the layer was called with.
        """
        raise NotImplementedError

    def state_bytes(self, states: int) -> int:
        """Return the memory that states take between two steps of one sequence.

        Parameters
        ----------
        states : int
            How many.

        Returns
        -------
        int
            Bytes; 0 if it is not known.
        """
        return 0

    def sequence(self, u: Tensor | None, named: Mapping[str, Any]) -> Tensor:
        """Return the inputs among the arguments of a call.

        Parameters
        ----------
        u : torch.Tensor or None
            The first argument by position.
        named : mapping
            Arguments by name.

        Returns
        -------
        (batch, length, ...) torch.Tensor
            What the layer is driven by.

        Raises
        ------
        InputError
            If there is none.
        """
        if u is None:
            raise InputError(f"{type(self.layer).__qualname__} must be called with a sequence; got no tensor.")
        return u

    def after(self, written: Mapping[str, Array]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and sizes that the layer has when values are written.

        Parameters
        ----------
        written : mapping of str to ndarray
            Values from `rewrite`, by the names of their tensors.

        Returns
        -------
        tuple of two dicts
            Tensors, and attributes with a size, by name.
        """
        name = next(iter(self.state_axes))
        olds = self.stored()
        if added := written.keys() - olds.keys():
            olds |= stored_tensors(self.layer, added)
        return tensors_in_place_of(olds, written), self.sizes(self.states_on(name, written[name].shape))

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
            For every name in `replaced`, and for tensors without a state axis that change as well.
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

    def transport(self, values: Mapping[str, Array], reduction: Any, written: Mapping[str, Array]) -> Any:
        """Return what has `carry_first` and `carry_second` for one reduction as its methods `first` and `second`.

        Parameters
        ----------
        values : mapping of str to ndarray
            The tensors before the reduction.
        reduction : Reduction or tuple of them
            As in `LayerReduction.reduction`.
        written : mapping of str to ndarray
            The tensors after it.

        Returns
        -------
        object
            With ``first(moments)`` and ``second(moments)``.
        """
        return SimpleNamespace(
            first=partial(self.carry_first, values, reduction), second=partial(self.carry_second, values, reduction)
        )

    def pad(self, values: Mapping[str, Array], states: int, *, read: bool = False) -> dict[str, Array]:
        """Return the values of the tensors with further states that change no output.

        Parameters
        ----------
        values : mapping of str to ndarray
            As from `values`.
        states : int
            States afterwards, at least as many as now.
        read : bool, default False
            Whether to read the further states as others are, nothing but inputs being zero, where that is possible.

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
