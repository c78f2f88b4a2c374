"""State space layers of other people's code: recognised, read as systems, written, and seen at work."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..layer_sums import SampleStatistics
from ..sampling import gather
from .add_maps import add_state_maps_
from .base import Adapter, Systems, SystemTensors
from .delta import GatedDeltaAdapter, KimiDeltaAdapter, TiedDeltaAdapter
from .dense import diagonal_layer
from .linear import LinearAdapter
from .lru import LRUAdapter
from .mamba import MambaAdapter
from .mamba2 import GatedLinearAttentionAdapter, Mamba2Adapter
from .registry import adapter_of, check, find_ssm_layers, refusals, register_adapter, state_sizes
from .s4_kernel import SSMKernelDiagAdapter
from .s4d import S4DAdapter, S4DKernelAdapter
from .s5 import S5Adapter, S5PytorchAdapter
from .selective import SelectiveAdapter

__all__ = [
    "Adapter",
    "GatedDeltaAdapter",
    "GatedLinearAttentionAdapter",
    "KimiDeltaAdapter",
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
    "TiedDeltaAdapter",
    "adapter_of",
    "add_state_maps_",
    "check",
    "collect_statistics",
    "diagonal_layer",
    "find_ssm_layers",
    "read_system",
    "refusals",
    "register_adapter",
    "state_sizes",
]


def collect_statistics(model: nn.Module, batches: Any) -> SampleStatistics:
    """Gather what the selective layers of a model do with sample batches, without keeping activations.

    The functions that take `batches` do this themselves. Call it to merge what several processes have seen, and pass
    the result as `batches`.

    Parameters
    ----------
    model : torch.nn.Module
        Runs in evaluation mode without gradients; it and the random generators are afterwards as before.
    batches : iterable
        Inputs of the model, of which eight are drawn at most: tensors, mappings of keyword arguments, or tuples that
        begin with one of these, as a loader gives of inputs and targets.

    Returns
    -------
    SampleStatistics
        Of every selective layer, in memory that grows with neither lengths nor batches.

    Raises
    ------
    InputError
        If the model cannot be called with a batch, or does not call all of its selective layers.
    NumericalError
        If what one of them gets or puts out is not finite, or overflows in sums; with its name.

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
