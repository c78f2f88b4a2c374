"""Shrink a model in the Trainer of Lightning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Callback
from torch import nn

from hankelred.checks import check_type
from hankelred.errors import InputError

from ..config import CompressionConfig, Schedule
from ..planning import Batches
from ..saving import resize_
from ..surgery import Models, as_models
from ..surgery.snapshot import as_restorable
from ..training import Guard, History, InTrainingCompressor
from ..training.rewarm import as_hooks
from ._window import with_total_steps

__all__ = ["CheckpointMixin", "CompressionCallback", "resize_from_checkpoint"]


class CompressionCallback(Callback):
    """Shrink a LightningModule while a `lightning.pytorch.Trainer` trains it.

    The model is cut after optimizer steps, however many batches each of them accumulates. The state of the compressor
    is in every checkpoint of the trainer. To load one, the layers need their sizes before their weights: let the
    module inherit `CheckpointMixin`, or call `resize_from_checkpoint` in its ``on_load_checkpoint``.

    Parameters
    ----------
    config : CompressionConfig
        What may be lost.
    schedule : Schedule, optional
        When; without `total_steps` and `end_step` the window is the first 10 % of the trainer's steps.
    guard : Guard, optional
        A condition on every cut. The trainer's schedulers and scaler are rolled back with the rest.
    ema : torch.nn.Module or iterable of them, optional
        Averaged copies of the module; those of Lightning's own callbacks, such as `EMAWeightAveraging` and
        `StochasticWeightAveraging`, are found among the callbacks of the trainer.
    batches : iterable, optional
        Sample batches for selective layers.
    restore : iterable, optional
        What else a rollback puts back.
    on_cut : callable or object, or iterable of them, optional
        What else happens at a cut, as for `InTrainingCompressor`.

    Attributes
    ----------
    compressor : InTrainingCompressor or None
        Made when training begins.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> from hankelred_torch.integrations.lightning import CompressionCallback
    >>> callback = CompressionCallback(ht.CompressionConfig(tau=0.1))  # Trainer(..., callbacks=[callback])
    >>> callback.compressor is None
    True
    """

    def __init__(
        self,
        config: CompressionConfig,
        schedule: Schedule | None = None,
        guard: Guard | None = None,
        ema: Models = (),
        batches: Batches = None,
        restore: Iterable[Any] = (),
        on_cut: Any = (),
    ) -> None:
        self._config = check_type(config, "config", CompressionConfig)
        self._schedule = Schedule() if schedule is None else check_type(schedule, "schedule", Schedule)
        self._guard = guard if guard is None else check_type(guard, "guard", Guard)
        self._ema, self._batches = as_models(ema), batches
        self._restore, self._on_cut = as_restorable(restore), as_hooks(on_cut)
        self._resumed: Mapping[str, Any] | None = None
        self._steps = self._logged = 0
        self.compressor: InTrainingCompressor | None = None

    @property
    def history(self) -> History:
        """Everything measured so far."""
        return History() if self.compressor is None else self.compressor.history

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the compressor, with what the trainer has made by now."""
        wrapped = trainer.strategy.model
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if trainer.global_step and self._resumed is None and self.compressor is not None:
            self._resumed = self.compressor.state_dict()  # another fit of the same trainer
        averages = [getattr(x, "_average_model", None) for x in trainer.callbacks]
        self.compressor = InTrainingCompressor(
            pl_module if wrapped is None else wrapped,
            trainer.optimizers,
            self._config,
            with_total_steps(self._schedule, trainer.estimated_stepping_batches),
            self._guard,
            ema=(*as_models(self._ema), *(x for x in averages if isinstance(x, nn.Module))),
            batches=self._batches,
            restore=[*self._restore, *schedulers, *([] if scaler is None else [scaler])],
            on_cut=self._on_cut,
        )
        self._steps = trainer.global_step
        if self._resumed is not None:
            self.compressor.load_state_dict(self._resumed)
            self._resumed = None
        elif trainer.global_step:
            raise InputError(
                f"A resumed run needs the state of the compressor; the checkpoint at step {trainer.global_step} has "
                f"none of a CompressionCallback. Start from the weights alone, or resume a run that had the callback."
            )
        self._logged = len(self.history)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Count the step if the batch ended one, and cut if it is time."""
        if trainer.global_step == self._steps:  # gradients are being accumulated
            return
        assert self.compressor is not None
        self._steps = trainer.global_step
        self.compressor.step()
        if len(self.history) > self._logged:
            self._logged = len(self.history)
            pl_module.log_dict(self.history.scalars(), on_step=True, on_epoch=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the compressor, for the trainer's checkpoints."""
        if self.compressor is None:
            return {} if self._resumed is None else dict(self._resumed)
        return self.compressor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until the compressor is made."""
        self._resumed = dict(check_type(state_dict, "state_dict", Mapping)) or None  # type: ignore[type-abstract]


def resize_from_checkpoint(pl_module: nn.Module, checkpoint: Mapping[str, Any]) -> dict[str, int]:
    """Give the layers of a module the sizes they have in a checkpoint, to be called in ``on_load_checkpoint``.

    Parameters
    ----------
    pl_module : lightning.pytorch.LightningModule
        Made as for the first start; changed in place, or not at all.
    checkpoint : mapping of str to object
        What Lightning passes to ``on_load_checkpoint``.

    Returns
    -------
    dict of str to int
        States every layer stores now, by module name.

    Raises
    ------
    InputError
        If it is of another model.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> from hankelred_torch.integrations.lightning import resize_from_checkpoint
    >>> small = ht.layers.LRU(channels=4, states=6)
    >>> resize_from_checkpoint(ht.layers.LRU(channels=4, states=16), {"state_dict": small.state_dict()})
    {'': 6}
    """
    if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint:
        raise InputError(f"checkpoint must be a mapping with a state_dict; got {type(checkpoint).__name__}.")
    return resize_(pl_module, checkpoint["state_dict"])


class CheckpointMixin:
    """Let a LightningModule load checkpoints of itself after cuts; inherit from it first.

    Both ``Trainer.fit(module, ckpt_path=...)`` and ``load_from_checkpoint`` then give the layers their sizes before
    their weights.

    Examples
    --------
    >>> import lightning.pytorch as pl, hankelred_torch as ht
    >>> from hankelred_torch.integrations.lightning import CheckpointMixin
    >>> class Model(CheckpointMixin, pl.LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = ht.layers.LRU(channels=4, states=16)
    """

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resize the layers, then do what the module does otherwise."""
        assert isinstance(self, nn.Module)
        resize_from_checkpoint(self, checkpoint)
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
