"""What an attempt asks for and what it refuses, between settings and a plan. Decides only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from hankelred.errors import InputError

from ..config import CompressionConfig, Schedule
from ..guard import Guard
from ..planning import LayerCut, Plan
from ..surgery.holders import derived, walk
from .rewarm import stepping


@dataclass
class Trial:
    """A cut that the guard has not decided on yet: when it will, the metric before, half the cut, and its sizes."""

    due: int
    before: float
    smaller: CompressionConfig | None
    failed: dict[str, int] = field(default_factory=dict)  # if it fails

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain values."""
        smaller = None if self.smaller is None else self.smaller.to_dict()
        return {"due": self.due, "before": self.before, "smaller": smaller, "failed": self.failed}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Trial:
        """Make one of what `to_dict` gave."""
        smaller = None if saved["smaller"] is None else CompressionConfig.from_dict(saved["smaller"])
        return cls(int(saved["due"]), float(saved["before"]), smaller, dict(saved["failed"]))


def towards_order(config: CompressionConfig, sizes: Mapping[str, int], attempts: int) -> CompressionConfig:
    """Configure the next attempt: with `attempts` left, shrink by the ratio (order / n) ** (1 / attempts)."""
    orders = {}
    for name, n in sizes.items():
        order = config.order.get(name) if isinstance(config.order, Mapping) else config.order
        if order is not None:
            orders[name] = round(n * min(order / n, 1.0) ** (1 / attempts))
    return replace(config, order=orders)


def without_large_tails(todo: Plan, schedule: Schedule) -> Plan:
    """Leave layers alone whose given order or fraction would drop a large share of their hsv, unless told to."""
    if schedule.force or (todo.config.order is None and todo.config.fraction is None):
        return todo

    def refused(layer: LayerCut) -> str:
        tail = 1.0 - layer.kept_energy
        if tail <= schedule.max_tail:
            return ""
        drop = f"{layer.states} states would drop {tail:.0%} of the hsv sum, above max_tail={schedule.max_tail}"
        return f"{drop}; train on first, or pass force=True"

    return _without(todo, refused)


def smaller_cuts(todo: Plan, failed: Mapping[str, int]) -> Plan:
    """Leave layers alone that come out no larger than in the cut that has just failed: that would be the same again."""

    def refused(layer: LayerCut) -> str:
        states = failed.get(layer.layer, 0)
        return f"half of the cut to {states} states comes out as {layer.states}" if layer.states <= states else ""

    return _without(todo, refused)


def halved(layers: Mapping[str, LayerCut], config: CompressionConfig) -> CompressionConfig | None:
    """Configure cuts half as large; None if all of them are less than is worth a cut."""
    orders = {name: layer.n - (layer.n - layer.states) // 2 for name, layer in layers.items() if layer.states < layer.n}
    orders = {name: order for name, order in orders.items() if order < (1 - config.min_cut) * layers[name].n}
    if not orders:
        return None
    return replace(config, order=orders, fraction=None, max_error=None, budget="per_layer", round_to=None)


def _without(todo: Plan, refused: Callable[[LayerCut], str]) -> Plan:
    """Leave those layers alone for which there is a reason."""
    reasons = {name: refused(layer) for name, layer in todo.layers.items() if layer.cut}
    layers = {
        name: layer.left_alone(reason) if (reason := reasons.get(name)) else layer
        for name, layer in todo.layers.items()
    }
    return replace(todo, layers=layers)


def check_settling(guard: Guard, attempts: tuple[int, ...]) -> None:
    """Refuse a settling time in which the next attempt falls."""
    distances = [later - earlier for earlier, later in pairwise(attempts)]
    if distances and guard.settle_steps >= min(distances):
        raise InputError(
            f"settle_steps must be below the distance of two attempts; got {guard.settle_steps} and {min(distances)} "
            f"steps. Lower it, make fewer attempts or widen the window."
        )


def check_schedules(optimizers: Iterable[Any], restore: Iterable[Any], *, thoroughly: bool = False) -> None:
    """Refuse to go on where a rollback would leave a learning-rate schedule where it is.

    Schedulers mark their optimizers, but for `ReduceLROnPlateau`, which is looked for among all objects if thorough.
    """
    restored = {id(stepping(getattr(_scheduler(x), "optimizer", None))) for x in restore}
    left = [x for x in map(stepping, optimizers) if id(x) not in restored]
    alive = walk((), derived(ReduceLROnPlateau))[1] if thoroughly and left else []
    waiting = [stepping(getattr(found(), "optimizer", None)) for found in alive]
    for optimizer in left:
        if getattr(optimizer.step, "_wrapped_by_lr_sched", False) or any(x is optimizer for x in waiting):
            raise InputError(
                f"restore must hold the learning-rate schedulers, which a rollback puts back; got none for a "
                f"{type(optimizer).__name__} that has one. Pass restore=[scheduler], and the scaler if you use one."
            )


def _scheduler(wrapped: Any) -> Any:
    """The scheduler inside those of accelerate and others."""
    while not hasattr(wrapped, "optimizer") and hasattr(wrapped, "scheduler"):
        wrapped = wrapped.scheduler
    return wrapped
