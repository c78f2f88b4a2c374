"""Whoever holds a parameter by identity and is not part of what was given: found, and refused by name, or told of."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule
from torch.optim import Optimizer

from hankelred.errors import HankelredWarning, InputError

from ..exchange import ByTensor

_STORES = ("_parameters", "_buffers")  # attributes of modules


def walk(tensors: Collection[Tensor], kinds: Collection[type]) -> tuple[list[Any], list[weakref.ref[Any]]]:
    """Find the containers that hold tensors, weakly too, and the objects of classes, among all objects at once.

    This takes time in proportion to all that is alive. The objects are referred to weakly, so as not to keep them.
    """
    held = [*tensors, *(ref for p in tensors for ref in weakref.getweakrefs(p))]
    ids, around = {id(x) for x in held}, gc.get_referrers(*held, *kinds)
    containers = [x for x in around if _is_container(x) and x is not held and not ids.isdisjoint(map(id, _inside(x)))]
    return containers, [weakref.ref(x) for x in around if type(x) in kinds]


def derived(*kinds: type) -> set[type]:
    """All classes that derive from some, and these."""
    every, waiting = set[type](), list(kinds)
    while waiting:
        every.add(kind := waiting.pop())
        waiting += type.__subclasses__(kind)
    return every


def check_holders(
    containers: Iterable[Any],
    tensors: ByTensor,
    models: Sequence[nn.Module],
    optimizers: tuple[Any, ...],
    others: Iterable[Any] = (),
) -> None:
    """Look for those who would go on with tensors that are about to be replaced.

    Parameters
    ----------
    containers : iterable
        Lists, sets and dicts that hold them, from `walk`.
    tensors : dict of torch.Tensor to str
        Those that are replaced, and what to call them.
    models : sequence of torch.nn.Module
        The model and its averaged copies, whose modules are told.
    optimizers : tuple of torch.optim.Optimizer
        Those that are told.
    others : iterable
        Objects whose attributes are told.

    Raises
    ------
    InputError
        If a module outside, an optimizer that was not given, or optimizers kept by parameter hold one: they would
        train, or use, what is part of the model no more.

    Warns
    -----
    HankelredWarning
        If a dict by parameter holds one, or a container of tensors or of tensors by name that an object keeps, and goes
        on with it. One that is only a variable, such as the list an optimizer was made of, is nobody's.
    """
    told = {id(store) for x in models for m in x.modules() for store in (m._parameters, m._buffers)}
    told |= {id(group["params"]) for x in optimizers for group in x.param_groups} | {id(x.state) for x in optimizers}
    told |= {id(vars(x)) for x in others}
    found = [x for x in containers if id(x) not in told]
    if not found:
        return
    refs = {id(ref): p for p in tensors for ref in weakref.getweakrefs(p) if type(ref) is weakref.ref}
    keepers = [x for x in gc.get_referrers(*found) if x is not found and x is not containers]
    owners = [_attributes(x) for x in keepers]
    stored = [x for x in owners if any(x.get(name) is y for name in _STORES for y in found)]
    modules = [x for x in gc.get_referrers(*stored) if isinstance(x, nn.Module)] if stored else []
    refused: list[str] = []
    remarks: list[str] = []
    for x in found:
        inside = [refs.get(id(y), y) for y in _inside(x)]
        names = [tensors[y] for y in inside if isinstance(y, Tensor) and y in tensors]
        held = f"which holds {', '.join(names[:2])}{' and others' if len(names) > 2 else ''}"
        around = [y for y in owners if any(value is x for value in y.values())]
        if isinstance(x, list) and any(y.get("params") is x for y in around):
            (refused if optimizers else remarks).append(f"an optimizer that was not given, {held}")
        elif any(x is y.get(name) for y in around for name in _STORES):
            outside = [y for y in modules if any(x is vars(y).get(name) for name in _STORES)]
            if not outside or not isinstance(outside[0], GraphModule):  # what was compiled is compiled anew after a cut
                kind = type(outside[0]).__qualname__ if outside else "nn.Module"
                refused.append(f"a module outside of the model that was given, {kind}, {held}")
        elif isinstance(x, dict) and any(isinstance(y, Tensor) and y in tensors for y in x):
            steps = any(isinstance(value, Optimizer) for value in x.values())
            steps = steps or any(y is o.state or y is vars(o) for o in optimizers for y in around)
            (refused if steps else remarks).append(f"a {type(x).__name__} by parameter{_called(x, around)}, {held}")
        elif _is_of_tensors(inside) and not any("_module_parameters" in y for y in around):
            listed = type(x) is list and any(isinstance(y, (list, tuple)) and any(z is x for z in y) for y in keepers)
            if listed or any("__builtins__" not in y for y in around):  # no variable of a function or module
                remarks.append(f"a {type(x).__name__} of {len(x)} parameters{_called(x, around)}, {held}")
    if refused:
        raise InputError(
            f"Parameters that are to be replaced must be held by the model and optimizers that are given; got "
            f"{'; '.join(refused)}. Pass the whole model with all of its optimizers, or untie them; optimizers that "
            f"step in the backward pass are to be made anew after a cut."
        )
    _warn(remarks)


def _is_container(x: Any) -> bool:
    return type(x) in (list, set) or (isinstance(x, dict) and not isinstance(x, ByTensor))


def _inside(container: Any) -> list[Any]:
    """The elements of a container, or the keys and values of a dict, whatever classes of them make of these."""
    return [*dict.keys(container), *dict.values(container)] if isinstance(container, dict) else list(container)


def _attributes(x: Any) -> dict[Any, Any]:
    """Give a dict itself, or the attributes of an object."""
    return x if isinstance(x, dict) else getattr(x, "__dict__", None) or {}


def _is_of_tensors(x: Iterable[Any]) -> bool:
    """Tell whether there are tensors and perhaps their names."""
    return all(isinstance(y, (Tensor, str)) or type(y) is weakref.ref for y in x)


def _warn(remarks: Iterable[str]) -> None:
    if remarks:
        warnings.warn(
            f"Not everyone who holds parameters that are replaced can be given the new ones: {'; '.join(remarks)}. "
            f"Make these anew after the cut, or pass them.",
            HankelredWarning,
            stacklevel=4,
        )


def _called(container: Any, dicts: Iterable[dict[Any, Any]]) -> str:
    """Say under which name a container is known, if any."""
    names = [name for x in dicts for name, value in x.items() if value is container and isinstance(name, str)]
    return f" called {names[0]!r}" if names else ""
