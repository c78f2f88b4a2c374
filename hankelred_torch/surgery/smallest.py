"""The smallest model whose metric stays within a tolerance, found by trial cuts that are undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from hankelred.checks import check_type
from hankelred.errors import InputError

from ..config import CompressionConfig
from ..planning import Plan, looked_at, plan, target_layers
from ..sampling import gather
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
    ranks, inner, _ = opened(model)
    start = Snapshot((inner, *ema), optimizers)
    before = averaged(ranks, lambda: guard.measure(inner))
    tried: dict[tuple[int, ...], float] = {}  # by sizes, and whether outputs were fitted again

    targets = target_layers(inner, config)
    if batches is not None:
        batches = decided(ranks, lambda: gather(inner, looked_at(targets, config), batches, probe=True))
    spread = ranks is not None and ranks.ddp is None
    refits = (
        batches is not None and not spread and config.refit == "auto" and any(x.kind == "lti" for x in targets.values())
    )

    def found(tau: float, refit: bool | None = None) -> Plan:
        wanted = replace(config, tau=tau) if refit is None else replace(config, tau=tau, refit=refit)
        return decided(ranks, lambda: plan(inner, wanted, batches))

    def value_of(todo: Plan) -> float:
        key = (*todo.sizes.values(), todo.config.refit is True)
        if key not in tried:
            tried[key] = before
            if todo.is_cut:
                try:
                    cut(model, todo, optimizers, ema)
                    tried[key] = averaged(ranks, lambda: guard.measure(inner))
                finally:
                    start.restore()
                    if ranks is not None and ranks.ddp is not None:
                        refresh_ddp_(ranks.ddp)
        return tried[key]

    def holding(tau: float) -> Plan | None:
        """Give the plan of this share that holds, the one that fits outputs again where only that does."""
        todo = found(tau)
        if guard.holds(before, value_of(todo)):
            return todo
        if refits and todo.is_cut and guard.holds(before, value_of(again := found(tau, refit=True))):
            return again
        return None

    best = _search(config.tau, holding)
    if best is None:
        best = found(0.0)
        best = Plan({x: y.left_alone("no cut keeps the metric") for x, y in best.layers.items()}, best.config)
    value = value_of(best)
    if best.is_cut:
        best = cut(model, best, optimizers, ema)
    trials = tuple(sorted((sum(key[:-1]), metric) for key, metric in tried.items()))
    return replace(best, metric={"before": before, "after": value}, trials=trials)


def _search(tau: float, holding: Callable[[float], Plan | None]) -> Plan | None:
    """Find the plan of the largest share that holds; None if even the one that costs no share does not."""
    good, bad, best = 0.0, 1.0, holding(0.0)
    if best is None:  # inert states cost no share, and are cut at 0
        return None
    tau = tau or 1e-3
    for _ in range(2 * MOST_STEPS):
        todo = holding(tau)
        if todo is not None:
            good, best = tau, todo
        else:
            bad = tau
        if good > 0 and bad < 1 and bad - good < 1e-3 * bad:
            break
        tau = (good + bad) / 2 if good > 0 and bad < 1 or good >= 0.5 else 2 * tau if good > 0 else tau / 2
        if not 1e-9 < tau < 1 - 1e-3:
            break
    return best
