"""How states lie in tensors, and the linear maps that a cut of a selective layer makes of them.

Along one axis a tensor is a row of blocks: entries that belong to no state, and entries of the states of every group,
which go into the states, out of them, or are their rates. A cut maps blocks: inputs by ``Ti``, outputs by ``T^T``,
rates by what a rotation makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np

from hankelred.checks import Array
from hankelred.selective import SelectiveReduction

Role = Literal[
    "fixed", "input", "output", "scaled_output", "input_gain", "output_gain", "state", "rate", "value", "value_gain"
]


class Block(NamedTuple):
    """Entries along the state axis of a tensor: `size` that belong to no state, or those of the states of all groups.

    ``"scaled_output"`` entries are divided by the square root of the number of states when the layer runs, gains
    multiply what a norm over the states makes of inputs or outputs, and ``"state"`` entries only go with their state.
    ``"value"`` entries are channels of the layer that it has as many of as states, in all groups the same ones stay;
    ``"value_gain"`` those that multiply what a norm makes of them, once for all groups.
    """

    role: Role
    size: int = 0


class Layout(NamedTuple):
    """The axis of a tensor that carries the states, and its blocks; interleaved if they are there for every group."""

    axis: int
    blocks: tuple[Block, ...]
    interleaved: bool = False

    def places(self, groups: int, states: int) -> list[tuple[Block, Array]]:
        """Return for every block where its entries lie on the axis, (groups or 1, width) indices."""
        widths = [block.size if block.role == "fixed" else states for block in self.blocks]
        rows = [groups if self.interleaved else _rows(block, groups) for block in self.blocks]
        if self.interleaved:
            offsets, strides = [0, *accumulate(widths)], [sum(widths)] * len(widths)
        else:
            offsets, strides = [0, *accumulate(map(int.__mul__, rows, widths))], widths
        return [
            (block, start + stride * np.arange(count)[:, None] + np.arange(width))
            for block, start, stride, count, width in zip(self.blocks, offsets, strides, rows, widths, strict=False)
        ]

    def counts(self, groups: int) -> tuple[int, int]:
        """Return how many entries on the axis belong to no state, and how many to each."""
        none, one = (sum(x.size for _, x in self.places(groups, states)) for states in (0, 1))
        return none, one - none


def _rows(block: Block, groups: int) -> int:
    """Return how often a block is there that is not interleaved."""
    return 1 if block.role in ("fixed", "value_gain") else groups


@dataclass(frozen=True, eq=False, repr=False)
class StateMap:
    """How the states of a layer become fewer, as a function of whatever tensors the layer has by then.

    Attributes
    ----------
    core : SelectiveReduction
        Bases for every group, or states that are kept, with the error predicted from the statistics.
    gains : tuple of float
        Factors that keep the size of inputs and outputs of the states, or of values, where norms run over them.
    values : (order,) int ndarray or None
        Channels that stay of those that a layer has as many of as states.
    """

    core: SelectiveReduction
    gains: tuple[float, float] = (1.0, 1.0)
    values: Array | None = None

    def __repr__(self) -> str:
        """Return the core's own."""
        return f"StateMap({self.core!r})"

    def pair(self, role: Role) -> tuple[Array, Array]:
        """Return ``X`` (groups, order, n), which maps entries of a role, and ``Y`` with ``X Y = I``."""
        T, Ti = self.core.T, self.core.Ti
        if role in ("value", "value_gain") and self.values is not None:
            chosen = np.broadcast_to(np.eye(T.shape[1])[self.values], Ti.shape)
            gain = self.gains[1] if role == "value_gain" else 1.0
            return gain * chosen, chosen.transpose(0, 2, 1) / gain
        if role in ("output", "scaled_output"):
            gain = (T.shape[2] / T.shape[1]) ** 0.5 if role == "scaled_output" else 1.0
            return gain * T.transpose(0, 2, 1), Ti.transpose(0, 2, 1) / gain
        if role in ("input_gain", "output_gain"):
            gain = self.gains[role == "output_gain"]
            return gain * Ti, T / gain
        return Ti, T

    @property
    def spread(self) -> float | None:
        """Root mean square of what rates differ from their mean over channels, relative to it, for a rotation."""
        return self.core.spread

    def mixing(self) -> Array:
        """Return the weights (n, order) by which new rates are means of old ones."""
        return self.core.T[0] * self.core.Ti[0].T


def mapped(array: Array, layout: Layout, matrices: Mapping[str, Array]) -> Array:
    """Return a tensor with its blocks mapped along the state axis; fixed entries stay."""
    groups, order, n = next(iter(matrices.values())).shape
    old, new = layout.places(groups, n), layout.places(groups, order)
    moved = np.moveaxis(array, layout.axis, 0)
    found = np.empty((sum(x.size for _, x in new), *moved.shape[1:]), np.result_type(array, np.float64))
    for (block, source), (_, target) in zip(old, new, strict=True):
        part = moved[source]
        if block.role != "fixed":
            part = matrices[block.role][: len(source)] @ part.reshape(*source.shape, -1)
        found[target] = part.reshape(*target.shape, *moved.shape[1:])
    return np.moveaxis(found, 0, layout.axis)
