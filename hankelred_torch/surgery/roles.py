"""What optimizers keep for a parameter, by role.

A key says little of what stands under it. What a class keeps is learned by stepping a copy of the optimizer on a copy
of the parameter: a linear average of gradients follows a change of their sign and size, a square only of their size,
a copy of the parameter neither. One table, open to users, says what cannot be seen so.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hankelred.checks import check_choice
from hankelred.errors import InputError

from ..convert import to_array, to_arrays
from ..errors import OptimizerStateWarning
from ..exchange import State
from ..randomness import random_state, set_random_state
from ..sharding import is_spread

ROLES = ("parameter", "gradient", "square", "root", "factored", "counter", "start", "basis")

# By class and key; None for every class. What a probe shows of a class that is not named here comes before None.
TABLE: dict[tuple[str | None, str], str] = {
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
    **dict.fromkeys([("pytorch_optimizer.DAdaptSGD", x) for x in ("z", "s", "x0")], "start"),
    **dict.fromkeys([("pytorch_optimizer.FTRL", x) for x in ("z", "n")], "basis"),
    # beside a distance for all parameters together, that was estimated along with it; a copy shows what those of
    # DAdaptAdam and Prodigy show, which can be carried
    **dict.fromkeys([(f"pytorch_optimizer.{x}", "s") for x in ("DAdaptLion", "DAdaptAdan")], "basis"),
    # beside bases of the axes, what does not lie in them
    **dict.fromkeys([(f"pytorch_optimizer.{x}", "exp_avg") for x in ("SOAP", "Conda")], "gradient"),
    **dict.fromkeys([(f"pytorch_optimizer.{x}", "momentum_buffer") for x in ("Kron", "Shampoo")], "gradient"),
}

# Classes that keep what the table says of every class, so that no copy of them has to be stepped.
_TRUSTED = ("torch.optim.", "torchao.")


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
        name = names_of(name)[0]
    if not (name is None or (isinstance(name, str) and "." in name)):
        raise InputError(
            f"optimizer_class_or_name must be a class, its package and name joined by a dot, or None; got {name!r}."
        )
    if not isinstance(key, str):
        raise InputError(f"key must be the name of an entry, a string; got {key!r}.")
    TABLE[name, key] = check_choice(role, "role", ROLES)


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


class Entry(NamedTuple):
    """What an optimizer keeps under one key: the value, what it is and, where a cut carries it, its numbers."""

    value: Any
    role: str
    array: Any  # None where it starts anew
    named: bool  # in the table, for this class
    packed: bool  # quantised; it can be read and written as numbers nevertheless


class Kept(NamedTuple):
    """What one optimizer keeps for one parameter."""

    optimizer: Any
    group: Any
    parameter: Tensor
    entries: dict[str, Entry]
    counts: bool  # steps, per parameter


def read_states(
    held: Mapping[str, tuple[Any, Any, Tensor, Mapping[str, Any]]], notes: Notes, *, reset: bool = False
) -> dict[str, Kept]:
    """Read what optimizers keep for parameters, given with group and state by name; those without a state are left out.

    Unknown entries and those that are not finite start anew, which is noted; all of them where it is asked for.
    """
    roles = {
        name: dict.fromkeys(state, "basis") if reset else _roles(optimizer, group, parameter, state, notes, name)
        for name, (optimizer, group, parameter, state) in held.items()
    }
    # in one order on all ranks, which gather what is spread one by one
    carried = [(name, key) for name, x in roles.items() for key, role in x.items() if role in _CARRIED]
    packed = {
        (name, key)
        for name, (*_, state) in held.items()
        for key, x in state.items()
        if hasattr(x, "__tensor_flatten__") and hasattr(type(x), "dequantize") and not is_spread(x)
    }
    values = {(name, key): held[name][3][key] for name, key in carried}
    values = {place: x.dequantize() if place in packed else x for place, x in values.items()}
    arrays = to_arrays({place: x for place, x in values.items() if isinstance(x, Tensor)}, "an optimizer")
    found = {}
    for name, (optimizer, group, parameter, state) in held.items():
        if not state:
            continue
        broken = [x for x in state if (name, x) in carried and not np.isfinite(arrays.get((name, x), np.nan)).all()]
        if any(roles[name][x] == "factored" for x in broken):  # one factor tells nothing without the other
            broken = [x for x in state if x in broken or roles[name][x] == "factored"]
        if broken:
            notes.add(optimizer, f"{', '.join(broken)} are not finite and start anew", name)
        roles[name] |= dict.fromkeys(broken, "basis")
        known = names_of(type(optimizer))
        entries = {
            key: Entry(
                x,
                role := roles[name][key],
                arrays[name, key] if role in _CARRIED else None,
                any((y, key) in TABLE for y in known),
                (name, key) in packed,
            )
            for key, x in state.items()
        }
        counts = any(key == "step" and _is_number(x) for key, x in state.items())
        found[name] = Kept(optimizer, group, parameter, entries, counts)
    return found


_CARRIED = ("parameter", "gradient", "square", "root", "factored")


def _roles(
    optimizer: Any, group: Any, parameter: Tensor, state: Mapping[str, Any], notes: Notes, name: str
) -> dict[str, str]:
    """Say of every entry of a state what it is."""
    named = {key: next((r for x in names_of(type(optimizer)) if (r := TABLE.get((x, key)))), "") for key in state}
    shaped = [
        key
        for key, x in state.items()
        if isinstance(x, Tensor) and x.shape == parameter.shape and x.dtype in _NUMBERS and x.numel() > 1
    ]
    shown = {} if is_trusted(optimizer) else _shown(optimizer, group, parameter, [x for x in shaped if not named[x]])
    roles = {}
    for key, value in state.items():
        general = TABLE.get((None, key), "")
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
        one, other = (tried(optimizer, group, parameter, [x] * 3) for x in (1.0, -4.0)) if keys else ({}, {})
    except Exception:
        return {}
    own, roles = to_array(parameter), {}
    for key in keys:
        if not (isinstance(one.get(key), Tensor) and one[key].shape == parameter.shape and key in other):
            continue
        x, y = to_array(one[key]), to_array(other[key])
        for role, expected in (("gradient", -4 * x), ("square", 16 * x), ("root", 4 * x), ("start", x), ("start", -x)):
            if np.linalg.norm(x) > 0 and np.linalg.norm(y - expected) <= 0.02 * np.linalg.norm(y):
                roles[key] = role
                break
        if np.linalg.norm(x - own) <= 0.1 * np.linalg.norm(own):
            roles[key] = "parameter"
        elif roles.get(key) in ("square", "root") and (x.min() < 0 or y.min() < 0):
            del roles[key]
    return roles


def tried(optimizer: Any, group: Any, parameter: Tensor, sizes: Sequence[float]) -> State:
    """Step a copy of an optimizer on a copy of a parameter, with gradients of given sizes; return what it keeps."""
    return stepped(optimizer, group, parameter, sizes)[1]


def stepped(
    optimizer: Any, group: Any, parameter: Tensor, sizes: Sequence[float], state: State | None = None
) -> tuple[Any, State]:
    """Do what `tried` does, from a state on if there is one, and return the copy of the optimizer, too."""
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
            return twin, dict(twin.state.get(own, {}))
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


def names_of(optimizer_class: type) -> list[str]:
    """Package and name of a class and its bases, as the table has them."""
    return [f"{x.__module__.partition('.')[0]}.{x.__qualname__}" for x in optimizer_class.__mro__]


def is_trusted(optimizer: Any) -> bool:
    """Tell whether the table alone knows a class."""
    return type(optimizer).__module__.startswith(_TRUSTED)


def _is_number(value: Any) -> bool:
    """Tell whether an entry is one number, a word or nothing; a container is none of these."""
    return (
        value is None
        or isinstance(value, (bool, int, float, str))
        or (isinstance(value, Tensor) and value.numel() == 1)
    )
