"""What the layers share at their border: checks of sequences and states, and the precision they compute in."""

from __future__ import annotations

import torch
from torch import Tensor

from hankelred.errors import InputError


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
