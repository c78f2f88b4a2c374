"""States of selective layers, some steps and channels at a time.

Mamba and its relatives have n states in each of hundreds of channels at every step. Nothing here makes an array of
shape (batch, length, channels, n): states come in pieces that fit the cache, and are gone when the next piece comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..checks import Array
from ..linalg.compiled import Kernels
from .data import Sequences

kernels = Kernels("hankelred.selective._kernels")

# Steps of one sequence handled at a time: memory does not grow with its length.
PIECE = 512

# States in a piece of many channels: with decays and states in single precision half a megabyte.
PIECE_STATES = 2**16

# Channels handled at a time.
WIDTH = 256


class Piece(NamedTuple):
    """Decays (steps, n or 1, width or 1), inputs (steps, width) and states (steps, n, width) of some channels."""

    group: int
    row: int
    steps: slice
    channels: slice
    decay: Array
    v: Array
    h: Array


def pieces(length: int, size: int = PIECE) -> Iterator[slice]:
    """Yield the slices of a sequence that are handled at a time."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def state_pieces(data: Sequences) -> Iterator[Piece]:
    """Yield all pieces of all sequences, in an order that carries states along."""
    groups, n = data.B.shape[2:]
    for group in range(groups):
        first = group * data.group_width
        for block in pieces(data.group_width, WIDTH):
            channels = slice(first + block.start, first + block.stop)
            size = max(1, min(64, PIECE_STATES // (n * (block.stop - block.start))))
            for row in range(len(data.v)):
                yield from _pieces_of_row(data, group, row, channels, size)


def _pieces_of_row(data: Sequences, group: int, row: int, channels: slice, size: int) -> Iterator[Piece]:
    n, length = data.B.shape[3], data.v.shape[1]
    h = np.zeros((min(size, length) + 1, n, channels.stop - channels.start), data.v.dtype)
    for steps in pieces(length, size):
        v, count = data.v[row, steps, channels], steps.stop - steps.start
        decay = data.decay(row, steps, channels)
        kernels.states_of_channels(decay, v, data.B[row, steps, group], h[: count + 1])
        yield Piece(group, row, steps, channels, decay, v, h[1 : count + 1])
        h[0] = h[count]


def outputs(data: Sequences) -> Array:
    """Return ``C_t . h_t``, (batch, length, channels)."""
    y = np.empty_like(data.v)
    for piece in state_pieces(data):
        c = data.C[piece.row, piece.steps, piece.group]
        y[piece.row, piece.steps, piece.channels] = np.matmul(c[:, None], piece.h)[:, 0]
    return y
