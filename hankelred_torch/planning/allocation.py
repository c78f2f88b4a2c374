"""How many states every layer is to keep: by itself, or out of one budget for all of them. Reduces nothing for good."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from hankelred.errors import DiagonalisationError, OrderError

from ..adapters.analysis import Analysis, LayerReduction
from ..config import CompressionConfig

# Shares are differences of numbers near 1: what rounding leaves of them is no loss.
SHARE_ROUNDING = 1e-12


class Allocation(NamedTuple):
    """The states that one layer is to keep, None where the criterion cannot be met, and the reason or detour."""

    states: int | None
    reason: str = ""


def allocate(
    analyses: Mapping[str, Analysis], config: CompressionConfig, rounding: Mapping[str, float]
) -> dict[str, Allocation]:
    """Decide for all layers together how many states each one is to keep, before limits and multiples.

    What rounding a layer to its dtype takes of `max_error` is given by layer.

    With a global budget the layers may lose, together, what they may lose one by one: for `tau` its multiple by the
    number of layers, of shares of every layer's own sum of hsv, because what follows a layer can scale its output;
    for `max_error` that much of the sum of the layers' bounds. Fewest states are left when the cheapest ones go first:
    a state's price, the loss it adds, rises within a layer, because the hsv decrease, so the cheapest states of all
    layers in the order of their price are also the last ones of every layer, and no other choice of as many states
    loses less.
    """
    if is_by_layer(config):
        return {name: by_itself(name, x, config, rounding.get(name, 0.0)) for name, x in analyses.items()}
    if config.max_error is None:
        budget = config.tau * len(analyses) + SHARE_ROUNDING
        return _together(analyses, config, budget, lambda x, n: x.tail(n), lambda x: 1.0 - x.kept_energy)
    left = max(config.max_error - sum(rounding.values()), 0.0)
    return _together(analyses, config, left, lambda x, n: x.bound(n), lambda x: x.error_bound)


def is_by_layer(config: CompressionConfig) -> bool:
    """Tell whether the states of a layer do not depend on those of others."""
    return config.budget == "per_layer" or config.order is not None or config.fraction is not None


def by_itself(name: str, analysis: Analysis, config: CompressionConfig, rounding: float = 0.0) -> Allocation:
    """Return the states that one layer needs to meet the criterion by itself."""
    order = _fixed_order(name, config)
    if order is not None:
        return Allocation(order)
    if config.fraction is not None:
        return Allocation(math.ceil(config.fraction * analysis.n))
    try:
        if config.max_error is not None:
            return Allocation(*analysis.least_states(max_error=max(config.max_error - rounding, 0.0)))
        return Allocation(*analysis.least_states(energy=1 - config.tau))
    except (DiagonalisationError, OrderError) as error:
        return Allocation(None, str(error))


def _together(
    analyses: Mapping[str, Analysis],
    config: CompressionConfig,
    budget: float,
    predicted: Callable[[Analysis, int], float],
    lost: Callable[[LayerReduction], float],
) -> dict[str, Allocation]:
    """Return the states that all layers need to meet a budget for their sum, cheapest states dropped first."""
    states = {name: x.n for name, x in analyses.items()}
    losses = {name: predicted(x, x.n) for name, x in analyses.items()}

    def price(name: str) -> float:
        if states[name] <= config.min_order:
            return math.inf
        return predicted(analyses[name], states[name] - 1) - losses[name]

    prices = {name: price(name) for name in analyses}
    while True:
        name = min(prices, key=prices.__getitem__)
        if sum(losses.values()) + prices[name] > budget:
            break
        states[name] -= 1
        losses[name] += prices[name]
        prices[name] = price(name)
    return _within(analyses, states, losses, budget, lost)


def _within(
    analyses: Mapping[str, Analysis],
    states: dict[str, int],
    losses: Mapping[str, float],
    budget: float,
    lost: Callable[[LayerReduction], float],
) -> dict[str, Allocation]:
    """Return the states with some given back, where real poles make the true losses exceed the budget."""
    wanted = {name: Allocation(x) for name, x in states.items()}
    true = {name: 0.0 for name in analyses}
    unknown = set(analyses)
    while unknown:
        for name in unknown:
            try:
                found = analyses[name].reduce(states[name], prefer_larger=True)
                true[name] = lost(found) if found.states < analyses[name].n else 0.0
                wanted[name] = Allocation(states[name], found.reason)
            except DiagonalisationError as error:
                wanted[name], true[name] = Allocation(None, str(error)), 0.0
        if sum(true.values()) <= budget:
            break
        worst = max((x for x in analyses if true[x] > 0), key=lambda x: true[x] - losses[x])
        states[worst] += 1
        unknown = {worst}
    return wanted


def _fixed_order(name: str, config: CompressionConfig) -> int | None:
    """Return the states asked for by number, for one layer."""
    return config.order[name] if isinstance(config.order, Mapping) else config.order
