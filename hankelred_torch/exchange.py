"""New tensors in the place of old ones, with all who hold them: prepared in full, then written, or undone.

Parameters are replaced by new objects, not resized, because autograd graphs and optimizers hold on to the old ones.
What is to be written is listed before the first write, each entry with what stood there, so that an interrupt at any
line finds the way back complete; and a way back is itself a list of writes that can be undone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from hankelred.errors import InputError

from .device_memory import empty, fill, lacks_data
from .errors import SurgeryError
from .sharding import local, spread_like

Holder = tuple[dict[str, Any], str]  # a module's dict of parameters or buffers, and the name in it
State = dict[str, Any]  # what an optimizer keeps for one parameter

_NONE: Mapping[Any, Any] = {}


class ByTensor(dict[Tensor, Any]):
    """A dict by tensor of this package, which goes on with no old one."""


@dataclass(frozen=True, eq=False)
class _Write:
    """One place, what stands there and what is to stand there; writing twice does no harm."""

    put: Callable[[Any], Any]
    old: Any
    new: Any


@dataclass(frozen=True, eq=False)
class Replacement:
    """One tensor for another, and what its optimizer is to keep for it."""

    name: str
    old: Tensor
    new: Tensor
    states: Mapping[Any, State]  # by optimizer


class Exchange:
    """Tensors, attributes and contents that are to change together; nothing changes before `commit`.

    As a context it is undone if its block raises, in which it is committed: so there is no moment between both.

    Parameters
    ----------
    models : iterable of torch.nn.Module
        Whose modules hold the tensors: the model and its averaged copies.
    optimizers : tuple of torch.optim.Optimizer
        Those that hold parameters of them.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch.surgery import Exchange
    >>> layer = torch.nn.Linear(2, 2)
    >>> layer.tied, new = layer.weight, torch.nn.Parameter(torch.zeros(1, 2))
    >>> exchange = Exchange([layer])
    >>> exchange.replace({"weight": layer.weight}, {"weight": new})
    >>> exchange.attributes(layer, {"out_features": 1})
    >>> exchange.commit()
    >>> layer.weight is layer.tied is new, layer.out_features
    (True, 1)
    >>> exchange.undo()
    >>> layer.out_features
    2
    """

    def __init__(self, models: Iterable[nn.Module] = (), optimizers: tuple[Any, ...] = ()) -> None:
        self._models, self._optimizers = tuple(models), optimizers
        self._holders = holders_of(*self._models)
        self._replaced = ByTensor()
        self._listed: list[_Write] = []
        self._written: list[_Write] = []

    def replace(
        self,
        olds: Mapping[str, Tensor],
        news: Mapping[str, Tensor],
        states: Mapping[str, Mapping[Any, State]] = _NONE,
        owner: str = "the model",
    ) -> None:
        """Put tensors in place of others wherever modules and param groups hold them, with what optimizers keep."""
        find_slots(olds, self._optimizers)  # raises if one has several
        for key, new in news.items():
            name, old = f"{key} of {owner}", olds[key]
            if old not in self._holders:
                raise SurgeryError(
                    f"{name} must be held by a module of the model to be replaced; got none that holds it."
                )
            self._replaced[old] = Replacement(name, old, new, states.get(key, _NONE))
            for store, attribute in self._holders[old]:
                self._list(partial(store.__setitem__, attribute), old, new)

    def attributes(self, owner: Any, values: Mapping[str, Any]) -> None:
        """Set attributes that exist, of an object or, by names with dots, of what it has."""
        for name, value in values.items():
            path, _, attribute = name.rpartition(".")
            inner = attrgetter(path)(owner) if path else owner
            self._list(partial(setattr, inner, attribute), getattr(inner, attribute), value)

    def contents(self, target: Any, value: Any) -> None:
        """Fill a dict, a list or a tensor, which stays the same object, with other contents."""
        if lacks_data(target):
            self._list(partial(_fill_or_empty, target), None, value)
        elif isinstance(target, Tensor):
            self._list(lambda x: _copy(target, x), target.detach().to("cpu", copy=True), value)
        else:
            self._list(lambda x: _fill(target, x), type(value)(target), value)

    def call(self, put: Callable[[Any], Any], old: Any, new: Any) -> None:
        """Call a function with a new state, or with the old one on the way back."""
        self._list(put, old, new)

    @property
    def replacements(self) -> list[Replacement]:
        """Everything that takes another's place, in order."""
        return list(self._replaced.values())

    def names(self) -> ByTensor:
        """What everything that is replaced is called, by the tensor."""
        return ByTensor({x.old: x.name for x in self._replaced.values()})

    def commit(self) -> None:
        """Write everything, or nothing if anything fails or interrupts, and check that all agree.

        Raises
        ------
        SurgeryError
            If a model or optimizer still held an old tensor, or a state did not fit; all is as before then.
        """
        self._written = [*self._listed, *self._writes_to_optimizers()]
        try:
            for write in self._written:
                write.put(write.new)
            self._verify()
        except BaseException:
            _put_back(self._written)
            raise

    def undo(self) -> None:
        """Write back what stood there before, or leave everything as it is if that is interrupted."""
        try:
            for write in reversed(self._written):
                write.put(write.old)
        except BaseException:
            for write in self._written:
                write.put(write.new)
            raise

    def __enter__(self) -> Exchange:
        """Begin a block."""
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        """Put everything back if the block raised."""
        if kind is not None:
            _put_back(self._written)

    def _list(self, put: Callable[[Any], Any], old: Any, new: Any) -> None:
        self._listed.append(_Write(put, old, new))

    def _writes_to_optimizers(self) -> list[_Write]:
        """List new param lists and states, whole, so that every entry keeps its place in the order."""
        writes = []
        new = {old: x.new for old, x in self._replaced.items()}
        for optimizer in self._optimizers if new else ():
            for params in [group["params"] for group in optimizer.param_groups]:
                if any(p in new for p in params):
                    writes.append(_filling(params, [new.get(p, p) for p in params]))
            if any(p in new for p in optimizer.state):
                states = {
                    p: self._replaced[p].states.get(optimizer) if p in new else x for p, x in optimizer.state.items()
                }
                kept = {new.get(p, p): x for p, x in states.items() if x is not None}
                writes.append(_filling(optimizer.state, kept))
        return writes

    def _verify(self) -> None:
        """Raise unless models and optimizers hold every new tensor as they held the old one, and no old one."""
        if not self._replaced:
            return
        held = holders_of(*self._models)
        trained = [p for optimizer in self._optimizers for group in optimizer.param_groups for p in group["params"]]
        places = {old: len(x) for old, x in self._holders.items()}
        for x in self._replaced.values():
            if x.old in held or any(p is x.old for p in trained) or any(x.old in o.state for o in self._optimizers):
                raise SurgeryError(f"The old {x.name} must be gone; a module or an optimizer still holds it.")
            if len(held.get(x.new, ())) != places[x.old]:
                raise SurgeryError(f"The new {x.name} must be held where the old one was, in {places[x.old]} places.")
            if (x.new.dtype, x.new.device, x.new.requires_grad) != (x.old.dtype, x.old.device, x.old.requires_grad):
                raise SurgeryError(f"The new {x.name} must have dtype, device and requires_grad of the old one.")
            if x.new.grad is not None:
                raise SurgeryError(f"The new {x.name} must have no gradient yet.")
            for key, value in (entry for state in x.states.values() for entry in state.items()):
                fits = not isinstance(value, Tensor) or {*value.shape} <= {1, *x.new.shape, x.new.numel()}
                if not fits:
                    shapes = f"{tuple(x.new.shape)}; got {tuple(value.shape)}"
                    raise SurgeryError(f"Optimizer state {key} of the new {x.name} must fit shape {shapes}.")


@dataclass(frozen=True)
class Slot:
    """Where a parameter is held: by an optimizer, and those around it on the same groups, in one of its groups."""

    optimizers: tuple[Any, ...]
    group: Any
    parameter: Tensor


def find_slots(parameters: Mapping[str, Tensor], optimizers: Iterable[Any]) -> dict[str, Slot]:
    """Find the one place where optimizers hold each of some parameters, by name, without those that none holds."""
    held = ByTensor((x, []) for x in parameters.values())
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p in held:
                    held[p].append((optimizer, group))
    for p, places in held.items():
        if any(group["params"] is not places[0][1]["params"] for _, group in places):
            raise InputError(
                f"A parameter of shape {tuple(p.shape)} must be held by one param group of one optimizer; got "
                f"{len(places)}. Give it to one of them."
            )
    return {name: Slot(tuple(x for x, _ in held[p]), held[p][0][1], p) for name, p in parameters.items() if held[p]}


@contextlib.contextmanager
def holding(
    layer: nn.Module, tensors: Mapping[str, Tensor], attributes: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Let other tensors and sizes stand in a layer, by their names from there; what was there comes back."""
    exchange = Exchange()
    for name, tensor in tensors.items():
        path, _, attribute = name.rpartition(".")
        module = layer.get_submodule(path)
        store: Any = module._parameters if attribute in module._parameters else module._buffers
        exchange._list(partial(store.__setitem__, attribute), store[attribute], tensor)
    exchange.attributes(layer, attributes or {})
    try:
        try:
            exchange.commit()
            yield
        finally:
            _put_back(exchange._written)
    except BaseException:  # perhaps an interrupt on the way back
        _put_back(exchange._written)
        raise


def holders_of(*models: nn.Module) -> ByTensor:
    """List every place in modules that holds a tensor, by the tensor."""
    found = ByTensor()
    for module in {module: None for model in models for module in model.modules()}:
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    found.setdefault(tensor, []).append((store, name))
    return found


def _fill(container: Any, contents: Any) -> None:
    container.clear()
    container.update(contents) if isinstance(container, dict) else container.extend(contents)


def _filling(container: Any, contents: Any) -> _Write:
    return _Write(lambda x: _fill(container, x), type(contents)(container), contents)


def _copy(tensor: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        local(tensor).copy_(local(spread_like(value, tensor)))


def _fill_or_empty(tensor: Tensor, value: Tensor | None) -> None:
    if value is None:
        empty(tensor)
    else:
        fill(tensor)
        _copy(tensor, value)


def _put_back(writes: list[_Write]) -> None:
    """Write back all that can be; what stopped the way there is on its way to the caller."""
    for write in reversed(writes):
        with contextlib.suppress(Exception):
            write.put(write.old)
