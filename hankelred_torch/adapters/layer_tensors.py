"""The tensors of one layer that carry its states: where they lie, their values, and fewer of their entries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from hankelred.checks import Array, check_type
from hankelred.errors import InputError

from ..convert import stored_tensors, to_arrays
from ..sharding import whole

# Tensors seen where they had no axis of the states, by class.
_UNRELATED: WeakKeyDictionary[type, set[str]] = WeakKeyDictionary()


class LayerTensors:
    """What `Adapter` knows of a layer before any question of what its states are worth; documented there."""

    layer: nn.Module
    state_axes: ClassVar[Mapping[str, int]]
    constants: ClassVar[tuple[str, ...]] = ()
    others: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[Mapping[str, tuple[int, int]]] = {}

    def __init__(self, layer: nn.Module) -> None:
        self.layer = check_type(layer, "layer", nn.Module)
        self.states_of({name: tuple(self.tensor(name).shape) for name in self.state_axes})

    @property
    def states(self) -> int:
        """Number of stored states, from the shape of a tensor."""
        name = next(iter(self.state_axes))
        return self.states_on(name, tuple(self.tensor(name).shape))

    def states_of(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return how many states tensors of these shapes carry.

        Parameters
        ----------
        shapes : mapping of str to tuple of int
            By the names of `state_axes`.

        Returns
        -------
        int
            States.

        Raises
        ------
        InputError
            If they do not agree.
        """
        sizes = {self.states_on(name, shape) for name, shape in shapes.items()}
        if len(sizes) != 1:
            raise InputError(
                f"The tensors of {type(self.layer).__name__} must agree on the number of states; got {shapes}. "
                f"Is the layer half resized?"
            )
        return sizes.pop()

    def states_on(self, name: str, shape: tuple[int, ...]) -> int:
        """Return how many states a tensor of this shape carries.

        Parameters
        ----------
        name : str
            One of `state_axes`.
        shape : tuple of int
            Of the tensor.

        Returns
        -------
        int
            States; -1 if its axis is missing or does not fit.
        """
        axis, (others, per_state) = self.state_axes[name], self.counts.get(name, (0, 1))
        states, rest = divmod(shape[axis] - others, per_state) if axis < len(shape) else (-1, 0)
        return states if states >= 0 and not rest else -1

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
        tensors = {name: self.tensor(name) for name in self.state_axes}
        tensors = {name: whole(x, name) if hasattr(x, "device_mesh") else x.detach() for name, x in tensors.items()}
        return {
            name: x.index_select(self.state_axes[name], torch.as_tensor(self.entries(name, kept), device=x.device))
            for name, x in tensors.items()
        }

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

    def places(self, names: Iterable[str] | None = None) -> dict[str, tuple[nn.Module, str, Tensor]]:
        """Return where tensors lie now.

        Parameters
        ----------
        names : iterable of str, optional
            Of tensors; those of `state_axes` by default.

        Returns
        -------
        dict of str to tuple
            The module, the name there, and the tensor itself.
        """
        return {x: (*self.owner(x), self.tensor(x)) for x in (self.state_axes if names is None else names)}

    def unfit(self) -> str:
        """Return what is wrong with the tensors: held by others, or of the states and unknown; empty if nothing is."""
        layer, states = self.layer, self.states
        holder, sizes = type(layer).__qualname__, {states}
        for name, (module, _, x) in self.places().items():
            if what := _foreign(module, x):
                return f"{name} of {holder} must be a plain parameter to be reduced; got one that is {what}."
            sizes.add(x.shape[self.state_axes[name]])
        unrelated = _UNRELATED.setdefault(type(layer), set())
        for name, x in self._unknown():
            if not (sizes - {1}).intersection(x.shape):
                unrelated.add(name)
            elif name not in unrelated:
                return (
                    f"{holder} must have no tensors of its states that {type(self).__name__} does not know; got {name} "
                    f"{tuple(x.shape)} in a layer of {states} states. Name it in the adapter: in state_axes, or in "
                    f"others if it has nothing to do with states."
                )
        return ""

    def _unknown(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the layer that are named nowhere; pruned and parametrized ones go by their name."""
        known = {*self.state_axes, *self.constants, *self.others}
        for name, x in [*self.layer.named_parameters(), *self.layer.named_buffers()]:
            plain = re.sub(r"parametrizations\.(\w+)\.\w+$|(\w+)_(?:orig|mask)$", r"\1\2", name)
            parts = plain.split(".")
            if not known.intersection(".".join(parts[: k + 1]) for k in range(len(parts))):
                yield name, x

    def stored(self) -> dict[str, Tensor]:
        """Return the parameters and buffers that a cut replaces, by name; raise where one of them cannot be."""
        return stored_tensors(self.layer, self.replaced)

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
        names, holder = (*self.state_axes, *self.constants), type(self.layer).__qualname__
        if without := [name for name in names if self.tensor(name).is_meta]:
            raise InputError(
                f"{holder} must hold its data to be read; got meta tensors for {', '.join(without)}. Load the weights "
                f"first; of an offloaded model bring them back by accelerate.hooks.remove_hook_from_submodules(model)."
            )
        values = to_arrays({name: self.tensor(name) for name in names}, holder)
        for name, value in values.items():
            if not np.isfinite(value).all():
                bad = int(value.size - np.isfinite(value).sum())
                raise InputError(
                    f"{name} must be finite; got {bad} NaN or infinite of {value.size} entries in "
                    f"{type(self.layer).__qualname__}. Look for the step at which training diverged."
                )
        return values

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


def _foreign(module: nn.Module, tensor: Tensor) -> str:
    """Return what keeps a tensor from being read and replaced where it is, and the call that helps."""
    if type(module).__module__.startswith("peft."):
        return "wrapped by PEFT. Call merge_and_unload() first, or adapt other modules"
    if tensor.is_quantized or type(tensor).__module__.startswith(("torchao.", "bitsandbytes.")):
        return f"quantised ({type(tensor).__name__}). Reduce the model first and quantise it afterwards"
    return ""
