"""What an optimizer remembers of a layer's parameters, by role, through a cut.

A key says little of what stands under it. What a class keeps is learned by stepping a copy of the optimizer on a copy
of the parameter: a linear average of gradients follows a change of their sign and size, a square only of their size,
a copy of the parameter neither. One table, open to users, says what cannot be seen so. Averages are carried by the
layer's adapter, copies of parameters are cut as averaged models are, and what is not understood starts anew.
"""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hankelred import Reduction
from hankelred.checks import Array
from hankelred.errors import InputError, NumericalError

from ..adapters import Adapter
from ..convert import stored_tensor, to_array, to_tensor
from ..errors import OptimizerStateWarning
from .averages import followed_values
from .exchange import ByTensor, Slot, State, find_slot
from .holders import check_averages, check_holders
from .snapshot import random_state, set_random_state

ROLES = ("parameter", "gradient", "square", "root", "factored", "counter", "start", "basis")

# By class and key; None for every class. What a probe shows of a class that is not named here comes before None.
_TABLE: dict[tuple[str | None, str], str] = {
    **dict.fromkeys([(None, x) for x in ("exp_avg", "momentum_buffer", "grad_avg", "state1")], "gradient"),
    **dict.fromkeys(
        [(None, x) for x in ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "variance", "exp_avg_var", "state2")],
        "square",
    ),
    (None, "exp_inf"): "root",  # a decayed maximum of |gradient|
    **dict.fromkeys([("torch.Rprop", x) for x in ("prev", "step_size")], "start"),
    ("torch.ASGD", "ax"): "parameter",
    (None, "acc_delta"): "start",  # squares of past steps, not of gradients
    **dict.fromkeys([(None, x) for x in ("row_var", "col_var", "exp_avg_sq_row", "exp_avg_sq_col")], "factored"),
    **dict.fromkeys([(None, x) for x in ("exp_avg_res_row", "exp_avg_res_col")], "factored"),
    **dict.fromkeys([(None, x) for x in ("z", "slow_params", "slow_buffer")], "parameter"),
    ("torch.RMSprop", "momentum_buffer"): "start",  # of steps
    # dual averaging: the parameter is made of its start and the sum of gradients, which start again together
    **dict.fromkeys([("pytorch_optimizer.MADGRAD", x) for x in ("s", "x0")], "start"),
    **dict.fromkeys([("pytorch_optimizer.DAdaptAdaGrad", x) for x in ("sk", "x0", "alpha_k")], "start"),
    **dict.fromkeys([("pytorch_optimizer.DAdaptSGD", x) for x in ("z", "s", "x0")], "start"),
    **dict.fromkeys([("pytorch_optimizer.FTRL", x) for x in ("z", "n")], "basis"),
    # beside bases of the axes, what does not lie in them
    **dict.fromkeys([(f"pytorch_optimizer.{x}", "exp_avg") for x in ("SOAP", "Conda")], "gradient"),
    **dict.fromkeys([(f"pytorch_optimizer.{x}", "momentum_buffer") for x in ("Kron", "Shampoo")], "gradient"),
}

# Classes that keep what the table says of every class, so that no copy of them has to be stepped.
_TRUSTED = ("torch.optim.", "torchao.")

_INNER = ("optimizer", "_optimizer", "base_optimizer", "inner_optimizer")


def register_optimizer_state(optimizer_class_or_name: Any, key: str, role: str) -> None:
    """Tell what an optimizer keeps under a key, so that a cut carries it over.

    Parameters
    ----------
    optimizer_class_or_name : type or str or None
        The class, or its top-level package and its name joined by a dot; None for every class.
    key : str
        As in ``optimizer.state[parameter]``.
    role : {"parameter", "gradient", "square", "root", "factored", "counter", "start", "basis"}
        A copy or average of the parameter; an average of gradients; of their squares; a root of such; one of two
        means of squares over the last two axes, rows first; a number; what starts anew after a cut without harm; what
        belongs to the axes or to all entries together, so that it and its neighbours start anew, with a warning.

    Raises
    ------
    InputError
        If an argument is not of its kind.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> ht.register_optimizer_state("my_package.MyAdam", "second", "square")
    """
    name = optimizer_class_or_name
    if isinstance(name, type):
        name = _names(name)[0]
    if not (name is None or (isinstance(name, str) and "." in name)):
        raise InputError(
            f"optimizer_class_or_name must be a class, its package and name joined by a dot, or None; got {name!r}."
        )
    if not isinstance(key, str):
        raise InputError(f"key must be the name of an entry, a string; got {key!r}.")
    if role not in ROLES:
        raise InputError(f"role must be one of {', '.join(ROLES)}; got {role!r}.")
    _TABLE[name, key] = role


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


def check_optimizers(
    adapters: Mapping[str, Adapter], optimizers: tuple[Any, ...], models: Sequence[nn.Module] = ()
) -> None:
    """Try on copies whether optimizers can go on after a cut, before the first step too; warn of what they will lose.

    Parameters
    ----------
    adapters : mapping of str to Adapter
        Of the layers that may be cut.
    optimizers : tuple of torch.optim.Optimizer
        From `as_optimizers`.
    models : sequence of torch.nn.Module, optional
        The model and its averaged copies, of which everyone who holds parameters is looked for, see `check_holders`.

    Raises
    ------
    InputError
        If one misses a trainable parameter, or a copy that was cut could not make its next step.
    """
    notes, seen = Notes(), set()
    if models:
        held = ByTensor()
        for name, adapter in adapters.items():
            held.update({adapter.tensor(x): f"{x} of layer {name!r}" for x in adapter.replaced})
        check_holders(held, models, optimizers)
        check_averages(models)
    for name, adapter in adapters.items():
        for tensor_name, slot in check_trained(adapter, name, optimizers).items():
            parameter = slot.parameter
            for optimizer in slot.optimizers:
                mark = (id(optimizer), id(slot.group), parameter.shape, parameter.dtype)
                if mark not in seen and not _is_trusted(optimizer):
                    seen.add(mark)
                    _rehearse(optimizer, slot.group, parameter, tensor_name, adapter.state_axes.get(tensor_name), notes)
    notes.warn()


def _rehearse(optimizer: Any, group: Any, parameter: Tensor, name: str, axis: int | None, notes: Notes) -> None:
    """Step, cut and step a copy of an optimizer on a copy of one parameter."""
    try:
        state = _tried(optimizer, group, parameter, (1.0, 1.0))
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
        _tried(optimizer, group, new, (1.0, 1.0), state=carried)
    except Exception as error:
        raise InputError(
            f"optimizers must be able to go on after a cut; got {type(optimizer).__name__}, a copy of which could not "
            f"({type(error).__name__}: {error}). Use another one for the parameters of state space layers."
        ) from error


class Notes:
    """What is lost of optimizer states, said in one warning."""

    def __init__(self) -> None:
        self._lost: dict[tuple[str, str], list[str]] = {}

    def add(self, optimizer: Any, what: str, tensor: str) -> None:
        """Note something of one tensor."""
        tensors = self._lost.setdefault((type(optimizer).__name__, what), [])
        if tensor not in tensors:
            tensors.append(tensor)

    def warn(self, stacklevel: int = 3) -> None:
        """Warn if there is anything to say."""
        if self._lost:
            lines = [f"{name}: {what}, for {', '.join(x)}" for (name, what), x in self._lost.items()]
            warnings.warn(
                "Not all that the optimizers keep is carried through a cut; the loss may rise for some steps after "
                f"it. {'; '.join(lines)}. Where you know what an entry is, register_optimizer_state tells.",
                OptimizerStateWarning,
                stacklevel=stacklevel,
            )


def roles_of(
    optimizer: Any, group: Any, parameter: Tensor, state: Mapping[str, Any], notes: Notes, name: str
) -> dict[str, str]:
    """Say of every entry of a state what it is; unknown entries start anew, which is noted."""
    named = {key: next((r for x in _names(type(optimizer)) if (r := _TABLE.get((x, key)))), "") for key in state}
    shaped = [
        key
        for key, x in state.items()
        if isinstance(x, Tensor) and x.shape == parameter.shape and x.dtype in _NUMBERS and x.numel() > 1
    ]
    shown = {} if _is_trusted(optimizer) else _shown(optimizer, group, parameter, [x for x in shaped if not named[x]])
    roles = {}
    for key, value in state.items():
        general = _TABLE.get((None, key), "")
        if named[key]:
            roles[key] = named[key]
        elif _is_number(value):
            roles[key] = "counter"
        elif general == "factored" and isinstance(value, Tensor) and len(value.shape) >= parameter.ndim - 1 > 0:
            roles[key] = general
        elif key in shaped:
            roles[key] = general if general == "square" else shown.get(key) or general or "unknown"
        else:
            roles[key] = "basis"
    unknown = [key for key, role in roles.items() if role in ("unknown", "basis")]
    if unknown:
        lost = "" if "basis" not in roles.values() else ", and averages beside them with it"
        notes.add(optimizer, f"{', '.join(unknown)} start anew{lost}", name)
    return roles


_NUMBERS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)


def _shown(optimizer: Any, group: Any, parameter: Tensor, keys: Sequence[str]) -> dict[str, str]:
    """Say of entries what the steps of two copies show, whose gradients differ by a factor of -4."""
    try:
        one, other = (_tried(optimizer, group, parameter, [x] * 3) for x in (1.0, -4.0)) if keys else ({}, {})
    except Exception:
        return {}
    own, roles = to_array(parameter), {}
    for key in keys:
        if not (isinstance(one.get(key), Tensor) and one[key].shape == parameter.shape and key in other):
            continue
        x, y = _as_array(one[key]), _as_array(other[key])
        for role, expected in (("gradient", -4 * x), ("square", 16 * x), ("root", 4 * x), ("start", x), ("start", -x)):
            if np.linalg.norm(x) > 0 and np.linalg.norm(y - expected) <= 0.02 * np.linalg.norm(y):
                roles[key] = role
                break
        if np.linalg.norm(x - own) <= 0.1 * np.linalg.norm(own):
            roles[key] = "parameter"
        elif roles.get(key) in ("square", "root") and (x.min() < 0 or y.min() < 0):
            del roles[key]
    return roles


def _tried(optimizer: Any, group: Any, parameter: Tensor, sizes: Sequence[float], state: State | None = None) -> State:
    """Step a copy of an optimizer on a copy of a parameter, with gradients of given sizes; return what it keeps."""
    generator, randomness = torch.Generator().manual_seed(0), random_state()
    own = nn.Parameter(parameter.detach().clone())
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            twin = _copy_of(optimizer, group, own)
            if state is not None:
                twin.state[own] = state
            for size in sizes:
                direction = torch.randn(own.shape, dtype=own.dtype, generator=generator).to(own.device)
                loss = (size * direction * own + 0.0 * own**2).sum()  # with a graph for those that want its curvature
                (own.grad,) = torch.autograd.grad(loss.real if loss.is_complex() else loss, own, create_graph=True)
                type(twin).step(twin)
            return dict(twin.state.get(own, {}))
    finally:
        set_random_state(randomness)


def _copy_of(optimizer: Any, group: Any, parameter: Tensor) -> Any:
    """Make an optimizer of the same class and settings on one other parameter, without hooks, that shares nothing."""
    twin = object.__new__(type(optimizer))
    for name, value in vars(optimizer).items():
        if name in ("step", "param_groups", "state"):
            continue  # a scheduler puts a step of its own on the object
        if hasattr(value, "param_groups") and value is not optimizer:
            value = _copy_of(value, group, parameter)
        vars(twin)[name] = type(value)() if name.endswith("_hooks") else _own(value)
    inner = next((x for x in vars(twin).values() if hasattr(x, "param_groups")), None)
    settings = {key: _own(value) for key, value in group.items() if key != "params"}
    if "param_groups" in vars(optimizer):
        vars(twin)["param_groups"] = inner.param_groups if inner is not None else [{"params": [parameter], **settings}]
    if "state" in vars(optimizer):
        shared = {key: _own(value) for key, value in optimizer.state.items() if not isinstance(key, Tensor)}
        vars(twin)["state"] = defaultdict(dict, shared)
        try:  # some make the state of a parameter with themselves, and never again
            accepted = inspect.signature(type(optimizer)).parameters
            made = type(optimizer)([parameter], **{key: x for key, x in settings.items() if key in accepted})
            if made.state.get(parameter):
                vars(twin)["state"][parameter] = made.state[parameter]
        except Exception:
            pass
    return twin


def _own(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return copy.copy(value) if isinstance(value, (dict, list, set, deque)) else value


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
    _keep_ratios(old, new)
    result: dict[str, dict[str, Array]] = {}
    for name, state in olds.items():
        found = {key: new.get((kind, _label(key, role))) for key, role in roles[name].items() for kind in _KIND[role]}
        result[name] = {key: x[name] for key, x in found.items() if x is not None and name in x and key in state}
    return result


_KIND = {role: () for role in (*ROLES, "unknown")} | {role: ("square",) for role in ("square", "root", "factored")}
_KIND |= {"parameter": ("parameter",), "gradient": ("gradient",)}


def _keep_ratios(old: Mapping[Any, Mapping[str, Array]], new: dict[tuple[str, str], Mapping[str, Array]]) -> None:
    """Raise carried squares to what averages by Adam obey entry by entry, ``m^2 <= c^2 v``, c as before the cut.

    First and second moments are carried by maps of their own; a second moment of 0 beside a first one would make a
    step of thousands of learning rates.
    """
    firsts, seconds = ([x for x in new if x[0] == kind] for kind in ("gradient", "square"))
    for first in firsts:
        for second in seconds:
            shared = [name for name in old[first] if name in old[second]]
            pairs = [(old[first][name].real ** 2, old[second][name]) for name in shared]
            largest = max((float((m[v > 0] / v[v > 0]).max(initial=0.0)) for m, v in pairs), default=0.0)
            if largest > 0:
                raised = {x: np.maximum(new[second][x], np.abs(new[first][x]) ** 2 / largest) for x in shared}
                new[second] = {**new[second], **raised}


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
    counts = any(key == "step" and _is_number(x) for key, x in old.items())
    fresh: State = {}
    if not {"start", "unknown", "basis"}.isdisjoint(roles.values()) or any(_is_packed(x) for x in old.values()):
        anew = not whole and counts  # all of it, with its count; some begin with an entry made beforehand
        try:
            fresh = _tried(optimizer, group, new.detach(), () if anew else (0.0,))
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
        elif isinstance(value, Tensor) and _TABLE.get((None, key)) == "square" and value.numel() > 1:
            finite = value[torch.isfinite(value)] if not _is_packed(value) else value.dequantize()
            state[key] = torch.full_like(new.detach(), float(finite.mean()) if finite.numel() else 0.0)
        elif key in fresh:
            state[key] = fresh[key]
        elif whole:
            state[key] = torch.zeros_like(new.detach(), dtype=value.dtype)
    return state


def _moment(state: State, key: str, role: str, roles: Mapping[str, str]) -> Array:
    """Give an average as an array of the shape of its parameter: factors multiplied, a root squared."""
    if role == "factored":
        rows, columns = (_as_array(x) for x in _factors(state, key, roles).values())
        if rows.ndim == columns.ndim and rows.shape[-1:] != (1,) or rows.ndim < 2:
            rows, columns = rows[..., None], columns[..., None, :]
        mean = rows.mean(axis=-2, keepdims=True)
        return np.divide(rows * columns, mean, out=np.zeros(np.broadcast(rows, columns).shape), where=mean != 0)
    moment = _as_array(state[key])
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
    if not _is_packed(old):
        return to_tensor(array, old)
    plain = to_tensor(array, new.detach())
    return plain if fresh is None else fresh.copy_(plain)


def _label(key: str, role: str) -> str:
    """Name of an average, under which factors stand beside the whole ones of vectors."""
    if role != "factored":
        return key
    return "variance" if key in ("row_var", "col_var") else re.sub(r"_(row|col|r|c)$", "", key)


def _names(optimizer_class: type) -> list[str]:
    return [f"{x.__module__.partition('.')[0]}.{x.__qualname__}" for x in optimizer_class.__mro__]


def _is_trusted(optimizer: Any) -> bool:
    return type(optimizer).__module__.startswith(_TRUSTED)


def _is_named(optimizer: Any, key: str) -> bool:
    return any((x, key) in _TABLE for x in _names(type(optimizer)))


def _is_number(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, (bool, int, float, str))
        or (isinstance(value, Tensor) and value.numel() == 1)
    )


def _is_packed(value: Any) -> bool:
    """Tell whether a tensor is quantised, and can be read and written as numbers nevertheless."""
    return isinstance(value, Tensor) and type(value) is not Tensor and hasattr(type(value), "tensor_data_names")


def _as_array(value: Tensor) -> Array:
    return to_array(value.dequantize() if _is_packed(value) else value)


def _is_finite(value: Any) -> bool:
    return bool(np.isfinite(_as_array(value)).all())
