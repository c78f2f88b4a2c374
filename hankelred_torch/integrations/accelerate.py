"""Let `accelerate` save and load runs whose models shrink; the compressor takes what `Accelerator.prepare` returned."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hankelred.checks import check_type
from hankelred.errors import InputError

from ..adapters import state_sizes
from ..saving import resize_
from ..saving.files import StrPath
from ..sharding import together
from ..surgery import refresh_ddp_
from ..training import InTrainingCompressor
from ._sharded import check_saved_by_one_rank, is_sharded

__all__ = ["register"]


def register(accelerator: Accelerator, compressor: InTrainingCompressor) -> Any:
    """Put a compressor into the states that an `Accelerator` saves, and give models their sizes before they are loaded.

    Call it once, after ``accelerator.prepare``: ``accelerator.save_state`` and ``accelerator.load_state`` then go
    through cuts. Learning-rate schedulers that were prepared are loaded by accelerate itself. A model that its FSDP
    plugin of version 2 has sharded is saved and loaded by all ranks, in either of its forms.

    Parameters
    ----------
    accelerator : accelerate.Accelerator
        Has prepared the model and the optimizers.
    compressor : InTrainingCompressor
        Made of what it has prepared.

    Returns
    -------
    handle
        Its ``remove()`` ends the resizing.

    Raises
    ------
    InputError
        If an argument is not of its kind, or the accelerator has not prepared the model of the compressor; if the model
        is sharded and the guard of the compressor takes steps to decide; when a state is loaded, if it is of another
        model.

    Examples
    --------
    >>> import tempfile, torch, hankelred_torch as ht
    >>> from accelerate import Accelerator
    >>> from hankelred_torch.integrations.accelerate import register
    >>> def made():
    ...     _ = torch.manual_seed(0)
    ...     accelerator, layer = Accelerator(cpu=True), ht.layers.LRU(channels=2, states=16)
    ...     layer, optimizer = accelerator.prepare(layer, torch.optim.Adam(layer.parameters()))
    ...     config, schedule = ht.CompressionConfig(order=4), ht.Schedule(end_step=1, force=True)
    ...     compressor = ht.InTrainingCompressor(layer, optimizer, config, schedule)
    ...     return accelerator, compressor, register(accelerator, compressor)
    >>> accelerator, compressor, _ = made()
    >>> plan = compressor.step()
    >>> folder = accelerator.save_state(tempfile.mkdtemp())
    >>> resumed, its_compressor, _ = made()
    >>> resumed.load_state(folder)
    >>> ht.state_sizes(its_compressor.model), its_compressor.steps
    ({'': 4}, 1)
    """
    check_type(accelerator, "accelerator", Accelerator)
    check_type(compressor, "compressor", InTrainingCompressor)
    if not any(accelerator.unwrap_model(x) is compressor.model for x in accelerator._models):
        raise InputError(
            f"accelerator must have prepared the model of the compressor; got one that has prepared "
            f"{len(accelerator._models)} others. Make the compressor of what accelerator.prepare returned."
        )

    check_saved_by_one_rank(compressor)
    accelerator.register_for_checkpointing(compressor)
    if is_sharded(compressor):
        return _LoadsResized(accelerator, compressor)

    def resize(models: list[nn.Module], folder: str) -> None:
        for k, model in enumerate(models):
            resize_(model, _saved(Path(folder), f"_{k}" if k else ""), accelerator._optimizers)
            if isinstance(model, DistributedDataParallel):
                refresh_ddp_(model)

    return accelerator.register_load_state_pre_hook(resize)


class _LoadsResized:
    """The `load_state` of an accelerator whose model is sharded: it loads those before it calls its hooks."""

    def __init__(self, accelerator: Any, compressor: InTrainingCompressor) -> None:
        self._accelerator, self._load = accelerator, accelerator.load_state
        self._model: nn.Module | None = compressor.model
        self._ranks = compressor.ranks
        self._name = f"custom_checkpoint_{len(accelerator._custom_objects) - 1}.pkl"
        accelerator.load_state = self

    def __call__(self, input_dir: StrPath | None = None, *others: Any, **options: Any) -> Any:
        """Resize the model, then load."""
        if self._model is not None:
            if input_dir is None:
                raise InputError(
                    "input_dir must name the folder of the state; got none. The sizes of sharded layers are read there "
                    "before accelerate looks for the last one."
                )
            together(self._ranks, partial(self._resize, self._model, Path(input_dir).expanduser()))
        return self._load(input_dir, *others, **options)

    def remove(self) -> None:
        """Load without resizing from now on."""
        self._model = None  # what was put on top of this still calls it

    def _resize(self, model: nn.Module, folder: Path) -> None:
        """Give the model the sizes that are in what accelerate saved of the compressor."""
        path, now = folder / self._name, state_sizes(model)
        saved = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None
        sizes = saved.get("sizes") if isinstance(saved, dict) else None
        if not isinstance(sizes, dict) or sizes.keys() != now.keys():
            raise InputError(
                f"input_dir must hold the state of a compressor of this model, {self._name}, with layers "
                f"{', '.join(now)}; got {os.fspath(folder)!r} with {sizes}."
            )
        resize_(model, sizes, self._accelerator._optimizers)


def _saved(folder: Path, ending: str) -> dict[str, torch.Tensor]:
    """Read the weights of one model that accelerate has saved."""
    if (path := folder / f"model{ending}.safetensors").is_file():
        return load_file(path)
    if (path := folder / f"pytorch_model{ending}.bin").is_file():
        found: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return found
    raise InputError(
        f"input_dir must hold the weights of every model, as Accelerator.save_state writes them; got none in "
        f"{os.fspath(folder)!r} under model{ending}.safetensors or pytorch_model{ending}.bin."
    )
