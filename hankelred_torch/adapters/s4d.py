"""Adapters of S4D layers: a bank of systems, one per channel, with an input matrix of 1.

Only the product of a state's input and output weight counts for its channel. All of it is stored in C, the zero-order
hold included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch import view_as_complex as as_complex
from torch import view_as_real as as_pairs

from ..layers._continuous import held_input
from .linear import LinearAdapter


class S4DKernelAdapter(LinearAdapter):
    """Adapter of ``S4DKernel`` of the repository state-spaces/s4 and of layers with the same tensors.

    ``y = 2 Re(C x)`` with ``x' = A x + u`` and ``A = -exp(log_A_real) + 1j A_imag``; u is held for ``exp(log_dt)``.
    """

    state_axes: ClassVar[Mapping[str, int]] = {"log_A_real": 1, "A_imag": 1, "C": 1}
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {"rates": ("log_A_real", "A_imag"), "C": ("C",)}
    constants: ClassVar[tuple[str, ...]] = ("log_dt",)
    is_bank = True

    def system(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the channels in discrete time, the hold in C."""
        poles = torch.complex(-tensors["log_A_real"].exp(), tensors["A_imag"])
        rates = poles * tensors["log_dt"].exp()[:, None]
        C = 2 * held_input(poles, rates) * as_complex(tensors["C"].contiguous())
        return rates, torch.ones_like(C)[:, :, None], C[:, None, :]

    def tensors(self, rates: Tensor, B: Tensor, C: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a bank, at the steps that the layer has."""
        poles = rates / like["log_dt"].exp()[:, None]
        C = B[:, :, 0] * C[:, 0] / (2 * held_input(poles, rates))
        return {"log_A_real": (-poles.real).log(), "A_imag": poles.imag, "C": as_pairs(C)}


class S4DAdapter(S4DKernelAdapter):
    """Adapter of `hankelred_torch.layers.S4D`, the same with a feedthrough of every channel.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> adapter = ht.find_ssm_layers(ht.layers.S4D(channels=2, states=8))[""]
    >>> type(adapter) is ht.adapters.S4DAdapter, adapter.states
    (True, 8)
    """

    constants = ("log_dt", "D")

    def system(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the channels in discrete time, the hold in C."""
        return *super().system(tensors), tensors["D"][:, None, None]
