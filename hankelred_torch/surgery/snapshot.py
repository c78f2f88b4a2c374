"""A moment of a training run, held in host memory, to go back to bit for bit.

Going back means the same objects: parameters that a cut took out of modules and optimizers are put back in their
places, so that whoever held on to them, a graph, a hook, another optimizer, finds them again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn

from hankelred.checks import check_items
from hankelred.errors import InputError

from ..adapters import find_ssm_layers
from ..convert import standing_in
from ..exchange import ByTensor, Exchange
from ..randomness import random_state, set_random_state
from ..sharding import reshard, spread_like
from .fsdp import exchange_sharded, kept_of, list_way_back, managed


@dataclass
class _Kept:
    """A tensor and its value; `same` is False if the tensor only stands for one that is yet to be made."""

    tensor: Tensor
    value: Tensor
    grad: Tensor | None
    same: bool = True


class Snapshot:
    """All that a step of training changes: weights, buffers, gradients, optimizers, schedules, random states.

    Values are kept in host memory. The objects that a cut takes out of use stay alive with it, where they are; shards
    give up their device memory.

    Parameters
    ----------
    models : iterable of torch.nn.Module
        The model and its averaged copies.
    optimizers : iterable of torch.optim.Optimizer
        All of them.
    restorable : iterable
        Whatever else has a ``state_dict()`` and ``load_state_dict()``, such as schedulers and scalers, and random
        generators of torch.
    """

    def __init__(self, models: Iterable[nn.Module], optimizers: Iterable[Any], restorable: Iterable[Any] = ()) -> None:
        self._models, self._optimizers, self._restorable = tuple(models), tuple(optimizers), tuple(restorable)
        reshard(*self._models)
        self._sharded = kept_of(*self._models)
        modules = [module for model in self._models for module in model.modules()]
        stores = [store for x in modules for store in (cast(dict[str, Any], x._parameters), x._buffers)]
        self._places = tuple((store, tuple(store.items())) for store in stores)
        # params in tuples: a list that holds a parameter is taken for one that someone goes on using
        self._groups = tuple(
            tuple((group, tuple(group["params"])) for group in x.param_groups) for x in self._optimizers
        )
        tensors = [x for _, items in self._places for _, x in items if x is not None]
        tensors += [p for groups in self._groups for _, params in groups for p in params]
        self._kept = tuple(_Kept(x, _copied(x), _copied(x.grad)) for x in dict.fromkeys(tensors))
        self._settings = [[_remembered(_without_params(group)) for group, _ in x] for x in self._groups]
        self._states = [tuple((key, _remembered(state)) for key, state in x.state.items()) for x in self._optimizers]
        layers = [x for model in self._models for x in find_ssm_layers(model).values()]
        self._sizes = [(x.layer, {name: attrgetter(name)(x.layer) for name in x.sizes(x.states)}) for x in layers]
        self._others = [copy.deepcopy(state_of(x)) for x in self._restorable]
        self._random = random_state()

    @torch.inference_mode(False)
    def restore(self) -> None:
        """Put everything back, the same objects with the same values in the same places; all or nothing."""
        reshard(*self._models)
        exchange = Exchange()
        sharded, found = managed(*self._models), ByTensor()
        for kept in self._kept:
            found[kept.tensor] = kept.tensor
            if kept.same:
                _list_value(kept, exchange)
        list_way_back(exchange, self._sharded)
        found.update({x.tensor: _made_anew(x, exchange, sharded) for x in self._kept if not x.same})
        for store, items in self._places:
            exchange.contents(store, {name: x if x is None else found[x] for name, x in items})
        for k, optimizer in enumerate(self._optimizers):
            exchange.contents(optimizer.param_groups, [group for group, _ in self._groups[k]])
            for (group, params), settings in zip(self._groups[k], self._settings[k], strict=True):
                exchange.contents(group["params"], [found[p] for p in params])
                exchange.contents(group, {"params": group["params"]} | _recalled(settings, exchange))
            states = {found.get(key, key): _recalled(state, exchange) for key, state in self._states[k]}
            exchange.contents(optimizer.state, states)
        for layer, sizes in self._sizes:
            exchange.attributes(layer, sizes)
        for target, state in zip(self._restorable, self._others, strict=True):
            exchange.call(partial(load_state, target), copy.deepcopy(state_of(target)), copy.deepcopy(state))
        exchange.call(set_random_state, random_state(), self._random)
        exchange.commit()

    def state_dict(self) -> dict[str, Any]:
        """Return the snapshot as plain values and tensors, by their order in models and optimizers."""
        places = {p: i for i, (p, _) in enumerate(self._parameters())}
        states = [[(places[p], _values(state)) for p, state in x if p in places] for x in self._states]
        return {
            "values": [kept.value for kept in self._kept],
            "settings": [[_values(settings) for settings in x] for x in self._settings],
            "states": states,
            "sizes": [sizes for _, sizes in self._sizes],
            "others": self._others,
            "random": self._random,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the snapshot that was saved, whose tensors may have had other sizes than those here.

        Raises
        ------
        InputError
            If it is of another model, other optimizers or other objects.
        """
        counts = {"values": len(self._kept), "settings": len(self._settings), "others": len(self._others)}
        saved = {key: len(state[key]) for key in counts}
        if saved != counts:
            raise InputError(
                f"The snapshot must be of this model, its optimizers and what else is restored; got {saved} and here "
                f"{counts}. Pass the same objects in the same order as when it was saved."
            )
        for kept, value in zip(self._kept, state["values"], strict=True):
            kept.same = kept.tensor.shape == value.shape
            kept.value, kept.grad = value, None
        held = self._parameters()
        self._settings = [[_remembered(settings) for settings in x] for x in state["settings"]]
        self._states = [
            tuple((held[i][0], _remembered(_on_device(x, *held[i]))) for i, x in states) for states in state["states"]
        ]
        self._sizes = [(layer, dict(x)) for (layer, _), x in zip(self._sizes, state["sizes"], strict=True)]
        self._others, self._random = list(state["others"]), state["random"]

    def _parameters(self) -> list[tuple[Tensor, Mapping[str, Any]]]:
        """Return the parameters of all optimizers in their order, each with its group."""
        return [(p, group) for groups in self._groups for group, params in groups for p in params]


def as_restorable(restore: Any) -> tuple[Any, ...]:
    """Return what else is put back, each of which has a state."""
    found = tuple(check_items(restore, "restore", "Put a single object into a list."))
    for target in found:
        state_of(target)  # raises if it has none
    return found


def state_of(target: Any) -> Any:
    """Return the state of an object that has one; raise if it has none."""
    if isinstance(target, torch.Generator):
        return target.get_state()
    if not (hasattr(target, "state_dict") and hasattr(target, "load_state_dict")):
        raise InputError(
            f"restore must hold objects with state_dict and load_state_dict, such as schedulers and scalers, or torch "
            f"generators; got {type(target).__name__}."
        )
    return target.state_dict()


def load_state(target: Any, state: Any) -> None:
    """Give an object the state that `state_of` returned."""
    if isinstance(target, torch.Generator):
        target.set_state(state)
    else:
        target.load_state_dict(state)


def _copied(tensor: Tensor | None) -> Any:
    if tensor is not None and nn.parameter.is_lazy(tensor):
        raise InputError("A model must have all of its parameters; got a lazy one. Call it with a batch first.")
    return None if tensor is None else tensor.detach().to("cpu", copy=True)


def _list_value(kept: _Kept, exchange: Exchange) -> None:
    """List the value and gradient of then for a tensor."""
    exchange.contents(kept.tensor, kept.value)
    grad = None if kept.grad is None else kept.grad.to(kept.tensor.device, copy=True)
    exchange.attributes(kept.tensor, {"grad": grad})


def _made_anew(kept: _Kept, exchange: Exchange, sharded: ByTensor) -> Tensor:
    """Make a new tensor in the place of one of another run."""
    value = kept.value.to(kept.tensor.device, kept.tensor.dtype, copy=True)
    olds = {"": kept.tensor}
    return exchange_sharded(exchange, sharded, olds, standing_in(olds, {"": value}))[""]


def _on_device(state: Mapping[str, Any], parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved state where the optimizer keeps it: with the parameter, step counts mostly on the host."""
    counts_there = group.get("capturable") or group.get("fused")
    return {
        key: spread_like(x.to(parameter.device), parameter if x.ndim else None)
        if isinstance(x, Tensor) and (x.ndim or counts_there)
        else x
        for key, x in state.items()
    }


def _without_params(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _remembered(values: Any) -> Any:
    """Return pairs of every object and a copy of its value; tensors are to be put back as the same objects."""
    if not isinstance(values, Mapping):
        return copy.deepcopy(values)
    return {key: (x, _copied(x) if isinstance(x, Tensor) else copy.deepcopy(x)) for key, x in values.items()}


def _recalled(remembered: Any, exchange: Exchange) -> Any:
    if not isinstance(remembered, Mapping):
        return copy.deepcopy(remembered)
    for held, value in remembered.values():
        if isinstance(held, Tensor):
            exchange.contents(held, value)
    return {key: x if isinstance(x, Tensor) else copy.deepcopy(value) for key, (x, value) in remembered.items()}


def _values(remembered: Any) -> Any:
    return {key: value for key, (_, value) in remembered.items()} if isinstance(remembered, Mapping) else remembered
