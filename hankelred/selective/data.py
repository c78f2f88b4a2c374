"""Checked data of selective layers: what a layer computes from its inputs, whatever the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..checks import Array, check_array, check_real_array
from ..errors import InputError, StabilityError

# Said where a number grows too large.
SCALE = "Scale the data, or pass them in double precision."

# Maps a row, steps and channels to decays, (steps, n or 1, width or 1).
Decay = Callable[[int, slice, slice], Array]


class Steps(NamedTuple):
    """Decays, increments, output rows (..., batch, length, n): ``h_t = a_t h_{t-1} + b_t``, ``y_t = c_t . h_t``."""

    a: Array
    b: Array
    c: Array


class Sequences(NamedTuple):
    """Data of a layer of many channels, ``h_t = decay_t h_{t-1} + v_t B_t`` in each.

    `v` is (batch, length, channels), `B` and `C` are (batch, length, groups, n), `gate` is as `v` or None. The channels
    of a group stand side by side.
    """

    decay: Decay
    v: Array
    B: Array
    C: Array
    gate: Array | None

    @property
    def group_width(self) -> int:
        """Return the channels in a group."""
        return self.v.shape[2] // self.B.shape[2]


def check_steps(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> Steps:
    """Return decays, increments and output rows of one shape (..., batch, length, n), finite."""
    steps = Steps(*(check_array(x, name, None, copy=False) for x, name in ((a, "a"), (b, "b"), (c, "c"))))
    shapes = [x.shape for x in steps]
    if len(set(shapes)) != 1 or len(shapes[0]) < 3 or 0 in shapes[0]:
        raise InputError(
            f"a, b and c must have one shape (..., batch, length, n) without empty axes; got {shapes[0]}, {shapes[1]} "
            f"and {shapes[2]}. Use numpy.broadcast_to for what does not change."
        )
    return steps


def check_rates(A: Array) -> Array:
    """Return rates of a Mamba layer, none of them positive."""
    if not np.all(A <= 0):
        raise StabilityError(f"A must hold rates that are not positive; got {A.max():.3g}. Mamba's are -exp(A_log).")
    return A


def mamba_sequences(
    delta: ArrayLike, A: ArrayLike, B: ArrayLike, C: ArrayLike, u: ArrayLike, gate: ArrayLike | None
) -> tuple[Sequences, Array]:
    """Check the data of a Mamba layer: ``decay = exp(delta A)`` for every channel, ``v = delta u``, one group.

    Also returns delta, the increment per unit of input.
    """
    named = {"delta": delta, "A": A, "B": B, "C": C, "u": u}
    delta, A, B, C, u = (check_real_array(x, name, None, copy=False) for name, x in named.items())
    n = A.shape[-1] if A.ndim else 0
    if delta.ndim != 3 or u.shape != delta.shape or A.shape != (delta.shape[2], n) or 0 in delta.shape + A.shape:
        raise InputError(
            f"delta and u must be (batch, length, channels) and A (channels, n), without empty axes; got "
            f"{delta.shape}, {u.shape} and {A.shape}."
        )
    if B.shape != (*delta.shape[:2], n) or C.shape != B.shape:
        raise InputError(f"B and C must be (batch, length, n) = {(*delta.shape[:2], n)}; got {B.shape} and {C.shape}.")
    check_rates(A)
    dtype = np.result_type(delta, A, B, C, u)
    step = delta.astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        v = step * u.astype(dtype, copy=False)
    B, C = (x.astype(dtype, copy=False)[:, :, None] for x in (B, C))
    return Sequences(mamba_decay(step, A), v, B, C, _check_gate(gate, v, v.shape, "u")), step


def mamba_decay(step: Array, A: Array) -> Decay:
    """Return ``exp(step A)``, never at once for all."""
    rates = np.ascontiguousarray(A.T, step.dtype)

    def decay(row: int, steps: slice, channels: slice) -> Array:
        return np.exp(step[row, steps, None, channels] * rates[:, channels])

    return decay


def head_sequences(decay: ArrayLike, B: ArrayLike, C: ArrayLike, x: ArrayLike, gate: ArrayLike | None) -> Sequences:
    """Check the data of layers of heads: one decay per head, or one per head and state; B and C per group of heads."""
    named = {"decay": decay, "B": B, "C": C, "x": x}
    decay, B, C, x = (check_real_array(y, name, None, copy=False) for name, y in named.items())
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
    factors, v = decay.astype(dtype, copy=False), x.astype(dtype, copy=False).reshape(batch, length, heads * size)

    def of_channels(row: int, steps: slice, channels: slice) -> Array:
        head = slice(channels.start // size, (channels.stop - 1) // size + 1)
        found = factors[row, steps, head]
        found = found[:, None] if found.ndim == 2 else found.transpose(0, 2, 1)
        if found.shape[2] == 1:
            return found
        width, first = channels.stop - channels.start, channels.start - head.start * size
        return np.repeat(found, size, axis=2)[:, :, first : first + width]

    B, C = (y.astype(dtype, copy=False) for y in (B, C))
    return Sequences(of_channels, v, B, C, _check_gate(gate, v, x.shape, "x"))


def _check_gate(gate: ArrayLike | None, v: Array, shape: tuple[int, ...], name: str) -> Array | None:
    """Return the weights of the outputs in the shape and precision of the inputs v, given in that shape or another."""
    if gate is None:
        return None
    checked = check_real_array(gate, "gate", None, copy=False)
    if checked.shape not in (shape, v.shape):
        raise InputError(f"gate must have the shape of the inputs {name}, {shape}; got {checked.shape}.")
    with np.errstate(over="ignore"):
        return checked.reshape(v.shape).astype(v.dtype, copy=False)
