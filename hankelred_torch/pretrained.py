"""Handing a model over whose layers were cut: to another program, or to code that knows no sizes but one."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import hankelred as hr
from hankelred.errors import InputError

from .adapters import find_ssm_layers, state_sizes, write_system
from .checkpoint import StrPath, resize_like, write_safely

MANIFEST, WEIGHTS = "hankelred.json", "model.pt"


def save_pretrained(model: nn.Module, directory: StrPath) -> None:
    """Save a model whose layers were cut, with a manifest of their sizes.

    Parameters
    ----------
    model : torch.nn.Module
        The model; training is over or goes on elsewhere.
    directory : str or path-like
        Made if it is not there; gets ``model.pt`` and ``hankelred.json``.

    Examples
    --------
    >>> import tempfile, hankelred_torch as ht
    >>> directory = tempfile.mkdtemp()
    >>> ht.save_pretrained(ht.layers.LRU(channels=2, states=5), directory)
    >>> ht.state_sizes(ht.from_pretrained(directory, lambda: ht.layers.LRU(channels=2, states=16)))
    {'': 5}
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "format": 1,
        "hankelred": hr.__version__,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "state_sizes": state_sizes(model),
    }
    text = json.dumps(manifest, indent=1)
    write_safely(folder / WEIGHTS, lambda file: torch.save(model.state_dict(), file))
    write_safely(folder / MANIFEST, lambda file: file.write(text.encode()))


def from_pretrained(directory: StrPath, model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Load what `save_pretrained` saved into a model made as before its cuts.

    Parameters
    ----------
    directory : str or path-like
        Where it was saved.
    model : torch.nn.Module or callable
        A model of that structure, or what makes one; layers are resized as the manifest says.

    Returns
    -------
    torch.nn.Module
        The model, with the weights.

    Raises
    ------
    InputError
        If there is no manifest, or the weights do not fit it.

    Examples
    --------
    >>> import tempfile, torch, hankelred_torch as ht
    >>> layer = ht.layers.LRU(channels=2, states=5)
    >>> directory = tempfile.mkdtemp()
    >>> ht.save_pretrained(layer, directory)
    >>> loaded = ht.from_pretrained(directory, ht.layers.LRU(channels=2, states=16))
    >>> torch.equal(loaded.nu_log, layer.nu_log)
    True
    """
    folder = Path(directory)
    if not (folder / MANIFEST).is_file():
        raise InputError(f"directory must hold a {MANIFEST}; got {os.fspath(directory)!r}. Save with save_pretrained.")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    built = model if isinstance(model, nn.Module) else model()
    state = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    sizes = resize_like(built, state)
    if sizes != manifest["state_sizes"]:
        raise InputError(
            f"model must be of the structure that was saved, with layers {manifest['state_sizes']}; got {sizes}."
        )
    built.load_state_dict(state)
    return built


def export_padded(model: nn.Module, states: int | None = None) -> nn.Module:
    """Return a copy of a model whose layers all store the same number of states, for code that knows no other.

    States are added that nothing drives and nothing reads: the outputs stay, to the rounding of writing a layer anew.

    Parameters
    ----------
    model : torch.nn.Module
        The model; unchanged.
    states : int, optional
        Stored states of every layer of the copy; by default those of the largest layer.

    Returns
    -------
    torch.nn.Module
        The padded copy.

    Raises
    ------
    InputError
        If a layer stores more states, or is not a single time-invariant system.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> model = torch.nn.Sequential(ht.layers.LRU(4, 6), ht.layers.LRU(4, 9))
    >>> ht.state_sizes(ht.export_padded(model))
    {'0': 9, '1': 9}
    """
    sizes = state_sizes(model)
    wanted = max(sizes.values(), default=0) if states is None else states
    result = copy.deepcopy(model)
    for name, adapter in find_ssm_layers(result).items():
        if sizes[name] > wanted:
            raise InputError(
                f"states must be at least those of every layer; got {wanted} and {sizes[name]} in {name!r}."
            )
        if sizes[name] < wanted:
            write_system(adapter.layer, _padded(name, adapter.read(adapter.values()), wanted - sizes[name]))
    return result


def _padded(name: str, system: Any, extra: int) -> hr.DiagonalSystem:
    """Return the system with states that have neither input nor output, at the pole the system has already."""
    if not isinstance(system, hr.DiagonalSystem):
        raise InputError(f"Layers to be padded must be one linear system each; got a bank of them in {name!r}.")
    B = np.vstack([system.B, np.zeros((extra, system.m))])
    C = np.hstack([system.C, np.zeros((system.p, extra))])
    kind: dict[str, Any] = {"dt": system.dt, "output": system.output}
    if system.rates is None:
        return hr.DiagonalSystem(np.r_[system.lam, np.repeat(system.lam[:1], extra)], B, C, system.D, **kind)
    return hr.DiagonalSystem.from_rates(np.r_[system.rates, np.repeat(system.rates[:1], extra)], B, C, system.D, **kind)
