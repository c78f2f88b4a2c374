"""What an attempt asks for and what it refuses, between a configuration and a plan. Decides only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import hankelred as hr
from hankelred import DiagonalSystem, Reduction
from hankelred._checks import Array

from .adapters import Adapter
from .config import CompressionConfig
from .plan import CompressionPlan, LayerPlan

Values = Mapping[str, Array]


def towards_order(config: CompressionConfig, sizes: Mapping[str, int], attempts: int) -> CompressionConfig:
    """Return the configuration of one of so many attempts left: on the way to a given order all take an equal ratio."""
    if config.order is None:
        return config
    orders = {}
    for name, n in sizes.items():
        order = config.order.get(name) if isinstance(config.order, Mapping) else config.order
        if order is not None:
            orders[name] = round(n * min(order / n, 1.0) ** (1 / attempts))
    return replace(config, order=orders)


def without_large_tails(todo: CompressionPlan, config: CompressionConfig) -> CompressionPlan:
    """Leave layers alone whose given order or fraction would drop a large share of their hsv, unless told to."""
    if config.force or (config.order is None and config.fraction is None):
        return todo
    layers = {}
    for name, layer in todo.layers.items():
        tail = 1.0 - layer.kept_energy
        if layer.is_cut and tail > config.max_tail:
            reason = f"{layer.states} states would drop {tail:.0%} of the hsv sum, above max_tail={config.max_tail}"
            layer = left_alone(layer, f"{reason}; train on first, or pass force=True")
        layers[name] = layer
    return replace(todo, layers=layers)


def only_certified(todo: CompressionPlan, drifts: Mapping[str, list[float]]) -> CompressionPlan:
    """Leave layers alone whose hsv may have crossed the cut since the last measurement."""
    layers = {}
    for name, layer in todo.layers.items():
        gaps = gaps_at_cut(layer)
        if layer.is_cut and gaps is not None:
            drift = drifts.get(name)
            if drift is None:
                layer = left_alone(layer, "not certified: nothing to compare the first measurement with")
            elif any(gap <= 2 * e for gap, e in zip(gaps, drift, strict=True)):
                at = int(np.argmin(np.array(gaps) - 2 * np.array(drift)))
                reason = f"the gap at the cut is {gaps[at]:.3g}, training moved hsv by up to {drift[at]:.3g}"
                layer = left_alone(layer, f"not certified: {reason}")
        layers[name] = layer
    return replace(todo, layers=layers)


def halved(layers: Mapping[str, LayerPlan], config: CompressionConfig) -> CompressionConfig | None:
    """Return the configuration of cuts half as large; None if all of them are less than is worth a cut."""
    orders = {name: layer.n - (layer.n - layer.states) // 2 for name, layer in layers.items() if layer.is_cut}
    orders = {name: order for name, order in orders.items() if order < (1 - config.min_cut) * layers[name].n}
    if not orders:
        return None
    return replace(config, order=orders, fraction=None, max_error=None, budget="per_layer", round_to=None, force=True)


def left_alone(layer: LayerPlan, reason: str) -> LayerPlan:
    """Return the plan of a layer that is not cut after all."""
    return replace(
        layer,
        states=layer.n,
        order=len(layer.hsv),
        kept_energy=1.0,
        error_bound=0.0,
        reason=reason,
        method="",
        output_error=None,
        reduction=None,
    )


def drift(adapter: Adapter, before: Values, now: Values) -> list[float]:
    """Return the Hankel norm of what changed in every system of a layer: no hsv has moved by more.

    By Weyl's inequality for Hankel operators, whatever the two realisations and orders are.
    """
    pairs = zip(_systems(adapter, before), _systems(adapter, now), strict=True)
    return [hr.hankel_norm(new - old) for old, new in pairs]


def gaps_at_cut(layer: LayerPlan) -> list[float] | None:
    """Return, for every system of a layer, how far apart the hsv on both sides of the cut are.

    None where nothing is cut or the layer is no fixed linear system; infinite where nothing but zeros is dropped.
    """
    reductions = layer.reduction if isinstance(layer.reduction, tuple) else (layer.reduction,)
    if not all(isinstance(each, Reduction) for each in reductions):
        return None
    return [float(x.hsv[x.order - 1] - x.hsv[x.order]) if 0 < x.order < len(x.hsv) else np.inf for x in reductions]


def measured_error(layer: LayerPlan) -> float | None:
    """Return the H-infinity norm of the difference a cut makes, of a bank the largest; None where it has none."""
    reductions = layer.reduction if isinstance(layer.reduction, tuple) else (layer.reduction,)
    if not all(isinstance(each, Reduction) for each in reductions):
        return None
    return max(each.hinf_error() for each in reductions)


def _systems(adapter: Adapter, values: Values) -> tuple[DiagonalSystem, ...]:
    found: Any = adapter.read(values)
    return found if isinstance(found, tuple) else (found,)
