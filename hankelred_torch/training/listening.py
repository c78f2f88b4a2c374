"""What a compressor hears of a training: steps of the optimizers, and the forward passes just before an attempt."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any
from weakref import finalize, ref

import torch
from torch import nn

from hankelred.errors import InputError

from ..adapters import Adapter, SampleStatistics
from ..config import CompressionConfig
from ..layer_sums import as_plain, of_plain
from ..planning import looked_at, target_layers
from ..sampling import Call, Watch, call, gather, running, watch
from ..sharding import Ranks, local
from ..surgery.fsdp import collects
from .rewarm import stepping


class Ear:
    """Hooks that are armed in the step before an attempt only, and what they heard.

    Parameters
    ----------
    model : torch.nn.Module
        Without wrappers.
    config : CompressionConfig
        Which layers may be cut.
    batches : iterable or SampleStatistics or None
        Sample batches, which stand for what would be heard.
    timed : bool, default True
        Whether forward passes may be run to time them: one of a spread model waits for all ranks.

    Attributes
    ----------
    batches : iterable or SampleStatistics or None
        As given, or what the layers did in the steps that were heard.
    """

    def __init__(self, model: nn.Module, config: CompressionConfig, batches: Any, *, timed: bool = True) -> None:
        self._model, self._config, self.batches, self._timed = model, config, batches, timed
        self._given, self._hooks = batches is not None, ExitStack()
        self._watch: Watch | None = None
        self._calls: list[Call] = []
        finalize(self, self._hooks.close)

    def listen(self, due: bool) -> None:
        """Arm the hooks, or take them away."""
        self._hooks.close()
        self._watch = None
        if not due:
            return
        calls = self._calls = list[Call]()

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.is_grad_enabled() and not calls:
                calls.append(Call(module, args, kwargs))

        self._hooks.callback(self._model.register_forward_pre_hook(keep, with_kwargs=True).remove)
        layers = {} if self._given else looked_at(target_layers(self._model, self._config), self._config)
        if layers:
            self._watch = self._hooks.enter_context(watch(self._model, layers))

    def stop(self) -> bool:
        """Take the hooks away, and keep what they heard; tell whether layers were watched."""
        self._hooks.close()
        if self._watch is None:
            return False
        self.batches, self._watch = self._watch.statistics(), None
        return True

    def heard(self) -> dict[str, Any] | None:
        """Return what the layers did in the steps that were watched, as plain values and tensors."""
        if self._given or not isinstance(self.batches, SampleStatistics):
            return None
        names = {id(module): name for name, module in self._model.named_modules()}
        calls = [(names.get(id(module)), args, kwargs) for module, args, kwargs in self.batches.probe or ()]
        return {"layers": as_plain(self.batches), "calls": calls if _is_plain(calls) else []}

    def hear_again(self, heard: Mapping[str, Any] | None) -> None:
        """Take what `heard` returned as what was heard."""
        if heard is not None:
            calls = [Call(self._model.get_submodule(name), args, kwargs) for name, args, kwargs in heard["calls"]]
            self.batches = SampleStatistics(of_plain(heard["layers"]), calls or None)

    def forward_seconds(self, *, warm: bool = False) -> float | None:
        """Time of a forward pass of the model on a call of the training; None where none was heard.

        Unless the model is warm from passes of these shapes, another one goes before it.
        """
        if not (self._calls and self._timed):
            return None
        seconds = 0.0
        try:
            with running(self._model):
                for _ in range(1 if warm else 2):
                    started = _now()
                    call(self._model, self._calls)
                    seconds = _now() - started
        except Exception:  # a figure is not worth a run
            return None
        return seconds


def _now() -> float:
    """Seconds of a clock, when all that was asked for is done."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _is_plain(x: Any) -> bool:
    """Tell whether a checkpoint can hold it."""
    if isinstance(x, (list, tuple)):
        return all(map(_is_plain, x))
    if isinstance(x, dict):
        return all(isinstance(key, str) and _is_plain(value) for key, value in x.items())
    return type(x) in (torch.Tensor, str, int, float, bool) or x is None


class CountOfSteps:
    """Whether optimizers have made steps, told by hooks after them; a call without one belongs to a micro-batch."""

    def __init__(self, optimizers: tuple[Any, ...], model: nn.Module) -> None:
        self._made = self._ever = False
        self._optimizers, self._model = optimizers, model
        inner = [x for x in map(stepping, optimizers) if hasattr(x, "_optimizer_step_post_hooks")]
        self._hooked = len(inner) == len(optimizers)
        me = ref(self)

        def note(*_: Any) -> None:
            if (count := me()) is not None:
                count._made = count._ever = True

        for optimizer in inner:
            finalize(self, optimizer.register_step_post_hook(note).remove)

    def begin(self) -> None:
        """Forget a step that was not of the training: torch makes one to load the state of an optimizer without any."""
        self._made = False

    def is_micro_batch(self, ranks: Ranks | None = None) -> bool:
        """Tell whether gradients are still being collected: no optimizer has made a step since the last call."""
        made, self._made = self._made, False
        if not self._hooked or made or self._ever:
            return self._hooked and not made
        found = self._collecting()
        return found if ranks is None or ranks.ddp is not None else any(ranks.gathered(found))

    def _collecting(self) -> bool:
        parameters = (p for x in self._optimizers for group in x.param_groups for p in group["params"])
        return any(p.grad is not None and bool(local(p.grad).any()) for p in parameters) or collects(self._model)


def tried_batches(model: nn.Module, targets: Mapping[str, Adapter], batches: Any, attempts: int) -> Any:
    """Give sample batches that every attempt can ask for anew, after a trial of the first of them."""
    if batches is None:
        return None
    data = getattr(batches, "dataset", None)  # of a loader, which reads it in this process if it has no workers
    for x in (batches, None if getattr(batches, "num_workers", 0) else data):
        if isinstance(x, Iterator):
            raise InputError(
                f"batches must give the same batches to every attempt; got an iterator, {type(x).__name__}, which "
                f"the first would use up. Pass a list or a loader whose data can be read again."
            )
    if isinstance(batches, SampleStatistics) and attempts > 1:
        raise InputError(
            f"batches must serve {attempts} attempts; got statistics, which the first cut makes those of another "
            f"model. Pass the batches themselves, or a schedule with attempts=1."
        )
    gather(model, targets, batches, most=1)
    return batches
