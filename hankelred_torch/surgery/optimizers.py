"""What an optimizer remembers of a layer's parameters, by role, through a cut.

Averages are carried by the layer's adapter, copies of parameters are cut as averaged models are, numbers stay, and
what is not understood starts anew. Whether an optimizer can go on after a cut is tried on copies before the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hankelred import Reduction
from hankelred.checks import Array
from hankelred.errors import InputError, NumericalError

from ..adapters import Adapter
from ..adapters.transport import raised
from ..convert import stored_tensor, to_array, to_tensor
from .averages import followed_values
from .exchange import Slot, State, find_slot
from .roles import ROLES, TABLE, Notes, as_array, is_number, is_packed, is_trusted, names_of, roles_of, tried

_INNER = ("optimizer", "_optimizer", "base_optimizer", "inner_optimizer")


def as_optimizers(optimizers: Any) -> tuple[Any, ...]:
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
            if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
                raise InputError(
                    "optimizers must keep the whole state on every rank; got a ZeroRedundancyOptimizer, which shares "
                    "it out. Use the optimizer inside it."
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


def check_trained(adapter: Adapter, name: str, optimizers: tuple[Any, ...]) -> dict[str, Slot]:
    """Find where optimizers hold the tensors of a layer, by tensor name; raise if they miss a trainable one."""
    slots, missing = {}, []
    for tensor_name in adapter.replaced:
        tensor = stored_tensor(*adapter.owner(tensor_name))
        slot = find_slot(tensor, optimizers)
        if slot is not None:
            if any(type(x).__name__ == "LBFGS" for x in slot.optimizers):
                raise InputError(
                    "optimizers must keep their state per parameter; got LBFGS, which keeps one flat history for all "
                    "of them. Cut first and make a new optimizer afterwards."
                )
            slots[tensor_name] = slot
        elif optimizers and tensor.requires_grad:
            missing.append(tensor_name)
    if missing:
        raise InputError(
            f"optimizers must hold every trainable parameter that is to be replaced; got none that holds "
            f"{', '.join(missing)} of layer {name!r}. Pass all optimizers of the model, or freeze these parameters."
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
        for tensor_name, slot in check_trained(adapter, name, optimizers).items():
            parameter = slot.parameter
            for optimizer in slot.optimizers:
                mark = (id(optimizer), id(slot.group), parameter.shape, parameter.dtype)
                if mark not in seen and not is_trusted(optimizer):
                    seen.add(mark)
                    _rehearse(optimizer, slot.group, parameter, tensor_name, adapter.state_axes.get(tensor_name), notes)
    notes.warn()


def _rehearse(optimizer: Any, group: Any, parameter: Tensor, name: str, axis: int | None, notes: Notes) -> None:
    """Step, cut and step a copy of an optimizer on a copy of one parameter."""
    try:
        state = tried(optimizer, group, parameter, (1.0, 1.0))
    except Exception as error:
        notes.add(optimizer, f"a copy of it could not be tried ({type(error).__name__}: {error})", name)
        return
    if axis is None or parameter.shape[axis] < 2:
        return
    kept = parameter.detach().narrow(axis, 0, parameter.shape[axis] - 1)
    new = nn.Parameter(kept.clone())
    roles = roles_of(optimizer, group, parameter, state, notes, name)
    averages = {x: to_array(kept.abs()) * 0.1 for x in state}
    carried = _assembled(optimizer, group, state, roles, averages, new, notes, name)
    try:
        tried(optimizer, group, new, (1.0, 1.0), state=carried)
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
    news : mapping of str to Tensor
        The new tensors of the layer.
    notes : Notes
        Collects what is lost.
    """
    result: dict[str, dict[Any, State]] = {name: {} for name in slots}
    depth = max((len(x.optimizers) for x in slots.values()), default=0)
    for level in range(depth):  # an optimizer around another has states of its own
        held = {name: x for name, x in slots.items() if level < len(x.optimizers)}
        keepers = {name: x.optimizers[level] for name, x in held.items()}
        olds = {name: dict(x.state.get(held[name].parameter) or {}) for name, x in keepers.items()}
        olds = {name: state for name, state in olds.items() if state}
        roles = {}
        for name, state in olds.items():
            args = (keepers[name], held[name].group, held[name].parameter)
            roles[name] = (
                roles_of(*args, state, notes, name) if policy == "transport" else dict.fromkeys(state, "basis")
            )
            broken = [key for key, x in state.items() if roles[name][key] in _CARRIED and not _is_finite(x)]
            if broken:
                notes.add(keepers[name], f"{', '.join(broken)} are not finite and start anew", name)
                roles[name] |= dict.fromkeys(broken, "basis")
        lost: list[str] = []
        carried = _carried(adapter, values, reduction, olds, roles, news, lost)
        for name, state in olds.items():
            if gone := [x for x in lost if x in state]:
                notes.add(keepers[name], f"{', '.join(gone)} overflow and start anew", name)
            made = _assembled(
                keepers[name], held[name].group, state, roles[name], carried[name], news[name], notes, name
            )
            if made is not None:
                result[name][keepers[name]] = made
    return result


_CARRIED = ("parameter", "gradient", "square", "root", "factored")


def _carried(
    adapter: Adapter,
    values: Mapping[str, Array],
    reduction: Reduction,
    olds: Mapping[str, State],
    roles: Mapping[str, Mapping[str, str]],
    news: Mapping[str, Tensor],
    lost: list[str],
) -> dict[str, dict[str, Array]]:
    """Carry averages by the change of basis, all tensors of the layer together: by tensor name, by key."""
    old: dict[tuple[str, str], dict[str, Array]] = {}  # by kind and label, by tensor name
    for name, state in olds.items():
        for key, role in roles[name].items():
            if role in _CARRIED:
                kind = role if role in ("parameter", "gradient") else "square"
                old.setdefault((kind, _label(key, role)), {}).setdefault(name, _moment(state, key, role, roles[name]))
    new: dict[tuple[str, str], Mapping[str, Array]] = {}
    for (kind, label), given in old.items():
        try:
            if kind == "parameter":
                followed = followed_values(adapter, values, {**values, **given}, reduction)
                new[kind, label] = followed or {name: to_array(x) for name, x in news.items()}
            else:
                carry = adapter.carry_first if kind == "gradient" else adapter.carry_second
                new[kind, label] = carry(values, reduction, given)
        except NumericalError:
            lost.append(label)
    for first in [x for x in new if x[0] == "gradient"]:
        for second in [x for x in new if x[0] == "square"]:
            new[second] = raised((new[first], new[second]), (old[first], old[second]))
    result: dict[str, dict[str, Array]] = {}
    for name, state in olds.items():
        found = {key: new.get((kind, _label(key, role))) for key, role in roles[name].items() for kind in _KIND[role]}
        result[name] = {key: x[name] for key, x in found.items() if x is not None and name in x and key in state}
    return result


_KIND = {role: () for role in (*ROLES, "unknown")} | {role: ("square",) for role in ("square", "root", "factored")}
_KIND |= {"parameter": ("parameter",), "gradient": ("gradient",)}


def _assembled(
    optimizer: Any,
    group: Any,
    old: State,
    roles: Mapping[str, str],
    carried: Mapping[str, Array],
    new: Tensor,
    notes: Notes,
    name: str,
) -> State | None:
    """Put a state together: what was carried, numbers as they were, and the rest as the optimizer begins with."""
    whole = "basis" not in roles.values()
    counts = any(key == "step" and is_number(x) for key, x in old.items())
    fresh: State = {}
    if not {"start", "unknown", "basis"}.isdisjoint(roles.values()) or any(is_packed(x) for x in old.values()):
        anew = not whole and counts  # all of it, with its count; some begin with an entry made beforehand
        try:
            fresh = tried(optimizer, group, new.detach(), () if anew else (0.0,))
        except Exception:
            fresh = {}
        if anew or not (whole or fresh):
            return fresh or None  # it makes a new one at its next step
    state = {}
    for key, value in old.items():
        role = roles[key]
        if role == "counter":
            state[key] = value
        elif key in carried and (whole or _is_named(optimizer, key)):
            try:
                state[key] = _stored(carried[key], key, role, value, fresh.get(key), new)
            except NumericalError:
                notes.add(optimizer, f"{key} is out of range in {value.dtype} and starts anew", name)
                state[key] = torch.zeros_like(new.detach(), dtype=value.dtype)
        elif isinstance(value, Tensor) and TABLE.get((None, key)) == "square" and value.numel() > 1:
            finite = value[torch.isfinite(value)] if not is_packed(value) else value.dequantize()
            state[key] = torch.full_like(new.detach(), float(finite.double().mean()) if finite.numel() else 0.0)
        elif key in fresh:
            state[key] = fresh[key]
        elif whole:
            state[key] = torch.zeros_like(new.detach(), dtype=value.dtype)
    return state


def _moment(state: State, key: str, role: str, roles: Mapping[str, str]) -> Array:
    """Give an average as an array of the shape of its parameter: factors multiplied, a root squared."""
    if role == "factored":
        rows, columns = (as_array(x) for x in _factors(state, key, roles).values())
        if rows.ndim == columns.ndim and rows.shape[-1:] != (1,) or rows.ndim < 2:
            rows, columns = rows[..., None], columns[..., None, :]
        mean = rows.mean(axis=-2, keepdims=True)
        return np.divide(rows * columns, mean, out=np.zeros(np.broadcast(rows, columns).shape), where=mean != 0)
    moment = as_array(state[key])
    return moment**2 if role == "root" else moment


def _factors(state: State, key: str, roles: Mapping[str, str]) -> dict[str, Any]:
    same = _label(key, "factored")
    return {x: state[x] for x in state if roles[x] == "factored" and _label(x, "factored") == same}


def _stored(array: Array, key: str, role: str, old: Any, fresh: Any, new: Tensor) -> Tensor:
    """Put an average in the form the optimizer keeps it in."""
    if role == "factored":
        axis = -1 if re.search(r"row|_r$", key) else -2
        return to_tensor(array.mean(axis=axis, keepdims=old.ndim == new.ndim), old)
    if role == "root":
        array = np.sqrt(array)
    if not is_packed(old):
        return to_tensor(array, old)
    plain = to_tensor(array, new.detach())
    return plain if fresh is None else fresh.copy_(plain)


def _label(key: str, role: str) -> str:
    """Name of an average, under which factors stand beside the whole ones of vectors."""
    if role != "factored":
        return key
    return "variance" if key in ("row_var", "col_var") else re.sub(r"_(row|col|r|c)$", "", key)


def _is_named(optimizer: Any, key: str) -> bool:
    return any((x, key) in TABLE for x in names_of(type(optimizer)))


def _is_finite(value: Any) -> bool:
    return bool(np.isfinite(as_array(value)).all())
