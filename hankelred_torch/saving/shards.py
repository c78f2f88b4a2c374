"""Checkpoints of models that are spread over ranks: every rank writes its shards, and any number of ranks reads them.

The shards lie in a folder beside the file, which `torch.distributed.checkpoint` writes and reads; the file names the
folder, and in the place of each tensor that lies there its name, shape and dtype. The file is replaced when the folder
is complete, and an older folder goes when the file is: whenever a rank is killed, the file and its folder are whole.
"""

from __future__ import annotations

import importlib
import secrets
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hankelred.errors import InputError
from hankelred.systems.files import as_path

from ..sharding import Ranks, everyone, is_spread, spread_like
from .files import StrPath, write_content

SHARD = "shard of hankelred"  # key of what stands for a tensor


def write_shards(path: StrPath, kind: str, content: Mapping[str, Any], ranks: Ranks) -> None:
    """Write a file and the folder of shards beside it; all ranks call this in step.

    Parameters
    ----------
    path : str or path-like
        Of the file.
    kind : str
        As of `write_content`.
    content : mapping of str to object
        As of `write_content`, with spread tensors; all else is that of rank 0.
    ranks : Ranks
        Theirs.
    """
    checkpoint: Any = importlib.import_module("torch.distributed.checkpoint")
    path = as_path(path)
    shards: dict[str, Tensor] = {}
    plain = {name: _without_shards(value, name, shards) for name, value in content.items()}
    folder = path.with_name(f"{path.name}.{everyone(secrets.token_hex(4))[0]}")
    checkpoint.save(shards, checkpoint_id=folder, process_group=ranks.group)
    everyone(None)  # all have written
    if ranks.leads:
        files = {x.name: x.stat().st_size for x in sorted(folder.iterdir())}
        try:
            write_content(path, kind, plain | {"shards": {"folder": folder.name, "files": files}})
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for older in path.parent.glob(f"{path.name}.????????"):
            if older != folder and older.is_dir():
                shutil.rmtree(older, ignore_errors=True)


def _without_shards(value: Any, place: str, shards: dict[str, Tensor]) -> Any:
    """Return content with a mark in the place of every spread tensor, which is put aside by its place."""
    if is_spread(value):
        shards[place] = value.detach()
        return {SHARD: place, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, dict):
        return {key: _without_shards(x, f"{place}.{key}", shards) for key, x in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_shards(x, f"{place}.{k}", shards) for k, x in enumerate(value))
    return value


class Shards:
    """Tensors of a checkpoint that lie in the folder beside it, to be read where they are to be.

    Parameters
    ----------
    path : str or path-like
        Of the file.
    saved : mapping of str to object
        Its content.
    ranks : Ranks or None
        Those that read in step; None where this process reads for itself.

    Raises
    ------
    InputError
        If the folder is not what was written.
    """

    def __init__(self, path: StrPath, saved: Mapping[str, Any], ranks: Ranks | None) -> None:
        self._ranks, self._wanted = ranks, dict[str, Tensor]()
        shards: Any = saved.get("shards")
        self._folder = None if shards is None else Path(as_path(path)).with_name(shards["folder"])
        if self._folder is not None:
            found = {x.name: x.stat().st_size for x in self._folder.iterdir()} if self._folder.is_dir() else {}
            if any(found.get(name) != size for name, size in shards["files"].items()):
                raise InputError(
                    f"{self._folder} must hold the shards of {path} as they were written; got files that are missing "
                    f"or of another size. Copy the folder with the file, or take an earlier checkpoint."
                )

    def tensor(self, value: Any, like: Any = None) -> Any:
        """Return the tensor that a mark or a saved tensor stands for, in the form of another; anything else as it is.

        What lies in the folder has its values after `read`. With the shape of `like` it is that very tensor.
        """
        fits = isinstance(like, Tensor) and like.ndim > 0
        if isinstance(value, Tensor):
            spread = fits and value.ndim > 0 and hasattr(like, "device_mesh")
            return spread_like(value, like) if spread else value
        if not is_mark(value):
            return value
        place, shape, dtype = value[SHARD], torch.Size(value["shape"]), getattr(torch, value["dtype"])
        same = fits and like.shape == shape and like.dtype == dtype
        self._wanted[place] = found = like.detach() if same else torch.empty(shape, dtype=dtype)
        return found

    def state(self, state: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
        """Return a state dict for a module of these sizes."""
        own = module.state_dict()
        return {key: self.tensor(x, own.get(key)) for key, x in state.items()}

    def optimizer(self, state: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
        """Return the state of an optimizer, whose averages are spread as its parameters."""
        numbers = [i for group in state["param_groups"] for i in group["params"]]
        held = [p for group in optimizer.param_groups for p in group["params"]]
        params = dict(zip(numbers, held, strict=False))
        kept = {
            i: {key: self.tensor(x, _empty_like(params.get(i), x)) for key, x in entries.items()}
            for i, entries in state["state"].items()
        }
        return {**state, "state": kept}

    def plain(self, value: Any) -> Any:
        """Return content with whole tensors in the places of marks."""
        if is_mark(value) or isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, dict):
            return {key: self.plain(x) for key, x in value.items()}
        return type(value)(self.plain(x) for x in value) if type(value) in (list, tuple) else value

    def read(self) -> None:
        """Read all that was asked for since the last time."""
        checkpoint: Any = importlib.import_module("torch.distributed.checkpoint")
        if self._wanted:
            everyone(None)  # none has failed so far
            group = None if self._ranks is None else self._ranks.group
            alone = self._ranks is None
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as is meant for one process
                checkpoint.load(self._wanted, checkpoint_id=self._folder, process_group=group, no_dist=alone)
        self._wanted = {}


def is_mark(value: Any) -> bool:
    """Tell whether something stands for a tensor in the folder."""
    return isinstance(value, dict) and SHARD in value


def shapes_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with tensors without data in the places of marks, to resize a model by."""
    return {
        key: torch.empty(x["shape"], dtype=getattr(torch, x["dtype"]), device="meta") if is_mark(x) else x
        for key, x in state.items()
    }


def _empty_like(parameter: Any, value: Any) -> Any:
    """Return a tensor to read an average into: as the parameter, if the average has its shape."""
    shape = tuple(value["shape"]) if is_mark(value) else tuple(value.shape) if isinstance(value, Tensor) else None
    if not isinstance(parameter, Tensor) or shape != tuple(parameter.shape):
        return None
    dtype = getattr(torch, value["dtype"]) if is_mark(value) else value.dtype
    return torch.empty_like(parameter.detach(), dtype=dtype)
