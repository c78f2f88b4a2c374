"""What an optimizer remembers of a layer's parameters, by role, through a cut.

Averages are carried by the layer's adapter, copies of parameters are cut as averaged models are, numbers stay, and
what is not understood starts anew. Whether an optimizer can go on after a cut is tried on copies before the first.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hankelred import Reduction
from hankelred.checks import Array
from hankelred.errors import InputError, NumericalError

from ..adapters import Adapter
from ..adapters.transport import raised
from ..convert import to_array, to_tensor, to_tensors
from ..exchange import Slot, State, find_slots
from ..sharding import local, whole
from .averages import followed_values
from .roles import TABLE, Entry, Kept, Notes, is_trusted, read_states, stepped, tried

Optimizers = Optimizer | Iterable[Optimizer]

_INNER = ("optimizer", "_optimizer", "base_optimizer", "inner_optimizer")


def as_optimizers(optimizers: Optimizers) -> tuple[Any, ...]:
    """Unwrap one optimizer or several: those that keep states, an inner one before the one around it."""
    several = (
        (optimizers,) if hasattr(optimizers, "param_groups") or not isinstance(optimizers, Iterable) else optimizers
    )
    found: list[Any] = []
    for outer in several:
        if not (hasattr(outer, "param_groups") and hasattr(outer, "state") and callable(getattr(outer, "step", None))):
            raise InputError(
                f"optimizers must be one torch optimizer or several; got {type(outer).__name__}. "
                f"Of a wrapper without param_groups and state pass the optimizers inside."
            )
        chain = [outer]
        while (inner := _inner(chain[0])) is not None:
            chain.insert(0, inner)
        for optimizer in chain:
            kind = type(optimizer)
            if kind.__name__ == "ZeroRedundancyOptimizer" or kind.__module__.startswith("deepspeed."):
                raise InputError(
                    f"optimizers must keep states with their parameters; got a {kind.__name__}, which shares them out "
                    f"among ranks by itself. Use the optimizer inside it, and fully_shard to share states out."
                )
            if not any(optimizer.state is x.state for x in found):
                found.append(optimizer)
    return tuple(found)


def _inner(optimizer: Any) -> Any:
    """Find the optimizer that one is wrapped around, on the same parameters."""
    own = [group["params"] for group in optimizer.param_groups]
    for name in _INNER:
        inner = getattr(optimizer, name, None)
        groups = getattr(inner, "param_groups", None)
        if inner is not optimizer and groups and all(x is g["params"] for x, g in zip(own, groups, strict=False)):
            return inner
    return None


def check_trained(olds: Mapping[str, Tensor], layer: str, optimizers: tuple[Any, ...]) -> dict[str, Slot]:
    """Find where optimizers hold the tensors of a layer, by tensor name; raise if they miss a trainable one."""
    slots = find_slots(olds, optimizers)
    if any(type(y).__name__ == "LBFGS" for x in slots.values() for y in x.optimizers):
        raise InputError(
            "optimizers must keep their state per parameter; got LBFGS, which keeps one flat history for all "
            "of them. Cut first and make a new optimizer afterwards."
        )
    missing = [name for name, x in olds.items() if optimizers and x.requires_grad and name not in slots]
    if missing:
        raise InputError(
            f"optimizers must hold every trainable parameter that is to be replaced; got none that holds "
            f"{', '.join(missing)} of layer {layer!r}. Pass all optimizers of the model, or freeze these parameters."
        )
    return slots


def check_optimizers(adapters: Mapping[str, Adapter], optimizers: tuple[Any, ...]) -> None:
    """Try on copies whether optimizers can go on after a cut, before the first step too; warn of what they will lose.

    Parameters
    ----------
    adapters : mapping of str to Adapter
        Of the layers that may be cut.
    optimizers : tuple of torch.optim.Optimizer
        From `as_optimizers`.

    Raises
    ------
    InputError
        If one misses a trainable parameter, or a copy that was cut could not make its next step.
    """
    notes, seen = Notes(), set()
    for name, adapter in adapters.items():
        for tensor_name, slot in check_trained(adapter.stored(), name, optimizers).items():
            parameter = slot.parameter
            for optimizer in slot.optimizers:
                mark = (id(optimizer), id(slot.group), parameter.shape, parameter.dtype)
                if mark not in seen and not is_trusted(optimizer):
                    seen.add(mark)
                    axis = adapter.state_axes.get(tensor_name)
                    _rehearse(optimizer, slot.group, whole(parameter, tensor_name), tensor_name, axis, notes)
    notes.warn()


def _rehearse(optimizer: Any, group: Any, parameter: Tensor, name: str, axis: int | None, notes: Notes) -> None:
    """Step, cut and step a copy of an optimizer on a copy of one parameter."""
    try:
        twin, state = stepped(optimizer, group, parameter, (1.0, 1.0))
    except Exception as error:
        notes.add(optimizer, f"a copy of it could not be tried ({type(error).__name__}: {error})", name)
        return
    if axis is None or parameter.shape[axis] < 2:
        return
    kept = parameter.detach().narrow(axis, 0, parameter.shape[axis] - 1)
    new = nn.Parameter(kept.clone())
    read = read_states({name: (optimizer, group, parameter, state)}, notes)
    held = read[name].entries if name in read else {}
    averages = dict.fromkeys(
        ((name, key) for key, x in held.items() if x.array is not None), to_array(kept.abs()) * 0.1
    )
    carried = _assembled(read, averages, {name: new}, notes).get(name)
    try:  # with all that the copy keeps beside the state of the parameter
        stepped(twin, twin.param_groups[0], new, (1.0, 1.0), carried)
    except Exception as error:
        raise InputError(
            f"optimizers must be able to go on after a cut; got {type(optimizer).__name__}, a copy of which could not "
            f"({type(error).__name__}: {error}). Use another one for the parameters of state space layers."
        ) from error


def carried_states(
    policy: str,
    adapter: Adapter,
    values: Mapping[str, Array],
    reduction: Reduction,
    slots: Mapping[str, Slot],
    news: Mapping[str, Tensor],
    written: Mapping[str, Array],
    notes: Notes,
) -> dict[str, dict[Any, State]]:
    """Compute what optimizers keep for the new tensors of one layer: by tensor name, by optimizer.

    Parameters
    ----------
    policy : {"transport", "reset"}
        As in `CompressionConfig`.
    adapter : Adapter
        Of the layer, still unchanged.
    values : mapping of str to ndarray
        The layer's tensors before the cut.
    reduction : Reduction
        The aligned reduction.
    slots : mapping of str to Slot
        Where the old parameters are held, by tensor name.
    news, written : mapping of str to Tensor and to ndarray
        The new tensors of the layer, and their values before they were rounded.
    notes : Notes
        Collects what is lost.
    """
    result: dict[str, dict[Any, State]] = {name: {} for name in slots}
    for level in range(max((len(x.optimizers) for x in slots.values()), default=0)):
        # an optimizer around another has states of its own
        keepers = {name: x.optimizers[level] for name, x in slots.items() if level < len(x.optimizers)}
        held = {
            name: (x, slots[name].group, _whole(p := slots[name].parameter, values[name], x), _state_of(x, p))
            for name, x in keepers.items()
        }
        kept = read_states(held, notes, reset=policy == "reset")
        carried = _carried(adapter, values, reduction, kept, written, notes)
        for name, state in _assembled(kept, carried, news, notes).items():
            result[name][keepers[name]] = state
    return result


def _whole(parameter: Tensor, value: Array, optimizer: Any) -> Tensor:
    """Return a parameter; one that is spread as a plain one of the values that were gathered before.

    Of a class whose entries are known by their names the form is enough, which takes no memory.
    """
    if not hasattr(parameter, "device_mesh"):
        return parameter
    if is_trusted(optimizer):
        return torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
    return nn.Parameter(to_tensor(value, parameter), parameter.requires_grad)


def _state_of(optimizer: Any, parameter: Tensor) -> State:
    """Return what an optimizer keeps for a parameter; what is spread and packed is gathered, to be read as numbers.

    What is spread and plain is gathered where it is read, so that no more than one tensor is whole at a time.
    """
    state = optimizer.state.get(parameter) or {}
    packed = [key for key, x in state.items() if hasattr(x, "device_mesh") and hasattr(local(x), "__tensor_flatten__")]
    return {key: whole(x, key) if key in packed else x for key, x in state.items()}


def _carried(
    adapter: Adapter,
    values: Mapping[str, Array],
    reduction: Reduction,
    kept: Mapping[str, Kept],
    written: Mapping[str, Array],
    notes: Notes,
) -> dict[tuple[str, str], Array]:
    """Carry averages by the change of basis, all tensors of the layer together: by tensor name and key."""
    places = {
        (name, key): (entry.role if entry.role in ("parameter", "gradient") else "square", _label(key, entry.role))
        for name, x in kept.items()
        for key, entry in x.entries.items()
        if entry.array is not None
    }
    old: dict[tuple[str, str], dict[str, Array]] = {}  # by kind and label, by tensor name
    for (name, key), place in places.items():
        old.setdefault(place, {}).setdefault(name, _moment(kept[name].entries, key))
    new: dict[tuple[str, str], Mapping[str, Array]] = {}
    way: Any = adapter.transport(values, reduction, written) if old else None
    for (kind, label), given in old.items():
        try:
            if kind == "parameter":
                followed = followed_values(adapter, values, {**values, **given}, reduction)
                new[kind, label] = followed or written
            else:
                new[kind, label] = (way.first if kind == "gradient" else way.second)(given)
        except NumericalError:
            for name in given:
                notes.add(kept[name].optimizer, f"{label} overflows and starts anew", name)
    for first in [x for x in new if x[0] == "gradient"]:
        for second in [x for x in new if x[0] == "square"]:
            new[second] = raised((new[first], new[second]), (old[first], old[second]))
    return {(name, key): new[x][name] for (name, key), x in places.items() if x in new and name in new[x]}


def _assembled(
    kept: Mapping[str, Kept], carried: Mapping[tuple[str, str], Array], news: Mapping[str, Tensor], notes: Notes
) -> dict[str, State]:
    """Put states together: what was carried, numbers as they were, and the rest as the optimizer begins with."""
    arrays, likes = {}, {}
    for (name, key), array in carried.items():
        entry = kept[name].entries[key]
        arrays[name, key] = _in_form(array, key, entry, news[name])
        likes[name, key] = news[name].detach() if entry.packed else entry.value
    stored = to_tensors(arrays, likes)
    for name, key in arrays.keys() - stored.keys():
        dtype = likes[name, key].dtype
        notes.add(kept[name].optimizer, f"{key} is out of range in {dtype} and starts anew", name)
        stored[name, key] = torch.zeros_like(news[name].detach(), dtype=dtype)
    made = {
        name: _state(x, {key: y for (of, key), y in stored.items() if of == name}, news[name])
        for name, x in kept.items()
    }
    return {name: state for name, state in made.items() if state is not None}


def _state(kept: Kept, carried: Mapping[str, Tensor], new: Tensor) -> State | None:
    """Put the state of one parameter together; None where its optimizer makes a new one at its next step."""
    roles = {x.role for x in kept.entries.values()}
    complete, fresh = "basis" not in roles, State()
    if roles & {"start", "unknown", "basis"} or any(x.packed for x in kept.entries.values()):
        anew = not complete and kept.counts  # all of it, with its count; some begin with an entry made beforehand
        with contextlib.suppress(Exception):
            fresh = tried(kept.optimizer, kept.group, new.detach(), () if anew else (0.0,))
        if anew or not (complete or fresh):
            return fresh or None
    state = {}
    for key, (value, role, _, named, packed) in kept.entries.items():
        if role == "counter":
            state[key] = value
        elif key in carried and (complete or named):
            state[key] = fresh[key].copy_(carried[key]) if packed and key in fresh else carried[key]
        elif isinstance(value, Tensor) and TABLE.get((None, key)) == "square" and value.numel() > 1:
            full = whole(value, key)
            finite = full.dequantize() if packed else full[torch.isfinite(full)]
            state[key] = torch.full_like(new.detach(), float(finite.double().mean()) if finite.numel() else 0.0)
        elif key in fresh:
            state[key] = fresh[key]
        elif complete:
            state[key] = torch.zeros_like(new.detach(), dtype=value.dtype)
    return state


def _moment(entries: Mapping[str, Entry], key: str) -> Array:
    """Give an average as an array of the shape of its parameter: factors multiplied, a root squared."""
    role, array = entries[key].role, entries[key].array
    if role == "factored":
        same = _label(key, role)
        rows, columns = (x.array for y, x in entries.items() if x.role == role and _label(y, role) == same)
        if rows.ndim == columns.ndim and rows.shape[-1:] != (1,) or rows.ndim < 2:
            rows, columns = rows[..., None], columns[..., None, :]
        mean = rows.mean(axis=-2, keepdims=True)
        return np.divide(rows * columns, mean, out=np.zeros(np.broadcast(rows, columns).shape), where=mean != 0)
    return array**2 if role == "root" else array


def _in_form(array: Array, key: str, entry: Entry, new: Tensor) -> Array:
    """Give an average in the form in which its optimizer keeps it."""
    if entry.role == "factored":
        axis = -1 if re.search(r"row|_r$", key) else -2
        return array.mean(axis=axis, keepdims=entry.value.ndim == new.ndim)
    return np.sqrt(array) if entry.role == "root" else array


def _label(key: str, role: str) -> str:
    """Name of an average, under which factors stand beside the whole ones of vectors."""
    if role != "factored":
        return key
    return "variance" if key in ("row_var", "col_var") else re.sub(r"_(row|col|r|c)$", "", key)
