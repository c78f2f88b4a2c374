"""What else happens at a cut: a short rise of learning rates, and checkpoints.

Many schedulers compute the next learning rate from the last one (`CosineAnnealingLR`, `ExponentialLR` and others), so
a factor left in ``group["lr"]`` would stay in the schedule for good. Here rates are scaled when an optimizer's step
begins and put back, the very objects, when it ends: between steps every scheduler, logger and checkpoint sees the
rates of the schedule.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from hankelred.checks import check_integer, check_items
from hankelred.errors import InputError
from hankelred.systems.files import as_path

from ..saving import save_checkpoint
from ..surgery.ranks import leads


class Rewarm:
    """Let learning rates rise after every cut, from near 0 to what the schedule says; to be passed as `on_cut`.

    In the k steps of the optimizer after a cut its rates are scaled by 1/(k+1), 2/(k+1), ..., k/(k+1). Each optimizer
    counts its own steps, and has one rise at a time, whoever started it: the last cut begins it anew.

    Parameters
    ----------
    steps : int
        Steps k of the rise.

    Raises
    ------
    InputError
        If `steps` is no positive integer or, when the compressor is made, an optimizer has no hooks around its steps.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> layer = ht.layers.LRU(channels=2, states=8)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> config, schedule = ht.CompressionConfig(order=4), ht.Schedule(end_step=1, force=True)
    >>> compressor = ht.InTrainingCompressor(layer, optimizer, config, schedule, on_cut=[ht.Rewarm(steps=3)])
    """

    def __init__(self, steps: int) -> None:
        self._steps = check_integer(steps, "steps", 1, hint="It counts optimizer steps.")
        self._rises: list[tuple[Any, _Rise]] = []  # optimizers, each with its rise

    def attach(self, compressor: Any) -> None:
        """Find the optimizers that step, when a compressor is made.

        Parameters
        ----------
        compressor : InTrainingCompressor
            The one that cuts.
        """
        groups: dict[int, Any] = {}
        for x in compressor.optimizers:  # one inside another, which has its groups, comes first
            groups.setdefault(id(x.param_groups[0]["params"] if x.param_groups else x), x)
        self._rises = [_rise_of(x) for x in groups.values()]

    def after(self, plan: Any, compressor: Any) -> None:
        """Begin the rise anew.

        Parameters
        ----------
        plan : Plan
            What was cut.
        compressor : InTrainingCompressor
            The one that cut.
        """
        for optimizer, rise in self._rises:
            rise.start(optimizer, self._steps, self._steps)

    def state_dict(self) -> dict[str, Any]:
        """Give how far the rise of each optimizer is.

        Returns
        -------
        dict of str to list of int
            Length of the rise and steps left, by optimizer.
        """
        return {"steps": [x.steps for _, x in self._rises], "left": [x.left for _, x in self._rises]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Parameters
        ----------
        state : mapping of str to list of int
            From `state_dict`.
        """
        for (optimizer, rise), steps, left in zip(self._rises, state["steps"], state["left"], strict=True):
            rise.start(optimizer, steps, left)


class Checkpoint:
    """Write a checkpoint before and after every cut; to be passed as `on_cut`.

    The files are ``step_00000250_before.pt`` and ``_after.pt``; a run resumed from the first goes on without the cut.
    Of a run in `DistributedDataParallel` rank 0 writes them, of a sharded one every rank its shards.

    Parameters
    ----------
    folder : str or path-like
        Where to; made if it does not exist.

    Examples
    --------
    >>> import tempfile, hankelred_torch as ht
    >>> hooks = [ht.Rewarm(steps=100), ht.Checkpoint(tempfile.mkdtemp())]
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = as_path(folder, "folder")

    def before(self, plan: Any, compressor: Any) -> None:
        """Write the run as it is without the cut.

        Parameters
        ----------
        plan : Plan
            What is to be cut.
        compressor : InTrainingCompressor
            The one that cuts.
        """
        self._write(compressor, "before")

    def after(self, plan: Any, compressor: Any) -> None:
        """Write the run as it is with the cut.

        Parameters
        ----------
        plan : Plan
            What was cut.
        compressor : InTrainingCompressor
            The one that cut.
        """
        self._write(compressor, "after")

    def _write(self, compressor: Any, moment: str) -> None:
        if compressor.ranks is None or compressor.ranks.ddp is None or leads(compressor.ranks):
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"step_{compressor.steps:08d}_{moment}.pt"
            run = compressor.model, compressor.optimizers, compressor, compressor.ema, compressor.restore
            save_checkpoint(path, *run)


class _Rise:
    """The rise of one optimizer's rates; its hooks are there only while it lasts."""

    def __init__(self) -> None:
        self.steps = self.left = 0
        self._rates: list[Any] = []
        self._handles: list[Any] = []

    def start(self, optimizer: Any, steps: int, left: int) -> None:
        """Let so many steps of a rise follow."""
        self.steps, self.left = steps, left
        if left and not self._handles:
            self._handles = [
                optimizer.register_step_pre_hook(self._scale),
                optimizer.register_step_post_hook(self._count),
                optimizer.register_state_dict_pre_hook(self._put_back),  # after a step that raised
            ]
        elif not left:
            self._end()

    def _scale(self, optimizer: Any, *_: Any) -> None:
        self._put_back(optimizer)  # a step that raised has not
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * (1.0 - self.left / (self.steps + 1))

    def _put_back(self, optimizer: Any, *_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._rates, strict=False):
            group["lr"] = rate
        self._rates = []

    def _count(self, optimizer: Any, *_: Any) -> None:
        self._put_back(optimizer)
        self.left -= 1
        if not self.left:
            self._end()

    def _end(self) -> None:
        while self._handles:
            self._handles.pop().remove()


_RISES: WeakKeyDictionary[Any, _Rise] = WeakKeyDictionary()


def stepping(optimizer: Any) -> Any:
    """The optimizer that steps, inside the wrappers of accelerate and others."""
    while not hasattr(optimizer, "_optimizer_step_pre_hooks") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _rise_of(optimizer: Any) -> tuple[Any, _Rise]:
    """An optimizer with its rise."""
    inner = stepping(optimizer)
    if not hasattr(inner, "_optimizer_step_pre_hooks"):
        raise InputError(
            f"Rewarm needs optimizers with hooks around their steps; got {type(optimizer).__qualname__}. "
            f"Pass the torch optimizer inside, or leave Rewarm out."
        )
    return inner, _RISES.setdefault(inner, _Rise())


def as_hooks(on_cut: Any) -> tuple[Any, ...]:
    """Give one hook or several as a tuple."""

    def is_hook(x: Any) -> bool:
        return callable(x) or any(callable(getattr(x, name, None)) for name in ("before", "after", "undone"))

    found = (on_cut,) if is_hook(on_cut) else tuple(check_items(on_cut, "on_cut"))
    for each in found:
        if not is_hook(each) or isinstance(each, type):
            raise InputError(
                f"on_cut must be functions, or objects with before, after or undone; got {each!r}. "
                f"A function is called as function(plan, compressor) after a cut."
            )
    return found
