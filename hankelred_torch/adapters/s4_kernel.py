"""Adapter of the diagonal kernels of the repository state-spaces/s4: a bank with input and output matrix, per channel.

``y = 2 Re(C x)`` with ``x' = A x + B u``; u is held for the step of the channel. The repository is no package: its
kernels are known by the name of their class and by their tensors.

With `n_ssm` below the number of channels, channels share A and B, each with a step and an output matrix of its own. No
system in discrete time is common to them; they are one system with several outputs in continuous time, reduced as that.
Its bound holds for the difference before the hold, as long as inputs are slow against the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch import view_as_complex as as_complex
from torch import view_as_real as as_pairs
from torch.nn.functional import softplus

from ..layers._continuous import held_input
from .linear import LinearAdapter


class SSMKernelDiagAdapter(LinearAdapter):
    """Adapter of ``SSMKernelDiag``: a bank of systems, or of systems in continuous time that channels share."""

    state_axes: ClassVar[Mapping[str, int]] = {"A_real": 1, "A_imag": 1, "B": 2, "C": 2}
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {"rates": ("A_real", "A_imag"), "B": ("B",), "C": ("C",)}
    constants = ("inv_dt",)
    is_bank = True

    @classmethod
    def refusal(cls, layer: nn.Module) -> str:
        """Return why a kernel is not a bank of systems held for one step each."""
        shape = tuple(getattr(getattr(layer, "inv_dt", None), "shape", ()))
        settings = {
            'disc other than "zoh"': getattr(layer, "disc", "zoh") != "zoh",
            'real_transform other than "exp" or "none"': _setting(layer, "real") not in ("exp", "none"),
            'imag_transform other than "none"': getattr(layer, "imag_transform", "none") != "none",
            'dt_transform other than "exp" or "softplus"': _setting(layer, "dt") not in ("exp", "softplus"),
            "dt_fast=True": bool(getattr(layer, "dt_fast", False)),
            "a bandlimit, which removes states step by step": getattr(layer, "bandlimit", None) is not None,
            "is_real=True, whose states are real": bool(getattr(layer, "is_real", False)),
            "a step for every state": shape[1:] != (1,),
        }
        return ", ".join(what for what, is_so in settings.items() if is_so)

    @property
    def dt(self) -> float | bool:
        """True, or 0 where channels share their poles."""
        return True if self.tensor("A_real").shape[0] == self.tensor("inv_dt").shape[0] else 0

    def sizes(self, states: int) -> dict[str, int]:
        """Return the kernel's record of its states."""
        return {"N": states}

    def system(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the channels in discrete time, the hold in B; those that share poles together, in continuous time."""
        decay = tensors["A_real"].exp() if _setting(self.layer, "real") == "exp" else tensors["A_real"]
        rates, hold = self._held(torch.complex(-decay, -tensors["A_imag"]), tensors)
        C = as_complex(tensors["C"].contiguous())  # (p, v s, n): channels v s + i share the poles i of s
        C = C.unflatten(1, (-1, len(rates))).permute(2, 1, 0, 3).flatten(1, 2)
        return rates, (hold * as_complex(tensors["B"].contiguous())[0])[..., None], 2 * C

    def tensors(self, rates: Tensor, B: Tensor, C: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a bank, at the steps that the layer has."""
        poles = rates if self.dt == 0 else rates / self._step(like)
        _, hold = self._held(poles, like)
        stored = torch.log if _setting(self.layer, "real") == "exp" else torch.clone
        C = C.unflatten(1, (-1, self.tensor("C").shape[0])).permute(2, 1, 0, 3).flatten(1, 2) / 2
        B = B[None, ..., 0] / hold
        return {"A_real": stored(-poles.real), "A_imag": -poles.imag, "B": as_pairs(B), "C": as_pairs(C)}

    def unshared(self) -> dict[str, Tensor]:
        """Return the poles and inputs of every channel by itself."""
        axes = {"A_real": 0, "A_imag": 0, "B": 1}
        channels, sharing = self.tensor("inv_dt").shape[0], self.tensor("A_real").shape[0]
        return {name: torch.cat([self.tensor(name)] * (channels // sharing), axis) for name, axis in axes.items()}

    def _held(self, poles: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return rates and the factor on B; in continuous time the poles, and 1."""
        if self.dt == 0:
            return poles, torch.ones_like(poles)
        rates = poles * self._step(tensors)
        return rates, held_input(poles, rates)

    def _step(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors["inv_dt"].exp() if _setting(self.layer, "dt") == "exp" else softplus(tensors["inv_dt"])


def _setting(layer: nn.Module, what: str) -> str:
    return getattr(layer, f"{what}_transform", "exp")
