"""What cuts change in what layers put out on a sample, and the fewest states with which that stays small enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from hankelred.checks import Array

from ..adapters import Adapter, SelectiveAdapter
from ..adapters.analysis import Analysis
from ..sampling import output_errors
from .allocation import Allocation
from .cuts import LayerCut
from .gathered import is_gathered

Cuts = Callable[[Mapping[str, Allocation]], dict[str, LayerCut]]


def within_output_error(analyses: Mapping[str, Analysis], cuts: Cuts, most: float) -> dict[str, LayerCut]:
    """Search for the smallest cuts whose measured relative output error is at most so much, of all layers at once.

    `cuts` plans and measures given sizes. The search presumes that errors do not fall as states go; a layer for which
    that is wrong keeps more than it would need, and no cut that was not measured to hold is returned.
    """
    sizes = {name: range(1, x.n + 1) for name, x in analyses.items()}  # the last one is known to hold
    found = cuts({name: Allocation(x.n) for name, x in analyses.items()})
    errors: dict[str, float] = {}
    while any(len(x) > 1 for x in sizes.values()):
        middle = {name: x[(len(x) - 1) // 2] for name, x in sizes.items()}
        for name, layer in cuts({name: Allocation(n) for name, n in middle.items()}).items():
            error = layer.output_error if layer.cut else 0.0
            if error is not None and error <= most:
                sizes[name] = range(sizes[name].start, middle[name] + 1)
                found[name] = layer if layer.cut else found[name]
            else:
                sizes[name] = range(middle[name] + 1, sizes[name].stop)
                errors[name] = float("inf") if error is None else error
    return {name: x if x.cut else _explained(x, errors.get(name), most) for name, x in found.items()}


def _explained(layer: LayerCut, error: float | None, most: float) -> LayerCut:
    """Say of a layer that is left alone how far the largest cut that was tried is from what was asked for."""
    if error is None:
        return layer
    measured = "was not measured: no batch reached it" if error == float("inf") else f"was {error:.3g} at best"
    return replace(layer, reason=f"the relative output error {measured}; max_error={most:.3g}")


def measured_on(
    model: nn.Module,
    adapters: Mapping[str, Adapter],
    layers: dict[str, LayerCut],
    probe: Any,
    renewed: Callable[[LayerCut, Adapter, dict[str, Array]], tuple[LayerCut, dict[str, Array]]],
) -> dict[str, LayerCut]:
    """Measure what cuts change on a sample; of the ways to cut a selective layer, choose the best.

    Without a probe it is the first. `renewed` gives the new tensors of a layer whose values were not kept.
    """
    ways: dict[str, Any] = {}
    written: dict[str, tuple[Adapter, list[Callable[[], Mapping[str, Array]]]]] = {}
    for name, layer in layers.items():
        adapter = adapters[name]
        if isinstance(adapter, SelectiveAdapter) and layer.reduction is not None:
            ways[name] = layer.reduction
            read = adapter.values if is_gathered(layer._values) else partial(getattr, layer, "_values")
            written[name] = adapter, [partial(_rewritten, adapter, read, x) for x in layer.reduction]
        elif layer.cut:
            ways[name], new_tensors = (layer.reduction,), partial(getattr, layer, "_written")
            if not layer._written:  # of a spread layer, found again in its turn
                new_tensors = partial(_renewed, layer, adapter, renewed)
            written[name] = adapter, [new_tensors]
    errors = output_errors(model, written, probe) if ways and probe is not None else {}
    decided = dict(layers)
    for name, maps in ways.items():
        best = int(np.argmin(errors[name])) if name in errors else 0
        error = errors[name][best] if name in errors else None
        selective = isinstance(written[name][0], SelectiveAdapter)
        method = maps[best].core.method if selective else layers[name].method
        spread = is_gathered(layers[name]._values)  # not kept beyond the layer's turn
        new = {"reduction": maps[best], "_written": {} if spread else written[name][1][best]()}
        new |= {"_values": {}} if spread else {}
        decided[name] = replace(layers[name], method=method, output_error=error, **new)
    return decided


def _renewed(layer: LayerCut, adapter: Adapter, renewed: Callable[..., Any]) -> Mapping[str, Array]:
    found: Mapping[str, Array] = renewed(layer, adapter, adapter.values())[1]
    return found


def _rewritten(adapter: Adapter, read: Callable[[], Mapping[str, Array]], reduction: Any) -> Mapping[str, Array]:
    return adapter.rewrite(read(), reduction)
