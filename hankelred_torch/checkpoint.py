"""Stopping and going on when the layers of a model have not the sizes they were made with.

A `state_dict` of other shapes loads nowhere, and an optimizer takes a state of other shapes without a word. So layers
are resized first, from the shapes in the checkpoint itself. Files appear under their name only when they are complete
and on the disk: whenever a run is killed, the last checkpoint is a whole one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from hankelred.errors import InputError

from .adapters import Adapter, find_ssm_layers, state_sizes
from .convert import standing_in, stored_tensor
from .surgery import Exchange, as_models, as_optimizers, refresh_ddp_
from .surgery.ranks import unwrapped, wrapper_of
from .surgery.snapshot import load_state, random_state, set_random_state, state_of

FORMAT = "hankelred checkpoint 1"

StrPath = str | os.PathLike[str]


def resize_like(model: nn.Module, state_dict: Mapping[str, Tensor], optimizers: Any = ()) -> dict[str, int]:
    """Give the state space layers of a model the sizes they have in a state dict, so that it can be loaded.

    Call it before ``model.load_state_dict(state_dict)``. Resized parameters are new objects, zero until then.
    Optimizers are best made afterwards; those made before are handed the new parameters, and keep no state for them.

    Parameters
    ----------
    model : torch.nn.Module
        Of the structure that the state dict was saved from; changed in place, or not at all.
    state_dict : mapping of str to torch.Tensor
        What ``model.state_dict()`` gave after cuts. Only shapes are read.
    optimizers : torch.optim.Optimizer or iterable of them, optional
        Those that hold parameters of the model already.

    Returns
    -------
    dict of str to int
        States every layer stores now, by module name.

    Raises
    ------
    InputError
        If a tensor of a layer is missing in the state dict, or differs in more than the number of states.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> small = ht.layers.LRU(channels=4, states=6)
    >>> model = ht.layers.LRU(channels=4, states=16)
    >>> ht.resize_like(model, small.state_dict())
    {'': 6}
    >>> model.load_state_dict(small.state_dict())
    <All keys matched successfully>
    """

    def saved(name: str, adapter: Adapter) -> dict[str, Tensor]:
        return _saved_tensors(adapter, state_dict, f"{name}." if name else "")

    _resize(model, as_optimizers(optimizers), saved)
    return state_sizes(model)


def resize_to(model: nn.Module, sizes: Mapping[str, int]) -> None:
    """Give the state space layers of a model given sizes, with whatever values, to load others into.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place, or not at all.
    sizes : mapping of str to int
        Stored states by module name; layers that are not named keep theirs.
    """
    _resize(model, (), lambda name, adapter: adapter.resize(sizes.get(name, adapter.states)))


def _resize(
    model: nn.Module, optimizers: tuple[Any, ...], tensors_of: Callable[[str, Adapter], dict[str, Tensor]]
) -> None:
    """Put other tensors in place of those of every layer that have other shapes, and sizes to match; all or nothing."""
    exchange, adapters = Exchange([model], optimizers), find_ssm_layers(model)
    for name, adapter in adapters.items():
        tensors = tensors_of(name, adapter)
        for tensor_name, tensor in tensors.items():
            old = stored_tensor(*adapter.owner(tensor_name))
            if tensor.shape != old.shape:
                exchange.replace(old, standing_in(old, tensor), name=f"{tensor_name} of layer {name!r}")
        first = next(iter(tensors))
        for size_name, size in adapter.sizes(adapter.states_on(first, tuple(tensors[first].shape))).items():
            exchange.attribute(*adapter.owner(size_name), size)
    with exchange:
        for adapter in adapters.values():
            type(adapter)(adapter.layer)  # raises if the shapes do not fit each other


def save_checkpoint(
    path: StrPath,
    model: nn.Module,
    optimizers: Any = (),
    compressor: Any = None,
    ema: Any = (),
    restore: Iterable[Any] = (),
    extra: Any = None,
) -> None:
    """Save all that a training run needs to go on as if it had never stopped.

    The file is written under another name, flushed to the disk and renamed: at any moment `path` is a whole
    checkpoint, the old one or the new one.

    Parameters
    ----------
    path : str or path-like
        Where; an existing file is replaced.
    model : torch.nn.Module
        The model in training.
    optimizers : torch.optim.Optimizer or iterable of them, optional
        All of them, in the order they will be passed to `load_checkpoint`.
    compressor : InTrainingCompressor, optional
        Its counters, history and, while a guard has not decided, the moment before the cut.
    ema : torch.nn.Module or iterable of them, optional
        Averaged copies.
    restore : iterable, optional
        Schedulers, scalers and whatever has a ``state_dict``, and random generators of torch.
    extra : object, optional
        Plain values of your own, such as the position in the data.

    Raises
    ------
    InputError
        If something in `restore` has no state.

    Examples
    --------
    >>> import os, tempfile, torch, hankelred_torch as ht
    >>> layer = ht.layers.LRU(channels=2, states=4)
    >>> path = os.path.join(tempfile.mkdtemp(), "run.pt")
    >>> ht.save_checkpoint(path, layer, extra={"step": 7})
    >>> ht.load_checkpoint(path, ht.layers.LRU(channels=2, states=16))
    {'step': 7}
    """
    write_safely(
        Path(path),
        lambda file: torch.save(
            {
                "format": FORMAT,
                "model": unwrapped(model).state_dict(),
                "ema": [x.state_dict() for x in as_models(ema)],
                "optimizers": [x.state_dict() for x in as_optimizers(optimizers)],
                "compressor": None if compressor is None else compressor.state_dict(),
                "restore": [state_of(x) for x in restore],
                "random": random_state(),
                "extra": extra,
            },
            file,
        ),
    )


def load_checkpoint(
    path: StrPath,
    model: nn.Module,
    optimizers: Any = (),
    compressor: Any = None,
    ema: Any = (),
    restore: Iterable[Any] = (),
) -> Any:
    """Go on where `save_checkpoint` was called: resize the layers, then load everything, random states included.

    On one machine a run on the CPU continues bit for bit.

    Parameters
    ----------
    path : str or path-like
        The checkpoint.
    model : torch.nn.Module
        Made as for the first start of the run; its layers are resized.
    optimizers : torch.optim.Optimizer or iterable of them, optional
        Made as for the first start, on the parameters of the model.
    compressor : InTrainingCompressor, optional
        Made as for the first start.
    ema : torch.nn.Module or iterable of them, optional
        Averaged copies, made as for the first start.
    restore : iterable, optional
        As when it was saved.

    Returns
    -------
    object
        The `extra` that was saved.

    Raises
    ------
    InputError
        If the file is no such checkpoint, or was saved with other counts of optimizers, copies or restored objects.

    Examples
    --------
    >>> import os, tempfile, torch, hankelred_torch as ht
    >>> def build():
    ...     layer = ht.layers.LRU(channels=2, states=16)
    ...     return layer, torch.optim.Adam(layer.parameters())
    >>> layer, optimizer = build()
    >>> report = ht.compress_(layer, ht.CompressionConfig(order=4), optimizer)
    >>> path = os.path.join(tempfile.mkdtemp(), "run.pt")
    >>> ht.save_checkpoint(path, layer, optimizer)
    >>> resumed, its_optimizer = build()
    >>> ht.load_checkpoint(path, resumed, its_optimizer)
    >>> ht.state_sizes(resumed)
    {'': 4}
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(saved, Mapping) or saved.get("format") != FORMAT:
        raise InputError(
            f"path must be a file that save_checkpoint wrote; got {os.fspath(path)!r}, which is another. "
            f"For a plain state dict call resize_like and load it."
        )
    given = {"ema": as_models(ema), "optimizers": as_optimizers(optimizers), "restore": tuple(restore)}
    for name, objects in given.items():
        if len(objects) != len(saved[name]):
            raise InputError(
                f"{name} must be what was saved; got {len(objects)} and {len(saved[name])} in the checkpoint. "
                f"Pass the same objects in the same order."
            )
    if (compressor is None) != (saved["compressor"] is None):
        holds = "no" if saved["compressor"] is None else "a"
        raise InputError(f"compressor must be what was saved; the checkpoint holds {holds} compressor.")
    ddp, model = wrapper_of(model), unwrapped(model)
    resize_like(model, saved["model"], optimizers)
    model.load_state_dict(saved["model"])
    if ddp is not None:
        refresh_ddp_(ddp)
    for average, state in zip(given["ema"], saved["ema"], strict=True):
        resize_like(average, state)
        average.load_state_dict(state)
    for optimizer, state in zip(given["optimizers"], saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    for target, state in zip(given["restore"], saved["restore"], strict=True):
        load_state(target, state)
    if compressor is not None:
        compressor.load_state_dict(saved["compressor"])
    set_random_state(saved["random"])
    return saved["extra"]


def _saved_tensors(adapter: Adapter, state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return zeros of the shapes in a state dict, and buffers that it does not hold at the size of the others."""
    tensors: dict[str, Tensor] = {}
    unsaved = []
    for name in adapter.state_axes:
        module, attribute = adapter.owner(name)
        old = stored_tensor(module, attribute)
        if prefix + name not in state_dict and attribute in module._non_persistent_buffers_set:
            unsaved.append(name)
        else:
            shape = _saved_shape(state_dict, prefix + name, old)
            tensors[name] = torch.zeros(shape, dtype=old.dtype, device=old.device)
    if unsaved:
        first = next(iter(tensors))
        resized = adapter.resize(adapter.states_on(first, tuple(tensors[first].shape)))
        tensors |= {name: resized[name] for name in unsaved}
    return tensors


def _saved_shape(state_dict: Mapping[str, Tensor], key: str, old: Tensor) -> tuple[int, ...]:
    """Return the shape a tensor was saved with, if it can be the tensor at another number of states."""
    saved = state_dict.get(key)
    if not isinstance(saved, Tensor):
        raise InputError(f"state_dict must hold the tensors of every state space layer; got none called {key!r}.")
    shape = tuple(saved.shape)
    if len(shape) != old.ndim or sum(a != b for a, b in zip(shape, old.shape, strict=False)) > 1:
        raise InputError(
            f"{key} must differ from the model in no more than the number of states; got {shape} in state_dict and "
            f"{tuple(old.shape)} in the model. Make the model with the sizes it was first trained with."
        )
    return shape


def write_safely(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file so that its name stands for the old content until the new one is safe on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")  # always this one: kills leave no heap of them
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the new name, too, is to survive a crash of the machine
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
