"""The smallest model whose metric stays within a tolerance, found by trial cuts that are undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from hankelred.checks import check_type
from hankelred.errors import InputError

from ..config import CompressionConfig
from ..planning import Plan, plan
from .ranks import averaged, decided, opened, refresh_ddp_
from .snapshot import Snapshot

MOST_STEPS = 12  # doublings or halvings of tau, and as many bisections


def smallest(
    model: nn.Module, config: Any, optimizers: Any, ema: Iterable[Any], batches: Any, guard: Any, cut: Any
) -> Plan:
    """Cut to the smallest sizes, by one share `tau` for all layers, with which the guard's metric holds.

    The search starts at `tau`, doubles or halves it, and bisects between what holds and what does not; it presumes that
    smaller models are not better. Trials are undone bit for bit; the best of them is carried out in the end.
    """
    check_type(config, "plan_or_config", CompressionConfig, "With a metric, sizes are searched for.")
    given = [x for x in ("order", "fraction", "max_error") if getattr(config, x) is not None]
    if given:
        raise InputError(f"{given[0]} must not be given with a metric, which decides on the sizes; leave it out.")
    ddp, inner, _ = opened(model)
    start = Snapshot((inner, *ema), optimizers)
    before = averaged(ddp, lambda: guard.measure(inner))
    tried: dict[tuple[int, ...], float] = {}

    def found(tau: float) -> Plan:
        return decided(ddp, lambda: plan(inner, replace(config, tau=tau), batches))

    def holds(todo: Plan) -> bool:
        sizes = tuple(todo.sizes.values())
        if sizes not in tried:
            tried[sizes] = before
            if todo.is_cut:
                try:
                    cut(model, todo, optimizers, ema)
                    tried[sizes] = averaged(ddp, lambda: guard.measure(inner))
                finally:
                    start.restore()
                    if ddp is not None:
                        refresh_ddp_(ddp)
        return guard.holds(before, tried[sizes])

    best = _search(config.tau, found, holds)
    value = tried[tuple(best.sizes.values())]
    if best.is_cut:
        best = cut(model, best, optimizers, ema)
    return replace(best, metric={"before": before, "after": value})


def _search(tau: float, found: Callable[[float], Plan], holds: Callable[[Plan], bool]) -> Plan:
    """Find the largest share whose plan holds; the plan that cuts nothing always does."""
    good, bad, best = 0.0, 1.0, found(0.0)
    if not holds(best):  # inert states cost no share, and are cut at 0
        best = Plan({x: y.left_alone("no cut keeps the metric") for x, y in best.layers.items()}, best.config)
        holds(best)
        return best
    tau = tau or 1e-3
    for _ in range(2 * MOST_STEPS):
        todo = found(tau)
        if holds(todo):
            good, best = tau, todo
        else:
            bad = tau
        if good > 0 and bad < 1 and bad - good < 1e-3 * bad:
            break
        tau = (good + bad) / 2 if good > 0 and bad < 1 or good >= 0.5 else 2 * tau if good > 0 else tau / 2
        if not 1e-9 < tau < 1 - 1e-3:
            break
    return best
