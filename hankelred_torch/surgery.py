"""Carrying out a plan on a model, its optimizers and its averaged copies, all or nothing.

Everything new is computed and checked first. Then parameters are replaced by new objects, not resized, because
autograd graphs and optimizers hold on to the old ones; every module and param group that held an old one gets the new
one in its place. What was done is noted as it is done, and undone in reverse if anything fails.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hankelred.checks import Array
from hankelred.errors import InputError, NumericalError

from .adapters import Adapter, find_ssm_layers
from .config import CompressionConfig
from .convert import stored_tensor, tensor_in_place_of, to_array
from .distributed import agreed, check_refreshable, decided, digest, refresh_ddp_, unwrapped, wrapper_of
from .ema import as_copies, followed_values
from .errors import SurgeryError
from .optimizer_state import Slot, State, carried_state, find_slot
from .plan import CompressionPlan, LayerPlan, plan, renewed
from .report import CompressionReport

Holder = tuple[dict[str, Any], str]  # a module's dict of parameters or buffers, and the name in it


@dataclass(frozen=True, eq=False)
class _Replacement:
    """One tensor of a layer with everything that has to change along with it."""

    name: str
    old: Tensor
    new: Tensor
    holders: list[Holder]
    slot: Slot | None
    state: State | None


@dataclass(frozen=True, eq=False)
class _Cut:
    """One layer's cut, prepared in full; `values` are the layer's tensors before it.

    The cut of an averaged copy is one too; `restarted` tells that it was given the tensors of the live layer.
    """

    adapter: Adapter
    layer: LayerPlan
    values: Mapping[str, Array]
    replacements: list[_Replacement]
    restarted: bool = False


class Journal:
    """Changes made so far, each with the way back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set_item(self, container: Any, key: Any, value: Any) -> None:
        """Put a value into a list or dict."""
        absent = isinstance(container, Mapping) and key not in container
        old = None if absent else container[key]
        self._undo.append((lambda: container.pop(key, None)) if absent else lambda: container.__setitem__(key, old))
        container[key] = value

    def remove_item(self, container: Any, key: Any) -> None:
        """Remove a key from a dict if it is there."""
        if key in container:
            old = container.pop(key)
            self._undo.append(lambda: container.__setitem__(key, old))

    def set_attribute(self, target: Any, name: str, value: Any) -> None:
        """Set an existing attribute."""
        old = getattr(target, name)
        self._undo.append(lambda: setattr(target, name, old))
        setattr(target, name, value)

    def roll_back(self) -> None:
        """Undo everything, the last change first."""
        while self._undo:
            self._undo.pop()()


def compress_(
    model: nn.Module,
    plan_or_config: CompressionPlan | CompressionConfig,
    optimizers: Any = (),
    ema: Any = (),
    batches: Any = None,
) -> CompressionReport:
    """Cut the states of a model that carry little, in place, in the model and its optimizers together.

    Call it between steps: after ``optimizer.step()``, before the next forward pass. Gradients of the parameters that
    are replaced are dropped with them. Learning-rate schedules go on. What `torch.compile` has compiled in this
    process is compiled anew at its next call: torch would stop compiling after 8 sizes, and say so in a log only.

    Parameters
    ----------
    model : torch.nn.Module
        A model or a single layer; changed in place, or not at all. One in `DistributedDataParallel` is given with its
        wrapper, by every rank: rank 0 decides, and the wrapper takes up the new parameters.
    plan_or_config : CompressionPlan or CompressionConfig
        What to cut, or how to decide it. Of a plan, the sizes count: if the layer has changed since, it is reduced
        as it is now; a selective layer by the change of basis or selection that the plan found.
    optimizers : torch.optim.Optimizer or iterable of them, optional
        Every optimizer that trains a parameter of the model. None for a model that is not in training.
    ema : torch.nn.Module or iterable of them, optional
        Averaged copies of the model, such as `torch.optim.swa_utils.AveragedModel`. They are cut by the change of
        basis of the live layers, whose states theirs correspond to. A copy has drifted from its layer, and what the
        basis makes of its poles is right to first order in the drift; where it would be unstable, the average of
        that layer starts anew from the live one, which the report tells.
    batches : iterable, optional
        Sample batches for layers whose matrices depend on their input, as for `plan`.

    Returns
    -------
    CompressionReport
        What was done, printable.

    Raises
    ------
    InputError
        If the model has no state space layers, the plan is for another model, the optimizers miss a trainable
        parameter that is to be replaced, a parameter is tied to another layer, parametrized or pruned, an averaged
        copy has other layers, or the model is sharded or in a wrapper that cannot be made anew.
    NumericalError
        If the reduced layer is not finite and stable in the dtype of the layer.
    SurgeryError
        If ranks differ, or model and optimizers were not consistent afterwards; they are as before then.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), ht.layers.LRU(4, 32))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> report = ht.compress_(model, ht.CompressionConfig(order=8), optimizer)
    >>> ht.state_sizes(model), report.parameters_before - report.parameters_after
    ({'1': 8}, 456)
    """
    started = time.perf_counter()
    ddp, model = wrapper_of(model), unwrapped(model)
    optimizers = as_optimizers(optimizers)
    if ddp is not None:
        check_refreshable(ddp)
    copies = as_copies(ema, find_ssm_layers(model))
    sampled = {} if batches is None else {"batches": batches}
    todo = decided(
        ddp,
        lambda: (
            plan_or_config if isinstance(plan_or_config, CompressionPlan) else plan(model, plan_or_config, **sampled)
        ),
    )
    before = _count_parameters(model)
    prepared = agreed(ddp, lambda: _prepare_all(model, todo, optimizers, copies), _fingerprint)
    cuts = prepared[0][1]
    journal = Journal()
    try:
        for where, some in prepared:
            for cut in some:
                _replace(cut, journal)
            _check_invariants(where, some, optimizers)
        if ddp is not None and cuts:
            refresh_ddp_(ddp)
    except BaseException:
        journal.roll_back()
        raise
    if cuts:
        _forget_compiled()
    layers = todo.layers | {cut.layer.name: cut.layer for cut in cuts}
    restarted = tuple(sorted({cut.layer.name for _, some in prepared for cut in some if cut.restarted}))
    seconds = time.perf_counter() - started
    return CompressionReport(layers, before, _count_parameters(model), seconds, ema_restarted=restarted)


def as_optimizers(optimizers: Any) -> tuple[Any, ...]:
    """Return one optimizer or several as a tuple."""
    several = (
        (optimizers,) if hasattr(optimizers, "param_groups") or not isinstance(optimizers, Iterable) else optimizers
    )
    found = tuple(several)
    for optimizer in found:
        if not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
            raise InputError(f"optimizers must be one torch optimizer or several; got {type(optimizer).__name__}.")
        if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
            raise InputError(
                "optimizers must keep the whole state on every rank; got a ZeroRedundancyOptimizer, which shares it "
                "out. Use the optimizer inside it."
            )
    return found


def check_trained(adapter: Adapter, name: str, optimizers: tuple[Any, ...]) -> dict[str, Slot]:
    """Return where the optimizers hold the tensors of a layer, by tensor name."""
    slots = {}
    missing = []
    for tensor_name in adapter.replaced:
        tensor = stored_tensor(*adapter.owner(tensor_name))
        slot = find_slot(tensor, optimizers)
        if slot is not None:
            slots[tensor_name] = slot
        elif optimizers and tensor.requires_grad:
            missing.append(tensor_name)
    if missing:
        raise InputError(
            f"optimizers must hold every trainable parameter that is to be replaced; got none that holds "
            f"{', '.join(missing)} of layer {name!r}. Pass all optimizers of the model, or freeze these parameters."
        )
    return slots


def _count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _forget_compiled() -> None:
    """Drop what `torch.compile` has compiled.

    Every new size is one recompilation, and beyond ``torch._dynamo.config.recompile_limit`` of them, 8 per function,
    it runs eagerly from then on with a line in its log. Models do not know who compiled them or a step around them,
    so this is for all of the process; without it layers of equal class and unequal sizes use the limit up together.
    """
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _prepare_all(
    model: nn.Module, todo: CompressionPlan, optimizers: tuple[Any, ...], copies: tuple[nn.Module, ...]
) -> list[tuple[nn.Module, list[_Cut]]]:
    """Compute everything new, for the model and its averaged copies; change nothing."""
    cuts = _prepare(model, todo, optimizers)
    return [(model, cuts), *((copy, _prepare_copy(copy, cuts)) for copy in copies)]


def _fingerprint(prepared: list[tuple[nn.Module, list[_Cut]]]) -> str:
    """Return a hash of all that is to be new."""
    cuts = [cut for _, some in prepared for cut in some]
    parts: list[Any] = []
    for cut in cuts:
        parts += [cut.layer.name, cut.layer.n, cut.layer.states]
        for x in cut.replacements:
            parts += [x.name, x.new]
            for key, value in (x.state or {}).items():
                parts += [key, value]
    return digest(parts)


def _prepare(model: nn.Module, todo: CompressionPlan, optimizers: tuple[Any, ...]) -> list[_Cut]:
    """Compute every new tensor and optimizer state; change nothing."""
    adapters = find_ssm_layers(model)
    holders = holders_of(model)
    cuts = []
    for name, layer in todo.layers.items():
        if not layer.is_cut:
            continue
        if name not in adapters or adapters[name].states != layer.n:
            raise InputError(
                f"The plan must be for this model; got one for layer {name!r} with {layer.n} states and "
                f"{ {x: adapter.states for x, adapter in adapters.items()} } in the model. Call plan again."
            )
        _refuse_tied(name, adapters)
        cuts.append(_prepare_layer(adapters[name], layer, todo.config.optimizer_state, optimizers, holders))
    return cuts


def _refuse_tied(name: str, adapters: Mapping[str, Adapter]) -> None:
    """Refuse a layer that shares a tensor with the state axis of another: one cut cannot serve both."""
    own = {adapters[name].tensor(x): x for x in adapters[name].replaced}
    for other, adapter in adapters.items():
        shared = [own[adapter.tensor(x)] for x in adapter.replaced if other != name and adapter.tensor(x) in own]
        if shared:
            raise InputError(
                f"A layer to be cut must not share state space parameters with another; got {', '.join(shared)} in "
                f"{name!r} and {other!r}. Untie them, or leave both out by target_modules."
            )


def holders_of(model: nn.Module) -> dict[Tensor, list[Holder]]:
    """Return every place in a module that holds a tensor, by the tensor."""
    found: dict[Tensor, list[Holder]] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    found.setdefault(tensor, []).append((store, name))
    return found


def _prepare_layer(
    adapter: Adapter,
    layer: LayerPlan,
    policy: str,
    optimizers: tuple[Any, ...],
    holders: Mapping[Tensor, list[Holder]],
) -> _Cut:
    slots = check_trained(adapter, layer.name, optimizers)
    values = adapter.values()
    reduction = layer.reduction
    if reduction is None or not (adapter.kind == "selective" or layer.fits(values)):
        layer = renewed(layer, adapter, values)
        reduction = layer.reduction
    assert reduction is not None
    written = adapter.rewrite(values, reduction)
    olds = {name: stored_tensor(*adapter.owner(name)) for name in adapter.replaced}
    news = {name: tensor_in_place_of(old, written[name]) for name, old in olds.items()}
    adapter.check(values | {name: to_array(new) for name, new in news.items()}, layer.name)
    states = carried_state(policy, adapter, values, reduction, slots, news)
    replacements = [
        _Replacement(name, olds[name], news[name], holders[olds[name]], slots.get(name), states.get(name))
        for name in adapter.replaced
    ]
    return _Cut(adapter, layer, values, replacements)


def _prepare_copy(copy: nn.Module, cuts: list[_Cut]) -> list[_Cut]:
    """Compute every new tensor of an averaged copy of the model, by the change of basis of the live layers."""
    adapters = find_ssm_layers(copy)
    holders = holders_of(copy)
    return [_prepare_copied_layer(adapters[cut.layer.name], cut, holders) for cut in cuts]


def _prepare_copied_layer(adapter: Adapter, live: _Cut, holders: Mapping[Tensor, list[Holder]]) -> _Cut:
    copied = adapter.values()
    olds = {name: stored_tensor(*adapter.owner(name)) for name in adapter.replaced}
    restart = {x.name: to_array(x.new) for x in live.replacements}
    followed = followed_values(live.adapter, live.values, copied, live.layer.reduction)
    news = {name: tensor_in_place_of(old, (followed or restart)[name]) for name, old in olds.items()}
    if followed is not None:
        try:
            adapter.check(copied | {name: to_array(new) for name, new in news.items()}, live.layer.name)
        except NumericalError:  # unstable only when rounded to the dtype of the copy
            followed, news = None, {name: tensor_in_place_of(old, restart[name]) for name, old in olds.items()}
    replacements = [_Replacement(name, old, news[name], holders[old], None, None) for name, old in olds.items()]
    return _Cut(adapter, live.layer, copied, replacements, restarted=followed is None)


def _replace(cut: _Cut, journal: Journal) -> None:
    """Put one layer's new tensors where the old ones are: modules, param groups, optimizer state, sizes."""
    for x in cut.replacements:
        for store, name in x.holders:
            journal.set_item(store, name, x.new)
        if x.slot is not None:
            journal.set_item(x.slot.group["params"], x.slot.index, x.new)
            journal.remove_item(x.slot.state, x.old)
            if x.state is not None:
                journal.set_item(x.slot.state, x.new, x.state)
    for name, size in cut.adapter.sizes(cut.layer.states).items():
        journal.set_attribute(*cut.adapter.owner(name), size)


def _check_invariants(model: nn.Module, cuts: list[_Cut], optimizers: tuple[Any, ...]) -> None:
    """Raise unless model and optimizers agree on the new tensors and have forgotten the old ones."""
    held = holders_of(model)
    trained = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    for cut in cuts:
        if cut.adapter.states != cut.layer.states:
            raise SurgeryError(
                f"Layer {cut.layer.name!r} must have {cut.layer.states} states after the cut; got {cut.adapter.states}."
            )
        for x in cut.replacements:
            what = f"{x.name} of layer {cut.layer.name!r}"
            if x.old in held or any(p is x.old for p in trained) or any(x.old in o.state for o in optimizers):
                raise SurgeryError(
                    f"The old {what} must be gone after the cut; a module or an optimizer still holds it."
                )
            count = sum(p is x.new for p in trained)
            if x.new not in held or count != (x.slot is not None):
                raise SurgeryError(f"The new {what} must be in one param group if the old one was; got {count}.")
            if (x.new.dtype, x.new.device, x.new.requires_grad) != (x.old.dtype, x.old.device, x.old.requires_grad):
                raise SurgeryError(f"The new {what} must have dtype, device and requires_grad of the old one.")
            if x.new.grad is not None:
                raise SurgeryError(f"The new {what} must have no gradient yet.")
            for key, value in (x.state or {}).items():
                if not _fits_parameter(value, x.new):
                    shapes = f"{tuple(x.new.shape)}; got {tuple(value.shape)}"
                    raise SurgeryError(f"Optimizer state {key} of the new {what} must fit shape {shapes}.")


def _fits_parameter(value: Any, parameter: Tensor) -> bool:
    """Tell whether a state is a scalar, has the shape of its parameter, or is a mean over some of its axes."""
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return True
    return value.ndim == parameter.ndim and all(a in (1, b) for a, b in zip(value.shape, parameter.shape, strict=True))
