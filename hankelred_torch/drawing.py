"""Batches of samples: drawn so that nobody else is disturbed, and by ranks in step as many on each."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hankelred.errors import InputError

from .layer_sums import SampleStatistics
from .randomness import way_back
from .sharding import everyone, own_place


class Spare(NamedTuple):
    """A batch of another rank, which runs along where all ranks have to, and does not count."""

    batch: Any


def check_batches(adapters: Mapping[str, Any], batches: Any) -> None:
    """Raise if there are selective layers and nothing to see them at work on."""
    selective = [name or type(x.layer).__qualname__ for name, x in adapters.items() if x.kind == "selective"]
    if isinstance(batches, SampleStatistics) or batches is None and not selective:
        return
    if batches is None:
        raise InputError(
            f"batches must be given for layers whose matrices depend on their input; got none for "
            f"{', '.join(selective)}. Pass a list of some sample inputs of the model, tensors or what else it is "
            f"called with; or leave these layers out by target_modules."
        )
    if isinstance(batches, (Tensor, np.ndarray, Mapping, str, bytes)) or not hasattr(batches, "__iter__"):
        raise InputError(
            f"batches must be an iterable of inputs of the model; got one {type(batches).__name__}. Put it into a list."
        )


def drawn_by_all(batches: Any, most: int) -> list[tuple[Any, bool]]:
    """Return batches, each with whether it counts, as many on every rank.

    A pass of a spread model needs all ranks: those whose batches are used up run one again that does not count, and
    those that have none, one of another rank.
    """
    own = list(_drawn(batches, most))
    numbers = everyone(len(own))
    spare = own[-1:]
    if min(numbers) == 0 < max(numbers):
        giver = next(k for k, x in enumerate(numbers) if x)
        given = everyone(on_device(torch.device("cpu"), own[0]) if own_place() == giver else None)
        spare = spare or [given[giver]]
    kinds = everyone(next(_kind(x) for x in (*own, *spare)) if max(numbers) else "")
    if len(set(kinds)) > 1:
        raise InputError(f"batches must be of one kind on all ranks; got {', '.join(map(str, kinds))}.")
    more = (max(numbers) - len(own)) * spare
    return [*((x, True) for x in own), *((x, False) for x in more)]


def _kind(batch: Any) -> str:
    """Say what a batch is made of, without its sizes."""
    if isinstance(batch, Tensor):
        return f"{batch.dtype} of {batch.ndim} axes"
    if isinstance(batch, Mapping):
        return str({key: _kind(x) for key, x in batch.items()})
    return str([_kind(x) for x in batch]) if isinstance(batch, (tuple, list)) else type(batch).__name__


def _drawn(batches: Any, most: int) -> Iterator[Any]:
    """Yield the first batches, of a loader by a copy of it, so that whoever else iterates over it is not disturbed."""
    loader = getattr(batches, "base_dataloader", batches)  # accelerate's tells its gradient state of every iteration
    if not isinstance(loader, torch.utils.data.DataLoader):
        yield from islice(loader, most)
        return
    own: Any = copy.copy(loader)
    vars(own)["_iterator"] = None  # persistent workers have one iterator, which a second loop would begin anew
    own.num_workers = min(own.num_workers, 1)
    drawing = (loader.dataset, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    kept = [vars(x) for x in (loader, *drawing) if hasattr(x, "__dict__")]  # epochs, places and generators
    with ExitStack() as stack:
        stack.callback(vars(own).__setitem__, "_iterator", None)
        for attributes in kept:
            stack.callback(put_back, [(attributes, dict(attributes))])
            for back in filter(None, map(way_back, attributes.values())):
                stack.callback(back)
        yield from islice(own, most)


def on_device(device: torch.device, x: Any) -> Any:
    """Return a batch with its tensors on a device."""
    if isinstance(x, Tensor):
        return x.to(device)
    if isinstance(x, Mapping):
        return {key: on_device(device, value) for key, value in x.items()}
    return type(x)(on_device(device, y) for y in x) if type(x) in (tuple, list) else x


def put_back(dicts: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Give dicts the entries they had, and no others."""
    for kept, before in dicts:
        for key in kept.keys() - before.keys():
            del kept[key]
        kept.update(before)
