"""Parameters of FSDP2 units at other sizes.

`fully_shard` keeps, for each parameter, one object with its shard and what follows from its size. Torch offers no way
to change the size. Here that object's own first step is taken again on a copy of it, with the new tensor, and what the
copy has become is what the object is to become: the copy tells before anything changes whether the new size can be
sharded, and the way back is what the object was. All that is relied on is looked for first.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hankelred.errors import InputError

from ..device_memory import DeviceMemory, memory_of, whole_storage
from ..exchange import ByTensor, Exchange
from ..sharding import is_spread, local, spread_like, units

# What is relied on of the object that torch keeps for a parameter, and of its first step.
_ATTRIBUTES = (
    "_module_info",
    "_sharded_param_data",
    "all_gather_outputs",
    "device",
    "fsdp_placement",
    "is_dtensor",
    "mesh_info",
    "mp_policy",
    "post_forward_mesh_info",
    "sharded_param",
    "sharded_state",
    "unsharded_accumulated_grad",
)
_FIRST_STEP = ["self", "param", "device", "shard_placement_fn", "mesh_info"]
# Whole parameters, made at the first pass: they have the size of that time. What else comes then has none.
_GATHERED = ("_unsharded_param", "_sharded_post_forward_param", "_sharded_post_forward_param_data")
_METHODS = ("_init_extensions", "_init_sharded_param", "_init_sharded_post_forward_param_metadata")


def managed(*models: nn.Module) -> ByTensor:
    """Return what torch keeps for each sharded parameter of the units of models, by the parameter.

    Raises
    ------
    InputError
        If this version of torch keeps something else, with the name of what is missing.
    """
    found = ByTensor()
    for unit in (unit for model in models for unit in units(model)):
        state = unit._get_fsdp_state() if hasattr(unit, "_get_fsdp_state") else None
        groups = getattr(state, "_fsdp_param_groups", None)
        if groups is None:
            groups = [x] if (x := getattr(state, "_fsdp_param_group", None)) else []
        for group in groups:
            if not hasattr(group, "fsdp_params"):
                raise _unknown("a group of parameters without fsdp_params")
            for x in group.fsdp_params:
                _check(x)
                found[x.sharded_param] = x
    return found


def _check(kept: Any) -> None:
    missing = [name for name in (*_ATTRIBUTES, *_METHODS) if not hasattr(kept, name)]
    if missing:
        raise _unknown(f"{type(kept).__name__} without {', '.join(missing)}")
    takes = list(inspect.signature(type(kept)._init_sharded_param).parameters)
    if takes != _FIRST_STEP:
        raise _unknown(f"{type(kept).__name__}._init_sharded_param({', '.join(takes)})")


def _unknown(what: str) -> InputError:
    return InputError(
        f"FSDP2 must be as in torch 2.13, where sizes of sharded parameters were changed in place; got {what} in torch "
        f"{torch.__version__}. Gather full state dicts, cut a plain model and shard it again, as the guide on sharded "
        f"training shows, or name the tensors of the states in ignored_params of fully_shard."
    )


def collects(model: nn.Module) -> bool:
    """Tell whether gradients of whole parameters wait here to be summed over ranks, as those of micro-batches do."""
    for x in managed(model).values():
        whole = getattr(x, "_unsharded_param", None)
        if x.unsharded_accumulated_grad is not None or whole is not None and whole.grad is not None:
            return True
    return False


def check_layout(tensors: Mapping[str, Tensor], axes: Mapping[str, int], holder: str, kept: ByTensor) -> None:
    """Refuse tensors of a layer that are spread in a way in which they cannot be replaced, by name.

    Parameters
    ----------
    tensors : mapping of str to torch.Tensor
        Of the layer, by name.
    axes : mapping of str to int
        Which axis carries the states.
    holder : str
        What to call the layer.
    kept : dict of torch.Tensor
        From `managed`.
    """
    for name, x in tensors.items():
        if not is_spread(x):
            continue
        layout: Any = x
        if x in kept:
            if kept[x].is_dtensor or getattr(kept[x].mesh_info, "is_spmd_mesh", False):
                raise InputError(
                    f"{name} of {holder} must be sharded by one plan to be cut; got FSDP2 over a tensor-parallel plan, "
                    f"{layout.placements}. Leave the layers with states out of the tensor-parallel plan."
                )
            continue
        if any(p.is_partial() or getattr(p, "dim", None) == axes.get(name) for p in layout.placements):
            raise InputError(
                f"{name} of {holder} must have all of its states on every rank that computes with it; got a "
                f"tensor-parallel plan that splits them, {layout.placements}. A cut keeps other states on every rank: "
                f"split channels or heads instead, or leave the layer out of the plan."
            )


def exchange_sharded(
    exchange: Exchange, kept: ByTensor, olds: Mapping[str, Tensor], news: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the sharded form of new tensors, and list what torch is to keep for them; plain ones are as they are.

    The new shards wait in host memory until the old ones go there.

    Raises
    ------
    InputError
        If torch cannot shard the new size.
    """
    made = {}
    for name, new in news.items():
        old: Any = olds[name]
        if not is_spread(old):
            made[name] = new
        elif old not in kept:
            made[name] = _standing_in(old, spread_like(new, old))
        else:
            owner = kept[old]
            became = _became(owner, name, new)
            made[name] = _standing_in(old, became["sharded_param"], made=True)
            _list_places(exchange, owner, made[name], became)
    return made


def _standing_in(old: Tensor, new: Tensor, *, made: bool = False) -> Tensor:
    """Make a spread tensor a parameter if the old one was, with the attributes and hooks that users gave that."""
    if not isinstance(old, nn.Parameter):
        return new
    found = new if made else nn.Parameter(new, old.requires_grad)
    found.__dict__.update({key: x for key, x in old.__dict__.items() if key != "_fsdp_orig_uid"})
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        if getattr(old, hooks) is not None:
            setattr(found, hooks, getattr(old, hooks))
    return found


def _became(owner: Any, name: str, new: Tensor) -> dict[str, Any]:
    """Return the attributes that torch would keep for a parameter of another size; nothing changes."""
    twin = copy.copy(owner)
    held = {"module": nn.Module(), "shared_modules": [], "shared_param_names": []}
    twin._module_info = dataclasses.replace(owner._module_info, **held)  # not to be written into the model yet
    plain = nn.Parameter(new.detach().to(owner.device).contiguous(), owner.sharded_param.requires_grad)
    try:
        twin._init_sharded_param(plain, owner.device, lambda _: owner.fsdp_placement, owner.mesh_info)
        if owner.post_forward_mesh_info:
            twin._init_sharded_post_forward_param_metadata(plain)
        twin._init_extensions()
    except Exception as error:
        raise InputError(
            f"{name} must be of a size that FSDP2 can shard along its axis {owner.fsdp_placement.dim}; got "
            f"{tuple(new.shape)}: {error} Choose sizes that the number of ranks divides, by round_to, or shard axis 0."
        ) from error
    twin.all_gather_outputs, twin.unsharded_accumulated_grad = [], None
    for name in _GATHERED:
        vars(twin).pop(name, None)
    return vars(twin) | {
        key: x for key in ("_module_info", "_orig_param_uid") if (x := vars(owner).get(key)) is not None
    }


Pairs = tuple[tuple[str, Any], ...]  # of attributes; a dict that holds a parameter is taken for one in use
_STORAGE = "_sharded_param_data"  # another name of the shard: remembered, it would keep the device memory


def _pairs(owner: Any) -> Pairs:
    """Return what torch keeps for a parameter, without the shard where the parameter can get it back."""
    moves = memory_of(owner.sharded_param, owner._sharded_param_data) is not None
    return tuple((key, x) for key, x in vars(owner).items() if not (moves and key == _STORAGE))


def _list_places(exchange: Exchange, owner: Any, new: Tensor, became: dict[str, Any]) -> None:
    """List that a parameter takes the place of another in the device memory and in what torch keeps for it."""
    leaving = memory_of(owner.sharded_param, owner._sharded_param_data)
    coming = memory_of(new, became[_STORAGE])
    if leaving is None or coming is None:
        exchange.call(partial(_become, owner), tuple(vars(owner).items()), tuple(became.items()))
        return
    coming.hold(False)
    del became[_STORAGE]
    exchange.call(
        partial(_take_place, owner), (coming, leaving, _pairs(owner)), (leaving, coming, tuple(became.items()))
    )


def _take_place(owner: Any, places: tuple[DeviceMemory, DeviceMemory, Pairs]) -> None:
    leaving, coming, attributes = places
    leaving.hold(False)
    vars(owner)[_STORAGE] = None
    coming.hold(True)
    _become(owner, attributes)


def _become(owner: Any, attributes: Pairs) -> None:
    vars(owner).update(attributes)
    for name in {*_GATHERED} - {name for name, _ in attributes}:
        vars(owner).pop(name, None)
    if all(name != _STORAGE for name, _ in attributes):
        vars(owner)[_STORAGE] = whole_storage(local(owner.sharded_param))


def kept_of(*models: nn.Module) -> list[tuple[Any, Pairs]]:
    """Return what torch keeps for sharded parameters, each with what it is now, for a way back."""
    return [(x, _pairs(x)) for x in managed(*models).values()]


def list_way_back(exchange: Exchange, kept: list[tuple[Any, Pairs]]) -> None:
    """List that what torch keeps is to become what it was, after the parameters that have given up their shards."""
    for owner, before in kept:
        exchange.call(partial(_become, owner), _pairs(owner), before)


def spread_states(
    exchange: Exchange,
    states: Mapping[str, Mapping[Any, dict[str, Any]]],
    news: Mapping[str, Tensor],
    olds: Mapping[str, Tensor],
) -> dict[str, dict[Any, dict[str, Any]]]:
    """Return optimizer states, by tensor name and optimizer, as the optimizer keeps them: spread as the parameter.

    Like new parameters they wait in host memory until the old ones go there.
    """
    found: dict[str, dict[Any, dict[str, Any]]] = {}
    for name, by in states.items():
        found[name] = {}
        for optimizer, state in by.items():
            old = optimizer.state.get(olds[name]) or {}
            found[name][optimizer] = new = _spread_state(state, news[name], old)
            for key in {**old, **new}:
                _list_memory(exchange, old.get(key), new.get(key))
    return found


def _list_memory(exchange: Exchange, old: Any, new: Any) -> None:
    """List that one entry of a state takes the place of another in the device memory; one that stays has it."""
    if old is not new:
        if (leaving := memory_of(old)) is not None:
            exchange.call(leaving.hold, True, False)
        if (coming := memory_of(new)) is not None:
            coming.hold(False)
            exchange.call(coming.hold, False, True)


def _spread_state(state: Mapping[str, Any], new: Tensor, old: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, x in state.items():
        fits = isinstance(x, Tensor) and x.ndim > 0
        like = (
            old[key] if is_spread(old.get(key)) else new if fits and x.shape == new.shape and key not in old else None
        )
        found[key] = spread_like(x, like) if fits and like is not None else x
    return found
