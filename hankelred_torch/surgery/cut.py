"""Carrying out a plan on a model, its optimizers and its averaged copies, all or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from hankelred.checks import Array
from hankelred.errors import InputError, NumericalError

from ..adapters import Adapter, adapter_of
from ..adapters.base import Systems
from ..config import CompressionConfig
from ..convert import stored_tensors, tensors_in_place_of, to_arrays, to_tensor
from ..errors import SurgeryError
from ..exchange import Exchange
from ..guard import Guard
from ..planning import Batches, LayerCut, Plan, check_stable, plan, renewed
from ..sharding import Ranks, together
from .averages import Models, as_copies, as_models, followed_values, warn_of_forgotten, wrappers
from .fsdp import exchange_sharded, managed, spread_states
from .holders import check_holders, walk
from .optimizers import Optimizers, as_optimizers, carried_states, check_trained
from .ranks import agreed, check_refreshable, decided, digest, opened, refresh_ddp_
from .roles import Notes


@torch.inference_mode(False)  # else parameters made inside inference mode could never be trained
def compress_(
    model: nn.Module,
    plan_or_config: Plan | CompressionConfig,
    optimizers: Optimizers = (),
    ema: Models = (),
    batches: Batches = None,
    metric: Any = None,
    tolerance: float | None = None,
    mode: str | None = None,
) -> Plan:
    """Cut the states of a model that carry little, in place, in the model and its optimizers together.

    Call it between steps: after ``optimizer.step()``, before the next forward pass. Gradients of the parameters that
    are replaced are dropped with them. Learning-rate schedules go on. What `torch.compile` has compiled in this
    process is compiled anew at its next call: torch would stop compiling after 8 sizes, and say so in a log only.

    Parameters
    ----------
    model : torch.nn.Module
        A model or a single layer; changed in place, or not at all. One in `DistributedDataParallel` is given with its
        wrapper, by every rank: rank 0 decides, and the wrapper takes up the new parameters. Of one that `fully_shard`
        has sharded every rank gathers a layer at a time, cuts it, and keeps its own shards of what comes out.
    plan_or_config : Plan or CompressionConfig
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
    metric, tolerance, mode : optional
        As of `Guard`: instead of stopping at `tau`, cut to the smallest sizes with which the metric stays within the
        tolerance. `tau` is where the search begins; other criteria are refused.

    Returns
    -------
    Plan
        What was done, printable.

    Raises
    ------
    InputError
        If the model has no state space layers, the plan is for another model, the optimizers miss a trainable
        parameter that is to be replaced, a parameter is tied to another layer, parametrized or pruned, an averaged
        copy has other layers, or the model is sharded or wrapped in a way that cannot be made anew.
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
    >>> ht.state_sizes(model), report.parameters[0] - report.parameters[1]
    ({'1': 8}, 456)
    """
    started = time.perf_counter()
    outer, (ranks, model, adapters) = model, opened(model)
    optimizers = as_optimizers(optimizers)
    if ranks is not None and ranks.ddp is not None:
        check_refreshable(ranks.ddp)
    copies = as_copies(ema, adapters)
    if metric is not None or tolerance is not None:
        from .smallest import smallest

        guard = Guard(metric, tolerance, mode)  # type: ignore[arg-type]
        return smallest(outer, plan_or_config, optimizers, as_models(ema), batches, guard, compress_)
    todo = decided(
        ranks, lambda: plan_or_config if isinstance(plan_or_config, Plan) else plan(model, plan_or_config, batches)
    )
    prepared = agreed(
        ranks, lambda: _Cut(model, adapters, todo, optimizers, copies, ranks), lambda cut: digest(cut.parts)
    )
    before = sum(p.numel() for p in model.parameters()), _state_bytes(adapters)
    if prepared.layers:
        together(ranks, lambda: _check_others(prepared, model, adapters, optimizers, copies))
    prepared.notes.warn(stacklevel=4)
    with prepared.exchange:
        together(ranks, prepared.commit)
        if prepared.layers:
            _forget_compiled()
            if ranks is not None and ranks.ddp is not None:
                refresh_ddp_(ranks.ddp)
        after = sum(p.numel() for p in model.parameters()), _state_bytes(adapters)
        return replace(
            todo,
            layers=todo.layers | prepared.layers,
            seconds=time.perf_counter() - started,
            parameters=(before[0], after[0]),
            state_bytes=(before[1], after[1]) if before[1] else None,
            ema_restarted=tuple(sorted(prepared.restarted)),
        )


@torch.inference_mode(False)
def write_system(layer: nn.Module, system: Systems) -> None:
    """Make a layer compute a system, as far as its dtype can hold it.

    With the number of states it had, the layer keeps its parameters and gets new values. With another number it gets
    new parameters, which no optimizer knows: in training use `compress_`, or make the optimizer afterwards.

    Parameters
    ----------
    layer : torch.nn.Module
        A layer of a registered class; changed in place, or not at all.
    system : DiagonalSystem or tuple of them
        What the layer is to compute; one per channel for a bank.

    Raises
    ------
    InputError
        If the class is not registered, the layer cannot hold the system, or a tensor is parametrized or pruned.
    NumericalError
        If a value is not finite in the dtype of the layer.

    Examples
    --------
    >>> import hankelred as hr, hankelred_torch as ht
    >>> layer = ht.layers.LRU(channels=4, states=16)
    >>> ht.write_system(layer, hr.balanced_truncation(ht.read_system(layer), states=8).system)
    >>> ht.state_sizes(layer)
    {'': 8}
    """
    adapter = adapter_of(layer)
    values = adapter.write(system)
    olds = stored_tensors(adapter.layer, values)
    states = adapter.states_on(first := next(iter(adapter.state_axes)), values[first].shape)
    resized = {name: old for name, old in olds.items() if states != adapter.states and name in adapter.state_axes}
    exchange = Exchange([layer])
    exchange.replace(resized, tensors_in_place_of(resized, values))
    for name in olds.keys() - resized.keys():
        exchange.contents(olds[name], to_tensor(values[name], olds[name]))
    exchange.attributes(adapter.layer, adapter.sizes(states))
    exchange.commit()


class _Cut:
    """Everything new that a plan makes of a model and its averaged copies, computed in full; nothing has changed."""

    def __init__(
        self,
        model: nn.Module,
        adapters: Mapping[str, Adapter],
        todo: Plan,
        optimizers: tuple[Any, ...],
        copies: tuple[tuple[nn.Module, dict[str, Adapter]], ...],
        ranks: Ranks | None,
    ) -> None:
        self._compared = ranks is not None
        self.exchange = Exchange([model, *(x for x, _ in copies)], optimizers)
        self.layers: dict[str, LayerCut] = {}
        self.restarted: set[str] = set()
        self.parts: list[Any] = []  # all that is to be new, for a comparison of ranks
        self.notes = Notes()
        self.sharded = managed(model, *(x for x, _ in copies))
        self._adapters = [adapters, *(x for _, x in copies)]
        self._optimizers = optimizers
        self._policy = todo.config.optimizer_state
        cuts = {name: layer for name, layer in todo.layers.items() if layer.cut}
        for name, layer in cuts.items():
            if name not in adapters or adapters[name].states != layer.n:
                raise InputError(
                    f"The plan must be for this model; got one for layer {name!r} with {layer.n} states and "
                    f"{ {x: adapter.states for x, adapter in adapters.items()} } in the model. Call plan again."
                )
        if cuts and len(adapters) > 1:
            _refuse_tied(cuts, adapters)
        for name, layer in cuts.items():
            self._cut(name, layer)

    def commit(self) -> None:
        """Put everything new in its place, and check it."""
        self.exchange.commit()
        self.check_sizes()

    def check_sizes(self) -> None:
        """Raise unless every layer that was cut, and its copies, have the states they were to have."""
        for name, layer in self.layers.items():
            for adapters in self._adapters:
                if adapters[name].states != layer.states:
                    raise SurgeryError(
                        f"Layer {name!r} must have {layer.states} states after the cut; got {adapters[name].states}."
                    )

    def _cut(self, name: str, layer: LayerCut) -> None:
        """Prepare the cut of one layer and of its averaged copies."""
        adapter, *copied = [adapters[name] for adapters in self._adapters]
        olds, values = adapter.stored(), adapter.values()
        slots = check_trained(olds, name, self._optimizers)
        layer, written = renewed(layer, adapter, values)
        # without a state axis: filled anew and the same objects as before, which their optimizer knows
        filled = stored_tensors(adapter.layer, added) if (added := written.keys() - olds.keys()) else {}
        news = tensors_in_place_of(olds | filled, written)
        resized = {name: news[name] for name in olds}
        states = carried_states(self._policy, adapter, values, layer.reduction, slots, resized, written, self.notes)
        self._exchange(adapter, layer, olds, filled, news, states)
        for each in copied:
            old = each.stored()
            filled = stored_tensors(each.layer, added) if added else {}
            followed = self._followed(each, adapter, layer, old | filled, values, to_arrays(news))
            self._exchange(each, layer, old, filled, followed, {})
        # the reduction of a linear layer is as large as the layer, which is to be whole in its turn only
        large = adapter.kind == "lti" and any(hasattr(x, "device_mesh") for x in olds.values())
        self.layers[name] = layer._without_tensors() if large else layer
        self.parts.append((name, layer.n, layer.states))

    def _followed(
        self,
        copied: Adapter,
        live: Adapter,
        layer: LayerCut,
        olds: Mapping[str, Tensor],
        values: Mapping[str, Array],
        restart: Mapping[str, Array],
    ) -> dict[str, Tensor]:
        """Make the new tensors of a layer's averaged copy by its change of basis, or from the live ones."""
        old = copied.values()
        followed = followed_values(live, values, old, layer.reduction)
        if followed is not None:
            news = tensors_in_place_of(olds, old | followed)
            try:
                check_stable(copied, layer.layer, old | to_arrays(news))
            except NumericalError:  # unstable only when rounded to the dtype of the copy
                pass
            else:
                return news
        self.restarted.add(layer.layer)
        return tensors_in_place_of(olds, restart)

    def _exchange(
        self,
        adapter: Adapter,
        layer: LayerCut,
        olds: Mapping[str, Tensor],
        filled: Mapping[str, Tensor],
        news: Mapping[str, Tensor],
        states: Mapping[str, Any],
    ) -> None:
        made: Mapping[str, Tensor] = {name: news[name] for name in olds}
        if self._compared:
            self._note(layer.layer, made, states)
        if any(hasattr(x, "device_mesh") for x in olds.values()):
            made = exchange_sharded(self.exchange, self.sharded, olds, made)
            states = spread_states(self.exchange, states, made, olds)
        self.exchange.replace(olds, made, states, f"layer {layer.layer!r}")
        for name, old in filled.items():
            self.exchange.contents(old, news[name].detach())
        self.exchange.attributes(adapter.layer, adapter.sizes(layer.states))

    def _note(self, layer: str, news: Mapping[str, Tensor], states: Mapping[str, Any]) -> None:
        """Take a digest of what is to be new in a layer, while it is whole."""
        parts: list[Any] = []
        for name, new in news.items():
            kept = [part for state in states.get(name, {}).values() for entry in state.items() for part in entry]
            parts += [f"{name} of {layer}", new, *kept]
        self.parts.append(digest(parts))


def _check_others(
    prepared: _Cut,
    model: nn.Module,
    adapters: Mapping[str, Adapter],
    optimizers: tuple[Any, ...],
    copies: tuple[tuple[nn.Module, dict[str, Adapter]], ...],
) -> None:
    """Look for those who hold what is to be replaced and are not told."""
    replaced, copied = prepared.exchange.names(), [x for x, _ in copies]
    containers, alive = walk(replaced, {*wrappers(), type(model)})
    check_holders(containers, replaced, [model, *copied], optimizers, prepared.sharded.values())
    warn_of_forgotten(alive, model, adapters, copied)


def _refuse_tied(cuts: Mapping[str, LayerCut], adapters: Mapping[str, Adapter]) -> None:
    """Refuse a layer that shares a tensor with the state axis of another: one cut cannot serve both."""
    own = {name: {tensor: x for x, (*_, tensor) in y.places(y.replaced).items()} for name, y in adapters.items()}
    for name, other in product(cuts, adapters):
        shared = own[name].keys() & own[other].keys()
        if shared and name != other:
            raise InputError(
                f"A layer to be cut must not share state space parameters with another; got "
                f"{', '.join(x for tensor, x in own[name].items() if tensor in shared)} in "
                f"{name!r} and {other!r}. Untie them, or leave both out by target_modules."
            )


def _state_bytes(adapters: Mapping[str, Adapter]) -> int:
    """Count the bytes of the states of all layers, for one sequence."""
    return sum(x.state_bytes(x.states) for x in adapters.values())


def _forget_compiled() -> None:
    """Drop what `torch.compile` has compiled.

    Every new size is one recompilation, and beyond ``torch._dynamo.config.recompile_limit`` of them, 8 per function,
    it runs eagerly from then on with a line in its log. Models do not know who compiled them or a step around them,
    so this is for all of the process; without it layers of equal class and unequal sizes use the limit up together.
    """
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
