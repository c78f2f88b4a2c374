"""How states lie in tensors, and the linear maps that a cut of a selective layer makes of them.

Along one axis a tensor is a row of blocks: entries that belong to no state, and entries of the states of every group,
which go into the states, out of them, or are their rates. A cut maps blocks: inputs by ``Ti``, outputs by ``T^T``,
rates by what a rotation makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from hankelred.checks import Array
from hankelred.selective import SelectiveReduction

Role = Literal["fixed", "input", "output", "scaled_output", "input_gain", "output_gain", "state", "rate"]


class Block(NamedTuple):
    """Entries along the state axis of a tensor: `size` that belong to no state, or those of the states of all groups.

    ``"scaled_output"`` entries are divided by the square root of the number of states when the layer runs, gains
    multiply what a norm over the states makes of inputs or outputs, and ``"state"`` entries only go with their state.
    """

    role: Role
    size: int = 0


class Layout(NamedTuple):
    """The axis of a tensor that carries the states, and its blocks."""

    axis: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True, eq=False, repr=False)
class StateMap:
    """How the states of a layer become fewer, as a function of whatever tensors the layer has by then.

    Attributes
    ----------
    core : SelectiveReduction
        Bases for every group, or states that are kept, with the error predicted from the statistics.
    gains : tuple of float
        Factors that keep the size of inputs and outputs of the states where norms run over them.
    """

    core: SelectiveReduction
    gains: tuple[float, float] = (1.0, 1.0)

    def __repr__(self) -> str:
        """Return the core's own."""
        return f"StateMap({self.core!r})"

    def pair(self, role: Role) -> tuple[Array, Array]:
        """Return ``X`` (groups, order, n), which maps entries of a role, and ``Y`` with ``X Y = I``."""
        T, Ti = self.core.T, self.core.Ti
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
    moved, parts, start = np.moveaxis(array, layout.axis, 0), [], 0
    for block in layout.blocks:
        if block.role == "fixed":
            parts.append(moved[start : start + block.size])
            start += block.size
            continue
        X = matrices[block.role]
        groups, order, n = X.shape
        part = moved[start : start + groups * n].reshape(groups, n, -1)
        parts.append((X @ part).reshape(groups * order, *moved.shape[1:]))
        start += groups * n
    return np.moveaxis(np.concatenate(parts), 0, layout.axis)
