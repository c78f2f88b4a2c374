"""Layers at the sizes that saved weights have, and whether all that was resized was then loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hankelred.checks import Array, check_flag, check_integer
from hankelred.errors import InputError

from ..adapters import Adapter, find_ssm_layers, state_sizes
from ..adapters.add_maps import mapped_layers, maps_as_saved
from ..adapters.registry import INSIDE
from ..convert import standing_in, stored_tensors, to_tensor
from ..exchange import find_slots
from ..sharding import reshard, whole
from ..surgery import Exchange, as_optimizers
from ..surgery.fsdp import exchange_sharded, managed, spread_states
from ..surgery.ranks import unwrapped


@torch.inference_mode(False)  # else what is made inside inference mode could never be trained
def resize_(
    model: nn.Module,
    like: Mapping[str, Tensor] | Mapping[str, int] | nn.Module,
    optimizers: Any = (),
    *,
    inert: bool = False,
) -> dict[str, int]:
    """Give the state space layers of a model the sizes that saved weights have, so that these can be loaded.

    Call it before ``model.load_state_dict(...)``. Resized parameters are new objects, NaN until something is loaded
    into them. Optimizers are best made afterwards; those made before are handed the new parameters, and keep no state
    for them.

    With ``inert=True`` layers grow instead: they get states that nothing goes into, so that the outputs of the model
    stay what they were. The new states have the rates of others and are read as these are, so that training can make
    use of them; of delta rules, where keys and queries have norms, they are not read either, and wait for something
    else to move them. Optimizers keep what they have averaged of the old entries, zeros for the new ones, where that
    has the shape of the parameter, and nothing otherwise.

    Parameters
    ----------
    model : torch.nn.Module
        Of the structure that the weights are of; changed in place, or not at all.
    like : mapping of str to torch.Tensor, mapping of str to int, or torch.nn.Module
        A state dict, of which shapes are read and prefixes of wrappers ignored; stored states by layer name, where
        layers that are not named keep theirs; or a model to be like.
    optimizers : torch.optim.Optimizer or iterable of them, optional
        Those that hold parameters of the model already.
    inert : bool, default False
        Whether layers keep their values and get further states that change no output.

    Returns
    -------
    dict of str to int
        States every layer stores now, by module name.

    Raises
    ------
    InputError
        If `like` is none of these, lacks a layer or names one that is not there, or a tensor differs in more than the
        number of states; if a layer that is to grow would lose states, or no state of it leaves its output alone.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> small = ht.layers.LRU(channels=4, states=6)
    >>> model = ht.layers.LRU(channels=4, states=16)
    >>> ht.resize_(model, small.state_dict())
    {'': 6}
    >>> model.load_state_dict(small.state_dict())
    <All keys matched successfully>
    """
    model = unwrapped(model)
    check_flag(inert, "inert")
    reshard(model)
    return resize_layers(model, find_ssm_layers(model), like, as_optimizers(optimizers), inert=inert)


def resize_layers(
    model: nn.Module, adapters: Mapping[str, Adapter], like: Any, optimizers: tuple[Any, ...], *, inert: bool = False
) -> dict[str, int]:
    """Resize a model without wrappers, whose layers were found, as `resize_` does."""
    saved = like.state_dict() if isinstance(like, nn.Module) else like if isinstance(like, Mapping) else ()
    before = mapped_layers(model)
    with maps_as_saved(model, [_without_wrappers(x) for x in saved if isinstance(x, str)]):
        adapters = adapters if mapped_layers(model) == before else find_ssm_layers(model)
        return _resize(model, adapters, like, optimizers, inert)


def _resize(
    model: nn.Module, adapters: Mapping[str, Adapter], like: Any, optimizers: tuple[Any, ...], inert: bool
) -> dict[str, int]:
    exchange, sizes, sharded = Exchange([model], optimizers), _wanted(adapters, like), managed(model)
    for name, states in sizes.items():
        adapter = adapters[name]
        tensors = _grown(adapter, states) if inert else _empty(adapter, states)
        olds = stored_tensors(adapter.layer, tensors)
        news = standing_in(olds, {x: new for x, new in tensors.items() if new.shape != olds[x].shape})
        spread = any(hasattr(x, "device_mesh") for x in olds.values())
        news = exchange_sharded(exchange, sharded, olds, news) if spread else news
        slots = find_slots(olds, optimizers) if inert else {}
        kept = {x: _grown_averages(adapter, x, slot, states) for x, slot in slots.items() if x in news}
        kept = spread_states(exchange, kept, news, olds) if spread else kept
        exchange.replace(olds, news, kept, owner=f"layer {name!r}")
        exchange.attributes(adapter.layer, adapter.sizes(states))
    with exchange:
        exchange.commit()
        for x in adapters.values():
            type(x)(x.layer)  # raises if the shapes do not fit each other
    return sizes | {name: x.states for name, x in adapters.items() if name not in sizes}


def check_loaded(model: nn.Module) -> None:
    """Raise if a tensor of a state space layer still has no values, as `resize_` leaves it.

    Raises
    ------
    InputError
        With the names of the tensors.
    """
    empty = [
        f"{name}.{tensor_name}" if name else tensor_name
        for name, adapter in find_ssm_layers(model).items()
        for tensor_name in adapter.state_axes
        if bool(torch.isnan(adapter.tensor(tensor_name)).all())
    ]
    if empty:
        raise InputError(
            f"Every tensor that was resized must be loaded; got no values for {', '.join(empty)}. Were they saved? "
            f"Adapters of PEFT hold none of the base model: save that, too."
        )


def layers_of(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """All tensors that cuts replace, by layer and name."""
    return {
        name: {tensor: adapter.tensor(tensor).detach() for tensor in adapter.replaced}
        for name, adapter in find_ssm_layers(model).items()
    }


def write_layers(model: nn.Module, layers: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write what `layers_of` returned into a model of these sizes."""
    adapters = find_ssm_layers(model)
    with torch.no_grad():
        for name, tensors in layers.items():
            for tensor, value in tensors.items():
                adapters[name].tensor(tensor).copy_(value)


def _wanted(adapters: Mapping[str, Adapter], like: Any) -> dict[str, int]:
    """The states that are asked for, by layer."""
    if isinstance(like, nn.Module):
        like = state_sizes(unwrapped(like))
    if not isinstance(like, Mapping) or len({isinstance(x, Tensor) for x in like.values()}) > 1:
        raise InputError(
            f"like must be a state dict, a model, or states by layer name; got {type(like).__name__}. "
            f"Of a checkpoint, pass what it holds for the model."
        )
    if any(isinstance(x, Tensor) for x in like.values()) or not like and adapters:
        plain = {_without_wrappers(key): x for key, x in like.items()} | dict(like)
        return {name: _saved_states(adapter, plain, f"{name}." if name else "") for name, adapter in adapters.items()}
    unknown = sorted(like.keys() - adapters.keys())
    if unknown:
        raise InputError(f"like must name state space layers of the model, {sorted(adapters)}; got {unknown}.")
    sizes = {name: check_integer(size, f"like[{name!r}]", least=1) for name, size in like.items()}
    return {name: size for name, size in sizes.items() if size != adapters[name].states}


def _empty(adapter: Adapter, states: int) -> dict[str, Tensor]:
    """Tensors of a size, NaN where a state dict holds values for them."""
    tensors = adapter.resize(states)
    for name, (module, attribute, _) in adapter.places().items():
        x = tensors[name]
        if attribute not in module._non_persistent_buffers_set and (x.is_floating_point() or x.is_complex()):
            tensors[name] = torch.full_like(x, torch.nan)
    return tensors


def _grown(adapter: Adapter, states: int) -> dict[str, Tensor]:
    """Tensors of a size with the values they have, and states that nothing goes into."""
    if states < adapter.states:
        raise InputError(
            f"like must give a layer more states than it has to let it grow; got {states} for one of "
            f"{adapter.states}. Call compress_ to make it smaller."
        )
    values = adapter.pad(adapter.values(), states, read=True)
    return {name: to_tensor(value, adapter.tensor(name)) for name, value in values.items()}


def _grown_averages(adapter: Adapter, name: str, slot: Any, states: int) -> dict[Any, dict[str, Any]]:
    """What optimizers keep for a parameter that grows: averages of its shape with zeros, and numbers."""
    axis, n, places = adapter.state_axes[name], adapter.states, np.arange(states)
    entries, others = (adapter.entries(name, np.where(places < n, places, x)) for x in (n - 1, 0))
    shape, found = slot.parameter.shape, {}
    for optimizer in slot.optimizers:
        state = optimizer.state.get(slot.parameter) or {}
        state = {key: whole(x) if isinstance(x, Tensor) else x for key, x in state.items()}
        tensors = [x for x in state.values() if isinstance(x, Tensor) and x.numel() > 1]
        if not state or n == 1 or any(x.shape != shape for x in tensors):
            continue
        found[optimizer] = {key: _padded(x, axis, entries, entries != others, shape) for key, x in state.items()}
    return found


def _padded(x: Any, axis: int, entries: Array, new: Array, shape: tuple[int, ...]) -> Any:
    """An average of a parameter's shape with zeros for new entries; anything else as it is."""
    if not isinstance(x, Tensor) or x.shape != shape:
        return x
    x = x.index_select(axis, torch.as_tensor(entries, device=x.device))
    return x.index_fill(axis, torch.as_tensor(np.flatnonzero(new), device=x.device), 0)


def _saved_states(adapter: Adapter, state_dict: Mapping[str, Tensor], prefix: str) -> int:
    """The states of a layer in a state dict, which may lack buffers that are not saved."""
    shapes = {}
    for name, (module, attribute, old) in adapter.places().items():
        if prefix + name in state_dict or attribute not in module._non_persistent_buffers_set:
            shapes[name] = _saved_shape(state_dict, prefix + name, old)
    return adapter.states_of(shapes)


def _saved_shape(state_dict: Mapping[str, Tensor], key: str, old: Tensor) -> tuple[int, ...]:
    """The shape a tensor was saved with, if it can be the tensor at another number of states."""
    saved = state_dict.get(key)
    if not isinstance(saved, Tensor):
        alike = next((x for x in state_dict if x.endswith(f".{key}")), None)
        hint = "" if alike is None else f", but {alike!r}. Strip {alike.removesuffix(key)!r} from the names"
        raise InputError(f"state_dict must hold the tensors of every state space layer; got none called {key!r}{hint}.")
    shape = tuple(saved.shape)
    if len(shape) != old.ndim or sum(a != b for a, b in zip(shape, old.shape, strict=False)) > 1:
        raise InputError(
            f"{key} must differ from the model in no more than the number of states; got {shape} in state_dict and "
            f"{tuple(old.shape)} in the model. Make the model with the sizes it was first trained with."
        )
    return shape


def _without_wrappers(key: str) -> str:
    parts = [x for x in key.split(".") if x not in INSIDE]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)
