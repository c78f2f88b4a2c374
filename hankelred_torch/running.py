"""Running a model on a batch, or a layer with other tensors, without a trace."""

from __future__ import annotations

import copy
import inspect
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hankelred.errors import InputError

# Arguments that say where documents begin that are packed into one sequence: cumulative lengths, and others.
LENGTHS = ("cu_seqlens", "cu_seq_lens", "cu_seq_lens_q", "cu_seqlens_q")


class Call(NamedTuple):
    """A call that was seen: whom, and with what."""

    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]  # as it was seen


def call(model: nn.Module, batch: Any) -> None:
    """Call a model with one batch: keywords, an argument, or a tuple that begins with these; or as was seen."""
    if isinstance(batch, list) and batch and isinstance(batch[0], Call):
        for module, args, kwargs in batch:
            module(*args, **kwargs)
    elif isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, (tuple, list)) and batch:
        call(model, batch[0])
    else:
        model(batch)


@contextmanager
def holding(
    layer: nn.Module, tensors: Mapping[str, Tensor], attributes: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Let other tensors and sizes stand in a layer, by their names from there; what was there comes back."""
    with ExitStack() as stack:
        for name, tensor in tensors.items():
            path, _, attribute = name.rpartition(".")
            module = layer.get_submodule(path)
            store: Any = module._parameters if attribute in module._parameters else module._buffers
            stack.callback(store.__setitem__, attribute, store[attribute])
            store[attribute] = tensor
        for name, value in (attributes or {}).items():
            path, _, attribute = name.rpartition(".")
            module = layer.get_submodule(path)
            stack.callback(setattr, module, attribute, getattr(module, attribute))
            setattr(module, attribute, value)
        yield


@contextmanager
def running(model: nn.Module) -> Iterator[None]:
    """Run a model as it is evaluated, uncompiled; modes, random states, buffers and attributes come back."""
    devices = sorted({x.device.index or 0 for x in model.parameters() if x.device.type == "cuda"})
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 (what users' code draws from)
        for context in (torch.random.fork_rng(devices), torch.no_grad(), uncompiled()):
            stack.enter_context(context)
        for module in model.modules():
            for kept in (vars(module), module._parameters, module._buffers):
                stack.callback(_put_back, kept, dict(kept))
        for buffer in model.buffers():
            if not (buffer.is_meta or buffer.is_inference()):
                stack.callback(_restore, buffer, buffer._version, buffer.clone())
        for module in model.modules():  # not by eval(), which classes override
            module.training = False
        yield


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled modules as they were before: hooks set after compilation would not be called."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _put_back(kept: dict[str, Any], before: dict[str, Any]) -> None:
    for key in kept.keys() - before.keys():
        del kept[key]
    kept.update(before)


def _restore(buffer: Tensor, version: int, value: Tensor) -> None:
    """Put a buffer back if it was written to; others are not touched, for the sake of backward passes to come."""
    if buffer._version != version:
        buffer.resize_(value.shape).copy_(value)


def named_arguments(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, as far as the signature tells."""
    try:
        return {**inspect.signature(layer.forward).bind_partial(*args, **kwargs).arguments, **kwargs}
    except (TypeError, ValueError):
        return kwargs


def documents(named: Mapping[str, Any], u: Tensor) -> list[tuple[slice, slice]]:
    """Return where the sequences of a call lie that the layer begins anew with, (rows, steps)."""
    rows, length = u.shape[:2]
    borders = torch.zeros(rows, length, dtype=torch.bool)
    for key, value in named.items():
        if key not in ("seq_idx", "position_ids", *LENGTHS) or not isinstance(value, Tensor):
            continue
        found, known = value.detach().cpu(), value.shape in ((1, length), (rows, length))
        if key in LENGTHS and rows == 1 and found.ndim == 1 and found[-1] <= length:
            borders[0, found[found < length].long()] = True
        elif key not in LENGTHS and known:
            after, before = found[:, 1:], found[:, :-1]
            borders[:, 1:] |= after != before if key == "seq_idx" else after <= before
        else:
            raise InputError(
                f"{key} must be (1, length), (batch, length) or lengths of documents in one row, to be told where the "
                f"layer begins anew; got {tuple(value.shape)} for {rows} rows of {length}. Pass sequences unpacked."
            )
    borders[:, 0] = False
    if not borders.any():
        return [(slice(None), slice(None))]
    places = []
    for row in range(rows):
        cuts = [0, *torch.nonzero(borders[row]).flatten().tolist(), length]
        places += [(slice(row, row + 1), slice(a, b)) for a, b in pairwise(cuts)]
    return places


def drawn_from(batches: Any, most: int) -> Iterator[Any]:
    """Yield the first batches, of a loader by a copy of it, so that whoever else iterates over it is not disturbed."""
    loader = getattr(batches, "base_dataloader", batches)  # accelerate's tells its gradient state of every iteration
    if not isinstance(loader, torch.utils.data.DataLoader):
        yield from islice(loader, most)
        return
    own: Any = copy.copy(loader)
    vars(own)["_iterator"] = None  # persistent workers have one iterator, which a second loop would begin anew
    own.num_workers = min(own.num_workers, 1)
    drawing = (loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    states = [(x, x.get_state()) for y in drawing if isinstance(x := getattr(y, "generator", None), torch.Generator)]
    try:
        yield from islice(own, most)
    finally:
        vars(own)["_iterator"] = None
        for generator, state in states:
            generator.set_state(state)


def on_device(device: torch.device, x: Any) -> Any:
    """Return a batch with its tensors on a device."""
    if isinstance(x, Tensor):
        return x.to(device)
    if isinstance(x, Mapping):
        return {key: on_device(device, value) for key, value in x.items()}
    return type(x)(on_device(device, y) for y in x) if type(x) in (tuple, list) else x
