"""When to cut: the reduction window of a training run, its attempts, and the way back. No Gramians here."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch import nn

from hankelred.checks import check_items, check_type
from hankelred.errors import InputError

from . import policy
from .adapters import find_ssm_layers, state_sizes
from .config import CompressionConfig, Schedule
from .errors import RefusedCutWarning
from .guard import Guard
from .history import History, Measurement
from .plan import CompressionPlan, LayerPlan, plan, target_layers
from .report import CompressionReport
from .sampling import check_batches
from .surgery import Snapshot, as_copies, as_models, as_optimizers, check_trained, compress_, refresh_ddp_
from .surgery.ranks import averaged, decided, unwrapped, wrapper_of
from .surgery.snapshot import state_of


@dataclass
class _Trial:
    """A cut that the guard has not decided on yet: when it will, the metric before, and half the cut if worth it."""

    due: int
    before: float
    smaller: CompressionConfig | None


class InTrainingCompressor:
    """Shrink a model while it trains: measure a few times in an early window, cut what carries little.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training, with its wrapper if it is in `DistributedDataParallel`; every rank makes a compressor.
    optimizers : torch.optim.Optimizer or iterable of them
        Every optimizer that trains a parameter of the model.
    config : CompressionConfig
        What may be lost.
    schedule : Schedule
        When; one of its `total_steps` and `end_step` must be given.
    guard : Guard, optional
        A condition on every cut, which is rolled back if it fails.
    ema : torch.nn.Module or iterable of them, optional
        Averaged copies of the model, cut along with it as by `compress_`.
    batches : iterable, optional
        Sample batches for layers whose matrices depend on their input, asked anew at every attempt.
    restore : iterable, optional
        What else a rollback puts back: learning-rate schedulers, gradient scalers and whatever has ``state_dict``
        and ``load_state_dict``, and random generators of torch. With a guard, the schedulers are obligatory.
    on_cut : callable or object, or iterable of them, optional
        What else happens at a cut, such as `Rewarm` and `Checkpoint`: objects with ``before(plan, compressor)``, called
        when a cut is decided, and ``after(plan, compressor)``, called when training goes on with it; a plain function
        is called like the latter. An object with `state_dict` and `load_state_dict` is saved and rolled back along.

    Attributes
    ----------
    model : torch.nn.Module
        The model without its wrapper.
    optimizers, ema, restore : tuple
        As given.
    steps : int
        Optimizer steps counted.
    history : History
        One `Measurement` per attempt and layer.

    Raises
    ------
    InputError
        If the model has no state space layers, the optimizers miss a trainable parameter of one, the window is not
        given, a copy has other layers, or the guard takes longer than the next attempt.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> _ = torch.manual_seed(0)
    >>> layer = ht.layers.LRU(channels=4, states=32)
    >>> optimizer = torch.optim.Adam(layer.parameters())
    >>> config, schedule = ht.CompressionConfig(tau=0.1), ht.Schedule(total_steps=20)
    >>> compressor = ht.InTrainingCompressor(layer, optimizer, config, schedule)
    >>> for _ in range(20):
    ...     layer(torch.randn(2, 16, 4)).square().mean().backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    ...     report = compressor.step()
    >>> ht.state_sizes(layer)[""] < 32, [record.step for record in compressor.history]
    (True, [1, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Any,
        config: CompressionConfig,
        schedule: Schedule,
        guard: Guard | None = None,
        ema: Any = (),
        batches: Any = None,
        restore: Iterable[Any] = (),
        on_cut: Any = (),
    ) -> None:
        self.ddp, self._outer, self.model = wrapper_of(model), model, unwrapped(model)
        self._config = check_type(config, "config", CompressionConfig)
        self._schedule = check_type(schedule, "schedule", Schedule, "It says when: Schedule(total_steps=...).")
        self._guard = guard if guard is None else check_type(guard, "guard", Guard)
        self.optimizers = as_optimizers(optimizers)
        if not self.optimizers:
            raise InputError("optimizers must hold at least one optimizer; got none. Outside training use compress_.")
        self.ema = as_models(ema)
        as_copies(self.ema, find_ssm_layers(self.model))
        self._batches = _repeatable(batches)
        self.restore = tuple(restore)
        for target in self.restore:
            state_of(target)  # raises if it has none
        self._attempts = schedule.attempt_steps()
        if guard is not None:
            _check_settling(guard, self._attempts)
        self.steps, self._stopped = 0, False
        self._snapshot: Snapshot | None = None  # of the moment before the last cut
        self._cut_at = 0  # where the records of that cut begin in the history
        self._trial: _Trial | None = None
        self.history = History()
        targets = target_layers(self.model, config)
        check_batches(targets, self._batches)
        for name, adapter in targets.items():
            check_trained(adapter, name, self.optimizers)
        self._hooks = _as_hooks(on_cut)
        self._call("attach", self)

    def step(self) -> CompressionReport | None:
        """Count one optimizer step; at an attempt measure, plan and cut, and let the guard decide when it is time.

        Call it once per optimizer step, after ``optimizer.step()``, ``zero_grad()`` and the scheduler's step.

        Returns
        -------
        CompressionReport or None
            What was cut; None if nothing was, or the cut was rolled back. The history tells what was measured.

        Raises
        ------
        InputError
            If a tensor of a layer is not finite, because training has diverged, or a guard could not roll back the
            learning-rate schedule.
        """
        self.steps += 1
        if self._guard is not None:
            self._check_schedules()
        if self._trial is not None:
            return self._settle() if self.steps >= self._trial.due else None
        if self._stopped or self.steps not in self._attempts:
            return None
        return self._attempt()

    def rollback(self) -> None:
        """Undo the last cut and everything after it: the run is where it was before, in the same objects.

        Weights, buffers, optimizers, averaged copies, what was passed as `restore`, and the random states of Python,
        NumPy and torch go back bit for bit; the moment before the last cut is kept in host memory for it. Steps stay
        counted, and later attempts go on. Data loaders do not go back.

        Raises
        ------
        InputError
            If there was no cut since the start, the last rollback or a resume, or a learning-rate scheduler is
            missing in `restore`.
        """
        if self._snapshot is None:
            raise InputError(
                "There must be a cut to roll back; got none since the start, the last rollback or a resume. "
                "Load a checkpoint from before the cut."
            )
        self._check_schedules()
        self._undo("rolled back on request")

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on, as plain values and tensors.

        Returns
        -------
        dict of str to object
            Steps counted, layer sizes, settings and history; while the guard has not decided on a cut, also the
            moment before it. Without that, a cut made before cannot be rolled back after a resume.
        """
        trial = None
        if self._trial is not None and self._snapshot is not None:
            smaller = None if self._trial.smaller is None else self._trial.smaller.to_dict()
            trial = {"due": self._trial.due, "before": self._trial.before, "smaller": smaller, "cut_at": self._cut_at}
            trial["snapshot"] = self._snapshot.state_dict()
        return {
            "steps": self.steps,
            "sizes": state_sizes(self.model),
            "config": self._config.to_dict(),
            "schedule": self._schedule.to_dict(),
            "history": self.history.to_list(),
            "stopped": self._stopped,
            "hooks": [x.state_dict() for x in self._stateful_hooks()],
            "trial": trial,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another compressor stopped.

        Parameters
        ----------
        state : mapping of str to object
            From `state_dict`; its settings are for the record, those given to this compressor count.

        Raises
        ------
        InputError
            If the layers have not the sizes they had then: resize and load the model first.
        """
        sizes = state_sizes(self.model)
        if sizes != state["sizes"]:
            raise InputError(
                f"The layers must have the sizes they had when the state was saved, {dict(state['sizes'])}; got "
                f"{sizes}. Resize the model and load its weights first, as load_checkpoint does."
            )
        hooks = self._stateful_hooks()
        if len(hooks) != len(state["hooks"]):
            raise InputError(
                f"on_cut must hold what it held when the state was saved, {len(state['hooks'])} objects with a "
                f"state; got {len(hooks)}. Pass the same in the same order."
            )
        trial = state["trial"]
        self._trial = self._snapshot = None
        if trial is not None:
            snapshot = self._snapshot_now()
            snapshot.load_state_dict(trial["snapshot"])
            smaller = None if trial["smaller"] is None else CompressionConfig.from_dict(trial["smaller"])
            self._trial = _Trial(int(trial["due"]), float(trial["before"]), smaller)
            self._snapshot, self._cut_at = snapshot, int(trial["cut_at"])
        self.steps, self._stopped = int(state["steps"]), bool(state["stopped"])
        for hook, saved in zip(hooks, state["hooks"], strict=True):
            hook.load_state_dict(saved)
        self.history = History.from_list(state["history"])

    def _attempt(self, smaller: CompressionConfig | None = None) -> CompressionReport | None:
        """Measure, plan and cut, by the schedule or by the configuration of a smaller cut."""
        started = time.perf_counter()
        todo = decided(self.ddp, self._plan if smaller is None else lambda: self._planned(smaller))
        analysis = time.perf_counter() - started
        if not todo.is_cut:
            self._remember(todo.layers, analysis, analysis)
            return None
        before = self._metric()
        self._call("before", todo, self)
        self._snapshot = self._snapshot_now()
        started = time.perf_counter()
        report = compress_(self._outer, todo, self.optimizers, self.ema)
        report = replace(report, step=self.steps, seconds=analysis + time.perf_counter() - started)
        self._cut_at = len(self.history)
        self._remember(report.layers, analysis, report.seconds)
        if self._guard is not None and before is not None:
            try:
                self._note_metric(before=before, after=self._metric())
            except BaseException:
                self._undo("rolled back: the metric failed")
                raise
            half = policy.halved(report.layers, self._config)
            self._trial = _Trial(self.steps + self._guard.settle_steps, before, half)
            if not self._guard.settle_steps:
                return self._settle(report)
        self._call("after", report, self)
        return report

    def _settle(self, report: CompressionReport | None = None) -> CompressionReport | None:
        """Let the guard decide on the cut on trial; undo it and try half of it if it failed."""
        trial, guard = self._trial, self._guard
        assert trial is not None
        assert guard is not None
        if guard.settle_steps:
            self._note_metric(settled=self._metric())
        self._trial = None
        metric = self.history[self._cut_at].metric or {}
        value = list(metric.values())[-1]
        if guard.holds(trial.before, value):
            if report is not None:
                self._call("after", report, self)
            return report
        self._undo(f"rolled back: the metric went from {trial.before:.4g} to {value:.4g}")
        self._stopped = guard.on_fail == "stop"
        return None if self._stopped or trial.smaller is None else self._attempt(trial.smaller)

    def _undo(self, reason: str) -> None:
        """Go back to the moment before the last cut, and say so in the history."""
        assert self._snapshot is not None
        self._snapshot.restore()
        if self.ddp is not None:
            refresh_ddp_(self.ddp)
        self._snapshot = self._trial = None
        for k, record in self._records_of_cut():
            if record.cut:
                self.history[k] = replace(record, cut=False, rolled_back=True, reason=reason)

    def _plan(self) -> CompressionPlan:
        """Decide what this attempt of the schedule is to cut."""
        left = sum(step >= self.steps for step in self._attempts)
        config = policy.towards_order(self._config, state_sizes(self.model), left)
        asked = self._planned(config)
        todo = policy.without_large_tails(asked, self._schedule)
        refused = [name for name, layer in todo.layers.items() if asked.layers[name].is_cut and not layer.is_cut]
        if refused and left == 1:
            warnings.warn(
                "\n".join(f"Layer {name!r} was not cut: {todo.layers[name].reason}." for name in refused),
                RefusedCutWarning,
                stacklevel=5,
            )
        return todo

    def _planned(self, config: CompressionConfig) -> CompressionPlan:
        sampled = {} if self._batches is None else {"batches": self._batches}
        return plan(self.model, config, **sampled)

    def _remember(self, layers: Mapping[str, LayerPlan], analysis: float, seconds: float) -> None:
        """Write the records of an attempt."""
        for layer in layers.values():
            figures = layer.to_dict()
            name = figures.pop("name")
            self.history.append(
                Measurement(step=self.steps, layer=name, seconds=seconds, analysis_seconds=analysis, **figures)
            )

    def _metric(self) -> float | None:
        guard = self._guard
        return None if guard is None else averaged(self.ddp, lambda: guard.measure(self.model))

    def _note_metric(self, **values: float | None) -> None:
        """Add what the guard's metric was to the records of the last cut."""
        for k, record in self._records_of_cut():
            measured = {key: value for key, value in values.items() if value is not None}
            self.history[k] = replace(record, metric=(record.metric or {}) | measured)

    def _records_of_cut(self) -> Iterator[tuple[int, Measurement]]:
        """Yield the records of the attempt that made the last cut, with their places in the history."""
        step = self.history[self._cut_at].step
        for k, record in enumerate(self.history[self._cut_at :], self._cut_at):
            if record.step == step:
                yield k, record

    def _snapshot_now(self) -> Snapshot:
        return Snapshot((self.model, *self.ema), self.optimizers, (*self.restore, *self._stateful_hooks()))

    def _call(self, moment: str, *arguments: Any) -> None:
        """Call what the hooks have for a moment."""
        for hook in self._hooks:
            if callable(found := getattr(hook, moment, hook if moment == "after" else None)):
                found(*arguments)

    def _stateful_hooks(self) -> list[Any]:
        return [x for x in self._hooks if hasattr(x, "state_dict") and hasattr(x, "load_state_dict")]

    def _check_schedules(self) -> None:
        """Refuse to go on where a rollback would leave a learning-rate schedule where it is."""
        for optimizer in self.optimizers:
            scheduled = getattr(optimizer.step, "_wrapped_by_lr_sched", False)
            if scheduled and not any(getattr(x, "optimizer", None) is optimizer for x in self.restore):
                raise InputError(
                    f"restore must hold the learning-rate schedulers, which a rollback puts back; got none for a "
                    f"{type(optimizer).__name__} that has one. Pass restore=[scheduler], and the scaler if you use one."
                )


def _repeatable(batches: Any) -> Any:
    """Return sample batches that every attempt can ask for anew."""
    if isinstance(batches, Iterator):
        raise InputError(
            f"batches must give the same batches to every attempt; got an iterator, {type(batches).__name__}, which "
            f"the first would use up. Pass a list or a loader."
        )
    return batches


def _check_settling(guard: Guard, attempts: tuple[int, ...]) -> None:
    """Refuse a settling time in which the next attempt falls."""
    distances = [later - earlier for earlier, later in pairwise(attempts)]
    if distances and guard.settle_steps >= min(distances):
        raise InputError(
            f"settle_steps must be below the distance of two attempts; got {guard.settle_steps} and {min(distances)} "
            f"steps. Lower it, make fewer attempts or widen the window."
        )


def _as_hooks(on_cut: Any) -> tuple[Any, ...]:
    """Give one hook or several as a tuple."""

    def is_hook(x: Any) -> bool:
        return callable(x) or any(callable(getattr(x, name, None)) for name in ("before", "after"))

    found = (on_cut,) if is_hook(on_cut) else tuple(check_items(on_cut, "on_cut"))
    for each in found:
        if not is_hook(each) or isinstance(each, type):
            raise InputError(
                f"on_cut must be functions, or objects with before or after; got {each!r}. "
                f"A function is called as function(plan, compressor) after a cut."
            )
    return found
