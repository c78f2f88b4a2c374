"""When to cut: the reduction window of a training run, its attempts, and the way back. No Gramians here."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from hankelred.checks import check_flag, check_integer, check_type
from hankelred.errors import InputError

from ..adapters import state_sizes
from ..config import CompressionConfig, Schedule
from ..errors import RefusedCutWarning, reading
from ..guard import Guard
from ..planning import Batches, LayerCut, Plan, decide, target_layers
from ..surgery import (
    Models,
    Optimizers,
    Snapshot,
    as_copies,
    as_models,
    as_optimizers,
    check_optimizers,
    compress_,
    refresh_ddp_,
)
from ..surgery.ranks import averaged, check_refreshable, decided, in_step, merged, opened, warn_if_alone
from ..surgery.snapshot import as_restorable
from .history import History
from .listening import CountOfSteps, Ear, tried_batches
from .policy import Trial, check_schedules, check_settling, halved, smaller_cuts, towards_order, without_large_tails
from .rewarm import as_hooks, stepping


class InTrainingCompressor:
    """Shrink a model while it trains: measure a few times in an early window, cut what carries little.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training, with its wrapper if it is in `DistributedDataParallel`, or sharded by `fully_shard`;
        every rank makes a compressor.
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
        Sample batches for layers whose matrices depend on their input, asked anew at every attempt and tried once now.
        Without them the compressor watches the forward passes of the training in the last step before an attempt.
    restore : iterable, optional
        What else a rollback puts back: learning-rate schedulers, gradient scalers and whatever has ``state_dict``
        and ``load_state_dict``, and random generators of torch. With a guard, the schedulers are obligatory.
    on_cut : callable or object, or iterable of them, optional
        What else happens at a cut, such as `Rewarm` and `Checkpoint`: objects with ``before(plan, compressor)``, called
        when a cut is decided, ``after(plan, compressor)``, called when training goes on with it, and
        ``undone(plan, compressor)``, called when it was rolled back, with the records of the history. A plain function
        is called like ``after``. An object with `state_dict` and `load_state_dict` is saved and rolled back along.

    Attributes
    ----------
    model : torch.nn.Module
        The model without its wrapper.
    optimizers, ema, restore : tuple
        As given.
    ranks : object or None
        The processes that train the model together.
    steps : int
        Optimizer steps counted.
    history : History
        One `LayerCut` per attempt and layer.

    Raises
    ------
    InputError
        If the model has no state space layers, the optimizers miss a trainable parameter of one, the window is not
        given, a copy has other layers, the batches do not fit, or the guard takes longer than the next attempt.

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
        optimizers: Optimizers,
        config: CompressionConfig,
        schedule: Schedule,
        guard: Guard | None = None,
        ema: Models = (),
        batches: Batches = None,
        restore: Iterable[Any] = (),
        on_cut: Any = (),
    ) -> None:
        self._outer, (self.ranks, self.model, layers) = model, opened(model)
        self._ddp = None if self.ranks is None else self.ranks.ddp
        if self._ddp is not None:
            check_refreshable(self._ddp)
        self._config = check_type(config, "config", CompressionConfig)
        self._schedule = check_type(schedule, "schedule", Schedule, "It says when: Schedule(total_steps=...).")
        self._guard = guard if guard is None else check_type(guard, "guard", Guard)
        self.optimizers = as_optimizers(optimizers)
        if not self.optimizers:
            raise InputError("optimizers must hold at least one optimizer; got none. Outside training use compress_.")
        self.ema = as_models(ema)
        as_copies(self.ema, layers)
        self.restore = as_restorable(restore)
        self._attempts = schedule.attempt_steps()
        if guard is not None:
            check_settling(guard, self._attempts)
        self._targets = target_layers(self.model, config)
        attempts = len(self._attempts)
        self._batches = in_step(self.ranks, lambda: tried_batches(self.model, self._targets, batches, attempts))
        in_step(self.ranks, lambda: check_optimizers(self._targets, self.optimizers))
        warn_if_alone(self.ranks)
        self.history = History()
        self.steps, self._stopped, self._start = 0, False, state_sizes(self.model)
        self._snapshot: Snapshot | None = None  # of the moment before the last cut
        self._cut_at = 0  # where the records of that cut begin in the history
        self._since: dict[InTrainingCompressor, int] = {}  # records of others on these optimizers at that moment
        self._trial: Trial | None = None
        self._warned: set[str] = set()  # layers that could not be analysed
        self._ear = Ear(self.model, config, self._batches, timed=self.ranks is None or self._ddp is not None)
        self._count = CountOfSteps(self.optimizers, self.model)
        self._hooks = as_hooks(on_cut)
        self._call("attach", self)
        for optimizer in map(stepping, self.optimizers):
            _SHARING.setdefault(optimizer, WeakSet()).add(self)
        self._listen()

    def __repr__(self) -> str:
        """Tell the layers now and at the start, the criterion, what comes next, and what the last attempt did."""
        sizes = state_sizes(self.model)
        layers = [f"  {name or '(model)'}: {n} states, {self._start[name]} at the start" for name, n in sizes.items()]
        left = [step for step in self._attempts if step > self.steps]
        if self._trial is not None:
            upcoming = f"the guard decides at step {self._trial.due}"
        elif self._stopped or not left:
            upcoming = "no more attempts"
        else:
            upcoming = f"next attempt at step {left[0]}, {len(left)} left"
        given = ("order", "fraction", "max_error")
        criterion = next((f"{x}={v}" for x in given if (v := getattr(self._config, x)) is not None), None)
        lines = [f"InTrainingCompressor at step {self.steps}: {upcoming}; {criterion or f'tau={self._config.tau}'}"]
        lines += [*layers, "  optimizers: " + ", ".join(type(x).__name__ for x in self.optimizers)]
        why = [x for x in self.history if x.step == self.history[-1].step and not x.cut and x.reason]
        lines += [f"  not cut at step {x.step}: {x.layer!r}, {x.reason}" for x in why]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the same with the history for notebooks."""
        return self.history._repr_html_(repr(self))

    def step(self) -> Plan | None:
        """Count one optimizer step; at an attempt measure, plan and cut, and let the guard decide when it is time.

        Call it once per optimizer step, after ``optimizer.step()``, ``zero_grad()`` and the scheduler's step. A call
        after which the optimizers have made no step, as for every micro-batch, is not counted.

        Returns
        -------
        Plan or None
            What was cut; None if nothing was, or the cut was rolled back. The history tells what was measured.

        Raises
        ------
        InputError
            If a tensor of a layer is not finite, because training has diverged, or a guard could not roll back the
            learning-rate schedule.
        """
        if self._count.is_micro_batch(self.ranks):
            return None
        self.steps += 1
        if self._guard is not None:
            check_schedules(self.optimizers, self.restore)
        try:
            if self._trial is not None:
                return self._settle() if self.steps >= self._trial.due else None
            return None if self._stopped or self.steps not in self._attempts else self._attempt()
        finally:
            self._listen()

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
        check_schedules(self.optimizers, self.restore, thoroughly=True)
        self._undo("rolled back on request")

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs to go on, as plain values and tensors.

        Returns
        -------
        dict of str to object
            Steps counted, layer sizes, settings and history; while the guard has not decided on a cut, also the
            moment before it. Without that, a cut made before cannot be rolled back after a resume.
        """
        trial = None
        if self._trial is not None and self._snapshot is not None:
            trial = self._trial.to_dict() | {"cut_at": self._cut_at, "heard": self._ear.heard()}
            trial["snapshot"] = self._snapshot.state_dict()
        return {
            "steps": self.steps,
            "sizes": state_sizes(self.model),
            "start": dict(self._start),
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
            If it is none of a compressor, or the layers have not the sizes they had then: resize and load the model
            first. Nothing is changed then.
        """
        check_type(state, "state", Mapping)  # type: ignore[type-abstract]
        with reading("state", "that of a compressor, from state_dict"):
            self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
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
        trial, going, snapshot, cut_at = state["trial"], None, None, self._cut_at
        if trial is not None:
            snapshot, cut_at = self._snapshot_now(), int(trial["cut_at"])
            snapshot.load_state_dict(trial["snapshot"])
            going = Trial.from_dict(trial)
        steps, stopped = check_integer(state["steps"], "state steps", 0), check_flag(state["stopped"], "state stopped")
        history, start = History.from_list(state["history"]), {x: int(state["start"][x]) for x in sizes}
        before = [hook.state_dict() for hook in hooks]
        try:
            for hook, saved in zip(hooks, state["hooks"], strict=True):
                hook.load_state_dict(saved)
        except BaseException:
            for hook, own in zip(hooks, before, strict=True):
                hook.load_state_dict(own)
            raise
        self._trial, self._snapshot, self._cut_at = going, snapshot, cut_at
        self.steps, self._stopped, self.history, self._start = steps, stopped, history, start
        if trial is not None:
            self._ear.hear_again(trial["heard"])
        self._count.begin()
        self._listen()

    def _attempt(self, failed: Trial | None = None) -> Plan | None:
        """Measure, plan and cut, by the schedule or less than a cut that failed."""
        started = time.perf_counter()
        if failed is None and self._ear.stop():
            self._ear.batches = merged(self.ranks, self._ear.batches)
        todo = decided(self.ranks, lambda: self._plan(failed))
        self._warn_of_unknown(todo)
        analysis = time.perf_counter() - started
        if not todo.is_cut:
            self._remember(todo.layers, analysis, analysis)
            return None
        if self._guard is not None:
            check_schedules(self.optimizers, self.restore, thoroughly=True)
        before = self._metric()
        self._call("before", todo, self)
        self._take_snapshot()
        forward = self._ear.forward_seconds(warm=True)
        started = time.perf_counter()
        plan = compress_(self._outer, todo, self.optimizers, self.ema)
        plan = replace(plan, step=self.steps, seconds=analysis + time.perf_counter() - started)
        if forward is not None and (after := self._ear.forward_seconds()) is not None:
            plan = replace(plan, forward_seconds=(forward, after))
        self._cut_at = len(self.history)
        plan = replace(plan, layers=self._remember(plan.layers, analysis, plan.seconds))
        if self._guard is not None and before is not None:
            try:
                self._note_metric(before=before, after=self._metric())
            except BaseException:
                self._undo("rolled back: the metric failed")
                raise
            sizes = {name: layer.states for name, layer in plan.layers.items() if layer.cut}
            half = halved(plan.layers, self._config)
            self._trial = Trial(self.steps + self._guard.settle_steps, before, half, sizes)
            if not self._guard.settle_steps:
                return self._settle(plan)
        self._call("after", plan, self)
        return plan

    def _settle(self, plan: Plan | None = None) -> Plan | None:
        """Let the guard decide on the cut on trial; undo it and try half of it if it failed."""
        trial, guard = self._trial, self._guard
        assert trial is not None
        assert guard is not None
        if guard.settle_steps:
            self._note_metric(settled=self._metric())
        self._trial = None
        value = list((self.history[self._cut_at].metric or {}).values())[-1]
        if guard.holds(trial.before, value):
            if plan is not None:
                self._call("after", plan, self)
            return plan
        self._undo(f"rolled back: the metric went from {trial.before:.4g} to {value:.4g}")
        self._stopped = guard.on_fail == "stop"
        return None if self._stopped or trial.smaller is None else self._attempt(trial)

    def _undo(self, reason: str) -> None:
        """Go back to the moment before the last cut, and say so in the history, also in that of others."""
        assert self._snapshot is not None
        self._snapshot.restore()
        if self._ddp is not None:
            refresh_ddp_(self._ddp)
        self._mark_undone(self._cut_at, reason)
        for other in self._sharing():
            other._mark_undone(self._since.get(other, 0), "undone by the rollback of another compressor")
        self._since = {}

    def _mark_undone(self, first: int, reason: str) -> None:
        """Note that the cuts from one record on were undone, and tell; there is nothing to roll back any more."""
        undone = {}
        for k, record in enumerate(self.history[first:], first):
            if record.cut:
                self.history[k] = undone[record.layer] = replace(record, rolled_back=True, reason=reason)
        if undone:
            self._snapshot = self._trial = None
            self._call("undone", Plan(undone, self._config, self.history[first].step), self)

    def _sharing(self) -> list[InTrainingCompressor]:
        """Other compressors on the same optimizers."""
        found = {x for optimizer in map(stepping, self.optimizers) for x in _SHARING.get(optimizer, ())}
        return [x for x in found if x is not self]

    def _plan(self, failed: Trial | None) -> Plan:
        """Decide what this attempt is to cut: by the schedule, or less than a cut that failed."""
        config = self._config if failed is None or failed.smaller is None else failed.smaller
        layers, left = target_layers(self.model, config), sum(step >= self.steps for step in self._attempts)
        if failed is None and config.order is not None:
            config = towards_order(config, {name: x.states for name, x in layers.items()}, left)
        asked = decide(self.model, layers, config, self._ear.batches, patient=True)
        if failed is not None:
            return smaller_cuts(asked, failed.failed)
        todo = without_large_tails(asked, self._schedule)
        refused = [name for name, layer in todo.layers.items() if asked.layers[name].cut and not layer.cut]
        if refused and left == 1:
            text = "\n".join(f"Layer {name!r} was not cut: {todo.layers[name].reason}." for name in refused)
            warnings.warn(text, RefusedCutWarning, stacklevel=5)
        return todo

    def _warn_of_unknown(self, todo: Plan) -> None:
        """Warn, once per layer, of layers that cannot be analysed; they are asked again at the next attempt."""
        found = {name: layer.reason for name, layer in todo.layers.items() if not len(layer.hsv)}
        for name in found.keys() - self._warned:
            warnings.warn(f"Layer {name!r} was left alone: {found[name]}", RefusedCutWarning, stacklevel=5)
        self._warned |= found.keys()

    def _listen(self) -> None:
        """Listen to the next step if it is an attempt."""
        self._ear.listen(self._trial is None and not self._stopped and self.steps + 1 in self._attempts)

    def _remember(self, layers: Mapping[str, LayerCut], analysis: float, seconds: float) -> dict[str, LayerCut]:
        """Note the records of an attempt, without what cannot be kept."""
        told: dict[str, Any] = {"step": self.steps, "seconds": seconds, "analysis_seconds": analysis}
        found = {name: replace(layer, **told) for name, layer in layers.items()}
        self.history += [x._without_tensors() for x in found.values()]
        return found

    def _metric(self) -> float | None:
        guard = self._guard
        return None if guard is None else averaged(self.ranks, lambda: guard.measure(self.model))

    def _note_metric(self, **values: float | None) -> None:
        """Add what the guard's metric was to the records of the last cut."""
        measured = {key: value for key, value in values.items() if value is not None}
        for k, record in enumerate(self.history[self._cut_at :], self._cut_at):
            if record.step == self.history[self._cut_at].step:
                self.history[k] = replace(record, metric=(record.metric or {}) | measured)

    def _snapshot_now(self) -> Snapshot:
        return Snapshot((self.model, *self.ema), self.optimizers, (*self.restore, *self._stateful_hooks()))

    def _take_snapshot(self) -> None:
        self._snapshot = self._snapshot_now()
        self._since = {other: len(other.history) for other in self._sharing()}

    def _call(self, moment: str, *arguments: Any) -> None:
        """Call what the hooks have for a moment."""
        for hook in self._hooks:
            if callable(found := getattr(hook, moment, hook if moment == "after" else None)):
                found(*arguments)

    def _stateful_hooks(self) -> list[Any]:
        return [x for x in self._hooks if hasattr(x, "state_dict") and hasattr(x, "load_state_dict")]


# Compressors by the optimizers they cut along: a rollback of one undoes what the others have done since.
_SHARING: WeakKeyDictionary[Any, WeakSet[InTrainingCompressor]] = WeakKeyDictionary()
