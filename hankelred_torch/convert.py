"""Tensors to arrays and back: the only place that knows dtype, device and what hangs on a parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hankelred.checks import Array
from hankelred.errors import InputError, NumericalError

from .sharding import local, whole

K = TypeVar("K")


def to_arrays(tensors: Mapping[K, Tensor], holder: str = "the model") -> dict[K, Array]:
    """Copy tensors as float64 or complex128 arrays on the CPU, by name, as `to_array` does one."""
    return {name: to_array(x, f"{name} of {holder}") for name, x in tensors.items()}


def to_array(tensor: Tensor, name: str = "A tensor of the model") -> Array:
    """Copy a tensor as a float64 or complex128 array on the CPU.

    Parameters
    ----------
    tensor : torch.Tensor
        Floating point or complex, on any device, with or without a graph.
    name : str
        What to call it if it cannot be read.

    Returns
    -------
    ndarray
        Of the same shape; every value of a narrower dtype is exact in it.

    Raises
    ------
    InputError
        If the tensor holds neither real nor complex floating point numbers, or has no data.

    Notes
    -----
    A tensor that is spread over ranks is gathered, for which all of them have to call this.
    """
    _check_whole(tensor, name)
    if hasattr(tensor, "device_mesh"):
        tensor = whole(tensor, name)
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return np.array(tensor.detach().to("cpu", wide).numpy())


def check_whole(tensors: Mapping[str, Tensor], holder: str) -> None:
    """Refuse tensors that are no plain numbers: offloaded, or quantised."""
    for name, x in tensors.items():
        _check_whole(x, f"{name} of {holder}")


def _check_whole(tensor: Tensor, name: str) -> None:
    kind = type(tensor).__name__
    if tensor.is_meta:
        raise InputError(
            f"{name} must hold its data; got a meta tensor. Load the weights first; of an offloaded model bring them "
            f"back by accelerate.hooks.remove_hook_from_submodules(model)."
        )
    here = local(tensor) if hasattr(tensor, "device_mesh") else tensor
    subclass = hasattr(here, "__tensor_flatten__")
    if not (tensor.is_floating_point() or tensor.is_complex()) or subclass:
        raise InputError(
            f"{name} must be floating point or complex; got {tensor.dtype} in a {kind}. If it is quantised, cut the "
            f"model before, or load it without quantisation or call its dequantize()."
        )


def to_tensors(arrays: Mapping[K, Array], likes: Mapping[K, Tensor]) -> dict[K, Tensor]:
    """Make tensors of arrays, each of the dtype and device of another; without those that are not finite there."""
    made = {key: torch.from_numpy(np.array(x, order="C")).to(likes[key].dtype) for key, x in arrays.items()}
    return {key: x.to(likes[key].device) for key, x in made.items() if bool(torch.isfinite(x).all())}


def to_tensor(array: Array, like: Tensor, name: str = "A new value") -> Tensor:
    """Return an array as a tensor of the dtype and device of another.

    Parameters
    ----------
    array : ndarray
        Any shape.
    like : torch.Tensor
        Gives dtype and device.
    name : str, default "A new value"
        What it is, for the error.

    Returns
    -------
    torch.Tensor
        Contiguous, owning its memory.

    Raises
    ------
    NumericalError
        If a value is not finite, or not in that dtype.
    """
    made = to_tensors({"": array}, {"": like})
    if not made:
        raise NumericalError(
            f"{name} must be finite in {like.dtype}; got {np.abs(array).max():.3g} as the largest of an array "
            f"of shape {array.shape}. If the adapter is your own: its `tensors` must give finite values for every "
            f"stable system, and reduced ones have real poles, with phase 0, at times."
        )
    return made[""]


def rounded(arrays: Mapping[str, Array], likes: Mapping[str, Tensor]) -> dict[str, Array]:
    """Return arrays as they are when they are stored in the dtypes of tensors; raise where they are not finite then."""
    return {name: to_array(to_tensor(x, likes[name], f"The new {name}")) for name, x in arrays.items()}


def tensors_in_place_of(olds: Mapping[str, Tensor], arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Make new parameters or buffers of arrays, of any shape, that can stand where old ones stood, by name.

    A `NumericalError` says that a value is not finite in the dtype of the old tensor.
    """
    return standing_in(olds, {name: to_tensor(arrays[name], old, f"The new {name}") for name, old in olds.items()})


def standing_in(olds: Mapping[K, Tensor], tensors: Mapping[K, Tensor]) -> dict[K, Tensor]:
    """Make parameters or buffers of tensors, with all that hangs on old ones in whose places they are to stand.

    The tensors are of the dtype and device of the old ones, whose ``requires_grad``, attributes and hooks the new ones
    have, and no gradients; hooks are shared, so that a handle the user kept still removes its hook.
    """
    made = {}
    for key, tensor in tensors.items():
        old = olds[key]
        made[key] = new = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
        if new is not tensor:
            new.__dict__.update(old.__dict__)  # torch keeps users' attributes there: learning rate, weight decay, ...
            for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
                if getattr(old, hooks) is not None:
                    setattr(new, hooks, getattr(old, hooks))
    return made


def stored_tensors(root: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Find parameters and buffers that can be replaced, by their names from a module; raise with what to do first."""
    found = {}
    for name in names:
        path, _, attribute = name.rpartition(".")
        found[name] = _stored(root.get_submodule(path), attribute)
    return found


def _stored(layer: nn.Module, name: str) -> Tensor:
    for store in (layer._parameters, layer._buffers):
        tensor = store.get(name)
        if tensor is not None:
            return tensor
    if nn.utils.parametrize.is_parametrized(layer, name):
        raise InputError(
            f"{name} of {type(layer).__qualname__} must be a plain parameter to be replaced; got a parametrized one. "
            f"Call torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r}) first."
        )
    if f"{name}_orig" in layer._parameters:
        raise InputError(
            f"{name} of {type(layer).__qualname__} must be a plain parameter to be replaced; got a pruned one. "
            f"Call torch.nn.utils.prune.remove(layer, {name!r}) first."
        )
    kind = type(getattr(layer, name)).__name__
    if type(layer).__module__.startswith("peft."):
        raise InputError(
            f"{name} must be a plain parameter to be replaced; got one that PEFT has wrapped in a "
            f"{type(layer).__qualname__}. Call merge_and_unload() first, or let PEFT adapt other modules than those "
            f"that carry states."
        )
    raise InputError(
        f"{name} of {type(layer).__qualname__} must be a parameter or buffer to be replaced; got a plain {kind}."
    )


def first(output: Any) -> Tensor:
    """Return the tensor a layer puts out, or the first of several."""
    return output[0] if isinstance(output, (tuple, list)) else output
