"""Adapter of the linear recurrent unit: a diagonal system with real output, stored by logarithms.

``lam = exp(-exp(nu_log) + i exp(theta_log))``, ``x_t = lam x_{t-1} + exp(gamma_log) (B_re + i B_im) u_t`` and
``y_t = Re((C_re + i C_im) x_t) + D u_t``. Parameters are read in double precision before they are exponentiated:
rates, not poles, are the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import pi
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hankelred import DiagonalBank
from hankelred.checks import Array
from hankelred.errors import StabilityError

from .linear import LinearAdapter

# A positive real pole has phase 0, which the logarithm cannot hold. The floor moves the pole by 1e-12 of itself,
# below double precision of most rates, and keeps it there: the gradient of theta_log is theta times that of theta.
THETA_FLOOR = 1e-12


class LRUAdapter(LinearAdapter):
    """Adapter of `hankelred_torch.layers.LRU` and of layers with the same tensors.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> adapter = ht.find_ssm_layers(ht.layers.LRU(channels=2, states=8))[""]
    >>> type(adapter) is ht.adapters.LRUAdapter, adapter.states
    (True, 8)
    """

    state_axes: ClassVar[Mapping[str, int]] = {
        "nu_log": 0,
        "theta_log": 0,
        "gamma_log": 0,
        "B_re": 0,
        "B_im": 0,
        "C_re": 1,
        "C_im": 1,
    }
    parts: ClassVar = {"rates": ("nu_log", "theta_log"), "B": ("B_re", "B_im"), "C": ("C_re", "C_im")}
    constants = ("D",)

    def system(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the system ``(lam, gamma B, C, diag(D))`` by its rates."""
        rates = torch.complex(-tensors["nu_log"].exp(), tensors["theta_log"].exp())
        B = tensors["gamma_log"].exp()[:, None] * torch.complex(tensors["B_re"], tensors["B_im"])
        return rates[None], B[None], torch.complex(tensors["C_re"], tensors["C_im"])[None], tensors["D"].diag()[None]

    def tensors(self, rates: Tensor, B: Tensor, C: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a system, phases in (0, 2 pi] or beyond."""
        phase = torch.where(rates.imag < 0, rates.imag % (2 * pi), rates.imag)[0]
        phase = torch.where(phase < THETA_FLOOR, THETA_FLOOR, phase)
        B = B[0] / like["gamma_log"].exp()[:, None]
        matrices = {"B_re": B.real, "B_im": B.imag, "C_re": C[0].real, "C_im": C[0].imag}
        return {"nu_log": (-rates[0].real).log(), "theta_log": phase.log()} | matrices

    def normal(self, rates: Tensor) -> dict[str, Tensor]:
        """Return gamma as at initialisation, ``sqrt(1 - |lam|^2)``, which normalises the state to a white input."""
        return {"gamma_log": (-torch.expm1(2 * rates[0].real)).log() / 2}

    def bank(self, values: Mapping[str, Array]) -> DiagonalBank:
        """Return the system, unless a pole has come to lie on the unit circle."""
        if np.any(np.exp(np.minimum(values["nu_log"], 0)) == 0):
            raise StabilityError(
                f"nu_log must be above -745, where exp(nu_log) is 0 and |lam| is 1; got {values['nu_log'].min():.4g}."
            )
        return super().bank(values)
