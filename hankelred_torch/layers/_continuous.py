"""What layers in continuous time share: the zero-order hold, and where their steps start."""

from __future__ import annotations

import torch
from torch import Tensor

# Steps of layers in continuous time start log-uniformly between these, as published for S4D and S5 alike.
DT_MIN, DT_MAX = 1e-3, 1e-1


def held_input(poles: Tensor, rates: Tensor) -> Tensor:
    """Return ``expm1(rates) / poles``, the factor by which a zero-order hold multiplies the input matrix.

    The real part of expm1 is summed from terms that do not cancel for slow poles: torch has no complex expm1.
    """
    half = torch.sin(rates.imag / 2)
    decay = torch.expm1(rates.real)
    real = decay * torch.cos(rates.imag) - 2 * half * half
    return torch.complex(real, (decay + 1) * torch.sin(rates.imag)) / poles
