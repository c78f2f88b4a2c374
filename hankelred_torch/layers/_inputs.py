"""What the layers share at their border: checks of sizes, sequences and states, and the precision they compute in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hankelred.checks import check_integer
from hankelred.errors import InputError

from ..ops._operator import NUMBERS, REAL, described, is_dense

INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
LARGEST = 2**31 - 1  # size: beyond it torch has no error of its own but overflows


def in_single(*parameters: Tensor) -> list[Tensor]:
    """Return parameters in single precision at least: there are no complex matrices below it."""
    return [p.to(torch.promote_types(p.dtype, torch.float32)) for p in parameters]


def check_size(value: Any, name: str, least: int = 1) -> Any:
    """Return a size of a tensor as an int."""
    if isinstance(value, torch.SymInt):
        return value
    size = check_integer(value, name, least)
    if size > LARGEST:
        raise InputError(f"{name} must be at most {LARGEST}; got {size}.")
    return size


def check_sequences(u: Tensor, channels: int, like: Tensor) -> None:
    """Raise unless the input of `forward` fits the layer, of whose parameters one is `like`."""
    _check(u, 3, "(batch, length, channels)", channels, like)


def check_step(u: Tensor, state: Tensor, channels: int, shape: tuple[int, ...], axes: str, like: Tensor) -> None:
    """Raise unless the input and the state of `step` fit the layer; `shape` is that of a state without its batch."""
    _check(u, 2, "(batch, channels)", channels, like)
    if not is_dense(state, NUMBERS) or state.shape != (len(u), *shape) or state.device != like.device:
        where = f" on {state.device}" if isinstance(state, Tensor) else ""
        raise InputError(
            f"state must be (batch, {axes}), here {(len(u), *shape)} for u {tuple(u.shape)}, on {like.device}; got "
            f"{described(state)}{where}. Start from initial_state again where the layer was reduced."
        )


def _check(u: Tensor, axes: int, shape: str, channels: int, like: Tensor) -> None:
    if not is_dense(u, REAL + INTEGERS) or u.ndim != axes or u.shape[-1] != channels:
        raise InputError(f"u must be real with shape {shape} and {channels} channels; got {described(u)}.")
    if u.device != like.device:
        raise InputError(f"u must be on the device of the layer, {like.device}; got one on {u.device}.")
