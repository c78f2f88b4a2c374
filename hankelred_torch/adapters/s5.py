"""Adapters of S5 layers: all inputs to all outputs, stored in continuous time with a step for every state.

A reduced state is a mixture of old ones. Its step is the geometric mean of theirs, its pole in continuous time the one
whose phase per step is next to theirs: a state that is kept keeps its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch import view_as_complex as as_complex
from torch import view_as_real as as_pairs

from hankelred.checks import Array

from ..layers._continuous import held_input
from .linear import LinearAdapter


class S5Adapter(LinearAdapter):
    """Adapter of `hankelred_torch.layers.S5` and of layers with the same tensors, ``y = 2 Re(C x) + D u``.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> adapter = ht.find_ssm_layers(ht.layers.S5(channels=2, states=8))[""]
    >>> type(adapter) is ht.adapters.S5Adapter, adapter.states
    (True, 8)
    """

    state_axes: ClassVar[Mapping[str, int]] = {"Lambda_re": 0, "Lambda_im": 0, "log_step": 0, "B": 0, "C": 1}
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {"rates": ("Lambda_re", "Lambda_im"), "B": ("B",), "C": ("C",)}
    constants = ("D",)

    def system(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the system in discrete time, by its rates."""
        poles = torch.complex(tensors["Lambda_re"], tensors["Lambda_im"])
        C = 2 * as_complex(tensors["C"].contiguous())
        return *held(poles, tensors["log_step"], tensors["B"]), C[None], tensors["D"].diag()[None]

    def tensors(self, rates: Tensor, B: Tensor, C: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a system at given steps."""
        poles, B = not_held(rates, B, like["log_step"])
        return {"Lambda_re": poles.real, "Lambda_im": poles.imag, "B": as_pairs(B), "C": as_pairs(C[0] / 2)}


class S5PytorchAdapter(LinearAdapter):
    """Adapter of ``S5SSM`` of the package s5-pytorch, ``y = Re(C x) + D u``, also in both directions.

    A bidirectional layer is one system whose outputs are those of both directions, reduced together: the layer's
    error is at most sqrt(2) times the bound of that system.

    The system is that of ``step_scale=1``, and so are Hankel singular values and bounds. At another scale the poles are
    powers of these and a reduced layer may differ from the full one by more than the bound: one with discrete poles
    left of the imaginary axis has no half step of its own. Train and run at one scale, or compare the outputs at yours.
    """

    state_axes: ClassVar[Mapping[str, int]] = {"Lambda": 0, "log_step": 0, "B": 0, "C": 1}
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {"rates": ("Lambda",), "B": ("B",), "C": ("C",)}
    constants = ("D",)

    @classmethod
    def refusal(cls, layer: nn.Module) -> str:
        """Return why a layer is no plain diagonal system."""
        discretize = getattr(getattr(layer, "discretize", None), "__name__", "discretize_zoh")
        settings = {
            "liquid=True, whose poles move with the input": getattr(layer, "liquid", False),
            'bcInit="factorized", whose B and C are products': getattr(layer, "bcInit", "") == "factorized",
            "degree above 1, which raises the entries of B to a power": getattr(layer, "degree", 1) != 1,
            "a discretisation other than the zero-order hold": discretize != "discretize_zoh",
        }
        return ", ".join(what for what, is_so in settings.items() if is_so)

    def system(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the system in discrete time, by its rates, with the outputs of both directions."""
        C, D = torch.cat(tensors["C"].chunk(self._directions, dim=1)), tensors["D"].diag()
        D = torch.cat([D, *[torch.zeros_like(D)] * (self._directions - 1)])
        return *held(tensors["Lambda"], tensors["log_step"], tensors["B"]), C[None], D[None]

    def tensors(self, rates: Tensor, B: Tensor, C: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a system at given steps."""
        poles, B = not_held(rates, B, like["log_step"])
        return {"Lambda": poles, "B": as_pairs(B), "C": torch.cat(C[0].chunk(self._directions), dim=1)}

    @property
    def counts(self) -> Mapping[str, tuple[int, int]]:  # type: ignore[override]
        """C has the states of both directions."""
        return {"C": (0, self._directions)}

    def entries(self, name: str, kept: Array) -> Array:
        """Return the places of some states, in C for both directions."""
        turns = range(self._directions if name == "C" else 1)
        return np.concatenate([turn * self.states + kept for turn in turns])

    @property
    def _directions(self) -> int:
        return 2 if getattr(self.layer, "bidir", False) else 1


def held(poles: Tensor, log_step: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Return rates and B of a system whose input is held for a step of every state, from B in pairs."""
    rates = poles * log_step.exp()
    return rates[None], (held_input(poles, rates)[:, None] * as_complex(B.contiguous()))[None]


def not_held(rates: Tensor, B: Tensor, log_step: Tensor) -> tuple[Tensor, Tensor]:
    """Return poles and B in continuous time of a system whose input is held, the inverse of `held`."""
    poles = rates[0] / log_step.exp()
    return poles, B[0] / held_input(poles, rates[0])[:, None]
