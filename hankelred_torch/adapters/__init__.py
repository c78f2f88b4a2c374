"""Which layers are known, and the way into them: a registry of adapters by class name, open to users."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from hankelred.errors import InputError

from ..convert import stored_tensor, tensor_in_place_of, to_tensor
from .base import Adapter, Systems
from .dense import diagonal_layer
from .linear import LinearAdapter, SystemTensors
from .lru import LRUAdapter
from .mamba import MambaAdapter
from .mamba2 import GatedLinearAttentionAdapter, Mamba2Adapter
from .refused import REFUSED
from .s4_kernel import SSMKernelDiagAdapter
from .s4d import S4DAdapter, S4DKernelAdapter
from .s5 import S5Adapter, S5PytorchAdapter
from .selective import SelectiveAdapter
from .statistics import SampleStatistics, gather

__all__ = [
    "Adapter",
    "GatedLinearAttentionAdapter",
    "LRUAdapter",
    "LinearAdapter",
    "Mamba2Adapter",
    "MambaAdapter",
    "S4DAdapter",
    "S4DKernelAdapter",
    "S5Adapter",
    "S5PytorchAdapter",
    "SSMKernelDiagAdapter",
    "SampleStatistics",
    "SelectiveAdapter",
    "SystemTensors",
    "adapter_of",
    "collect_statistics",
    "diagonal_layer",
    "find_ssm_layers",
    "read_system",
    "register_adapter",
    "state_sizes",
    "write_system",
]

# By qualified class name, so that no package has to be imported to be known.
_REGISTRY: dict[str, type[Adapter]] = {}

# By class name alone: classes of repositories that are no packages, whose modules people copy to where they like.
_BY_NAME: dict[str, type[Adapter]] = {"S4DKernel": S4DKernelAdapter, "SSMKernelDiag": SSMKernelDiagAdapter}


def register_adapter(class_or_qualified_name: type[nn.Module] | str, adapter: type[Adapter]) -> None:
    """Make a layer class known, so that its layers are found, planned for and cut.

    Parameters
    ----------
    class_or_qualified_name : type or str
        The layer class, or its module and name joined by a dot, which imports nothing. Subclasses are covered,
        unless they are registered themselves. The last registration counts.
    adapter : type
        Subclass of `Adapter` for layers of that class.

    Raises
    ------
    InputError
        If an argument is not of its kind.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> class MyLRU(ht.layers.LRU): ...
    >>> ht.register_adapter(MyLRU, ht.adapters.LRUAdapter)
    """
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise InputError(f"adapter must be a subclass of hankelred_torch.adapters.Adapter; got {adapter!r}.")
    if isinstance(class_or_qualified_name, type) and issubclass(class_or_qualified_name, nn.Module):
        class_or_qualified_name = _qualified_name(class_or_qualified_name)
    if not isinstance(class_or_qualified_name, str) or "." not in class_or_qualified_name:
        raise InputError(
            f"class_or_qualified_name must be a module class, or its module and name joined by a dot; "
            f"got {class_or_qualified_name!r}."
        )
    _REGISTRY[class_or_qualified_name] = adapter


def find_ssm_layers(model: nn.Module) -> dict[str, Adapter]:
    """Find the state space layers of a model.

    Parameters
    ----------
    model : torch.nn.Module
        A model, or a single layer, whose name is then the empty string.

    Returns
    -------
    dict of str to Adapter
        By module name, in the order of ``model.named_modules()``; a layer used twice appears once. Empty if the
        model has none.

    Raises
    ------
    InputError
        If a layer's tensors do not fit its adapter.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), ht.layers.LRU(4, 16))
    >>> {name: adapter.states for name, adapter in ht.find_ssm_layers(model).items()}
    {'1': 16}
    """
    found = {}
    for name, module in model.named_modules():
        adapter = _adapter_class(type(module))
        if adapter is not None and not adapter.refusal(module):
            found[name] = adapter(module)
    return found


def state_sizes(model: nn.Module) -> dict[str, int]:
    """Return how many states every state space layer stores.

    Parameters
    ----------
    model : torch.nn.Module
        A model or a single layer.

    Returns
    -------
    dict of str to int
        By module name.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> ht.state_sizes(ht.layers.LRU(channels=4, states=16))
    {'': 16}
    """
    return {name: adapter.states for name, adapter in find_ssm_layers(model).items()}


def collect_statistics(model: nn.Module, batches: Any) -> SampleStatistics:
    """Gather what the selective layers of a model do with sample batches, without keeping activations.

    The functions that take `batches` do this themselves. Call it to merge what several processes have seen, and pass
    the result as `batches`.

    Parameters
    ----------
    model : torch.nn.Module
        Runs in evaluation mode without gradients; its modes, hooks and the random generators are afterwards as before.
    batches : iterable
        Inputs as the model is called with: tensors, tuples of positional or mappings of keyword arguments.

    Returns
    -------
    SampleStatistics
        Of every selective layer, in memory that grows with neither lengths nor batches.

    Raises
    ------
    InputError
        If the model does not call all of its selective layers, or one has data that are not finite.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> layer = ht.layers.Mamba(channels=4, states=16)
    >>> statistics = ht.adapters.collect_statistics(layer, [torch.randn(2, 50, 4) for _ in range(3)])
    >>> statistics.layers[""].sums.steps
    300
    """
    return gather(model, find_ssm_layers(model), batches)


def read_system(layer: nn.Module) -> Systems:
    """Read the linear system a layer computes.

    Parameters
    ----------
    layer : torch.nn.Module
        A layer of a registered class.

    Returns
    -------
    DiagonalSystem or tuple of them
        In double precision, with all that `hankelred` can do with a system; one per channel of a layer that is a
        bank of systems.

    Raises
    ------
    InputError
        If the class is not registered, a tensor is not finite, or the layer is not time-invariant.

    Examples
    --------
    >>> import hankelred as hr, hankelred_torch as ht
    >>> system = ht.read_system(ht.layers.LRU(channels=4, states=16))
    >>> system.n, len(hr.hankel_singular_values(system))  # real output: two values per stored state
    (16, 32)
    """
    adapter = adapter_of(layer)
    return adapter.read(adapter.values())


def write_system(layer: nn.Module, system: Systems) -> None:
    """Make a layer compute a system, as far as its dtype can hold it.

    With the number of states it had, the layer keeps its parameters and gets new values. With another number it gets
    new parameters, which no optimizer knows: in training use `compress_`, or make the optimizer afterwards.

    Parameters
    ----------
    layer : torch.nn.Module
        A layer of a registered class; changed in place, or not at all.
    system : DiagonalSystem or tuple of them
        What the layer is to compute; one per channel for a bank.

    Raises
    ------
    InputError
        If the class is not registered, the layer cannot hold the system, or a tensor is parametrized or pruned.
    NumericalError
        If a value is not finite in the dtype of the layer.

    Examples
    --------
    >>> import hankelred as hr, hankelred_torch as ht
    >>> layer = ht.layers.LRU(channels=4, states=16)
    >>> ht.write_system(layer, hr.balanced_truncation(ht.read_system(layer), states=8).system)
    >>> ht.state_sizes(layer)
    {'': 8}
    """
    adapter = adapter_of(layer)
    values = adapter.write(system)
    olds = {name: stored_tensor(*adapter.owner(name)) for name in values}
    if all(values[name].shape == olds[name].shape for name in adapter.state_axes):
        news = {name: to_tensor(value, olds[name]) for name, value in values.items()}
        with torch.no_grad():
            for name, new in news.items():
                olds[name].copy_(new)
        return
    news = {name: tensor_in_place_of(olds[name], values[name]) for name in adapter.state_axes}
    constants = {name: to_tensor(values[name], olds[name]) for name in adapter.constants if name in values}
    for name, new in news.items():
        module, attribute = adapter.owner(name)
        setattr(module, attribute, new)
    with torch.no_grad():
        for name, new in constants.items():
            olds[name].copy_(new)
    for name, size in adapter.sizes(adapter.states).items():
        module, attribute = adapter.owner(name)
        setattr(module, attribute, size)


def adapter_of(layer: nn.Module) -> Adapter:
    """Return the adapter of one layer.

    Parameters
    ----------
    layer : torch.nn.Module
        A layer of a registered class.

    Returns
    -------
    Adapter
        Bound to the layer.

    Raises
    ------
    InputError
        If the class is not registered.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> ht.adapters.adapter_of(ht.layers.LRU(channels=4, states=16)).kind
    'lti'
    """
    adapter = _adapter_class(type(layer))
    why = refusal(layer)
    if why:
        raise InputError(why)
    if adapter is None:
        raise InputError(
            f"layer must be of a class with an adapter; got {_qualified_name(type(layer))}. "
            f"Known are {', '.join(_REGISTRY)}; add yours with register_adapter."
        )
    return adapter(layer)


def module_types(model: nn.Module) -> str:
    """Return the classes of a model's modules with their counts, for messages about what was not found."""
    counts = Counter(type(module).__qualname__ for module in model.modules())
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def refusal(layer: nn.Module) -> str:
    """Return why a layer that has states cannot be reduced, in a sentence; empty if it can or is none."""
    adapter = _adapter_class(type(layer))
    what = "" if adapter is None else adapter.refusal(layer)
    if what:
        return f"{type(layer).__qualname__} must be a fixed diagonal system to be reduced; got one with {what}."
    if adapter is None:
        for base in type(layer).__mro__:
            if base.__name__ in REFUSED:
                return REFUSED[base.__name__]
    return ""


def _adapter_class(layer_class: type) -> type[Adapter] | None:
    """Return the adapter of the nearest registered base class, or of the nearest one known by its name alone."""
    for base in layer_class.__mro__:
        if _qualified_name(base) in _REGISTRY:
            return _REGISTRY[_qualified_name(base)]
    for base in layer_class.__mro__:
        if base.__name__ in _BY_NAME:
            return _BY_NAME[base.__name__]
    return None


def _qualified_name(layer_class: type) -> str:
    return f"{layer_class.__module__}.{layer_class.__qualname__}"


register_adapter("hankelred_torch.layers.lru.LRU", LRUAdapter)
register_adapter("hankelred_torch.layers.s5.S5", S5Adapter)
register_adapter("s5.s5_model.S5SSM", S5PytorchAdapter)
register_adapter("hankelred_torch.layers.s4d.S4D", S4DAdapter)
register_adapter("hankelred_torch.layers.mamba.Mamba", MambaAdapter)
for _name in (
    "transformers.models.mamba.modeling_mamba.MambaMixer",
    "transformers.models.falcon_mamba.modeling_falcon_mamba.FalconMambaMixer",
    "transformers.models.jamba.modeling_jamba.JambaMambaMixer",
    "mambapy.mamba.MambaBlock",
    "mamba_ssm.modules.mamba_simple.Mamba",
    "fla.layers.mamba.Mamba",
):
    register_adapter(_name, MambaAdapter)
for _name in (
    "transformers.models.mamba2.modeling_mamba2.Mamba2Mixer",
    "transformers.models.bamba.modeling_bamba.BambaMixer",
    "transformers.models.zamba2.modeling_zamba2.Zamba2MambaMixer",
    "transformers.models.nemotron_h.modeling_nemotron_h.NemotronHMamba2Mixer",
    "transformers.models.falcon_h1.modeling_falcon_h1.FalconH1Mixer",
    "transformers.models.granitemoehybrid.modeling_granitemoehybrid.GraniteMoeHybridMambaLayer",
    "mamba_ssm.modules.mamba2.Mamba2",
    "fla.layers.mamba2.Mamba2",
):
    register_adapter(_name, Mamba2Adapter)
register_adapter("fla.layers.gla.GatedLinearAttention", GatedLinearAttentionAdapter)
