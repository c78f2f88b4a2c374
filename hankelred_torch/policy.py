"""What an attempt asks for and what it refuses, between a configuration and a plan. Decides only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hankelred import Reduction
from hankelred.drift import OrderCertificate

from .config import CompressionConfig
from .plan import CompressionPlan, LayerPlan
from .tracking import LayerDrift


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


def only_certified(todo: CompressionPlan, certificates: Mapping[str, OrderCertificate | None]) -> CompressionPlan:
    """Leave layers alone whose hsv may have crossed the cut since the last measurement."""
    layers = {}
    for name, layer in todo.layers.items():
        found = certificates.get(name)
        if layer.is_cut and gaps_at_cut(layer) is not None:
            if name not in certificates:
                layer = left_alone(layer, "not certified: nothing to compare the first measurement with")
            elif found is not None and not found.certified:
                reason = f"the gap at the cut is {found.gap:.3g}, training moved hsv by up to {found.drift:.3g}"
                layer = left_alone(layer, f"not certified: {reason}")
        layers[name] = layer
    return replace(todo, layers=layers)


def certificate(layer: LayerPlan, drift: LayerDrift) -> OrderCertificate | None:
    """Return what is certified of a cut, of a bank the certificate with the least margin; None if it drops nothing."""
    reductions = _reductions(layer)
    pairs = zip(reductions, drift.bounds, strict=True) if reductions else ()
    found = [bound.certify(x.order) for x, bound in pairs if 0 < x.order < len(x.hsv)]
    return min(found, key=lambda each: each.margin, default=None)


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


def gaps_at_cut(layer: LayerPlan) -> list[float] | None:
    """Return, for every system of a layer, how far apart the hsv on both sides of the cut are.

    None where nothing is cut or the layer is no fixed linear system; infinite where nothing but zeros is dropped.
    """
    reductions = _reductions(layer)
    if not reductions:
        return None
    return [float(x.hsv[x.order - 1] - x.hsv[x.order]) if 0 < x.order < len(x.hsv) else np.inf for x in reductions]


def measured_error(layer: LayerPlan) -> float | None:
    """Return the H-infinity norm of the difference a cut makes, of a bank the largest; None where it has none."""
    reductions = _reductions(layer)
    if not reductions:
        return None
    return max(each.hinf_error() for each in reductions)


def _reductions(layer: LayerPlan) -> tuple[Reduction, ...]:
    """Return the reductions of all systems of a layer; none where nothing is cut or it is no fixed linear system."""
    found = layer.reduction if isinstance(layer.reduction, tuple) else (layer.reduction,)
    return found if all(isinstance(each, Reduction) for each in found) else ()
