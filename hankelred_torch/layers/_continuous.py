"""What layers in continuous time share: the zero-order hold, their checks, and the precision they compute in."""

from __future__ import annotations

import torch
from torch import Tensor

from hankelred.errors import InputError

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


def in_single(*parameters: Tensor) -> list[Tensor]:
    """Return parameters in single precision at least: there are no complex matrices below it."""
    return [p.to(torch.promote_types(p.dtype, torch.float32)) for p in parameters]


def check_sequences(u: Tensor, channels: int) -> None:
    """Raise unless the input of `forward` fits the layer."""
    _check(u, 3, "(batch, length, channels)", channels)


def check_step(u: Tensor, state: Tensor, channels: int, shape: tuple[int, ...], axes: str) -> None:
    """Raise unless the input and the state of `step` fit the layer; `shape` is that of a state without its batch."""
    _check(u, 2, "(batch, channels)", channels)
    if state.shape != (len(u), *shape):
        raise InputError(
            f"state must be (batch, {axes}), here {(len(u), *shape)}; got {tuple(state.shape)}. "
            f"Start from initial_state again where the layer was reduced."
        )


def _check(u: Tensor, axes: int, shape: str, channels: int) -> None:
    if u.ndim != axes or u.shape[-1] != channels or u.is_complex():
        raise InputError(
            f"u must be real with shape {shape} and {channels} channels; got {u.dtype} of shape {tuple(u.shape)}."
        )
