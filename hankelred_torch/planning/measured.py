"""The fewest states with which what layers put out on a sample stays as close as asked for: tried, by bisection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..adapters.analysis import Analysis
from .allocation import Allocation
from .cuts import LayerCut

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
