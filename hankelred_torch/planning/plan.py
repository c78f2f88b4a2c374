"""What to cut and by how much: analyses of all layers, an allocation, and a reduction of each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from hankelred.checks import Array, check_type
from hankelred.errors import DiagonalisationError, HankelredError, InputError, NumericalError
from hankelred.linalg.threads import one_blas_thread

from ..adapters import Adapter, SelectiveAdapter, find_ssm_layers, refusals
from ..adapters.analysis import Analysis, LayerReduction
from ..adapters.base import Systems
from ..adapters.registry import module_types, refuse_averages
from ..config import CompressionConfig, is_named
from ..convert import rounded
from ..layer_sums import NOT_HEARD, LayerStatistics, SampleStatistics
from ..sampling import gather
from ..sharding import everyone, is_spread, ranks_over, reshard, together, works_in_step
from .allocation import Allocation, allocate, by_itself, is_by_layer
from .cuts import LayerCut, Plan
from .gathered import OneLayer, mark_of
from .measured import measured_on, within_output_error
from .refit import refitted

Batches = Iterable[Any] | SampleStatistics | None


def plan(model: nn.Module, config: CompressionConfig, batches: Batches = None) -> Plan:
    """Decide how many states every state space layer keeps; change nothing.

    Parameters
    ----------
    model : torch.nn.Module
        A model or a single layer.
    config : CompressionConfig
        Criterion and limits.
    batches : iterable or SampleStatistics, optional
        Sample inputs of the model, as it is called with: tensors, tuples of positional or mappings of keyword
        arguments. Needed for layers whose matrices depend on their input; time-invariant ones are weighed by them, or
        else by white noise. The model runs on them without gradients and in evaluation mode; nothing about it changes.

    Returns
    -------
    Plan
        One entry per layer, also for those that are left alone, with the reason.

    Raises
    ------
    InputError
        If the model has no state space layers, `config` names one it has not, a tensor is not finite, or there are
        selective layers and no batches.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(ht.layers.LRU(4, 32))
    >>> layer = ht.plan(model, ht.CompressionConfig(tau=0.1)).layers["0"]
    >>> layer.states < 32, layer.kept_energy >= 0.9
    (True, True)
    """
    reshard(model)
    return together(ranks_over(model), lambda: decide(model, target_layers(model, config), config, batches))


def decide(
    model: nn.Module, adapters: dict[str, Adapter], config: CompressionConfig, batches: Any, *, patient: bool = False
) -> Plan:
    """Decide on target layers; where patient, one that cannot be analysed now is left alone with the reason."""
    if config.method not in ("auto", "balanced_truncation") and all(x.kind == "lti" for x in adapters.values()):
        raise InputError(
            f"method chooses how selective layers lose states; got {config.method!r} and time-invariant ones only, "
            f"{', '.join(map(repr, adapters))}. Leave it out."
        )
    asked = list(adapters), config.to_dict(), batches is None
    if any(x != asked for x in everyone(asked)):
        raise InputError(
            "All ranks must ask for the same cut of a model that is spread over them; got other layers, settings or "
            "batches on some. Give the same configuration on every rank."
        )
    sampled = gather(model, looked_at(adapters, config), batches, probe=True, patient=patient)
    with one_blas_thread(_largest(adapters)):
        spread, shelf, values = works_in_step(), OneLayer(), dict[str, Mapping[str, Array]]()
        analyses: dict[str, Analysis] = {}
        layers: dict[str, LayerCut] = {}
        planned: dict[str, LayerCut] = {}
        searched = config.max_error if config.weighting == "sampled" else None

        def cut(name: str, wanted: Allocation) -> LayerCut:
            return _plan_layer(name, adapters[name], analyses[name], wanted, config, values[name], patient)

        for name, x in adapters.items():
            seen: Any = sampled.layers.get(name)
            try:
                if patient and x.kind == "selective" and not seen.seen and seen.reason not in ("", NOT_HEARD):
                    raise NumericalError(seen.reason)
                values[name] = shelf.of(x) if spread else x.values()
                make = partial(_analysed, x, statistics=seen, config=config)
                analyses[name] = shelf.analysis(x, values[name], make) if spread else make(values[name])
            except HankelredError as error:
                if not patient:
                    raise
                layers[name] = _not_now(name, x.states, error)
            else:
                if is_by_layer(config) and searched is None:  # while the layer is at hand
                    planned[name] = cut(name, by_itself(name, analyses[name], config))

        def cuts(wanted: Mapping[str, Allocation]) -> dict[str, LayerCut]:
            return {name: cut(name, wanted[name]) for name in analyses}

        def measured(planned: dict[str, LayerCut]) -> dict[str, LayerCut]:
            seen = {x: replace(y, _statistics=sampled.layers.get(x)) if y.method else y for x, y in planned.items()}
            if config.refit is True:
                seen |= _refitted(model, adapters, seen, sampled.probe)
            return measured_on(model, adapters, seen, sampled.probe, renewed)

        if searched is not None:
            layers |= within_output_error(analyses, lambda wanted: measured(cuts(wanted)), searched)
        else:
            planned = planned or cuts(allocate(analyses, config, {}))
            if config.max_error is not None:
                planned = _within_error(
                    planned, lambda x: cuts(allocate(analyses, config, x)), config.max_error, config.budget
                )
            layers |= measured(planned)
    return Plan({name: layers[name]._with_bytes(x.state_bytes) for name, x in adapters.items()}, config)


def looked_at(adapters: Mapping[str, Adapter], config: CompressionConfig) -> dict[str, Adapter]:
    """Give those of the layers that are cut, or fitted again, by what they do with data, where it can be seen."""
    lti = config.refit is True or not _is_white(config)
    return {name: x for name, x in adapters.items() if x.kind == "selective" or lti}


def _is_white(config: CompressionConfig) -> bool:
    """Tell whether time-invariant layers are weighed by white noise, which alone has a bound."""
    return config.weighting == "white" or config.weighting == "auto" and config.max_error is not None


def hankel_singular_values(model_or_layer: nn.Module, batches: Batches = None) -> dict[str, Array]:
    """Compute the Hankel singular values of every state space layer.

    Parameters
    ----------
    model_or_layer : torch.nn.Module
        A model, or a single layer, whose name is then the empty string.
    batches : iterable or SampleStatistics, optional
        Sample inputs for layers whose matrices depend on their input, as for `plan`.

    Returns
    -------
    dict of str to (k,) ndarray
        Decreasing, in units of output per unit of input, by module name; two per stored state where the output is
        the real part of complex states. A layer that is a bank of systems has (channels, k). In double precision,
        relative to the stored parameters. Of a selective layer, what stands in for them on these batches: the roots
        of the eigenvalues of ``E[h h^T] E[c c^T]``, (groups, n) where groups of channels have states of their own.

    Raises
    ------
    InputError
        If the model has no state space layers, a tensor is not finite, or there are selective layers and no batches.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> ht.hankel_singular_values(ht.layers.LRU(channels=4, states=16))[""].shape
    (32,)
    """
    reshard(model_or_layer)
    return together(ranks_over(model_or_layer), lambda: _values_of_all(model_or_layer, batches))


def _values_of_all(model_or_layer: nn.Module, batches: Batches) -> dict[str, Array]:
    adapters = _ssm_layers(model_or_layer)
    sampled = gather(model_or_layer, {name: x for name, x in adapters.items() if x.kind == "selective"}, batches)
    with one_blas_thread(_largest(adapters)):
        return {
            name: found.hankel_singular_values()
            if isinstance(found := sampled.layers.get(name), LayerStatistics)
            else x.hankel_singular_values(x.values())
            for name, x in adapters.items()
        }


def target_layers(model: nn.Module, config: CompressionConfig) -> dict[str, Adapter]:
    """Find the adapters of the layers a configuration allows to be cut."""
    check_type(config, "config", CompressionConfig)
    adapters = _targets(model, config)
    refuse_averages(adapters)
    return adapters


def _targets(model: nn.Module, config: CompressionConfig) -> dict[str, Adapter]:
    adapters = _ssm_layers(model)
    if isinstance(config.order, Mapping):
        unknown = sorted(set(config.order) - set(adapters))
        if unknown:
            raise InputError(f"order must name state space layers ({', '.join(adapters)}); got {unknown}.")
        adapters = {name: x for name, x in adapters.items() if name in config.order}
    chosen = {
        name: x
        for name, x in adapters.items()
        if (config.target_modules is None or is_named(name, config.target_modules))
        and (config.exclude_modules is None or not is_named(name, config.exclude_modules))
    }
    if not chosen:
        raise InputError(
            f"target_modules and exclude_modules must leave a layer of {', '.join(adapters)}; got "
            f"{config.target_modules!r} and {config.exclude_modules!r}."
        )
    return chosen


def renewed(layer: LayerCut, adapter: Adapter, values: Mapping[str, Array]) -> tuple[LayerCut, dict[str, Array]]:
    """Return a planned layer with its new tensors; planned anew, at the size decided then, if it has changed since."""
    known = layer.reduction is not None and len(layer._values) > 0
    same = known and all(np.array_equal(values[name], x) for name, x in layer._values.items())
    if adapter.kind == "selective" and layer.reduction is not None:  # a function of whatever tensors there are
        return layer, dict(layer._written) if same else adapter.rewrite(values, layer.reduction)
    if not same or layer._dtypes != _dtypes(adapter):
        found = adapter.analyse(values, layer._statistics).reduce(layer.states)
        if not found.states:
            raise NumericalError(
                f"Layer {layer.layer!r} must link inputs to outputs to be cut; got none that do since it was planned. "
                f"Plan it anew."
            )
        error = layer.output_error if layer._mark and layer._mark == mark_of(values) else None
        layer = replace(
            _cut(adapter, layer.n, layer.layer, found, layer.reason, values),
            output_error=error,
            _statistics=layer._statistics,
        )
    return layer, dict(layer._written)


def _dtypes(adapter: Adapter) -> tuple[Any, ...]:
    return tuple(x.dtype for *_, x in adapter.places().values())


def _largest(adapters: Mapping[str, Adapter]) -> int:
    """Return the most Hankel singular values that one of the systems can have, two for every state."""
    return 2 * max((adapter.states for adapter in adapters.values()), default=0)


def _analysed(adapter: Adapter, values: Mapping[str, Array], statistics: Any, config: CompressionConfig) -> Analysis:
    """Return what a cut of one layer could lose, by the method of the configuration where the layer leaves a choice."""
    if isinstance(adapter, SelectiveAdapter):
        return adapter.analyse(values, statistics, config.method)
    if _is_white(config):
        return adapter.analyse(values)
    if config.weighting == "sampled" and (statistics is None or not statistics.seen):
        why = "no inputs of it were seen" if statistics is None or not statistics.reason else statistics.reason
        raise NumericalError(f"weighting='sampled' needs inputs of {type(adapter.layer).__qualname__}: {why}.")
    return adapter.analyse(values, statistics)


def _within_error(
    planned: dict[str, LayerCut], cuts: Callable[[Mapping[str, float]], dict[str, LayerCut]], most: float, budget: str
) -> dict[str, LayerCut]:
    """Keep bounds within `max_error` as layers are stored: by what rounding leaves of it, else not at all."""

    def excess(layers: Mapping[str, LayerCut]) -> list[str]:
        bounds = {name: x.error_bound for name, x in layers.items() if np.isfinite(x.error_bound)}
        if budget == "global":
            return list(bounds) if sum(bounds.values()) > most else []
        return [name for name, bound in bounds.items() if bound > most]

    first = planned
    if excess(first):
        planned = cuts({name: layer.rounding for name, layer in first.items() if layer.cut})
    refused = {name: planned[name] for name in excess(planned) if planned[name].cut}
    refused |= {name: layer for name, layer in first.items() if layer.cut and not planned[name].cut}
    for name, layer in refused.items():
        what = f"{layer.error_bound:.3g}, of which {layer.rounding:.3g} is rounding to the dtype it is stored in"
        planned[name] = layer.left_alone(f"{layer.states} states have a bound of {what}; above max_error")
    return planned


def _refitted(
    model: nn.Module, adapters: Mapping[str, Adapter], layers: Mapping[str, LayerCut], probe: Any
) -> dict[str, LayerCut]:
    """Give the cuts whose outputs come closer to those of the layer before when C is fitted again."""
    if any(is_spread(x) for adapter in adapters.values() for *_, x in adapter.places().values()):
        raise InputError(
            "refit=True fits outputs to the inputs that one process sees; got layers that are spread over ranks. Drop "
            "it, or fit a plain model."
        )
    if probe is None:
        raise InputError("refit=True needs batches, on which outputs are fitted; got none. Pass some, or drop it.")
    found = {}
    for name, (reduction, method) in refitted(model, adapters, layers, probe).items():
        adapter, layer = adapters[name], layers[name]
        written = adapter.rewrite(layer._values, reduction)
        rounding = _rounding(adapter, name, dict(layer._values), written)
        found[name] = replace(
            layer, reduction=reduction, method=method, error_bound=np.inf, rounding=rounding, _written=written
        )
    return found


def _plan_layer(
    name: str,
    adapter: Adapter,
    analysis: Analysis,
    wanted: Allocation,
    config: CompressionConfig,
    values: Mapping[str, Array],
    patient: bool,
) -> LayerCut:
    """Reduce one layer to the states it was allocated, unless there is a reason to leave it alone."""
    n = analysis.n
    whole = LayerCut(name, n, n, len(analysis.hsv), 1.0, 0.0, analysis.hsv)
    if wanted.states is None:
        return replace(whole, reason=wanted.reason)
    states = min(_rounded(wanted.states, config, config.round_to or adapter.round_to), n)
    limit = (1 - config.min_cut) * n
    if not states < limit:
        return replace(whole, reason=f"{states} of {n} states are needed; a cut keeps fewer than {limit:.4g}")
    try:
        found = analysis.reduce(states, prefer_larger=config.order is None and config.fraction is None)
        if not found.states < limit:
            reason = f"the next order that can be diagonalised takes {found.states} of {n} states"
            return replace(whole, reason=reason)
        if found.states < min(config.min_order, states):
            few = f"only {found.states} states link inputs to outputs, fewer than min_order={config.min_order}"
            return replace(whole, reason=found.reason or few)
        return _cut(adapter, n, name, found, found.reason or wanted.reason, values)
    except DiagonalisationError as error:
        return replace(whole, reason=str(error))
    except HankelredError as error:
        if not patient:
            raise
        return _not_now(name, n, error)


def _not_now(name: str, n: int, error: HankelredError) -> LayerCut:
    """Leave alone a layer of which nothing can be said, which its missing Hankel singular values tell."""
    return LayerCut(name, n, n, n, 1.0, 0.0, np.empty(0), f"cannot be reduced now: {error}")


def _cut(
    adapter: Adapter, n: int, name: str, found: LayerReduction, reason: str, values: Mapping[str, Array]
) -> LayerCut:
    written, rounding, reduction, mark = {}, 0.0, found.reduction, ""
    if not isinstance(adapter, SelectiveAdapter):
        at_hand = dict(values)
        written = adapter.rewrite(at_hand, reduction)
        rounding = _rounding(adapter, name, at_hand, written)
        if not isinstance(values, dict):  # but gathered; as large as the layer, found again in its turn
            written, reduction, mark = {}, None, mark_of(at_hand)
    return LayerCut(
        layer=name,
        n=n,
        states=found.states,
        order=found.order,
        kept_energy=found.kept_energy,
        error_bound=found.error_bound + rounding,
        hsv=found.hsv,
        reason=reason,
        method=found.method,
        rounding=rounding,
        reduction=reduction,
        _values=values,
        _written=written,
        _dtypes=_dtypes(adapter),
        _mark=mark,
    )


def _rounding(adapter: Adapter, name: str, values: dict[str, Array], written: dict[str, Array]) -> float:
    """Bound what rounding a reduced layer to the dtype it is stored in changes, of a bank the largest change.

    Raises
    ------
    NumericalError
        If the layer as stored would not be finite and stable.
    """
    stored = rounded(written, {x: tensor for x, (*_, tensor) in adapter.places(written).items()})
    system = check_stable(adapter, name, values | stored)
    if all(np.array_equal(stored[x], array) for x, array in written.items()):
        return 0.0
    return _distance(adapter.read(values | written), system)


def check_stable(adapter: Adapter, name: str, values: Mapping[str, Array]) -> Any:
    """Return the system of a reduced layer from its values as they are stored; raise where it would not be stable.

    A selective layer has none, and rates that are negative by their form.
    """
    if adapter.kind == "selective":
        return None
    system = adapter.read(values)
    excess = np.atleast_2d(system.spectrum.excess(system.is_discrete)).max(axis=1, initial=-np.inf)
    if not np.all(excess < 0):
        channel = int(np.argmax(excess))
        where = f" in channel {channel}" if len(excess) > 1 else ""
        dtype = adapter.tensor(next(iter(adapter.state_axes))).dtype
        raise NumericalError(
            f"The reduced layer {name!r} must stay stable in {dtype}; got a pole {excess[channel]:.2e} beyond the "
            f"boundary{where}. Choose another order."
        )
    return system


def _distance(G: Systems, H: Systems) -> float:
    """Bound the H-infinity norm of the difference of two systems whose poles are near one another, one by one.

    A mode c b / (s - z) is at most |c| |b| / d with the distance d of its pole from the boundary, and two modes differ
    by (|c - c'| |b| + |c'| |b - b'|) / d + |c'| |b'| |z - z'| / (d d') at most. Of banks, the largest.
    """
    dG, dH = _margins(G), _margins(H)
    rates = None if G.rates is None or H.rates is None else H.rates - G.rates
    apart = np.abs(G.lam - H.lam) if rates is None else np.abs(G.lam * np.expm1(rates))
    b, c, b0 = np.linalg.norm(H.B, axis=-1), np.linalg.norm(H.C, axis=-2), np.linalg.norm(G.B, axis=-1)
    db, dc = np.linalg.norm(G.B - H.B, axis=-1), np.linalg.norm(G.C - H.C, axis=-2)
    modes = (dc * b0 + c * db) / dG + c * b * apart / (dG * dH)
    return float(np.max(modes.sum(axis=-1) + np.linalg.norm(G.D - H.D, axis=(-2, -1))))


def _margins(system: Systems) -> Array:
    """How far every pole is from the stability boundary."""
    if system.rates is not None:
        return -np.expm1(system.rates.real)
    return -system.lam.real if system.dt == 0 else 1.0 - np.abs(system.lam)


def _rounded(states: int, config: CompressionConfig, step: int) -> int:
    """Round states up to a multiple of `step`, and at least the fewest allowed."""
    return max(-(-states // step) * step, config.min_order)


def _ssm_layers(model: nn.Module) -> dict[str, Adapter]:
    adapters = find_ssm_layers(model)
    if not adapters:
        reasons = sorted(set(refusals(model).values()))
        raise InputError(
            f"model must contain a state space layer with an adapter; got {module_types(model)}. "
            f"{' '.join(reasons) or 'Name your layer class to hankelred_torch.register_adapter.'}"
        )
    return adapters
