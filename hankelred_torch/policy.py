"""What an attempt asks for and what it refuses, between a configuration and a plan. Decides only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .config import CompressionConfig, Schedule
from .plan import CompressionPlan, LayerPlan


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


def without_large_tails(todo: CompressionPlan, schedule: Schedule) -> CompressionPlan:
    """Leave layers alone whose given order or fraction would drop a large share of their hsv, unless told to."""
    if schedule.force or (todo.config.order is None and todo.config.fraction is None):
        return todo
    layers = {}
    for name, layer in todo.layers.items():
        tail = 1.0 - layer.kept_energy
        if layer.is_cut and tail > schedule.max_tail:
            reason = f"{layer.states} states would drop {tail:.0%} of the hsv sum, above max_tail={schedule.max_tail}"
            layer = left_alone(layer, f"{reason}; train on first, or pass force=True")
        layers[name] = layer
    return replace(todo, layers=layers)


def halved(layers: Mapping[str, LayerPlan], config: CompressionConfig) -> CompressionConfig | None:
    """Return the configuration of cuts half as large; None if all of them are less than is worth a cut."""
    orders = {name: layer.n - (layer.n - layer.states) // 2 for name, layer in layers.items() if layer.is_cut}
    orders = {name: order for name, order in orders.items() if order < (1 - config.min_cut) * layers[name].n}
    if not orders:
        return None
    return replace(config, order=orders, fraction=None, max_error=None, budget="per_layer", round_to=None)


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
