"""States of selective layers, some steps and channels at a time.

Mamba and its relatives have n states in each of hundreds of channels at every step. Nothing here makes an array of
shape (batch, length, channels, n): states come in pieces that fit the cache, and are gone when the next piece comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..linalg.compiled import Kernels

kernels = Kernels("hankelred.selective._kernels")
from ..checks import Array
from ..errors import InputError, StabilityError
from .gramians import check_finite, pieces

# States in a piece: with decays and states in single precision half a megabyte.
PIECE_STATES = 2**16

# Channels handled at a time.
WIDTH = 256


class Piece(NamedTuple):
    """Decays (steps, n or 1, width or 1), inputs (steps, width) and states (steps, n, width) of some channels."""

    row: int
    steps: slice
    channels: slice
    decay: Array
    v: Array
    h: Array


class Sequences(NamedTuple):
    """Checked data of a selective layer, ``h_t = decay_t h_{t-1} + v_t B_t`` in every channel.

    `decay` maps a row, steps and channels to (steps, n or 1, width or 1); `v` is (batch, length, channels), `B` and
    `C` are (batch, length, groups, n), `gate` is as `v` or None. The channels of a group stand side by side.
    """

    decay: Callable[[int, slice, slice], Array]
    v: Array
    B: Array
    C: Array
    gate: Array | None

    @property
    def group_width(self) -> int:
        """Return the channels in a group."""
        return self.v.shape[2] // self.B.shape[2]


def mamba_sequences(
    delta: ArrayLike, A: ArrayLike, B: ArrayLike, C: ArrayLike, u: ArrayLike, gate: ArrayLike | None
) -> Sequences:
    """Check the data of a Mamba layer: ``decay = exp(delta A)`` for every channel, ``v = delta u``, one group."""
    delta, A, B, C, u = (real(x, name) for x, name in zip((delta, A, B, C, u), "delta A B C u".split(), strict=True))
    n = A.shape[-1]
    if delta.ndim != 3 or u.shape != delta.shape or A.shape != (delta.shape[2], n) or 0 in delta.shape + A.shape:
        raise InputError(
            f"delta and u must be (batch, length, channels) and A (channels, n); got {delta.shape}, {u.shape} and "
            f"{A.shape}."
        )
    if B.shape != (*delta.shape[:2], n) or C.shape != B.shape:
        raise InputError(f"B and C must be (batch, length, n) = {(*delta.shape[:2], n)}; got {B.shape} and {C.shape}.")
    if not np.all(A <= 0):
        raise StabilityError(f"A must hold rates that are not positive; got {A.max():.3g}. Mamba's are -exp(A_log).")
    dtype = np.result_type(delta, A, B, C, u)
    delta, rates = delta.astype(dtype, copy=False), np.ascontiguousarray(A.T, dtype)

    def decay(row: int, steps: slice, channels: slice) -> Array:
        return np.exp(delta[row, steps, None, channels] * rates[:, channels])

    v = delta * u.astype(dtype, copy=False)
    B, C = (x.astype(dtype, copy=False)[:, :, None] for x in (B, C))
    return Sequences(decay, v, B, C, check_gate(gate, v))


def head_sequences(decay: ArrayLike, B: ArrayLike, C: ArrayLike, x: ArrayLike, gate: ArrayLike | None) -> Sequences:
    """Check the data of layers of heads: one decay per head, or one per head and state; B and C per group of heads."""
    decay, B, C, x = (real(y, name) for y, name in zip((decay, B, C, x), "decay B C x".split(), strict=True))
    if x.ndim != 4 or decay.ndim not in (3, 4) or decay.shape[:3] != x.shape[:3] or 0 in x.shape:
        raise InputError(
            f"x must be (batch, length, heads, head_dim) and decay (batch, length, heads) or (..., n); got "
            f"{x.shape} and {decay.shape}."
        )
    batch, length, heads, size = x.shape
    if B.ndim != 4 or B.shape != C.shape or B.shape[:2] != x.shape[:2] or 0 in B.shape or heads % B.shape[2]:
        raise InputError(
            f"B and C must be (batch, length, groups, n), with groups that divide the {heads} heads; got {B.shape} and "
            f"{C.shape} for x {x.shape}."
        )
    if decay.ndim == 4 and decay.shape[3] != B.shape[3]:
        raise InputError(f"decay must have one entry for each of the {B.shape[3]} states; got shape {decay.shape}.")
    if not np.all(np.abs(decay) <= 1):
        raise StabilityError(
            f"decay must be at most 1 in modulus; got {np.abs(decay).max():.6g}. Pass exp(delta A), not delta A."
        )
    dtype = np.result_type(decay, B, C, x)
    decay, v = decay.astype(dtype, copy=False), x.astype(dtype, copy=False).reshape(batch, length, heads * size)

    def of_channels(row: int, steps: slice, channels: slice) -> Array:
        head = slice(channels.start // size, (channels.stop - 1) // size + 1)
        found = decay[row, steps, head]
        found = found[:, None] if found.ndim == 2 else found.transpose(0, 2, 1)
        if found.shape[2] == 1:
            return found
        return np.repeat(found, size, axis=2)[:, :, channels.start - head.start * size :][:, :, : _width(channels)]

    if gate is not None:
        gate = np.reshape(gate, v.shape) if np.shape(gate) == x.shape else gate
    return Sequences(
        of_channels, v, B.astype(dtype, copy=False), C.astype(dtype, copy=False), check_gate(gate, v, x.shape)
    )


def real(x: ArrayLike, name: str) -> Array:
    """Return x as a finite real array."""
    array = check_finite(x, name)
    if array.dtype.kind == "c":
        raise InputError(f"{name} must be real; got {array.dtype}. Complex steps are for SelectiveStatistics.update.")
    return array


def check_gate(gate: ArrayLike | None, v: Array, shape: tuple[int, ...] | None = None) -> Array | None:
    """Return the weights of the outputs in the shape and precision of the inputs v."""
    if gate is None:
        return None
    checked = real(gate, "gate").astype(v.dtype, copy=False)
    if checked.shape != v.shape:
        raise InputError(f"gate must have the shape of the inputs, {shape or v.shape}; got {checked.shape}.")
    return checked


def state_pieces(data: Sequences) -> Iterator[tuple[int, Piece]]:
    """Yield all pieces of all sequences with the group they belong to, in an order that carries states along."""
    groups, n = data.B.shape[2:]
    for group in range(groups):
        first = group * data.group_width
        for block in pieces(data.group_width, WIDTH):
            channels = slice(first + block.start, first + block.stop)
            size = max(1, min(64, PIECE_STATES // (n * _width(channels))))
            for row in range(len(data.v)):
                yield from ((group, piece) for piece in _pieces_of_row(data, row, group, channels, size))


def _pieces_of_row(data: Sequences, row: int, group: int, channels: slice, size: int) -> Iterator[Piece]:
    n, length = data.B.shape[3], data.v.shape[1]
    h = np.zeros((min(size, length) + 1, n, _width(channels)), data.v.dtype)
    for steps in pieces(length, size):
        v, count = data.v[row, steps, channels], steps.stop - steps.start
        decay = data.decay(row, steps, channels)
        kernels.states_of_channels(decay, v, data.B[row, steps, group], h[: count + 1])
        yield Piece(row, steps, channels, decay, v, h[1 : count + 1])
        h[0] = h[count]


def outputs(data: Sequences) -> Array:
    """Return ``C_t . h_t``, (batch, length, channels)."""
    y = np.empty_like(data.v)
    for group, piece in state_pieces(data):
        c = data.C[piece.row, piece.steps, group]
        y[piece.row, piece.steps, piece.channels] = np.matmul(c[:, None], piece.h)[:, 0]
    return y


def _width(channels: slice) -> int:
    return channels.stop - channels.start
