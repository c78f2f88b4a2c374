"""What to cut and by how much: decides only; nothing in the model changes here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from hankelred.checks import Array
from hankelred.errors import DiagonalisationError, InputError
from hankelred.linalg.threads import one_blas_thread

from .adapters import Adapter, SelectiveAdapter, find_ssm_layers, refusals
from .adapters.analysis import Analysis, LayerReduction
from .adapters.registry import module_types, refuse_averages
from .allocation import Allocation, allocate
from .config import CompressionConfig
from .sampling import LayerStatistics, gather, output_errors


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What was decided for one layer, and why.

    Attributes
    ----------
    name : str
        Module name of the layer.
    n : int
        States it stores.
    states : int
        States it is to store; n where it is left alone.
    order : int
        Hankel singular values kept: a stored complex state of a layer with real output counts twice. Of a bank of
        systems, the most that one of them keeps.
    kept_energy : float
        Share of the sum of Hankel singular values that is kept.
    error_bound : float
        Bound on the H-infinity norm of the difference the cut makes, in units of output per unit of input; 0 where
        nothing is cut, infinite for a selective layer, which has none.
    hsv : (k,) ndarray
        Hankel singular values, decreasing, in the same units; of a bank, at every place the largest of its systems.
        Of a selective layer, what stands in for them.
    reason : str
        Why the layer is left alone, or why the order is not the one asked for; empty otherwise.
    method : str
        How the states of a selective layer become fewer: "rotation", "folded selection" or "selection".
    output_error : float or None
        Root mean square change that the cut makes to the output of a selective layer, relative to it, measured on the
        first of the sample batches.
    reduction : Reduction or tuple of them or StateMap or None
        The reduction behind the plan, which can measure its true error, one per system of a bank; None where nothing
        is cut.
    """

    name: str
    n: int
    states: int
    order: int
    kept_energy: float
    error_bound: float
    hsv: Array = field(repr=False)
    reason: str = ""
    method: str = ""
    output_error: float | None = None
    reduction: Any = field(default=None, repr=False)
    _values: Mapping[str, Array] = field(default_factory=dict, repr=False)

    @property
    def is_cut(self) -> bool:
        """Whether the layer loses states."""
        return self.states < self.n

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the reduction as plain values, ready for JSON.

        Returns
        -------
        dict of str to object
            One entry per attribute; None for a bound that is infinite.
        """
        names = ("name", "n", "states", "order", "kept_energy", "error_bound", "reason", "method", "output_error")
        found = {name: getattr(self, name) for name in names} | {"hsv": self.hsv.tolist(), "cut": self.is_cut}
        return found | ({} if np.isfinite(self.error_bound) else {"error_bound": None})

    def fits(self, values: Mapping[str, Array]) -> bool:
        """Tell whether the layer still has the values it was planned for.

        Parameters
        ----------
        values : mapping of str to ndarray
            The values of the layer's tensors now.

        Returns
        -------
        bool
            False for the slightest change.
        """
        return all(np.array_equal(values[name], x) for name, x in self._values.items())


@dataclass(frozen=True, eq=False)
class CompressionPlan:
    """What is to be cut in every layer; made by `plan`, printed as a table, carried out by `compress_`.

    Attributes
    ----------
    layers : dict of str to LayerPlan
        By module name.
    config : CompressionConfig
        The configuration behind it.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> _ = torch.manual_seed(0)
    >>> plan = ht.plan(torch.nn.Sequential(ht.layers.LRU(4, 16)), ht.CompressionConfig(order=8))
    >>> plan.sizes
    {'0': 8}
    """

    layers: dict[str, LayerPlan]
    config: CompressionConfig

    @property
    def sizes(self) -> dict[str, int]:
        """States every layer is to store, by module name."""
        return {name: layer.states for name, layer in self.layers.items()}

    @property
    def is_cut(self) -> bool:
        """Whether any layer loses states."""
        return any(layer.is_cut for layer in self.layers.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, ready for JSON.

        Returns
        -------
        dict of str to object
            The configuration and one entry per layer.
        """
        return {"config": self.config.to_dict(), "layers": [layer.to_dict() for layer in self.layers.values()]}

    def scalars(self, prefix: str = "hankelred") -> dict[str, float]:
        """Return the figures of the plan for a logger.

        Parameters
        ----------
        prefix : str, default "hankelred"
            First part of every name.

        Returns
        -------
        dict of str to float
            ``prefix/layer/states``, ``.../kept_energy`` and ``.../error_bound``, or for selective layers
            ``.../output_error``.
        """
        return layer_scalars(self.layers, prefix)

    def __str__(self) -> str:
        """Return the plan as a table, one line per layer."""
        return layer_table(self.layers)


def layer_scalars(layers: Mapping[str, LayerPlan], prefix: str) -> dict[str, float]:
    """Return the figures of layers for a logger."""
    return {
        f"{prefix}/{name or 'model'}/{figure}": float(getattr(layer, figure))
        for name, layer in layers.items()
        for figure in ("states", "kept_energy", "error_bound", "output_error")
        if getattr(layer, figure) is not None and np.isfinite(getattr(layer, figure))
    }


def layer_table(layers: Mapping[str, LayerPlan]) -> str:
    """Return the figures of layers as a table for people."""
    rows = [("layer", "states", "kept energy", "error bound", "")]
    for layer in layers.values():
        states = f"{layer.n} -> {layer.states}" if layer.is_cut else f"{layer.n}"
        bound = f"{layer.error_bound:.3g}" if layer.is_cut else ""
        if layer.method:
            bound = "none" if layer.output_error is None else f"none; measured {layer.output_error:.3g}"
        spread = None if layer.reduction is None else getattr(layer.reduction, "spread", None)
        method = layer.method if spread is None else f"{layer.method}, rates spread by {spread:.0%} over channels"
        note = "; ".join(text for text in (method, layer.reason) if text)
        rows.append((layer.name or "(model)", states, f"{layer.kept_energy:.2%}", bound, note))
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def plan(model: nn.Module, config: CompressionConfig, batches: Any = None) -> CompressionPlan:
    """Decide how many states every state space layer keeps; change nothing.

    Parameters
    ----------
    model : torch.nn.Module
        A model or a single layer.
    config : CompressionConfig
        Criterion and limits.
    batches : iterable or SampleStatistics, optional
        Sample inputs of the model, as it is called with: tensors, tuples of positional or mappings of keyword
        arguments. Needed for layers whose matrices depend on their input, and only for them. The model runs on them
        without gradients and in evaluation mode; nothing about it changes.

    Returns
    -------
    CompressionPlan
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
    adapters = target_layers(model, config)
    sampled = gather(model, adapters, batches)
    with one_blas_thread(_largest(adapters)):
        values = {name: adapter.values() for name, adapter in adapters.items()}
        analyses = {name: _analysed(x, values[name], sampled.layers.get(name), config) for name, x in adapters.items()}
        wanted = allocate(analyses, config)
        steps = {name: config.round_to or x.round_to for name, x in adapters.items()}
        layers = {
            name: _plan_layer(name, x, wanted[name], config, steps[name], values[name]) for name, x in analyses.items()
        }
    return CompressionPlan(_measured(model, adapters, layers, sampled.probe), config)


def hankel_singular_values(model_or_layer: nn.Module, batches: Any = None) -> dict[str, Array]:
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
    adapters = _ssm_layers(model_or_layer)
    sampled = gather(model_or_layer, adapters, batches)
    with one_blas_thread(_largest(adapters)):
        return {
            name: sampled.layers[name].hankel_singular_values()
            if name in sampled.layers
            else x.hankel_singular_values(x.values())
            for name, x in adapters.items()
        }


def target_layers(model: nn.Module, config: CompressionConfig) -> dict[str, Adapter]:
    """Return the adapters of the layers a configuration allows to be cut."""
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
        if (config.target_modules is None or _named(name, config.target_modules))
        and (config.exclude_modules is None or not _named(name, config.exclude_modules))
    }
    if not chosen:
        raise InputError(
            f"target_modules and exclude_modules must leave a layer of {', '.join(adapters)}; got "
            f"{config.target_modules!r} and {config.exclude_modules!r}."
        )
    return chosen


def _named(name: str, modules: str | Sequence[str]) -> bool:
    """Tell whether modules, an expression or names and their endings, mean this one."""
    if isinstance(modules, str):
        return re.fullmatch(modules, name) is not None
    return any(name == each or name.endswith(f".{each}") for each in modules)


def reduce_layer(adapter: Adapter, values: Mapping[str, Array], states: int) -> LayerReduction:
    """Return the reduction of one layer to at most so many stored states, in the layer's coordinates."""
    return adapter.analyse(values).reduce(states)


def renewed(layer: LayerPlan, adapter: Adapter, values: Mapping[str, Array]) -> LayerPlan:
    """Return the plan of a layer that has changed since, at the size decided then."""
    return _cut(layer.name, layer.n, reduce_layer(adapter, values, layer.states), layer.reason, values)


def _largest(adapters: Mapping[str, Adapter]) -> int:
    """Return the most Hankel singular values that one of the systems can have, two for every state."""
    return 2 * max((adapter.states for adapter in adapters.values()), default=0)


def _analysed(
    adapter: Adapter, values: Mapping[str, Array], statistics: LayerStatistics | None, config: CompressionConfig
) -> Analysis:
    """Return what a cut of one layer could lose, by the method of the configuration where the layer leaves a choice."""
    if isinstance(adapter, SelectiveAdapter):
        return adapter.analyse(values, statistics, config.method)
    return adapter.analyse(values)


def _measured(
    model: nn.Module, adapters: Mapping[str, Adapter], layers: dict[str, LayerPlan], probe: Any
) -> dict[str, LayerPlan]:
    """Let the error measured on a batch decide between the ways to reduce a selective layer, the first without one."""
    ways = {name: layer.reduction for name, layer in layers.items() if isinstance(adapters[name], SelectiveAdapter)}
    ways = {name: maps for name, maps in ways.items() if maps is not None}
    if not ways:
        return layers
    errors: dict[str, list[float]] = {}
    if probe is not None:
        errors = output_errors(model, {name: (adapters[name], maps) for name, maps in ways.items()}, probe)
    decided = dict(layers)
    for name, maps in ways.items():
        best = int(np.argmin(errors[name])) if name in errors else 0
        error = errors[name][best] if name in errors else None
        decided[name] = replace(layers[name], reduction=maps[best], method=maps[best].core.method, output_error=error)
    return decided


def _plan_layer(
    name: str, analysis: Analysis, wanted: Allocation, config: CompressionConfig, step: int, values: Mapping[str, Array]
) -> LayerPlan:
    """Reduce one layer to the states it was allocated, unless there is a reason to leave it alone."""
    n = analysis.n
    if wanted.states is None:
        return _unchanged(name, analysis, wanted.reason)
    states = min(_rounded(wanted.states, config, step), n)
    limit = (1 - config.min_cut) * n
    if not states < limit:
        return _unchanged(name, analysis, f"{states} of {n} states are needed; a cut keeps fewer than {limit:.4g}")
    try:
        found = analysis.reduce(states, prefer_larger=config.order is None and config.fraction is None)
    except DiagonalisationError as error:
        return _unchanged(name, analysis, str(error))
    if not found.states < limit:
        reason = f"the next order that can be diagonalised takes {found.states} of {n} states"
        return _unchanged(name, analysis, reason)
    if found.states < min(config.min_order, states):
        reason = (
            found.reason
            or f"only {found.states} states link inputs to outputs, fewer than min_order={config.min_order}"
        )
        return _unchanged(name, analysis, reason)
    return _cut(name, n, found, found.reason or wanted.reason, values)


def _cut(name: str, n: int, found: LayerReduction, reason: str, values: Mapping[str, Array]) -> LayerPlan:
    return LayerPlan(
        name=name,
        n=n,
        states=found.states,
        order=found.order,
        kept_energy=found.kept_energy,
        error_bound=found.error_bound,
        hsv=found.hsv,
        reason=reason,
        reduction=found.reduction,
        _values=values,
    )


def _unchanged(name: str, analysis: Analysis, reason: str) -> LayerPlan:
    return LayerPlan(name, analysis.n, analysis.n, len(analysis.hsv), 1.0, 0.0, analysis.hsv, reason)


def _rounded(states: int, config: CompressionConfig, step: int) -> int:
    """Return the states rounded up to a multiple of `step`, and at least the fewest allowed."""
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
