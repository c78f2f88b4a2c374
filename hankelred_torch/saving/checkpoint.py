"""Stopping and going on when the layers of a model have not the sizes they were made with.

A `state_dict` of other shapes loads nowhere, and an optimizer takes a state of other shapes without a word. So layers
are resized first, from the shapes in the checkpoint itself. Files appear under their name only when they are complete
and on the disk: whenever a run is killed, the last checkpoint is a whole one. A load that fails changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from hankelred.errors import HankelredError, InputError

from ..adapters import Adapter, find_ssm_layers
from ..randomness import random_state, set_random_state
from ..sharding import Ranks, everyone, ranks_over, reshard, together
from ..surgery import as_models, as_optimizers, refresh_ddp_
from ..surgery.ranks import opened, unwrapped
from ..surgery.snapshot import Snapshot, as_restorable, load_state, state_of
from .files import StrPath, read_content, write_content
from .resize import resize_layers
from .shards import Shards, shapes_of, write_shards

FORMAT = "hankelred checkpoint 2"
ADVICE = (
    "A checkpoint of an earlier edition cannot be read: finish its run with that one, or load its weights. "
    "For a plain state dict call resize_ and load it."
)


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
    checkpoint, the old one or the new one. What cannot be read back is refused here, not when the run is to go on.

    Parameters
    ----------
    path : str or path-like
        Where; an existing file is replaced. Of a model that `fully_shard` has spread over ranks all of them call this,
        and their shards lie in a folder beside the file, whose name begins with that of the file.
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
        Plain values of your own, such as the position in the data. Numbers of NumPy come back as Python's.

    Raises
    ------
    InputError
        If something in `restore` has no state, or a value is none that a file can hold, with its place.

    Examples
    --------
    >>> import os, tempfile, torch, hankelred_torch as ht
    >>> layer = ht.layers.LRU(channels=2, states=4)
    >>> path = os.path.join(tempfile.mkdtemp(), "run.pt")
    >>> ht.save_checkpoint(path, layer, extra={"step": 7})
    >>> ht.load_checkpoint(path, ht.layers.LRU(channels=2, states=16))
    {'step': 7}
    """
    inner = unwrapped(model)
    reshard(inner, *as_models(ema))
    content = {
        "model": inner.state_dict(),
        "ema": [x.state_dict() for x in as_models(ema)],
        "optimizers": [(type(x).__qualname__, x.state_dict()) for x in as_optimizers(optimizers)],
        "compressor": None if compressor is None else _checked(compressor).state_dict(),
    }
    own = {
        "restore": [(type(x).__qualname__, state_of(x)) for x in as_restorable(restore)],
        "random": random_state(),
        "extra": extra,
    }
    if (ranks := ranks_over(inner)) is None:
        write_content(path, FORMAT, content | own)
    else:
        together(ranks, lambda: write_shards(path, FORMAT, content | {**own, "ranks": everyone(own)}, ranks))


@torch.inference_mode(False)  # else what is made inside inference mode could never be trained
def load_checkpoint(
    path: StrPath,
    model: nn.Module,
    optimizers: Any = (),
    compressor: Any = None,
    ema: Any = (),
    restore: Iterable[Any] = (),
) -> Any:
    """Go on where `save_checkpoint` was called: resize the layers, then load everything, random states included.

    On one machine a run on the CPU continues bit for bit. What was saved on some ranks can be loaded on more, fewer,
    or one, sharded or whole, and the reverse; each rank then goes on with the random states of the rank of its number,
    and with what rank 0 had in `restore` and `extra`.

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
        If the file is no whole checkpoint, or what is given differs from what was saved in number, class, names or
        shapes; everything is as before then.

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
    saved = read_content(path, FORMAT, ADVICE)
    ranks, model, layers = opened(model)
    spread = None if ranks is None or ranks.ddp is not None else ranks
    saved |= _of_this_rank(saved.get("ranks", ()), spread)
    given = {"ema": as_models(ema), "optimizers": as_optimizers(optimizers), "restore": as_restorable(restore)}
    for name, objects in given.items():
        if len(objects) != len(saved[name]):
            raise InputError(
                f"{name} must be what was saved; got {len(objects)} and {len(saved[name])} in the checkpoint. "
                f"Pass the same objects in the same order."
            )
    for name in ("optimizers", "restore"):
        kinds, wanted = [type(x).__qualname__ for x in given[name]], [kind for kind, _ in saved[name]]
        if kinds != wanted:
            raise InputError(f"{name} must be what was saved; got {kinds} and {wanted} in the checkpoint.")
    if (compressor is None) != (saved["compressor"] is None):
        holds = "no" if saved["compressor"] is None else "a"
        raise InputError(f"compressor must be what was saved; the checkpoint holds {holds} compressor.")
    compressor = None if compressor is None else _checked(compressor)
    models = [(model, layers), *((x, find_ssm_layers(x)) for x in given["ema"])]
    before = Snapshot((model, *given["ema"]), given["optimizers"], given["restore"])
    counters = None if compressor is None else compressor.state_dict()
    try:
        together(spread, lambda: _load(saved, Shards(path, saved, spread), models, given, compressor))
        if ranks is not None and ranks.ddp is not None:
            refresh_ddp_(ranks.ddp)
    except BaseException as error:
        before.restore()
        if compressor is not None:
            compressor.load_state_dict(counters)
        if isinstance(error, (HankelredError, KeyboardInterrupt)) or not isinstance(error, Exception):
            raise
        raise InputError(
            f"model and optimizers must be made as those that were saved; got others: {error}. Nothing was changed."
        ) from error
    return saved["extra"]


def _checked(compressor: Any) -> Any:
    if not all(callable(getattr(compressor, name, None)) for name in ("rollback", "state_dict", "load_state_dict")):
        raise InputError(f"compressor must be an InTrainingCompressor; got {type(compressor).__name__}.")
    return compressor


def _of_this_rank(saved: Sequence[Mapping[str, Any]], ranks: Ranks | None) -> dict[str, Any]:
    """Return what the rank of this number saved of its own; of another number of ranks, what rank 0 did, or nothing.

    Ranks beyond those that saved keep their random states, so as not to draw what others draw.
    """
    rank, number = (0, 1) if ranks is None else (ranks.rank, dist.get_world_size(ranks.group))
    if not saved or len(saved) == number:
        return dict(saved[rank]) if saved else {}
    return {**saved[0], "random": saved[rank]["random"] if rank < len(saved) else None}


def _load(
    saved: Mapping[str, Any],
    shards: Shards,
    models: list[tuple[nn.Module, dict[str, Adapter]]],
    given: Mapping[str, tuple[Any, ...]],
    compressor: Any,
) -> None:
    """Put everything in its place."""
    for (module, layers), state in zip(models, (saved["model"], *saved["ema"]), strict=True):
        resize_layers(module, layers, shapes_of(state), given["optimizers"])
        found = shards.state(state, module)
        shards.read()
        module.load_state_dict(found)
    for optimizer, (_, state) in zip(given["optimizers"], saved["optimizers"], strict=True):
        found = shards.optimizer(state, optimizer)
        shards.read()
        load_state(optimizer, found)
    for target, (_, state) in zip(given["restore"], saved["restore"], strict=True):
        load_state(target, state)
    if compressor is not None:
        found = shards.plain(saved["compressor"])
        shards.read()
        compressor.load_state_dict(found)
    if saved["random"] is not None:
        set_random_state(saved["random"])
