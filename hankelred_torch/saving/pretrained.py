"""Handing a model over whose layers were cut: to another program, or to code that knows no sizes but one."""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hankelred as hr
from hankelred.checks import check_type
from hankelred.errors import InputError
from hankelred.systems.files import as_path, write_atomically

from ..adapters import find_ssm_layers, state_sizes
from ..adapters.add_maps import add_state_maps_, mapped_layers
from ..convert import to_tensor
from ..layers._inputs import check_size
from ..sharding import Ranks, own_class, ranks_over, reshard, together, whole_state
from ..surgery.ranks import unwrapped
from .files import StrPath, read_content, write_content
from .resize import resize_

FORMAT = "hankelred model 2"
MANIFEST, WEIGHTS = "hankelred.json", "model.pt"

# What configurations of transformers call the number of states, which they have one of for all layers.
SIZE_NAMES = ("state_size", "mamba_d_state", "ssm_state_size", "linear_key_head_dim", "linear_head_dim")

# Two loads of transformers side by side lose weights that are tied (seen in 5.23).
_loading = threading.Lock()


def save_pretrained(model: nn.Module, directory: StrPath) -> None:
    """Save a model whose layers were cut, with a manifest of their sizes.

    A model of transformers is saved by its own ``save_pretrained``, with the manifest in its ``config.json`` under the
    key ``hankelred``. The configuration object that it was made from stays as it is: the model gets a copy.

    Of a model that `fully_shard` has spread over ranks all of them call this. The first one gathers the tensors in its
    host memory, one by one, and writes the whole model.

    Parameters
    ----------
    model : torch.nn.Module
        The model, in wrappers or without; training is over or goes on elsewhere.
    directory : str or path-like
        Made if it is not there; gets ``model.pt``, with the manifest once more in ``hankelred.json`` to be looked at,
        or the files of transformers.

    Raises
    ------
    InputError
        If adapters of PEFT are around the model, whose files do not hold what a cut changes.

    Examples
    --------
    >>> import tempfile, hankelred_torch as ht
    >>> directory = tempfile.mkdtemp()
    >>> ht.save_pretrained(ht.layers.LRU(channels=2, states=5), directory)
    >>> ht.state_sizes(ht.from_pretrained(directory, lambda: ht.layers.LRU(channels=2, states=16)))
    {'': 5}
    """
    inner: Any = unwrapped(model)
    if is_a(inner, "peft", "PeftModel"):
        raise InputError(
            "model must be saved with the tensors that were cut, which adapters of PEFT leave out; got a "
            f"{type(inner).__name__}. Save model.merge_and_unload(), or model.get_base_model() beside the adapter."
        )
    folder = as_path(directory, "directory")
    ranks = ranks_over(inner)
    reshard(inner)
    together(ranks, lambda: _write(inner, folder, ranks))


def _write(model: Any, folder: Path, ranks: Ranks | None) -> None:
    ours = not note_sizes(model)
    state = model.state_dict() if ranks is None else whole_state(model, ranks)
    if ranks is not None and not ranks.leads:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not ours:
        model.save_pretrained(folder, **({} if ranks is None else {"state_dict": state}))
        return
    kind = own_class(model)
    manifest = manifest_of(model) | {"class": f"{kind.__module__}.{kind.__qualname__}"}
    write_content(folder / WEIGHTS, FORMAT, {"manifest": manifest, "state_dict": state})
    write_atomically(folder / MANIFEST, lambda file: file.write(json.dumps(manifest, indent=1).encode()))


def from_pretrained(
    directory: StrPath, model: nn.Module | Callable[[], nn.Module] | type[nn.Module] | None = None, **options: Any
) -> nn.Module:
    """Load what `save_pretrained` saved, layers at the sizes they had.

    Parameters
    ----------
    directory : str or path-like
        The folder.
    model : torch.nn.Module or callable, optional
        A model as before its cuts, or what makes one; of transformers the class, which is found in the files if it is
        one of its own.
    **options
        For the ``from_pretrained`` of transformers.

    Returns
    -------
    torch.nn.Module
        The model, with the weights.

    Raises
    ------
    InputError
        If there is no such model in the folder, it is damaged, or the model does not fit it.

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
    folder = as_path(directory, "directory")
    if (folder / WEIGHTS).is_file():
        saved = read_content(folder / WEIGHTS, FORMAT, "Save the model again with save_pretrained of this edition.")
        manifest = saved["manifest"]
        if model is None:
            raise InputError(
                f"model must be given to load a {manifest['class']}; got none. Pass one as before its cuts."
            )
        if not callable(model):
            raise InputError(f"model must be a module, or what makes one; got {type(model).__name__}.")
        try:
            made = model if isinstance(model, nn.Module) else model()
        except TypeError as error:
            raise InputError(
                f"model must make a model when it is called with nothing; got from it: {error} Pass a model, or a "
                f"function that knows the arguments."
            ) from error
        built = check_type(made, "model", nn.Module)
        try:
            resize_(built, saved["state_dict"])
            unwrapped(built).load_state_dict(saved["state_dict"])
        except (RuntimeError, InputError) as error:
            raise InputError(
                f"model must be of the structure that was saved in {os.fspath(directory)!r}; got another: {error}"
            ) from error
    else:
        config = folder / "config.json"
        settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        if "hankelred" not in settings:
            raise InputError(
                f"directory must hold a {WEIGHTS}, or a config.json with the key hankelred; got "
                f"{os.fspath(directory)!r}. Save with save_pretrained."
            )
        manifest = settings["hankelred"]
        built = _from_transformers(folder, model or _named_class(settings), manifest, options)
    if state_sizes(built) != manifest["state_sizes"]:
        raise InputError(
            f"model must be of the structure that was saved, with layers {manifest['state_sizes']}; got "
            f"{state_sizes(built)}."
        )
    return built


def is_a(model_or_class: Any, package: str, name: str) -> bool:
    """Tell whether an object is of a class of another library, or a class derived from it, without importing that."""
    kind = model_or_class if isinstance(model_or_class, type) else type(model_or_class)
    return any(x.__name__ == name and x.__module__.split(".")[0] == package for x in kind.__mro__)


def manifest_of(model: nn.Module) -> dict[str, Any]:
    """What is written down about a model beside its weights."""
    maps = mapped_layers(model)
    written = {"format": 2, "hankelred": hr.__version__, "state_sizes": state_sizes(model)}
    return written | ({"state_maps": maps} if maps else {})


def note_sizes(model: nn.Module) -> bool:
    """Write the sizes of the layers into a copy of the configuration of a model of transformers; tell if it is one."""
    if not is_a(model, "transformers", "PreTrainedModel"):
        return False
    given: Any = model.config
    config = copy.deepcopy(given)
    config.hankelred = manifest_of(model)
    adapters = find_ssm_layers(model).values()
    sizes = {adapter.states for adapter in adapters}
    # layers of one size need nothing of ours to be loaded, unless a constant of theirs has changed with the size
    constants = [x for adapter in adapters for x in adapter.sizes(adapter.states).values() if not isinstance(x, int)]
    constants += mapped_layers(model)  # what they make has the size it always had
    for name in SIZE_NAMES:
        if len(sizes) == 1 and not constants and isinstance(getattr(config, name, None), int):
            setattr(config, name, *sizes)
    for module in model.modules():
        if getattr(module, "config", None) is given:
            module.config = config
    return True


def _named_class(settings: dict[str, Any]) -> Any:
    """The class of transformers that a config.json names."""
    import transformers

    name = (settings.get("architectures") or [""])[0]
    if not hasattr(transformers, name):
        raise InputError(f"model must be the class of the model; transformers has none called {name!r}.")
    return getattr(transformers, name)


def _from_transformers(folder: Path, model_class: Any, manifest: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """Load by the class's own from_pretrained, through a subclass whose new model gets the sizes before the weights.

    Names in the files may be others than those of the model, which is why sizes are not read from them. The model that
    is returned is one of the class itself.
    """
    if not (isinstance(model_class, type) and is_a(model_class, "transformers", "PreTrainedModel")):
        raise InputError(
            f"model must be a concrete class of transformers for these files, such as MambaForCausalLM; got "
            f"{getattr(model_class, '__name__', model_class)}."
        )

    base: Any = model_class

    def make(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)
        if "state_maps" in manifest:
            add_state_maps_(self, manifest["state_maps"])
        resize_(self, manifest["state_sizes"])

    name, members = base.__name__, {"__init__": make, "__module__": base.__module__}
    resized: Any = type(name, (base,), members)
    with _loading:
        loaded, report = resized.from_pretrained(folder, **options, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(f"The files must hold every tensor of the model; got none for {', '.join(missing)}.")
    loaded.__class__ = model_class
    found: nn.Module = loaded
    return found


def export_padded(model: nn.Module, states: int | None = None) -> nn.Module:
    """A copy of a model whose layers all store the same number of states, for code that knows no other.

    States are added that nothing drives and nothing reads: the tensors of the others stay, and so do the outputs.
    The configuration of a model of transformers gets the number, so that what its ``save_pretrained`` writes is loaded
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
        The padded copy, without wrappers.

    Raises
    ------
    InputError
        If a layer stores more states, or has a norm over its states.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> model = torch.nn.Sequential(ht.layers.LRU(4, 6), ht.layers.LRU(4, 9))
    >>> ht.state_sizes(ht.export_padded(model))
    {'0': 9, '1': 9}
    """
    model = unwrapped(model)
    sizes = state_sizes(model)
    wanted = max(sizes.values(), default=0) if states is None else check_size(states, "states")
    result = copy.deepcopy(model)
    for name, adapter in find_ssm_layers(result).items():
        if sizes[name] > wanted:
            raise InputError(
                f"states must be at least those of every layer; got {wanted} and {sizes[name]} in {name!r}."
            )
        if sizes[name] == wanted:
            continue
        tensors = adapter.pad(adapter.values(), wanted)
        resize_(result, {name: wanted})
        with torch.no_grad():
            for tensor_name, value in tensors.items():
                tensor = adapter.tensor(tensor_name)
                tensor.copy_(to_tensor(value, tensor))
    note_sizes(result)
    return result
