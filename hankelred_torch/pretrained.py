"""Handing a model over whose layers were cut: to another program, or to code that knows no sizes but one."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

import hankelred as hr
from hankelred.errors import InputError

from .adapters import find_ssm_layers, state_sizes
from .checkpoint import StrPath, resize_like, resize_to, write_safely
from .convert import to_tensor
from .surgery import write_system

MANIFEST, WEIGHTS = "hankelred.json", "model.pt"

# What configurations of transformers call the number of states, which they have one of for all layers.
SIZE_NAMES = ("state_size", "mamba_d_state", "ssm_state_size")


def save_pretrained(model: nn.Module, directory: StrPath) -> None:
    """Save a model whose layers were cut, with a manifest of their sizes.

    A model of Hugging Face is saved by its own ``save_pretrained``, with the manifest in its ``config.json`` under the
    key ``hankelred``.

    Parameters
    ----------
    model : torch.nn.Module
        The model; training is over or goes on elsewhere.
    directory : str or path-like
        Made if it is not there; gets ``model.pt`` and ``hankelred.json``, or the files of Hugging Face.

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
    manifest = manifest_of(model)
    if note_sizes(model):
        cast(Any, model).save_pretrained(folder)
        return
    manifest["class"] = f"{type(model).__module__}.{type(model).__qualname__}"
    write_safely(folder / WEIGHTS, lambda file: torch.save(model.state_dict(), file))
    write_safely(folder / MANIFEST, lambda file: file.write(json.dumps(manifest, indent=1).encode()))


def from_pretrained(
    directory: StrPath, model: nn.Module | Callable[[], nn.Module] | type[nn.Module] | None = None, **options: Any
) -> nn.Module:
    """Load what `save_pretrained` saved, layers at the sizes they had.

    Parameters
    ----------
    directory : str or path-like
        Where it was saved.
    model : torch.nn.Module, callable or type, optional
        A model of that structure, as before its cuts, or what makes one. For a model of Hugging Face its class, by
        default the one that its ``config.json`` names.
    **options
        For ``from_pretrained`` of Hugging Face, such as ``dtype`` or ``device_map``.

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
    if (folder / MANIFEST).is_file():
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if model is None:
            raise InputError(
                f"model must be given to load a {manifest['class']}; got none. Pass one as before its cuts."
            )
        built = model if isinstance(model, nn.Module) else model()
        state = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
        resize_like(built, state)
        built.load_state_dict(state)
    else:
        config = folder / "config.json"
        settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        if "hankelred" not in settings:
            raise InputError(
                f"directory must hold a {MANIFEST}, or a config.json with the key hankelred; got "
                f"{os.fspath(directory)!r}. Save with save_pretrained."
            )
        manifest = settings["hankelred"]
        built = _from_hugging_face(folder, model or _named_class(settings), manifest["state_sizes"], options)
    if state_sizes(built) != manifest["state_sizes"]:
        raise InputError(
            f"model must be of the structure that was saved, with layers {manifest['state_sizes']}; got "
            f"{state_sizes(built)}."
        )
    return built


def manifest_of(model: nn.Module) -> dict[str, Any]:
    """Return what is written down about a model beside its weights."""
    return {"format": 1, "hankelred": hr.__version__, "state_sizes": state_sizes(model)}


def note_sizes(model: nn.Module) -> bool:
    """Write the sizes of the layers into the configuration of a model of Hugging Face; tell whether it is one."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(model, "save_pretrained"):
        return False
    config.hankelred = manifest_of(model)
    adapters = find_ssm_layers(model).values()
    sizes = {adapter.states for adapter in adapters}
    # layers of one size need nothing of ours to be loaded, unless a constant of theirs has changed with the size
    constants = [x for adapter in adapters for x in adapter.sizes(adapter.states).values() if not isinstance(x, int)]
    for name in SIZE_NAMES:
        if len(sizes) == 1 and not constants and isinstance(getattr(config, name, None), int):
            setattr(config, name, *sizes)
    return True


def _named_class(settings: dict[str, Any]) -> Any:
    """Return the class of transformers that a config.json names."""
    import transformers

    name = (settings.get("architectures") or [""])[0]
    if not hasattr(transformers, name):
        raise InputError(f"model must be the class of the model; transformers has none called {name!r}.")
    return getattr(transformers, name)


def _from_hugging_face(folder: Path, model_class: Any, sizes: dict[str, int], options: dict[str, Any]) -> nn.Module:
    """Load by the class's own from_pretrained, whose new model gets the sizes before the weights.

    The class itself does it, not a subclass, so that dtype, device maps and what is saved later are as ever. Names in
    the files may be others than those of the model, which is why sizes are not read from them.
    """
    if not hasattr(model_class, "from_pretrained"):
        raise InputError(f"model must be a class of Hugging Face for these files; got {model_class!r}.")
    make = model_class.__init__

    def make_resized(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        resize_to(self, sizes)

    model_class.__init__ = make_resized
    try:
        return cast(nn.Module, model_class.from_pretrained(folder, **options))
    finally:
        model_class.__init__ = make


def export_padded(model: nn.Module, states: int | None = None) -> nn.Module:
    """Return a copy of a model whose layers all store the same number of states, for code that knows no other.

    States are added that nothing drives and nothing reads: the outputs stay, to the rounding of writing a layer anew.
    The configuration of a model of Hugging Face gets the number, so that what its ``save_pretrained`` writes is loaded
    by its class without hankelred.

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
        If a layer stores more states, is a bank of systems, or has a norm over its states.

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
        if sizes[name] == wanted:
            continue
        if adapter.kind == "selective":
            tensors = adapter.pad(adapter.values(), wanted)
            resize_to(result, {name: wanted})
            with torch.no_grad():
                for tensor_name, value in tensors.items():
                    tensor = adapter.tensor(tensor_name)
                    tensor.copy_(to_tensor(value, tensor))
        else:
            write_system(adapter.layer, _padded(name, adapter.read(adapter.values()), wanted - sizes[name]))
    note_sizes(result)
    return result


def _padded(name: str, system: Any, extra: int) -> hr.DiagonalSystem:
    """Return the system with states that have neither input nor output, at the pole the system has already."""
    if not isinstance(system, hr.DiagonalSystem):
        raise InputError(f"Layers to be padded must be one linear system each; got a bank of them in {name!r}.")
    B = np.vstack([system.B, np.zeros((extra, system.m))])
    C = np.hstack([system.C, np.zeros((system.p, extra))])
    poles = {name: np.r_[x, np.repeat(x[:1], extra)] for name, x in system.spectrum.data.items()}
    return system.with_(**poles, B=B, C=C)
