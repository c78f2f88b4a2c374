"""Averaged copies of a model, cut by the same change of basis as the model itself.

A running average of weights is a model of its own, whose states are those of the live layer in the same coordinates.
Only the live layer's bases may reduce it: balanced by itself, its states would end up in another order and phase, and
further averages would mix unrelated states.
"""

from __future__ import annotations

import gc
import math
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from weakref import ref

from torch import nn
from torch.optim.swa_utils import AveragedModel

from hankelred import DiagonalBank, DiagonalSystem, Reduction
from hankelred.checks import Array, check_items
from hankelred.errors import HankelredWarning, InputError
from hankelred.training import follow

from ..adapters import Adapter, find_ssm_layers
from ..adapters.registry import are_near, unwrapped
from .holders import derived

Models = nn.Module | Iterable[nn.Module]


def as_copies(ema: Models, adapters: Mapping[str, Adapter]) -> tuple[tuple[nn.Module, dict[str, Adapter]], ...]:
    """Return the averaged copies of a model, unwrapped and checked against the layers of the model, with their layers.

    Raises
    ------
    InputError
        If one is not a module, or its layers differ from those of the model in name, class or size.
    """
    return tuple(_checked(copy, adapters) for copy in as_models(ema))


def as_models(ema: Models) -> tuple[Any, ...]:
    """Return one averaged copy or several as a tuple, with their wrappers."""
    found = check_items(ema, "ema") if isinstance(ema, Iterable) and not isinstance(ema, nn.Module) else [ema]
    for copy in found:
        if not isinstance(copy, nn.Module):
            raise InputError(
                f"ema must be one averaged model or several, modules of the structure of the model; got "
                f"{type(copy).__name__}. Wrap the model in torch.optim.swa_utils.AveragedModel."
            )
    return tuple(found)


def inner_of(copy: Any) -> nn.Module:
    """Take an averaged model out of its wrapper, torch's or that of ema-pytorch."""
    if isinstance(copy, AveragedModel):
        return copy.module
    return copy.ema_model if any(x.__module__.startswith("ema_pytorch.") for x in type(copy).__mro__) else copy


def wrappers() -> set[type]:
    """The classes whose objects average a model."""
    ema_pytorch = sys.modules.get("ema_pytorch")
    return derived(AveragedModel, *([] if ema_pytorch is None else [ema_pytorch.EMA]))


def warn_of_forgotten(
    alive: Iterable[ref[Any]], model: nn.Module, adapters: Mapping[str, Adapter], given: Iterable[nn.Module]
) -> None:
    """Warn of averages of a model that are alive and were not given: they do not follow a cut.

    Those of ema-pytorch know their model. Torch's are taken for averages of this one if the tensors of all their states
    lie near its own, as those of independent models do not, and no other model of its class that is alive is as near.
    """
    forgotten = _forgotten([found() for found in alive], model, adapters, {*map(id, given)})
    if forgotten:
        gc.collect()  # what nothing refers to is forgotten rightly
    for kind in {type(x).__qualname__ for found in forgotten if (x := found()) is not None}:
        warnings.warn(
            f"Averages of a model must be cut with it; got {kind}, which averages this one and does not follow. Pass "
            f"it as ema, or make it anew after the cut.",
            HankelredWarning,
            stacklevel=3,
        )


def _forgotten(
    alive: list[Any], model: nn.Module, adapters: Mapping[str, Adapter], told: set[int]
) -> list[ref[nn.Module]]:
    """All averages of a model among what is alive, but those told of."""
    found = list[ref[nn.Module]]()
    averages = {id(y := unwrapped(inner)): (x, y) for x in alive if (inner := inner_of(x)) is not x}
    for wrapper, inner in averages.values() if id(model) not in averages else ():  # an average has none of its own
        if id(inner) in told or type(inner) is not type(model):
            continue
        if isinstance(wrapper, AveragedModel):
            others = [x for x in alive if type(x) is type(model) and id(x) not in averages and x is not model]
            layers, distance = find_ssm_layers(inner), _distance(model, inner)
            near = layers.keys() == adapters.keys() and all(are_near(x, layers[name]) for name, x in adapters.items())
            mine = near and all(distance < _distance(x, inner) for x in others)
        else:
            mine = unwrapped(wrapper.model) is model
        if mine:
            found.append(ref(wrapper))
    return found


def _distance(a: nn.Module, b: nn.Module) -> float:
    """Root of the sum of squares by which the parameters of two models differ; infinite if their shapes do."""
    theirs, total = dict(b.named_parameters()), 0.0
    for name, x in a.named_parameters():
        y = theirs.pop(name, None)
        if y is None or y.shape != x.shape:
            return math.inf
        total += float((x.detach() - y.detach().to(x.device)).abs().square().sum())
    return math.inf if theirs else math.sqrt(total)


def followed_values(
    live: Adapter, values: Mapping[str, Array], copied: Mapping[str, Array], reduction: Any
) -> dict[str, Array] | None:
    """Return the tensors of a layer's copy after the layer's reduction; None if the copy would be unstable.

    Parameters
    ----------
    live : Adapter
        Of the live layer.
    values, copied : mapping of str to ndarray
        Tensors of the live layer and of the copy before the reduction.
    reduction : Reduction or tuple of them
        The aligned reduction of the live layer.
    """
    if live.kind == "selective":  # written as a function of the tensors and a fixed change of basis
        return live.rewrite(copied, reduction)
    systems, copies = _as_tuple(live.read(values)), _as_tuple(live.read(copied))
    pairs = zip(systems, copies, _as_tuple(reduction), strict=True)
    followed = tuple(_followed(system, copy, each) for system, copy, each in pairs)
    if not all(each.system.is_stable() for each in followed):
        return None
    return live.rewrite(copied, followed if isinstance(reduction, tuple) else followed[0])


def _followed(system: DiagonalSystem, copy: DiagonalSystem, reduction: Reduction) -> Reduction:
    return replace(reduction, original=copy, system=follow(copy, system, reduction))


def _as_tuple(one_or_more: Any) -> tuple[Any, ...]:
    return tuple(one_or_more) if isinstance(one_or_more, (tuple, DiagonalBank)) else (one_or_more,)


def _checked(copy: Any, adapters: Mapping[str, Adapter]) -> tuple[nn.Module, dict[str, Adapter]]:
    inner = unwrapped(inner_of(copy))
    found = find_ssm_layers(inner)
    wanted, got = ({name: (type(x.layer).__qualname__, x.states) for name, x in y.items()} for y in (adapters, found))
    if got != wanted:
        raise InputError(
            f"An averaged model must have the state space layers of the model, {wanted}; got {got}. "
            f"Pass the copy of this model, made or resized at its present sizes."
        )
    return inner, found
