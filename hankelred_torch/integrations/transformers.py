"""Shrink a model in the Trainer of Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hankelred.checks import check_type
from hankelred.errors import InputError
from hankelred.systems.files import as_path

from ..adapters import state_sizes
from ..config import CompressionConfig, Schedule
from ..planning import Batches
from ..saving import resize_
from ..saving.files import StrPath, read_content, write_content
from ..saving.pretrained import is_a, note_sizes
from ..saving.resize import check_loaded, layers_of, write_layers
from ..surgery import Models, as_models
from ..surgery.snapshot import as_restorable
from ..training import Guard, History, InTrainingCompressor
from ..training.rewarm import as_hooks
from ._sharded import check_saved_by_one_rank, is_sharded
from ._window import with_total_steps

__all__ = ["CompressionCallback"]

STATE = "hankelred.pt"  # of the compressor, in every checkpoint of the Trainer
FORMAT = "hankelred trainer 2"


class CompressionCallback(TrainerCallback):
    """Shrink a model while a `transformers.Trainer` trains it.

    The model is cut after optimizer steps, however many batches each of them accumulates. Checkpoints of the Trainer
    get the sizes of the layers in their ``config.json``, so that `hankelred_torch.from_pretrained` loads them, and the
    state of the compressor in ``hankelred.pt``.

    With ``load_best_model_at_end`` the best model is looked for among those after the last cut: earlier checkpoints
    have other sizes, and their metric is that of a larger model.

    Parameters
    ----------
    config : CompressionConfig
        What may be lost.
    schedule : Schedule, optional
        When; without `total_steps` and `end_step` the window is the first 10 % of the Trainer's steps.
    guard : Guard, optional
        A condition on every cut. The Trainer's scheduler and scaler are rolled back with the rest.
    ema : torch.nn.Module or iterable of them, optional
        Averaged copies of the model.
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
    >>> from hankelred_torch.integrations.transformers import CompressionCallback
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
        self._trainer: Any = None
        self._resumed: dict[str, Any] | None = None
        self._sizes: dict[str, int] = {}
        self._logged = 0
        self.compressor: InTrainingCompressor | None = None

    @property
    def history(self) -> History:
        """Everything measured so far."""
        return History() if self.compressor is None else self.compressor.history

    def attach(self, trainer: Any) -> None:
        """Make the trainer known, which callbacks are not told: for its log, and for distributed training.

        Parameters
        ----------
        trainer : transformers.Trainer
            The one that has this callback.

        Raises
        ------
        InputError
            If it has not.
        """
        callbacks = getattr(getattr(trainer, "callback_handler", None), "callbacks", ())
        if not any(x is self for x in callbacks):
            raise InputError(
                "trainer must have this callback; got one that has not. Pass callbacks=[callback] to the Trainer."
            )
        self._trainer = trainer

    def resume_from(self, checkpoint: StrPath, model: nn.Module) -> str:
        """Give the model the sizes it has in a checkpoint of the Trainer, and remember how far the compressor was.

        Parameters
        ----------
        checkpoint : str or path-like
            Folder that the Trainer wrote.
        model : torch.nn.Module
            Of the Trainer, made as for the first start.

        Returns
        -------
        str
            The checkpoint, as ``trainer.train(resume_from_checkpoint=...)`` takes it.

        Raises
        ------
        InputError
            If the folder is not of a run with this callback, or of another model.
        """
        folder = as_path(checkpoint, "checkpoint")
        if not (folder / STATE).is_file():
            raise InputError(
                f"checkpoint must be of a run with a CompressionCallback, with a file {STATE}; got "
                f"{os.fspath(checkpoint)!r}, which has none."
            )
        saved = read_content(folder / STATE, FORMAT, "A run of an earlier edition cannot be resumed.")
        self._resumed = saved["compressor"]
        resize_(model, self._resumed["sizes"])
        write_layers(model, saved["layers"])
        return os.fspath(checkpoint)

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Make the compressor, with what the Trainer has made by now."""
        model, optimizer = objects["model"], _innermost(objects["optimizer"])
        if self._trainer is None and args.world_size > 1:
            raise InputError(
                f"On several processes the callback must know its trainer, whose wrapper keeps the old parameters; got "
                f"{args.world_size} processes. Call callback.attach(trainer) before trainer.train()."
            )
        if self._trainer is None and self._guard is not None and args.fp16:
            raise InputError(
                "With fp16 and a guard the callback must know its trainer, whose scaler a rollback puts back; got none."
                " Call callback.attach(trainer) before trainer.train()."
            )
        if state.global_step and self._resumed is None:
            raise InputError(
                f"A resumed run needs the sizes of the layers before the weights; the Trainer goes on at step "
                f"{state.global_step}. Call trainer.train(resume_from_checkpoint=callback.resume_from(path, model))."
            )
        self.compressor = InTrainingCompressor(
            model if self._trainer is None else self._trainer.model_wrapped,
            optimizer,
            self._config,
            with_total_steps(self._schedule, state.max_steps),
            self._guard,
            ema=self._ema,
            batches=self._batches,
            restore=(*self._restore, *self._states_of_trainer(objects)),
            on_cut=self._on_cut,
        )
        check_saved_by_one_rank(self.compressor)
        if is_sharded(self.compressor) and is_a(model, "peft", "PeftModel"):
            raise InputError(
                "Adapters of PEFT must be on a model that is whole on every rank: the Trainer saves them alone, and "
                "a cut changes what they are put on; got a sharded one. Merge them, or drop fsdp."
            )
        if self._resumed is not None:
            check_loaded(model)
            self.compressor.load_state_dict(self._resumed)
            self._resumed = None
        self._note_sizes(model)
        self._logged = len(self.history)

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Count the step, and cut if it is time."""
        assert self.compressor is not None
        if getattr(objects["optimizer"], "step_was_skipped", False):
            return  # the gradients were not finite, and the scaler has made no step
        self.compressor.step()
        if state_sizes(objects["model"]) != self._sizes:
            self._note_sizes(objects["model"])
            # earlier checkpoints cannot be loaded into the model any more, and were judged at another size
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None
        self._log(control)

    def on_save(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Add the state of the compressor to the checkpoint the Trainer has just written."""
        if self.compressor is None or not state.is_world_process_zero:
            return
        model = objects["model"]
        # PEFT saves its adapters alone, and a cut changes what they are put on
        layers = layers_of(model) if is_a(model, "peft", "PeftModel") else {}
        saved = {"compressor": self.compressor.state_dict(), "layers": layers}
        write_content(self._checkpoint_of(args, state.global_step) / STATE, FORMAT, saved)

    def _note_sizes(self, model: nn.Module) -> None:
        """Remember the sizes of the layers, here and in the configuration that the Trainer saves with the model."""
        self._sizes = state_sizes(model)
        note_sizes(model)

    def _states_of_trainer(self, objects: dict[str, Any]) -> list[Any]:
        """Return what of the Trainer a rollback puts back."""
        scaler = None if self._trainer is None else self._trainer.accelerator.scaler
        return [x for x in (_innermost(objects["lr_scheduler"]), scaler) if x is not None]

    def _log(self, control: Any) -> None:
        """Write the figures of a new measurement to the Trainer's log."""
        if self._trainer is None or len(self.history) == self._logged:
            return
        self._logged = len(self.history)
        due = control.should_log  # logging resets it, and the Trainer's own figures would be left out
        self._trainer.log(self.history.scalars())
        control.should_log = due

    def _checkpoint_of(self, args: Any, step: int) -> Path:
        """Return the folder the Trainer has just written; a search for hyperparameters has one folder more."""
        name, folder = f"{PREFIX_CHECKPOINT_DIR}-{step}", Path(args.output_dir)
        found = [path for path in (folder / name, *folder.glob(f"run-*/{name}")) if path.is_dir()]
        return max(found, key=lambda path: path.stat().st_mtime)


def _innermost(wrapped: Any) -> Any:
    """Return the torch object inside the wrappers of accelerate."""
    for attribute in ("optimizer", "scheduler"):
        while type(wrapped).__name__.startswith("Accelerated") and hasattr(wrapped, attribute):
            wrapped = getattr(wrapped, attribute)
    return wrapped
