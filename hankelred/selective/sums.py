"""The running sums behind `SelectiveStatistics`, each an array with the groups of channels first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ..checks import Array, double
from ..errors import InputError
from ..linalg.compiled import Kernels
from .averages import gramian_sums, moment_sums
from .data import Sequences, Steps
from .states import Piece, pieces, state_pieces

kernels = Kernels("hankelred.selective._kernels")

# Sums always kept: of decays, increments, increments per unit of input and output rows, and of h h^H, conj(c) c^T and
# conj(c h) (c h)^T; then second moments of the steps, Gramians and what a delta rule takes, kept where asked for.
VECTORS = ("a", "b", "B", "c")
COVARIANCES = ("hh", "cc", "M")
MOMENTS = ("aa", "bb", "ab", "acac")
GRAMIANS = ("P", "Q")
DELTA = ("rates", "kk", "reads", "noise", "first")

Sums = dict[str, Array]


# What is summed up where it is asked for, by the flag that asks.
OPTIONAL = {"moments": MOMENTS, "exact": GRAMIANS, "delta": DELTA}


def asked_for(sums: Iterable[str]) -> dict[str, bool]:
    """Return the flags behind the names of sums."""
    given = set(sums)
    return {flag: names[0] in given for flag, names in OPTIONAL.items()}


def shapes_of_sums(n: int, groups: int, flags: Mapping[str, bool]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the sums by their names."""
    squares = (*COVARIANCES, *(name for flag, names in OPTIONAL.items() if flags[flag] for name in names))
    each = {"rates": (), **dict.fromkeys(VECTORS, (n,))}
    return {name: (groups, *each.get(name, (n, n))) for name in (*VECTORS, *squares)}


def empty_sums(n: int, groups: int, flags: Mapping[str, bool]) -> Sums:
    """Return the sums over nothing."""
    try:
        return {name: np.zeros(shape) for name, shape in shapes_of_sums(n, groups, flags).items()}
    except (MemoryError, ValueError) as error:
        raise InputError(
            f"n and groups must make sums that memory holds, each of groups n^2 numbers; got n={n}, groups={groups}."
        ) from error


def add_steps(sums: Sums, group: int, steps: Steps, every: int) -> None:
    """Add every `every`-th step of sequences (batch, length, n) of one channel, real or complex."""
    taken = Steps(*(x[:, every - 1 :: every] for x in steps))
    a, b, c = (double(x).sum(axis=(0, 1)) for x in taken)
    found = {"a": a, "b": b, "B": b, "c": c, **dict(zip(COVARIANCES, _covariance_sums(steps, every), strict=True))}
    if "P" in sums:
        found.update(zip(GRAMIANS, gramian_sums(steps), strict=True))
    if "aa" in sums:
        moments = moment_sums(taken)._asdict()
        found.update((name, moments[name]) for name in MOMENTS)
    for name, value in found.items():
        _add(sums, name, group, value)


def add_sequences(sums: Sums, data: Sequences, delta: Array | None, every: int) -> None:
    """Add every `every`-th step of many channels; delta, where given, is the increment per unit of input and of B."""
    n, groups = data.B.shape[3], data.B.shape[2]
    for piece in state_pieces(data):
        _add_piece(sums, data, piece, every)
    taken = slice(every - 1, None, every)
    v = double(data.v[:, taken]).reshape(-1, groups, data.group_width)
    per_unit = np.ones_like(v) if delta is None else double(delta[:, taken]).reshape(v.shape)
    for group in range(groups):
        B, C = (double(x[:, taken, group]).reshape(-1, n) for x in (data.B, data.C))
        _add(sums, "b", group, v[:, group].sum(axis=1) @ B)
        _add(sums, "B", group, per_unit[:, group].sum(axis=1) @ B)
        _add(sums, "c", group, C.sum(axis=0))
        _add(sums, "cc", group, C.T @ C)
        if "aa" in sums:
            _add(sums, "bb", group, (B.T * (v[:, group] ** 2).sum(axis=1)) @ B)
    if "P" in sums:
        _add_gramians(sums, data)


def _add(sums: Sums, name: str, group: int, value: Array) -> None:
    if value.dtype.kind == "c" and sums[name].dtype.kind != "c":
        sums[name] = sums[name].astype(np.complex128)
    sums[name][group] += value


def _add_piece(sums: Sums, data: Sequences, piece: Piece, every: int) -> None:
    """Add what takes the states or decays of all channels: one product of matrices for each step."""
    group = piece.group
    steps = slice(piece.steps.start + -(piece.steps.start + 1) % every, piece.steps.stop, every)
    taken = slice(steps.start - piece.steps.start, None, every)
    c, h = double(data.C[piece.row, steps, group]), piece.h[taken]
    if data.gate is not None:
        h = h * data.gate[piece.row, steps, None, piece.channels]
    kernels.add_forms(np.matmul(h, h.transpose(0, 2, 1)), c, sums["hh"][group], sums["M"][group])
    decay = np.broadcast_to(piece.decay[taken], h.shape)
    _add(sums, "a", group, decay.sum(axis=(0, 2), dtype=np.float64))
    if "aa" in sums:
        decay = np.ascontiguousarray(decay)
        kernels.add_forms(np.matmul(decay, decay.transpose(0, 2, 1)), c, sums["aa"][group], sums["acac"][group])
        B = double(data.B[piece.row, steps, group])
        _add(sums, "ab", group, double(np.matmul(decay, piece.v[taken, :, None])[:, :, 0]).T @ B)


def _add_gramians(sums: Sums, data: Sequences) -> None:
    """Run the Gramian recursions of every channel of every sequence."""
    batch, _, channels = data.v.shape
    for row in range(batch):
        for k in range(channels):
            group = k // data.group_width
            B, C = (double(x[row, :, group]) for x in (data.B, data.C))
            a = np.broadcast_to(data.decay(row, slice(None), slice(k, k + 1))[:, :, 0], B.shape)
            b = B * double(data.v[row, :, k, None])
            for name, value in zip(GRAMIANS, gramian_sums(Steps(a[None], b[None], C[None])), strict=True):
                _add(sums, name, group, value)


def _covariance_sums(data: Steps, every: int) -> Array:
    """Return the sums of ``h h^H``, ``conj(c) c^T`` and ``conj(c h) (c h)^T`` over sequences of one channel."""
    (a, b, c), (batch, length, n) = data, data.a.shape
    dtype = np.result_type(np.float64, a, b, c)
    hh, cc, M = total = np.zeros((3, n, n), dtype)
    for row in range(batch):
        carry = np.zeros(n, dtype)
        for steps in pieces(length):
            h = np.empty((steps.stop - steps.start + 1, n), dtype)
            h[0] = carry
            decay, v = a[row, steps, :, None].astype(dtype), np.ones((len(h) - 1, 1))
            kernels.states_of_channels(decay, v, b[row, steps].astype(dtype), h[:, :, None])
            first = -(steps.start + 1) % every
            carry, h, ct = h[-1], h[1 + first :: every], c[row, steps][first::every].astype(dtype)
            seen = ct * h
            hh += h.T @ h.conj()
            cc += ct.conj().T @ ct
            M += seen.conj().T @ seen
    return total
